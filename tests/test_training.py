"""The training loop: it is the textbook's, repeatable, and the same at every precision."""

import copy
from functools import partial
from types import SimpleNamespace

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import common
import train_resnet


def linear_model(scale=(0.0, 255.0), precision=torch.float32) -> common.Classifier:
    torch.manual_seed(0)
    return common.Classifier(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), scale, precision)


def make_row(**changes) -> dict:
    return {
        "dataset": "digits", "limit": 100, "arch": "resnet18", "optimizer": "sgd", "lr": 1e-2,
        "momentum": 0.9, "batch_size": 16, "epochs": 1, "pin_memory": "n/a", "amp": "false",
        "precision": "float32", "device": "cpu", "seed": 0, "split_seed": 0,
    } | changes  # fmt: skip


def fit(model, optimizer, split, *, epochs=1, batch_size=16, seed=0) -> list[dict]:
    """The history of a whole training."""
    *_, history = common.fit(
        model, optimizer, split.train, split.val, epochs=[epochs], batch_size=batch_size, seed=seed
    )
    return history


def reference_fit(network, optimizer, part, scale, *, epochs, batch_size, seed):
    """The loop that any tutorial shows."""
    generator = torch.Generator().manual_seed(seed)
    network.train()
    for _ in range(epochs):
        for batch in torch.randperm(len(part.labels), generator=generator).split(batch_size):
            inputs = (part.images[batch, None].float() - scale[0]) / scale[1]
            optimizer.zero_grad()
            F.cross_entropy(network(inputs), part.labels[batch]).backward()
            optimizer.step()


@pytest.mark.parametrize("optimizer", train_resnet.OPTIMIZERS)
def test_fit_gives_the_weights_of_a_plain_loop_bit_for_bit(small, optimizer):
    """The last batch is one of 6 of the 70 images."""
    model, ours = train_resnet.build(make_row(optimizer=optimizer, lr=1e-3), small.scale)
    network = copy.deepcopy(model.network)
    theirs = train_resnet.OPTIMIZERS[optimizer](network.parameters(), 1e-3, 0.9)
    fit(model, ours, small, epochs=2, seed=7)
    reference_fit(network, theirs, small.train, small.scale, epochs=2, batch_size=16, seed=7)
    expected = network.state_dict()
    for name, value in model.network.state_dict().items():
        assert value.equal(expected[name]), name


def test_a_last_batch_of_one_image_joins_the_one_before():
    assert common.batch_sizes(33, 16) == [16, 17]
    assert common.batch_sizes(34, 16) == [16, 16, 2]
    assert common.batch_sizes(32, 16) == [16, 16]
    assert common.batch_sizes(1, 16) == [1]
    assert common.batch_sizes(49_000, 32)[-2:] == [32, 8]


def test_losses_and_accuracies_are_means_over_images(small, monkeypatch):
    """Whatever batches they are summed over."""
    monkeypatch.setattr(common, "EVAL_BATCH", 6)
    model = linear_model()
    (epoch,) = fit(model, torch.optim.SGD(model.parameters(), 0.0), small)
    for name, part in (("train", small.train), ("val", small.val)):
        logits = model(part.images)
        loss, right = F.cross_entropy(logits, part.labels), logits.argmax(1) == part.labels
        assert epoch[f"{name}_loss"] == pytest.approx(loss.item(), rel=1e-5)
        assert epoch[f"{name}_accuracy"] == pytest.approx(right.double().mean().item())


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_amp_stays_close_to_float32(digits, precision):
    last = []
    for each in (torch.float32, precision):
        model = linear_model(digits.scale, each)
        optimizer = train_resnet.OPTIMIZERS["sgd"](model.parameters(), 0.01, 0.9)
        last.append(fit(model, optimizer, digits, epochs=2, batch_size=32)[-1])
    assert last[1]["train_loss"] == pytest.approx(last[0]["train_loss"], rel=0.02)
    assert last[1]["val_accuracy"] == pytest.approx(last[0]["val_accuracy"], abs=0.02)
    assert last[1]["train_loss"] != last[0]["train_loss"]


def test_in_float16_a_step_whose_scaled_gradients_overflow_is_skipped(small, monkeypatch):
    """With this scale, each of the five steps."""
    scaler = partial(torch.amp.GradScaler, init_scale=2.0**120)
    monkeypatch.setattr(torch.amp, "GradScaler", scaler)
    model = linear_model(small.scale, torch.float16)
    before = model.network[1].weight.clone()
    fit(model, train_resnet.OPTIMIZERS["sgd"](model.parameters(), 0.01, 0.9), small)
    assert model.network[1].weight.equal(before)


