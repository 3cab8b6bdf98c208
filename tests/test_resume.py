"""An interrupted training goes on where it was, to the same bits, or says why it cannot."""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import random
import shlex
import signal
import subprocess
import sys
from itertools import count
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import common
import train_resnet

TIMES = ("train_time_ms", "predict_time_ms", "warmup_time_ms", "finished_utc")


def rows(folder: Path) -> list[dict]:
    """The rows of a folder, in the order of their epochs, without their times."""
    with (folder / "resnet.csv").open(newline="") as file:
        found = sorted(csv.DictReader(file), key=lambda row: (row["optimizer"], row["epochs"]))
    for row in found:
        history = json.loads(row["history"])
        total = sum(epoch.pop("train_time_ms") for epoch in history)
        assert float(row["train_time_ms"]) == pytest.approx(total)
        row |= dict.fromkeys(TIMES) | {"history": history}
    return found


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(folder, *flags, stop=n) trains, broken off in the n-th epoch that it trains; returns the
    number of epochs that were trained to their end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(common, "CHECKPOINT_SECONDS", 0)
    train_epoch = common.train_epoch

    def call(folder: str, *flags: str, stop: int | None = None) -> int:
        calls = count(1)

        def counted(*args, **options):
            if (number := next(calls)) == stop:
                raise KeyboardInterrupt
            trained.append(number)
            return train_epoch(*args, **options)

        trained = []
        monkeypatch.setattr(common, "train_epoch", counted)
        data = ["--dataset", "digits", "--limit", "100", "--device", "cpu"]
        try:
            train_resnet.main([*data, "--results-dir", folder, *flags])
        except KeyboardInterrupt:
            assert stop
        return len(trained)

    return call


def checkpoints(folder: str) -> list[Path]:
    return sorted(Path(folder).glob(".checkpoints/*.pt"))


# --- to the same bits ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "stop"), [("sgd", 2), ("sgd", 3), ("adam", 1), ("adam", 2), ("adam", 3)]
)
def test_a_resumed_training_gives_the_rows_of_an_undisturbed_one(run, tmp_path, optimizer, stop):
    flags = ["--opt", optimizer, "--epochs", "2", "3"]
    assert run("whole", *flags) == 3
    assert run("broken", *flags, stop=stop) == stop - 1
    assert len(checkpoints("broken")) == (stop > 1)
    assert run("broken", *flags) == 3 - (stop - 1), "no epoch is trained twice"
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")
    assert checkpoints("broken") == []


def test_a_training_that_is_interrupted_in_every_epoch_still_ends_the_same(run, tmp_path):
    flags = ["--no-amp", "--epochs", "3"]
    run("whole", *flags)
    for _ in range(2):
        assert run("broken", *flags, stop=2) == 1
    run("broken", *flags)
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")


def test_more_epochs_can_be_asked_for_in_the_end(run, tmp_path):
    run("whole", "--epochs", "4")
    run("broken", "--epochs", "3", stop=3)
    assert run("broken", "--epochs", "4") == 2
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")


def test_a_checkpoint_past_a_row_that_is_wanted_is_not_used(run, tmp_path, capsys):
    run("whole", "--epochs", "2", "4")
    run("broken", "--epochs", "4", stop=4)
    capsys.readouterr()
    assert run("broken", "--epochs", "2", "4") == 4
    assert "starting anew" in capsys.readouterr().out
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")


def test_force_trains_from_the_start(run):
    run("broken", "--epochs", "3", stop=3)
    assert run("broken", "--epochs", "3", "--force") == 3


def test_a_checkpoint_whose_rows_are_all_there_is_removed(run):
    """The process was killed after it had saved the last row and before it removed the file."""
    run("results", "--epochs", "3", stop=3)
    (path,) = checkpoints("results")
    content = path.read_bytes()
    run("results", "--epochs", "3")
    path.write_bytes(content)
    assert run("results", "--epochs", "3") == 0
    assert checkpoints("results") == []


def test_short_trainings_write_no_checkpoint(run, monkeypatch):
    monkeypatch.setattr(common, "CHECKPOINT_SECONDS", 30)
    run("results", "--epochs", "3", stop=3)
    assert checkpoints("results") == []


def test_a_disk_without_room_for_a_checkpoint_does_not_end_the_training(run, monkeypatch, capsys):
    write_file = common.write_file

    def full(path, content):
        if path.suffix == ".pt":
            raise OSError(errno.ENOSPC, "No space left on device")
        write_file(path, content)

    monkeypatch.setattr(common, "write_file", full)
    run("results", "--epochs", "2")
    assert "no checkpoint: " in capsys.readouterr().out
    assert rows(Path("results"))[0]["status"] == "ok"


