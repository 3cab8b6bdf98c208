"""The trimmed network is torchvision's: same function, same training, same weights back."""

import copy

import pytest
import torch
from conftest import SMALL, read
from torch import nn
from torch.nn import functional as F
from torchvision import models

import train_resnet
from train_resnet import ARCHITECTURES, OPTIMIZERS, TrimmedConv2d, build_network, trim_dead_taps


@pytest.fixture(autouse=True)
def own_networks(monkeypatch):
    for name in ("mobilenet_v2", "resnext50_32x4d"):
        monkeypatch.setitem(ARCHITECTURES, name, getattr(models, name))


def pair(arch, size=28):
    """torchvision's network and the trimmed one, with equal weights, in training mode."""
    plain = build_network(arch, seed=0).double()
    plain.eval()(torch.zeros(1, 1, size, size).double())  # lazy layers learn their size
    return plain.train(), trim_dead_taps(copy.deepcopy(plain), size)


def trimmed_weights(network) -> dict[str, TrimmedConv2d]:
    """The convolution of each weight that is trimmed."""
    modules = network.named_modules()
    return {f"{name}.weight": m for name, m in modules if isinstance(m, TrimmedConv2d)}


@pytest.mark.parametrize(
    ("arch", "size", "count"),
    [
        ("resnet18", 28, 20), ("resnet34", 28, 36), ("resnet50", 28, 53), ("resnet18", 40, 20),
        ("resnet18", 64, 20), ("resnext50_32x4d", 28, 37),
    ],
)  # fmt: skip
def test_outputs_gradients_and_steps_are_equal_and_dead_taps_have_none(arch, size, count):
    """With so many convolutions trimmed."""
    plain, trimmed = pair(arch, size)
    images = torch.randn(4, 1, size, size, dtype=torch.float64)
    for training in (True, False):
        for network in (plain, trimmed):
            torch.manual_seed(0)  # of dropout
            network.logits = network.train(training)(images)
            F.cross_entropy(network.logits, torch.arange(4)).backward()
        torch.testing.assert_close(trimmed.logits, plain.logits, rtol=1e-9, atol=1e-9)
    convolutions = trimmed_weights(trimmed)
    assert len(convolutions) == count
    for name, parameter in plain.named_parameters():
        gradient, ours, kept = parameter.grad, trimmed.get_parameter(name), ...
        assert ours.is_contiguous() or name not in convolutions  # or fused optimizers copy it
        ours = ours.grad
        if conv := convolutions.get(name):
            ours, kept = conv.as_kernel(ours), conv.taps
        torch.testing.assert_close(ours, gradient[kept], rtol=1e-6, atol=1e-9)
        gradient[kept] = 0
        assert gradient.count_nonzero() == 0, name
        gradient[kept] = ours
    for make, own in OPTIMIZERS.values():
        for network in (plain, trimmed):
            make(network.parameters(), lr=1e-3, **dict.fromkeys(own, 0.9)).step()
    expected = plain.state_dict()
    for name, value in trimmed.state_dict().items():
        torch.testing.assert_close(value, expected[name], rtol=1e-9, atol=1e-9)


COSTS = {  # parameters, those that meet a pixel at 28x28, FLOPs of training
    "resnet18": (11_175_370, 4_228_554, 196_836_352),
    "resnet34": (21_283_530, 10_142_410, 416.7e6),
    "resnet50": (23_522_250, 18_017_226, 466.5e6),
}


@pytest.mark.parametrize("arch", COSTS)
def test_state_is_torchvisions_any_can_be_loaded_and_costs_are_the_published_ones(arch):
    plain, trimmed = pair(arch)
    expected, ours = plain.state_dict(), trimmed.state_dict()
    assert list(ours) == list(expected)
    assert all(ours[name].equal(expected[name]) for name in expected)
    other, images = build_network(arch, seed=1).double(), torch.rand(4, 1, 28, 28).double()
    trimmed.load_state_dict(other.state_dict())
    torch.testing.assert_close(trimmed(images), other(images), rtol=1e-9, atol=1e-9)
    sizes = [sum(each.numel() for each in network.parameters()) for network in (plain, trimmed)]
    assert (*sizes, train_resnet.training_flops(arch)) == pytest.approx(COSTS[arch], rel=1e-3)


@pytest.mark.parametrize("arch", ["resnet18", "mobilenet_v2", "resnext50_32x4d"])
def test_flops_are_those_of_three_passes_but_for_the_first_convolutions_inputs(arch):
    """In a grouped convolution each output sees the inputs of its group alone."""
    network, counts = build_network(arch, seed=0).eval(), []

    def count(module, inputs, output):
        counts.append(2 * output.numel() * module.weight[0].numel())

    for module in network.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            module.register_forward_hook(count)
    network(torch.ones(1, 1, 28, 28))
    assert train_resnet.training_flops(arch) == 3 * sum(counts) - counts[0]


def test_a_network_of_ones_own_trains(run, tmp_path):
    assert run(train_resnet, *SMALL, "--arch", "mobilenet_v2", "--epochs", "1") == 0
    (row,) = read(tmp_path / "results/resnet.csv")
    assert row["status"] == "ok"


def test_only_torchvisions_resnets_are_trimmed_and_only_for_optimizers_that_leave_zeros(
    monkeypatch,
):
    """Weight decay would shrink the weights that TrimmedConv2d leaves out."""
    monkeypatch.setitem(OPTIMIZERS, "adamw", (torch.optim.AdamW, ()))
    row = {"seed": 0, "lr": 0.1, "precision": "float32", "device": "cpu"}
    for arch, optimizer, count in (
        ("resnet18", "adamw", 0), ("resnet18", "adam", 20), ("mobilenet_v2", "adam", 0)
    ):  # fmt: skip
        model, *_ = train_resnet.build(row | {"arch": arch, "optimizer": optimizer}, (0, 255))
        assert len(trimmed_weights(model)) == count