@pytest.mark.parametrize("optimizer", train_resnet.OPTIMIZERS)
def test_in_float16_training_goes_on_after_its_first_steps_were_skipped(
    small, monkeypatch, optimizer
):
    """As on every T4. With this scale only the first steps overflow; memory that nothing has
    written holds NaN here, where elsewhere it holds anything."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", True)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**22)
    monkeypatch.setattr(torch.amp, "GradScaler", lambda *_, **__: scaler)
    model = linear_model(small.scale, torch.float16)
    stepper = train_resnet.OPTIMIZERS[optimizer](model.parameters(), 0.01, 0.9)
    torch.use_deterministic_algorithms(True)
    try:
        history = fit(model, stepper, small, epochs=3)
    finally:
        torch.use_deterministic_algorithms(False)
    assert scaler.get_scale() < 2.0**22, "a step was skipped"
    assert history[-1]["train_loss"] < history[0]["train_loss"]


@pytest.mark.parametrize("arch", ["resnet18", pytest.param("resnet50", marks=pytest.mark.slow)])
@pytest.mark.parametrize("optimizer", train_resnet.OPTIMIZERS)
def test_in_float16_resnets_train_to_finite_losses(small, arch, optimizer):
    row = make_row(arch=arch, optimizer=optimizer, precision="float16", lr=1e-3)
    model, stepper = train_resnet.build(row, small.scale)
    fit(model, stepper, small, epochs=2)  # raises if a loss is not finite


def test_resnet_in_bfloat16_gives_nearly_the_float32_logits(small):
    model, _ = train_resnet.build(make_row(), small.scale)
    exact = model(small.train.images)
    model.precision = torch.bfloat16
    torch.testing.assert_close(model(small.train.images), exact, rtol=0.05, atol=0.25)


def test_nested_epochs_are_separate_runs_and_weights_depend_on_the_seed_alone(small, tmp_path):
    """--epochs 1 3 trains once and gives the rows of two trainings."""
    args = SimpleNamespace(data_dir=None, results_dir=tmp_path, save_model=None)

    def train(*epochs, seed=0) -> list[dict]:
        rows = [make_row(epochs=number, seed=seed) for number in epochs]
        return list(train_resnet.train(rows, args))

    both = train(1, 3)
    for ours, alone in zip(both, train(1) + train(3), strict=True):
        for name in ("epochs", "weights_sha256", "test_errors", "val_accuracy", "training_flops"):
            assert ours[name] == alone[name]
    (other,) = train(1, seed=1)
    assert other["weights_sha256"] != both[0]["weights_sha256"]


def test_initial_weights_are_torchvisions():
    """All but the stem are those that torchvision draws, whatever was drawn before."""
    torch.rand(3)
    ours = train_resnet.build_network("resnet18", seed=5).state_dict()
    torch.manual_seed(5)
    theirs = torchvision.models.resnet18(weights=None, num_classes=10).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours if name != "conv1.weight")
    assert ours["conv1.weight"].shape == (64, 1, 7, 7)
    assert ours["conv1.weight"].std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.1)


def test_a_run_whose_training_loss_is_finite_but_not_the_weights_after_it_raises(small):
    model, optimizer = train_resnet.build(make_row(lr=1e38), small.scale)
    with pytest.raises(FloatingPointError, match=r"loss is 2.*, validation nan"):
        fit(model, optimizer, small, epochs=3, batch_size=70)


def test_precision_follows_the_device_and_is_explained(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    for amx, avx, dtype, reason in (
        (True, True, torch.bfloat16, "CPU with AMX"),
        (False, True, torch.bfloat16, "CPU with AVX512_BF16"),
        (False, False, torch.float32, "CPU without bf16 instructions"),
    ):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda amx=amx: amx)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda avx=avx: avx)
        assert common.pick_precision(cpu, True) == (dtype, reason)
    for native, dtype in ((True, torch.bfloat16), (False, torch.float16)):
        monkeypatch.setattr(
            torch.cuda,
            "is_bf16_supported",
            lambda including_emulation=True, native=native: including_emulation or native,
        )
        assert common.pick_precision(cuda, True)[0] == dtype
    assert common.pick_precision(cuda, False) == (torch.float32, "--no-amp")
