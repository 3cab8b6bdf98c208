"""The trimmed network is torchvision's: same function, same training, same weights back."""

import copy
from statistics import mean, variance

import pytest
import torch
from torch.nn import functional as F

import common
import train_resnet
from train_resnet import ARCHITECTURES, OPTIMIZERS, TrimmedConv2d, build_network, trim_dead_taps


def pair(arch, size, dtype=torch.float64):
    """torchvision's network and the trimmed one, with equal weights, in training mode."""
    plain = build_network(arch, seed=0).to(dtype)
    return plain, trim_dead_taps(copy.deepcopy(plain), size)


def taps_of(network) -> dict[str, tuple]:
    """The taps that are left of each convolution's weight."""
    convolutions = network.named_modules()
    return {f"{name}.weight": m.taps for name, m in convolutions if isinstance(m, TrimmedConv2d)}


@pytest.mark.parametrize(
    ("arch", "size"), [*((arch, 28) for arch in ARCHITECTURES), ("resnet18", 40), ("resnet18", 64)]
)
def test_outputs_and_gradients_are_equal_and_those_of_dead_taps_zero(arch, size):
    plain, trimmed = pair(arch, size)
    images = torch.randn(4, 1, size, size, dtype=torch.float64)
    for training in (True, False):
        expected, ours = (network.train(training)(images) for network in (plain, trimmed))
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)
        for logits in (expected, ours):
            F.cross_entropy(logits, torch.arange(4)).backward()
    taps = taps_of(trimmed)
    for name, parameter in plain.named_parameters():
        gradient, kept = parameter.grad, taps.get(name, ...)
        torch.testing.assert_close(
            trimmed.get_parameter(name).grad, gradient[kept], rtol=1e-6, atol=1e-9
        )
        gradient[kept] = 0
        assert gradient.count_nonzero() == 0, name


# The first steps of ResNet-50 enlarge rounding: from 1e-16 to 0.4 in a running variance after 20
# of Adam's steps at 1e-4. Hence its small rate here.
@pytest.mark.parametrize(
    ("arch", "size", "optimizer", "lr"),
    [("resnet18", 28, "sgd", 1e-3), ("resnet18", 20, "adam", 1e-3), ("resnet50", 28, "adam", 1e-5)],
)
def test_twenty_steps_give_the_same_weights_and_leave_dead_taps_alone(
    digits, arch, size, optimizer, lr
):
    plain, trimmed = pair(arch, size)
    initial = copy.deepcopy(plain.state_dict())
    mean, std = digits.scale
    images = F.interpolate((digits.train.images[:160, None].double() - mean) / std, size=size)
    for network in (plain, trimmed):
        stepper = OPTIMIZERS[optimizer](network.parameters(), lr, 0.9)
        for batch, labels in zip(images.split(8), digits.train.labels[:160].split(8), strict=True):
            F.cross_entropy(network(batch), labels).backward()
            stepper.step()
            stepper.zero_grad()
    expected, ours, taps = plain.state_dict(), trimmed.state_dict(), taps_of(trimmed)
    for name, value in ours.items():
        torch.testing.assert_close(
            value, expected[name], rtol=1e-8, atol=1e-8, msg=lambda text, name=name: name + text
        )
        for weights in (value, expected[name]):
            dead, before = weights.clone(), initial[name].clone()
            dead[taps.get(name, ...)] = before[taps.get(name, ...)] = 0
            assert dead.equal(before), name


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_new_networks_state_is_torchvisions_bit_for_bit_and_any_can_be_loaded(arch):
    plain, trimmed = pair(arch, 28)
    expected, ours = plain.state_dict(), trimmed.state_dict()
    assert list(ours) == list(expected)
    assert all(ours[name].equal(expected[name]) for name in expected)
    other, images = build_network(arch, seed=1).double(), torch.rand(4, 1, 28, 28).double()
    trimmed.load_state_dict(other.state_dict())
    torch.testing.assert_close(trimmed(images), other(images), rtol=1e-9, atol=1e-9)


COSTS = {  # parameters, those that meet a pixel at 28x28, FLOPs of forward and of both passes
    "resnet18": (11_175_370, 4_228_554, 66.0e6, 196.8e6),
    "resnet34": (21_283_530, 10_142_410, 139.3e6, 416.7e6),
    "resnet50": (23_522_250, 18_017_226, 155.9e6, 466.5e6),
}


@pytest.mark.parametrize(("arch", "expected"), COSTS.items())
def test_costs_are_the_published_ones(arch, expected):
    sizes = [sum(each.numel() for each in model.parameters()) for model in pair(arch, 28)]
    assert tuple(sizes) == expected[:2]
    flops = train_resnet.network_costs(arch)
    assert tuple(flops.values()) == pytest.approx(expected[2:], rel=1e-3)


@pytest.mark.slow
def test_a_real_epoch_is_as_accurate_as_with_the_untouched_network(real_data):
    """FashionMNIST, one epoch, three seeds: torchvision's ResNet-18 in float32 with plain Adam, and
    ours as train_resnet.py runs it; the means differ by less than 3 standard errors."""
    precision, _ = common.pick_precision(torch.device("cpu"), amp=True)
    plain, ours = [], []
    for seed in range(3):
        split = common.load_split("fashion", real_data, split_seed=seed)
        network = build_network("resnet18", seed)
        trimmed = trim_dead_taps(copy.deepcopy(network))
        for kind, net, results in ((torch.float32, network, plain), (precision, trimmed, ours)):
            model = common.Classifier(net, split.scale, kind)
            adam = torch.optim.Adam(model.parameters(), 1e-3, fused=net is trimmed)
            run = {"epochs": [1], "batch_size": 32, "seed": seed}
            list(common.fit(model, adam, split.train, split.val, **run))
            _, predictions = common.evaluate(model, split.test)
            results.append(common.accuracy(predictions, split.test.labels))
    error = ((variance(plain) + variance(ours)) / 3) ** 0.5
    assert abs(mean(plain) - mean(ours)) < 3 * error, (plain, ours)
