"""The CUDA path: steps that are recorded once, trainings that take turns, and what runs on a GPU.

Without a GPU a stand-in for CUDA's graphs records a step's operations with the tensors that they
were given, and repeats them on the same memory: what a step keeps in Python is not repeated."""

import contextlib
import copy
import itertools

import pytest
import torch
from test_training import linear_model, setting
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import common
import train_resnet
import train_svm
from common import Trainer

CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA GPU here")


class Recording(TorchDispatchMode):
    """Records operations as a CUDA graph does; as in one, no value may be read."""

    def __init__(self):
        super().__init__()
        self.operations = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        result = function(*args, **(kwargs or {}))
        self.operations.append((function, args, kwargs or {}, result))
        return result

    def replay(self) -> None:
        with torch.no_grad():
            for function, args, kwargs, result in self.operations:
                again = function(*args, **kwargs)
                for old, new in zip(tree_leaves(result), tree_leaves(again), strict=True):
                    if torch.is_tensor(old) and old.data_ptr() != new.data_ptr():
                        old.copy_(new)


def record_on_cpu(function):
    with Recording() as recording:
        function()
    return recording.replay


@pytest.fixture
def recorded(monkeypatch):
    monkeypatch.setattr(common, "record", record_on_cpu)


def small_trainer(scale, optimizer="adam", precision=torch.float32, *, cuda_graph=False) -> Trainer:
    model = linear_model(scale, precision)
    make = train_resnet.OPTIMIZERS[optimizer]
    return Trainer(model, make(model.parameters(), 0.01, 0.9), cuda_graph=cuda_graph)


def copied_state(trainer: Trainer) -> dict:
    return copy.deepcopy(trainer.state())


def assert_same(ours: dict, theirs: dict):
    for mine, other in zip(tree_leaves(ours), tree_leaves(theirs), strict=True):
        assert mine.equal(other) if torch.is_tensor(mine) else mine == other


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_a_recorded_step_repeats_the_eager_one(digits, recorded, optimizer, precision):
    """All that changes from step to step, fp16's scale too, is in tensors: bit for bit the same."""
    found = []
    for graph in (False, True):
        trainer = small_trainer(digits.scale, optimizer, precision, cuda_graph=graph)
        *_, epoch = common.fit(trainer, digits.train, digits.val, epochs=2, batch_size=16, seed=0)
        assert trainer.execution == ("graph" if graph else "eager")
        found.append(trainer.state() | {"epoch": [epoch.train_loss, epoch.val_loss]})
    assert_same(*found)


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_recorded_resnet_is_the_eager_one(small, recorded, optimizer, precision):
    """BatchNorm's statistics too. 70 images are four batches of 16 and an eager one of 6."""
    rows = [
        next(train_resnet.train(
            setting(optimizer=optimizer, lr=1e-3, precision=precision), [1], small, cuda_graph=graph
        ))
        for graph in (False, True)
    ]  # fmt: skip
    assert [row["execution"] for row in rows] == ["eager", "graph"]
    for name in ("weights_sha256", "val_accuracy", "test_errors"):
        assert rows[0][name] == rows[1][name], name


def test_the_stand_in_notices_what_a_step_keeps_in_python(digits, recorded):
    """An optimizer that counts its steps in Python cannot be recorded: its test would fail."""

    class Decaying(torch.optim.Optimizer):
        count = 0

        @torch.no_grad()
        def step(self, closure=None):
            self.count += 1
            for parameter in self.param_groups[0]["params"]:
                parameter.sub_(parameter.grad, alpha=0.01 / self.count)

    found = []
    for graph in (False, True):
        model = linear_model(digits.scale)
        trainer = Trainer(model, Decaying(model.parameters(), {}), cuda_graph=graph)
        list(common.fit(trainer, digits.train, digits.val, epochs=1, batch_size=16, seed=0))
        found.append(model.state_dict()["network.1.weight"])
    assert not found[0].equal(found[1])


@pytest.mark.parametrize("graph", [False, True])
@pytest.mark.parametrize("precision", [torch.float32, torch.float16])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_warming_up_leaves_no_trace(small, recorded, optimizer, precision, graph):
    """Neither in a new training nor in one that is under way, and all tensors stay in place."""
    trainer = small_trainer(small.scale, optimizer, precision, cuda_graph=graph)
    before = copied_state(trainer)
    trainer.warm_up(16)
    after = copied_state(trainer)
    assert not any(value.any() for value in tree_leaves(after.pop("optimizer")))
    before.pop("optimizer")
    assert_same(before, after)
    for _ in range(3):
        trainer.compute(small.train.images, small.train.labels)
    before, places = copied_state(trainer), [value.data_ptr() for value in tensors(trainer)]
    trainer.warm_up(16)
    assert_same(before, copied_state(trainer))
    assert places == [value.data_ptr() for value in tensors(trainer)]
    assert not trainer.sums.any()
    assert trainer.warmup_time_ms > 0


