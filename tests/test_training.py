"""The training loop: it is the textbook's, repeatable, and the same at every precision."""

import copy
from functools import partial

import pytest
import torch
import torchvision
from torch import nn, optim
from torch.nn import functional as F

import common
import train_resnet

FACTORS = {
    "dataset": "digits", "limit": 100, "arch": "resnet18", "optimizer": "sgd", "lr": 1e-2,
    "momentum": 0.9, "batch_size": 16, "epochs": 1, "pin_memory": "no", "amp": "no",
    "precision": "float32", "device": "cpu", "seed": 0,
}  # fmt: skip


def build_linear(optimizer="sgd", scale=(0.0, 255.0), precision=torch.float32, **options) -> tuple:
    """A small model, an optimizer and a GradScaler with these options."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(784, 10))
    model = common.Classifier(network, scale, precision)
    make, own = train_resnet.OPTIMIZERS[optimizer]
    stepper = make(model.parameters(), lr=0.01, **dict.fromkeys(own, 0.9))
    enabled = precision == torch.float16
    return model, stepper, torch.amp.GradScaler("cpu", enabled=enabled, **options)


def fit(parts, split, *, epochs=1, batch_size=16, seed=0) -> list[dict]:
    """The history of a whole training."""
    (model, optimizer, scaler), data = parts, (split.train, split.val)
    options = {"epochs": epochs, "batch_size": batch_size, "seed": seed, "scaler": scaler}
    return common.fit(model, optimizer, *data, **options)


PLAIN = {
    "sgd": partial(optim.SGD, momentum=0.9, fused=True),
    "adam": partial(optim.Adam, fused=True),
    "rmsprop": partial(optim.RMSprop, momentum=0.9),
}


@pytest.mark.parametrize("name", PLAIN)
def test_fit_gives_the_weights_of_a_plain_loop_bit_for_bit(small, monkeypatch, name):
    """With an optimizer of one's own, too. The last batch is one of 6 of the 70 images."""
    monkeypatch.setitem(train_resnet.OPTIMIZERS, "rmsprop", (optim.RMSprop, ("momentum",)))
    parts = train_resnet.build(FACTORS | {"optimizer": name, "lr": 1e-3}, small.scale)
    network, (mean, std) = copy.deepcopy(parts[0].network).train(), small.scale
    optimizer, generator = PLAIN[name](network.parameters(), 1e-3), torch.Generator().manual_seed(7)
    for _ in range(2):  # the loop that any tutorial shows
        for batch in torch.randperm(70, generator=generator).split(16):
            optimizer.zero_grad()
            logits = network((small.train.images[batch, None].float() - mean) / std)
            F.cross_entropy(logits, small.train.labels[batch]).backward()
            optimizer.step()
    fit(parts, small, epochs=2, seed=7)
    expected = network.state_dict()
    for key, value in parts[0].network.state_dict().items():
        assert value.equal(expected[key]), key


@pytest.mark.parametrize(("size", "sizes"), [(23, [23, 23, 23]), (34, [34, 34, 2])])
def test_a_last_batch_of_one_image_is_left_out_and_no_other(small, size, sizes):
    """BatchNorm cannot train on it."""
    parts, seen = build_linear(), []
    parts[0].register_forward_pre_hook(lambda _, inputs: seen.append(len(inputs[0])))
    common.train_epoch(*parts, small.train, torch.arange(70), size, pin_memory=False, label="")
    assert seen == sizes


def test_losses_and_accuracies_are_means_over_images(small, monkeypatch):
    """Whatever batches they are summed over."""
    monkeypatch.setattr(common, "EVAL_BATCH", 6)
    model, optimizer, scaler = build_linear()
    optimizer.param_groups[0]["lr"] = 0.0
    (epoch,) = fit((model, optimizer, scaler), small)
    for name, part in (("train", small.train), ("val", small.val)):
        logits = model(part.images)
        loss, right = F.cross_entropy(logits, part.labels), logits.argmax(1) == part.labels
        assert epoch[f"{name}_loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert epoch[f"{name}_accuracy"] == pytest.approx(right.double().mean().item())


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_amp_stays_close_to_float32(digits, precision):
    exact, amp = (
        fit(build_linear("sgd", digits.scale, each), digits)[0]
        for each in (torch.float32, precision)
    )
    assert amp["train_loss"] != exact["train_loss"] == pytest.approx(amp["train_loss"], rel=0.02)


@pytest.mark.parametrize("optimizer", train_resnet.OPTIMIZERS)
def test_in_float16_training_goes_on_after_its_first_steps_were_skipped(
    small, monkeypatch, optimizer
):
    """As on every T4. With this scale only the first steps overflow; memory that nothing has
    written holds NaN here, where elsewhere it holds anything."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    parts = build_linear(optimizer, small.scale, torch.float16, init_scale=2.0**22)
    torch.use_deterministic_algorithms(True)
    try:
        history = fit(parts, small, epochs=3)
    finally:
        torch.use_deterministic_algorithms(False)
    assert parts[2].get_scale() < 2.0**22, "a step was skipped"
    assert history[-1]["train_loss"] < history[0]["train_loss"]


@pytest.mark.parametrize("arch", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
@pytest.mark.parametrize("optimizer", train_resnet.OPTIMIZERS)
def test_in_float16_resnets_train_to_finite_losses(small, arch, optimizer):
    row = {"arch": arch, "optimizer": optimizer, "precision": "float16", "lr": 1e-3}
    fit(train_resnet.build(FACTORS | row, small.scale), small)  # raises if not finite


def test_initial_weights_are_torchvisions_but_for_the_first_convolutions():
    torch.rand(3)
    ours = train_resnet.build_network("resnet18", seed=5).state_dict()
    torch.manual_seed(5)
    theirs = torchvision.models.resnet18(weights=None, num_classes=10).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours if name != "conv1.weight")
    assert ours["conv1.weight"].shape == (64, 1, 7, 7)
    assert ours["conv1.weight"].std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("device", "amx", "avx512", "bf16", "expected"),
    [("cpu", True, True, True, "bfloat16"), ("cpu", False, True, True, "bfloat16"),
     ("cpu", False, False, True, "float32"), ("cuda", True, True, True, "bfloat16"),
     ("cuda", True, True, False, "float16")],
)  # fmt: skip
def test_precision_follows_the_device(monkeypatch, device, amx, avx512, bf16, expected):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    # A T4 says True, if it may emulate bf16.
    supported = lambda including_emulation=True: including_emulation or bf16  # noqa: E731
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", supported)
    precision = [common.pick_precision(torch.device(device), amp) for amp in (True, False)]
    assert precision == [getattr(torch, expected), torch.float32]