def test_times_do_not_depend_on_the_clock_of_the_day(run, monkeypatch):
    """It jumps back an hour whenever it is read."""
    days = count(2e9, -3600)
    monkeypatch.setattr("time.time", lambda: next(days))
    run("results", "--epochs", "1")
    with Path("results/resnet.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert all(0 < float(row[name]) < 60_000 for name in TIMES[:3])


# --- or says why it cannot -----------------------------------------------------------------------


def seal(payload: bytes) -> bytes:
    """A checkpoint whose digest is right, whatever it holds."""
    return hashlib.sha256(payload).digest() + payload


def changed(content: bytes, change) -> bytes:
    """A checkpoint with the right digest of a state that change(state) has changed."""
    state, file = torch.load(io.BytesIO(content[32:]), weights_only=True), io.BytesIO()
    torch.save(change(state) or state, file)
    return seal(file.getvalue())


def small_training(scale, precision=torch.float32):
    """A model of one layer in training, warmed up."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
    model = common.Classifier(network, scale, precision)
    trainer = common.Trainer(model, torch.optim.Adam(model.parameters()))
    trainer.warm_up(16)
    return trainer


EPOCH = common.Epoch(1, 0.1, 0.2, 0.3, 0.4, 0.5)


def test_the_state_of_fp16s_scaler_comes_back(small, tmp_path):
    first, again = (small_training(small.scale, torch.float16) for _ in range(2))
    for _ in range(3):
        first.compute(small.train.images, small.train.labels)
    first.scaler.update(12345.0)
    checkpoint = common.Checkpoint(tmp_path / "x.pt", {}, 2)
    common.save_checkpoint(checkpoint, first, [EPOCH])
    assert common.load_checkpoint(checkpoint, again) == [EPOCH]
    assert again.scaler.get_scale() == 12345.0
    for trainer in (first, again):
        trainer.compute(small.train.images, small.train.labels)
    assert again.scaler.state_dict() == first.scaler.state_dict()
    for ours, theirs in zip(first.model.parameters(), again.model.parameters(), strict=True):
        assert ours.equal(theirs)


@pytest.fixture
def resume(small, tmp_path, capsys, monkeypatch):
    """resume(content) takes up a checkpoint of this content: its epochs, or the error's line.
    resume.content is that of a good one."""
    monkeypatch.chdir(tmp_path)
    trainer = small_training(small.scale)
    checkpoint = common.Checkpoint(tmp_path / "x.pt", {"seed": "0", "torch": "2"}, 2)
    trainer.compute(small.train.images, small.train.labels)
    common.save_checkpoint(checkpoint, trainer, [EPOCH])

    def call(content: bytes) -> list[common.Epoch] | str:
        checkpoint.path.write_bytes(content)
        capsys.readouterr()
        with contextlib.suppress(SystemExit):
            return common.load_checkpoint(checkpoint, small_training(small.scale))
        assert checkpoint.path.read_bytes() == content, "it is left for its owner"
        error = capsys.readouterr().err
        assert error.startswith(f"error: cannot go on from {checkpoint.path}: ")
        assert error.endswith("; or delete it to start this run anew\n")
        assert error[:-1].isprintable(), "one line, and none of the terminal's controls"
        return error

    call.content = checkpoint.path.read_bytes()
    assert call(call.content) == [EPOCH]
    return call


def drop(*names):
    def change(state):
        for name in names[:-1]:
            state = state[name]
        del state[names[-1]]

    return change


def put(value, *names):
    def change(state):
        for name in names[:-1]:
            state = state[name]
        state[names[-1]] = value

    return change


class Evil:
    def __reduce__(self):
        return os.system, ("touch owned",)


WEIGHT = "network.1.weight"
BAD_STATES = {
    "no state": lambda _: [1, 2, 3],
    "text": lambda _: "text",
    "code": lambda _: Evil(),
    "code within": put(Evil(), "history"),
    "no identity": drop("identity"),
    "identity is no dict": put(3, "identity"),
    "another run": put("1", "identity", "seed"),
    "another torch": put("1\n\x1b[2J", "identity", "torch"),
    "no model": drop("model"),
    "a weight is missing": drop("model", WEIGHT),
    "a weight too many": put(torch.zeros(3), "model", "more"),
    "a weight is smaller": put(torch.zeros(2, 2), "model", WEIGHT),
    "a weight has no size": put(torch.tensor(0.0), "model", WEIGHT),
    "a weight is text": put("0", "model", WEIGHT),
    "no optimizer": drop("optimizer"),
    "an optimizer of one": put({"exp_avg": torch.zeros(1)}, "optimizer", 0),
    "an optimizer of text": put("text", "optimizer"),
    "no history": drop("history"),
    "history is short": put([[1, 0.5]], "history"),
    "history is long": put([[1, 2, 3, 4, 5, 6, 7]], "history"),
    "history is text": put([["one"] * 6], "history"),
    "history is a number": put(7, "history"),
}


@pytest.mark.parametrize("name", BAD_STATES)
def test_a_state_that_does_not_fit_is_refused(resume, name):
    assert isinstance(resume(changed(resume.content, BAD_STATES[name])), str)
    assert not Path("owned").exists(), "code in a checkpoint is never run"


def mutate(content: bytes, chance: random.Random) -> bytes:
    """Flip a bit, cut, lengthen, double, swap or overwrite a piece."""
    place, length = chance.randrange(1, len(content)), chance.randrange(1, 5000)
    piece = content[place : place + length]
    return chance.choice([
        content[:place] + bytes([content[place] ^ 1 << chance.randrange(8)]) + content[place + 1 :],
        content[:place],
        content + chance.randbytes(length),
        content[:place] + piece + content[place:],
        content[place:] + content[:place],
        content[:place] + chance.randbytes(length) + content[place + length :],
    ])  # fmt: skip


def test_no_damage_to_a_checkpoint_goes_unnoticed(resume):
    """60 random kinds of damage, and an empty file."""
    chance = random.Random(0)
    for content in (b"", *(mutate(resume.content, chance) for _ in range(60))):
        assert "it is damaged" in resume(content)


def test_damage_under_a_right_digest_never_ends_in_a_traceback(resume):
    """PyTorch's own reader gets 60 damaged archives: it refuses some, and does not see others."""
    chance = random.Random(1)
    outcomes = [resume(seal(mutate(resume.content[32:], chance))) for _ in range(60)]
    assert {type(outcome) for outcome in outcomes} == {list, str}


def test_a_checkpoint_of_another_machine_is_refused_before_anything_is_trained(run, capsys):
    run("results", "--epochs", "2", stop=2)
    (path,) = checkpoints("results")
    content = changed(path.read_bytes(), put("2.0.0", "identity", "torch"))
    path.write_bytes(content)
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        run("results", "--epochs", "2")
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert f"its torch was '2.0.0' and is {torch.__version__!r} now" in error
    assert error.count("\n") == 1
    assert path.read_bytes() == content
    assert not Path("results/resnet.csv").exists()


def test_a_trainings_identity_is_all_that_its_bits_depend_on(small):
    setting = train_resnet.Setting(
        "digits", 100, "resnet18", "adam", 1e-3, None, 16, "n/a", True, "bfloat16", "cpu", 0, 0
    )
    names = set(train_resnet.KEY) - {"epochs"}
    names |= {"cuda_graph", "split_id", "code", "torch", "threads", "device_name", "cpu_name"}
    assert set(train_resnet.identity(setting, small, False)) == names


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..", "a/../../b", ""])
def test_a_file_of_a_row_is_in_its_folder(tmp_path, name):
    row = dict.fromkeys(train_resnet.KEY, name)
    assert train_resnet.model_path(tmp_path, row).resolve().parent == tmp_path.resolve()


# --- signals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_in_one_line_and_keeps_the_checkpoint(tmp_path, number, code):
    script = "import common, train_resnet; common.CHECKPOINT_SECONDS = 0;"
    flags = shlex.split("--dataset digits --limit 100 --epochs 1 1000 --device cpu")
    process = subprocess.Popen(
        [sys.executable, "-c", f"{script} common.run_main(train_resnet.main)", *flags],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    while "epoch 3/" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code
    assert error.startswith("interrupted: ")
    assert error.count("\n") == 1
    assert [row["epochs"] for row in rows(tmp_path / "results")] == ["1"]
    assert len(checkpoints(str(tmp_path / "results"))) == 1


def test_the_drill_ends_with_the_rows_of_an_undisturbed_grid():
    command = [sys.executable, str(ROOT / "tests/drill.py"), "--kills", "4"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "12 rows, equal" in done.stdout