def tensors(trainer: Trainer) -> list[torch.Tensor]:
    state = trainer.state()
    return [*state["model"].values(), *filter(torch.is_tensor, tree_leaves(state["optimizer"]))]


def test_what_cannot_be_recorded_is_launched_with_one_line_that_says_so(small, monkeypatch, capsys):
    def refuse(function):
        function()
        raise RuntimeError("CUDA error: operation not permitted\nwith a second line")

    monkeypatch.setattr(common, "record", refuse)
    found = []
    for graph in (False, True):
        trainer = small_trainer(small.scale, cuda_graph=graph)
        list(common.fit(trainer, small.train, small.val, epochs=2, batch_size=16, seed=0))
        found.append(trainer.state())
    assert trainer.execution == "eager"
    assert_same(*found)
    assert capsys.readouterr().out == (
        "  no CUDA graph, every operation is launched: CUDA error: operation not permitted\n"
    )


def test_the_default_stream_and_a_cpu_cannot_be_recorded(small, capsys):
    trainer = small_trainer(small.scale, cuda_graph=True)
    trainer.warm_up(16)
    assert trainer.execution == "eager"
    assert capsys.readouterr().out.startswith("  no CUDA graph, every operation is launched: ")


def test_a_recorded_training_goes_on_from_its_checkpoint(small, recorded, tmp_path, monkeypatch):
    monkeypatch.setattr(common, "CHECKPOINT_SECONDS", 0)
    checkpoint = common.Checkpoint(tmp_path / "x.pt", {}, 2)

    def train(stop: int | None, checkpoint=None) -> dict:
        trainer = small_trainer(small.scale, cuda_graph=True)
        epochs = common.fit(
            trainer, small.train, small.val, epochs=3, batch_size=16, seed=0, checkpoint=checkpoint
        )
        list(itertools.islice(epochs, stop))
        return trainer.state()

    whole = train(None)
    train(2, checkpoint)  # broken off in the second epoch's yield: the first is saved
    assert checkpoint.path.exists()
    assert_same(whole, train(None, checkpoint))


def test_iterators_take_turns_and_the_next_starts_when_one_ends():
    started = []

    def count(name: str, length: int):
        started.append(name)
        for number in range(length):
            yield f"{name}{number}"

    jobs = (count(name, length) for name, length in [("a", 3), ("b", 1), ("c", 0), ("d", 2)])
    turns = common.take_turns(jobs, 2)
    assert next(turns) == "a0"
    assert started == ["a"]
    assert list(turns) == ["b0", "a1", "a2", "d0", "d1"]
    alone = common.take_turns((count(name, 2) for name in "xy"), 1)
    assert list(alone) == ["x0", "x1", "y0", "y1"]


def test_each_iterator_has_a_stream_of_its_own_and_gives_it_back(monkeypatch):
    current = ["default"]

    @contextlib.contextmanager
    def stream(name):
        current.append(name)
        yield
        current.pop()

    def items(name):
        for _ in range(2):
            yield name, current[-1]

    monkeypatch.setattr(torch.cuda, "stream", stream)
    streams = ["first", "second"]
    a, b = (common.on_stream(streams, items(name)) for name in "ab")
    assert [next(a), next(b), next(a)] == [("a", "second"), ("b", "first"), ("a", "second")]
    assert current == ["default"], "the caller's stream is what it was"
    assert streams == []
    assert list(a) == []
    assert streams == ["second"]
    b.close()
    assert streams == ["second", "first"]
    assert list(common.on_stream([], items("c"))) == [("c", "default")] * 2


FLAGS = ["--dataset", "digits", "--limit", "100", "--device", "cpu", "--epochs", "1", "2", "--lr",
         "1e-3", "--bs", "16"]  # fmt: skip


def test_trainings_that_take_turns_are_those_of_one_after_another(tmp_path, capsys):
    rows = {}
    for count in ("1", "3"):
        folder = tmp_path / count
        flags = [*FLAGS, "--opt", "sgd", "adam", "--results-dir", str(folder)]
        assert train_resnet.main([*flags, "--concurrent", count]) == 0
        found = common.load_rows(folder / "resnet.csv", train_resnet.COLUMNS)
        assert {row["concurrent"] for row in found} == {count}
        rows[count] = {row["optimizer"] + row["epochs"]: row["weights_sha256"] for row in found}
    assert rows["1"] == rows["3"]
    assert len(rows["1"]) == 4
    out = capsys.readouterr().out
    assert "seed=0 on cpu  epoch 1/2:" in out, "an epoch's line says whose it is"


