"""The training loop: it is the textbook's, repeatable, and the same at every precision."""

import copy
import json

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

import common
import train_resnet
from common import Classifier, Trainer


def linear_model(scale=(0.0, 255.0), precision=torch.float32) -> Classifier:
    torch.manual_seed(0)
    return Classifier(nn.Sequential(nn.Flatten(), nn.Linear(784, 10)), scale, precision)


def setting(**changes) -> train_resnet.Setting:
    values = {
        "dataset": "digits", "limit": 100, "arch": "resnet18", "optimizer": "sgd", "lr": 1e-2,
        "momentum": 0.9, "batch_size": 16, "pin_memory": "n/a", "amp": False,
        "precision": "float32", "device": "cpu", "seed": 0, "split_seed": 0,
    }  # fmt: skip
    return train_resnet.Setting(**values | changes)


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


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_fit_gives_the_weights_of_a_plain_loop_bit_for_bit(small, optimizer):
    trainer = train_resnet.build(setting(optimizer=optimizer, lr=1e-3), small.scale)
    network = copy.deepcopy(trainer.model.network)
    theirs = train_resnet.OPTIMIZERS[optimizer](network.parameters(), 1e-3, 0.9)
    list(common.fit(trainer, small.train, small.val, epochs=2, batch_size=16, seed=7))
    reference_fit(network, theirs, small.train, small.scale, epochs=2, batch_size=16, seed=7)
    expected = network.state_dict()
    for name, value in trainer.model.network.state_dict().items():
        assert value.equal(expected[name]), name


def test_there_is_one_optimizer_step_for_each_batch(small):
    model, steps = linear_model(), []

    class CountingSGD(torch.optim.SGD):
        def step(self, closure=None):
            steps.append(None)
            return super().step(closure)

    trainer = Trainer(model, CountingSGD(model.parameters(), 0.1))
    list(common.fit(trainer, small.train, small.val, epochs=3, batch_size=16, seed=0))
    # 70 images are 4 batches of 16 and one of 6.
    assert len(steps) - common.WARMUP_STEPS == 3 * 5


def test_a_last_batch_of_one_image_joins_the_one_before():
    assert common.batch_sizes(33, 16) == [16, 17]
    assert common.batch_sizes(34, 16) == [16, 16, 2]
    assert common.batch_sizes(32, 16) == [16, 16]
    assert common.batch_sizes(1, 16) == [1]
    assert common.batch_sizes(49_000, 32)[-2:] == [32, 8]


def test_an_epoch_trains_on_every_image_once_in_its_order(small, monkeypatch):
    seen, trainer = [], Trainer(model := linear_model(), torch.optim.SGD(model.parameters(), 0.1))
    monkeypatch.setattr(trainer, "step", lambda *batch: seen.append(batch))
    order = torch.randperm(len(small.train.labels))
    list(common.train_epoch(trainer, small.train, order, 16, pin_memory=False, label="",
                            pauses=False))  # fmt: skip
    images, labels = (torch.cat(parts) for parts in zip(*seen, strict=True))
    assert images.equal(small.train.images[order])
    assert labels.equal(small.train.labels[order])
    assert [len(labels) for _, labels in seen] == [16, 16, 16, 16, 6]


def test_resnet_overfits_64_images(small):
    part = common.Part(
        *(getattr(small.train, name)[:64] for name in ("images", "labels", "indices"))
    )
    trainer = train_resnet.build(setting(lr=0.002), small.scale)
    list(common.fit(trainer, part, small.val, epochs=15, batch_size=16, seed=0))
    loss, predictions = common.evaluate(trainer.model, part)
    assert predictions.equal(part.labels)
    assert loss < 0.1


def test_losses_and_accuracies_are_means_over_images(small):
    model = linear_model()
    loss, predictions = common.evaluate(model, small.test)
    logits = model(small.test.images)
    assert loss == pytest.approx(F.cross_entropy(logits, small.test.labels).item(), rel=1e-5)
    assert predictions.equal(logits.argmax(1))
    frozen = Trainer(model, torch.optim.SGD(model.parameters(), 0.0))
    (epoch,) = common.fit(frozen, small.train, small.val, epochs=1, batch_size=16, seed=0)
    loss, predictions = common.evaluate(model, small.train)
    assert epoch.train_loss == pytest.approx(loss, rel=1e-5)
    assert epoch.train_accuracy == pytest.approx(common.accuracy(predictions, small.train.labels))


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
def test_amp_stays_close_to_float32(digits, precision):
    """fp16 goes through a working GradScaler, bf16 through one that does nothing."""
    last = []
    for kind in (torch.float32, precision):
        model = linear_model(digits.scale, kind)
        trainer = Trainer(model, train_resnet.OPTIMIZERS["sgd"](model.parameters(), 0.01, 0.9))
        assert trainer.scaler.is_enabled() == (kind == torch.float16)
        *_, epoch = common.fit(trainer, digits.train, digits.val, epochs=2, batch_size=32, seed=0)
        last.append(epoch)
    assert last[1].train_loss == pytest.approx(last[0].train_loss, rel=0.02)
    assert last[1].val_accuracy == pytest.approx(last[0].val_accuracy, abs=0.02)


