"""The specialised network is torchvision's: same function, same training, same weights back."""

import copy
from statistics import mean, variance

import pytest
import torch
from torch.nn import functional as F

import common
from train_resnet import ARCHITECTURES, OPTIMIZERS, LiveConv2d, build_network, live_taps, specialise

SIZES = [28, 40, 64]


def pair(arch, size, dtype=torch.float64):
    """torchvision's network and the specialised one, with equal weights, in training mode."""
    plain = build_network(arch, seed=0).to(dtype)
    return plain, specialise(copy.deepcopy(plain), size)


def batch(size, n=4, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n, 1, size, size, generator=generator, dtype=dtype)
    return images, torch.randint(10, (n,), generator=generator)


def live_modules(network):
    return {name: m for name, m in network.named_modules() if isinstance(m, LiveConv2d)}


@pytest.mark.parametrize("size", range(1, 40))
@pytest.mark.parametrize("shape", [(7, 2, 3), (3, 1, 1), (3, 2, 1), (1, 1, 0), (1, 2, 0)])
def test_live_taps_are_those_that_meet_a_pixel(size, shape):
    kernel, stride, padding = shape
    places = range((size + 2 * padding - kernel) // stride + 1)
    met = [
        tap for tap in range(kernel)
        if any(0 <= place * stride - padding + tap < size for place in places)
    ]  # fmt: skip
    low, high = live_taps(size, kernel, stride, padding)
    assert list(range(low, high)) == met
    assert (size + 2 * (padding - low) - (high - low)) // stride + 1 == len(places)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_outputs_loss_and_live_gradients_are_equal_and_dead_ones_zero(arch, size):
    plain, live = pair(arch, size)
    images, labels = batch(size)
    results = []
    for network in (plain, live):
        logits = network(images)
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        results.append((logits, loss))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)
    modules = live_modules(live)
    for name, parameter in plain.named_parameters():
        ours = live.get_parameter(name).grad
        if name.removesuffix(".weight") in modules:
            taps = modules[name.removesuffix(".weight")].live
            torch.testing.assert_close(ours, parameter.grad[taps], rtol=1e-6, atol=1e-9)
            dead = parameter.grad.clone()
            dead[taps] = 0
            assert dead.count_nonzero() == 0, name
        else:
            torch.testing.assert_close(ours, parameter.grad, rtol=1e-6, atol=1e-9)


# The first steps of ResNet-50 enlarge rounding: two orders of the images in a batch, with SGD at
# 1e-5, differ by 0.3 in a running variance after 20 steps in float64. Hence its small rate here.
STEPS = [
    ("resnet18", 28, "sgd", 1e-3, 1e-12),
    ("resnet18", 28, "adam", 1e-3, 1e-10),
    ("resnet18", 20, "sgd", 1e-3, 1e-11),
    ("resnet34", 28, "adam", 1e-4, 1e-10),
    ("resnet50", 28, "sgd", 1e-7, 1e-8),
    ("resnet50", 28, "adam", 1e-4, 1e-6),
]


@pytest.mark.parametrize(("arch", "size", "optimizer", "lr", "tolerance"), STEPS)
def test_twenty_steps_give_the_same_weights_and_leave_dead_taps_alone(
    digits, arch, size, optimizer, lr, tolerance
):
    plain, live = pair(arch, size)
    initial = {name: value.clone() for name, value in plain.state_dict().items()}
    mean, std = digits.scale
    images = (digits.train.images[:640, None].double() - mean) / std
    images = F.interpolate(images, size=size)
    for network in (plain, live):
        stepper = OPTIMIZERS[optimizer](network.parameters(), lr, 0.9)
        for batch, labels in zip(images.split(32), digits.train.labels.split(32)[:20], strict=True):
            F.cross_entropy(network(batch), labels).backward()
            stepper.step()
            stepper.zero_grad()
    expected, ours = plain.state_dict(), live.state_dict()
    for name, value in ours.items():
        torch.testing.assert_close(
            value, expected[name], rtol=tolerance, atol=tolerance, msg=lambda text, n=name: n + text
        )
    for name, module in live_modules(live).items():
        for weights in (ours, expected):
            dead, before = weights[f"{name}.weight"].clone(), initial[f"{name}.weight"].clone()
            dead[module.live] = before[module.live] = 0
            assert dead.equal(before), name


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_a_new_network_has_torchvisions_state_bit_for_bit(arch):
    plain, live = pair(arch, 28, torch.float32)
    expected, ours = plain.state_dict(), live.state_dict()
    assert list(ours) == list(expected)
    assert all(ours[name].equal(expected[name]) for name in expected)
    assert ours["layer4.1.conv2.weight"].shape == expected["layer4.1.conv2.weight"].shape


@pytest.mark.parametrize(
    ("arch", "dead"), [("resnet18", 6_946_816), ("resnet34", 11_141_120), ("resnet50", 5_505_024)]
)
def test_the_share_of_dead_weights_at_28x28(arch, dead):
    counts = [
        sum(parameter.numel() for parameter in network.parameters())
        for network in pair(arch, 28, torch.float32)
    ]
    assert counts[0] - counts[1] == dead


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_float32_evaluation_agrees_to_rounding(arch):
    plain, live = pair(arch, 28, torch.float32)
    images, _ = batch(28, 16, torch.float32)
    with torch.no_grad():
        plain(images), live(images)  # moves the running statistics from their start
        expected, ours = plain.eval()(images), live.eval()(images)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_a_real_epoch_is_as_accurate_as_with_the_untouched_network(real_data, capsys):
    """FashionMNIST, one epoch, three seeds: torchvision's ResNet-18 in float32 with plain Adam, and
    ours as train_resnet.py runs it; the means differ by less than 3 standard errors."""
    precision, _ = common.pick_precision(torch.device("cpu"), amp=True)
    accuracies = {"plain": [], "ours": []}
    for seed in range(3):
        split = common.load_split("fashion", real_data, split_seed=seed)
        plain = common.Classifier(build_network("resnet18", seed), split.scale, torch.float32)
        ours = specialise(build_network("resnet18", seed))
        ours = common.Classifier(ours, split.scale, precision)
        for name, model, adam in (
            ("plain", plain, torch.optim.Adam(plain.parameters(), 1e-3)),
            ("ours", ours, OPTIMIZERS["adam"](ours.parameters(), 1e-3, None)),
        ):
            trainer = common.Trainer(model, adam)
            list(common.fit(trainer, split.train, split.val, epochs=1, batch_size=32, seed=seed))
            _, predictions = common.evaluate(model, split.test)
            accuracies[name].append(common.accuracy(predictions, split.test.labels))
    with capsys.disabled():
        print(accuracies)
    error = sum(variance(values) / len(values) for values in accuracies.values()) ** 0.5
    assert abs(mean(accuracies["plain"]) - mean(accuracies["ours"])) < 3 * error