def test_a_failure_among_trainings_that_take_turns_ends_no_other(tmp_path):
    flags = [*FLAGS[:-4], "--bs", "16", "--lr", "1e20", "1e-3", "--opt", "sgd"]
    flags += ["--concurrent", "2", "--results-dir", str(tmp_path)]
    assert train_resnet.main(flags) == 1
    rows = common.load_rows(tmp_path / "resnet.csv", train_resnet.COLUMNS)
    statuses = {(row["lr"], row["epochs"]): row["status"] for row in rows}
    assert statuses == {
        ("1e+20", "1"): "diverged", ("1e+20", "2"): "diverged",
        ("0.001", "1"): "ok", ("0.001", "2"): "ok",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--cuda-graph", "--device", "cpu"], "--cuda-graph: cpu has no CUDA graphs"),
     (["--concurrent", "0"], "--concurrent"), (["--concurrent", "33"], "--concurrent")],
)  # fmt: skip
def test_flags_that_make_no_sense_are_refused(tmp_path, capsys, flags, message):
    with pytest.raises(SystemExit) as stopped:
        train_resnet.main([*flags, "--dataset", "digits", "--results-dir", str(tmp_path / "x")])
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


# --- on a GPU ------------------------------------------------------------------------------------


def on_gpu(*, optimizer: str, precision: str, pin_memory: str = "true", **options) -> dict:
    """The row of a training on digits, on a stream of its own."""
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    split = common.load_split("digits", None, split_seed=0, limit=500)
    chosen = setting(
        limit=500, optimizer=optimizer, lr=1e-3, precision=precision, device="cuda",
        pin_memory=pin_memory,
    )  # fmt: skip
    rows = common.on_stream(
        [torch.cuda.Stream()], train_resnet.train(chosen, [2], split, **options)
    )
    return next(filter(None, rows))


@CUDA
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float16"])
def test_on_a_gpu_graph_and_eager_give_the_same_weights(optimizer, precision):
    eager, again, graph = (
        on_gpu(optimizer=optimizer, precision=precision, cuda_graph=graph)
        for graph in (False, False, True)
    )
    assert eager["weights_sha256"] == again["weights_sha256"], "a GPU's runs repeat"
    assert graph["execution"] == "graph"
    assert eager["weights_sha256"] == graph["weights_sha256"]


@CUDA
def test_on_a_gpu_pinned_and_pageable_memory_give_the_same_weights():
    pinned, pageable = (
        on_gpu(optimizer="adam", precision="bfloat16", pin_memory=pin, cuda_graph=True)
        for pin in ("true", "false")
    )
    assert pinned["weights_sha256"] == pageable["weights_sha256"]


@CUDA
@pytest.mark.parametrize("arch", ["resnet18", "resnet50"])
def test_the_first_steps_on_a_gpu_are_those_on_a_cpu(digits, arch):
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.conv.fp32_precision = "ieee"
    losses = []
    for device in ("cpu", "cuda"):
        trainer = train_resnet.build(setting(arch=arch, lr=1e-3, device=device), digits.scale)
        trainer.warm_up(16)
        for step in range(3):
            batch = slice(16 * step, 16 * (step + 1))
            trainer.step(digits.train.images[batch], digits.train.labels[batch])
        losses.append(trainer.sums[0].item() / 48)
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


@CUDA
def test_on_a_gpu_trainings_at_once_are_those_of_one_after_another(tmp_path):
    rows = {}
    for count in ("1", "4"):
        flags = [*FLAGS[:4], "--epochs", "2", "--bs", "16", "32", "--opt", "sgd", "adam"]
        flags += ["--device", "cuda", "--cuda-graph", "--concurrent", count]
        assert train_resnet.main([*flags, "--results-dir", str(tmp_path / count)]) == 0
        found = common.load_rows(tmp_path / count / "resnet.csv", train_resnet.COLUMNS)
        assert {row["execution"] for row in found} == {"graph"}
        rows[count] = {row["optimizer"] + row["batch_size"]: row["weights_sha256"] for row in found}
    assert rows["1"] == rows["4"]


@CUDA
@pytest.mark.parametrize("kernel", ["rbf", "poly"])
def test_an_svm_on_a_gpu_is_that_on_a_cpu(digits, kernel):
    images, labels = digits.train.images.flatten(1).numpy(), digits.train.labels.numpy()
    test = digits.test.images.flatten(1).numpy()
    cpu, gpu = (
        train_svm.GramSVC(kernel=kernel, C=1, coef0=1, device=device).fit(images, labels)
        for device in ("cpu", "cuda")
    )
    assert abs(len(cpu.support_) - len(gpu.support_)) <= 2
    assert (cpu.predict(test) == gpu.predict(test)).mean() > 0.995