def test_resnet_in_bfloat16_gives_nearly_the_float32_logits(small):
    model = train_resnet.build(setting(), small.scale).model
    exact = model(small.train.images)
    model.precision = torch.bfloat16
    torch.testing.assert_close(model(small.train.images), exact, rtol=0.05, atol=0.25)


def test_nested_epochs_are_separate_runs(small):
    """--epochs 1 3 trains once and gives the rows of two trainings."""
    both = list(train_resnet.train(setting(), [1, 3], small))
    (short,) = train_resnet.train(setting(), [1], small)
    (long,) = train_resnet.train(setting(), [3], small)
    for ours, alone in zip(both, (short, long), strict=True):
        for name in ("epochs", "weights_sha256", "test_accuracy", "val_accuracy"):
            assert ours[name] == alone[name]
    assert both[0]["train_time_ms"] < both[1]["train_time_ms"]
    assert [len(json.loads(row["history"])) for row in both] == [1, 3]


def test_weights_depend_on_the_seed_alone(small):
    first, again, other = (
        next(train_resnet.train(setting(seed=seed), [1], small))["weights_sha256"]
        for seed in (0, 0, 1)
    )
    assert first == again != other


def test_initial_weights_are_torchvisions(small):
    """All but the stem are those that torchvision draws, whatever was drawn before."""
    torch.rand(3)
    ours = train_resnet.build_network("resnet18", seed=5).state_dict()
    torch.manual_seed(5)
    theirs = torchvision.models.resnet18(weights=None, num_classes=10).state_dict()
    assert ours.keys() == theirs.keys()
    assert all(ours[name].equal(theirs[name]) for name in ours if name != "conv1.weight")
    assert ours["conv1.weight"].shape == (64, 1, 7, 7)
    assert ours["conv1.weight"].std().item() == pytest.approx((2 / (64 * 49)) ** 0.5, rel=0.1)


@pytest.mark.parametrize(
    ("arch", "parameters"),
    [("resnet18", 11_175_370), ("resnet34", 21_283_530), ("resnet50", 23_522_250)],
)
def test_networks_have_the_published_number_of_parameters(arch, parameters):
    network = train_resnet.build_network(arch, seed=0)
    assert sum(parameter.numel() for parameter in network.parameters()) == parameters


def test_a_diverging_run_raises(small):
    trainer = train_resnet.build(setting(lr=1e20), small.scale)
    with pytest.raises(FloatingPointError, match=r"epoch 1: training loss is (nan|inf)"):
        list(common.fit(trainer, small.train, small.val, epochs=3, batch_size=16, seed=0))


def test_a_run_that_breaks_in_its_last_step_raises(small):
    """The only step's loss is still finite; the weights after it are not."""
    trainer = train_resnet.build(setting(lr=1e38), small.scale)
    with pytest.raises(FloatingPointError, match="validation loss nan"):
        list(common.fit(trainer, small.train, small.val, epochs=1, batch_size=70, seed=0))


def test_precision_follows_the_device_and_is_explained(monkeypatch):
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True)
    assert common.pick_precision(cpu, True) == (torch.bfloat16, "CPU with AMX")
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True)
    assert common.pick_precision(cpu, True) == (torch.bfloat16, "CPU with AVX512_BF16")
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
    assert common.pick_precision(cpu, True)[0] == torch.float32
    native = {}
    monkeypatch.setattr(
        torch.cuda,
        "is_bf16_supported",
        lambda including_emulation=True: including_emulation or native["bf16"],
    )
    for native["bf16"], expected in ((True, torch.bfloat16), (False, torch.float16)):
        assert common.pick_precision(cuda, True)[0] == expected
    assert common.pick_precision(cuda, False) == (torch.float32, "--no-amp")
