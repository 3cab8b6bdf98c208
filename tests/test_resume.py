"""An interrupted training resumes to the same bits; what does not fit starts it anew."""

import csv
import errno
import io
import json
import os
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

TIMES = ("train_time_ms", "predict_time_ms", "finished_utc")
DATA = ["--dataset", "digits", "--limit", "100", "--device", "cpu"]


def rows(folder: Path) -> list[dict]:
    """The rows of a folder, in the order of their epochs, without their times."""
    with (folder / "resnet.csv").open(newline="") as file:
        found = sorted(csv.DictReader(file), key=lambda row: int(row["epochs"]))
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
        calls, trained = count(1), []

        def counted(*args, **options):
            if next(calls) == stop:
                raise KeyboardInterrupt
            result = train_epoch(*args, **options)
            trained.append(result)
            return result

        monkeypatch.setattr(common, "train_epoch", counted)
        try:
            train_resnet.main([*DATA, "--results-dir", folder, *flags])
        except KeyboardInterrupt:
            assert stop
        return len(trained)

    return call


def checkpoints(folder: str) -> list[Path]:
    return sorted(Path(folder).glob(".checkpoints/*"))


@pytest.mark.parametrize(("optimizer", "stop"), [("sgd", 2), ("sgd", 3), ("adam", 1), ("adam", 3)])
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


def test_shorter_trainings_leave_the_checkpoint_of_a_longer_one(run, tmp_path):
    """Whether their rows are there already, or are made anew."""
    run("whole", "--epochs", "4")
    run("broken", "--epochs", "4", stop=3)
    (path,) = checkpoints("broken")
    content = path.read_bytes()
    assert run("broken", "--epochs", "1", "2") == 2
    assert run("broken", "--epochs", "1", "2") == 0
    assert path.read_bytes() == content
    assert run("broken", "--epochs", "4") == 2
    assert rows(tmp_path / "broken")[-1:] == rows(tmp_path / "whole")


def test_a_checkpoint_past_a_row_that_is_wanted_is_not_used(run, tmp_path, capsys):
    run("whole", "--epochs", "2", "4")
    run("broken", "--epochs", "4", stop=4)
    capsys.readouterr()
    assert run("broken", "--epochs", "2", "4") == 4
    assert "it is past epoch 2" in capsys.readouterr().out
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")


def test_force_repeats_a_finished_training_and_resumes_an_interrupted_one(run):
    run("results", "--epochs", "3")
    assert run("results", "--epochs", "3", "--force", stop=3) == 2
    assert run("results", "--epochs", "3", "--force") == 1
    assert run("results", "--epochs", "3", "--force") == 3


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


def test_what_a_killed_writer_left_is_removed_when_the_training_starts_again(run):
    run("results", "--epochs", "3", stop=3)
    (path,) = checkpoints("results")
    path.with_name(f"{path.name}.1-2.tmp").write_bytes(b"half")
    run("results", "--epochs", "3")
    assert checkpoints("results") == []


class Evil:
    def __reduce__(self):
        return os.system, ("touch owned",)


def flip(content: bytes) -> bytes:
    place = len(content) // 2
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


def with_state(change):
    """A checkpoint with the right digest of a state that change(state) has changed."""

    def apply(content: bytes) -> bytes:
        state, file = torch.load(io.BytesIO(content[32:]), weights_only=True), io.BytesIO()
        torch.save(change(state), file)
        return common.hashlib.sha256(file.getvalue()).digest() + file.getvalue()

    return apply


DAMAGE = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-1],
    "a flipped bit": flip,
    "text": lambda content: b"no checkpoint\n\x1b[2J",
    "no state": with_state(lambda state: [1, 2, 3]),
    "code": with_state(lambda state: state | {"history": Evil()}),
    "no identity": with_state(lambda state: {"history": []}),
    "another training": with_state(lambda state: state | {"identity": "torch 2.0"}),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_checkpoint_that_does_not_fit_is_one_line_and_a_start_from_epoch_1(
    run, tmp_path, capsys, name
):
    run("whole", "--epochs", "2")
    run("broken", "--epochs", "2", stop=2)
    (path,) = checkpoints("broken")
    path.write_bytes(DAMAGE[name](path.read_bytes()))
    capsys.readouterr()
    assert run("broken", "--epochs", "2") == 2
    assert capsys.readouterr().out.count("training starts anew") == 1
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")
    assert not Path("owned").exists(), "code in a checkpoint is never run"


def test_the_identity_of_a_training_is_all_that_its_bits_depend_on(small, monkeypatch):
    """A change of any of these, and of no other factor than the epochs, makes another identity."""
    (job,) = train_resnet.grid(train_resnet.parse_args(DATA), torch.device("cpu"))
    (row,) = job
    same = train_resnet.identity(row, small)
    assert train_resnet.identity(row | {"epochs": 9}, small) == same
    others = [train_resnet.identity(row | {name: "x"}, small) for name in row if name != "device"]
    monkeypatch.setattr(torch, "__version__", "0")
    others.append(train_resnet.identity(row, small))
    monkeypatch.undo()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    others.append(train_resnet.identity(row, small))
    monkeypatch.undo()
    for name in ("cpu_name", "code_digest"):
        with monkeypatch.context() as patch:
            patch.setattr(common, name, lambda: "other")
            others.append(train_resnet.identity(row, small))
    assert len({*others, same}) == len(row) - 2 + 4 + 1


def test_the_digest_of_the_code_is_taken_when_the_grid_starts(run, monkeypatch):
    """Code that is edited while a training runs is not what its checkpoint was made with."""
    digests, read = count(), common.code_digest.__wrapped__
    monkeypatch.setattr(common, "code_digest", common.cache(lambda: f"{read()}{next(digests)}"))
    seen, fit = [], common.fit
    monkeypatch.setattr(common, "fit", lambda *a, **k: seen.append(next(digests)) or fit(*a, **k))
    run("results", "--epochs", "1")
    assert seen == [1], "it was read once, before"


def test_the_state_of_fp16s_scaler_comes_back(small, tmp_path):
    """A model of one layer goes on with the scale that it had."""
    trainings = []
    for _ in range(2):
        torch.manual_seed(0)
        network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(784, 10))
        model = common.Classifier(network, small.scale, torch.float16)
        scaler = torch.amp.GradScaler("cpu")
        trainings.append({"model": model, "scaler": scaler})
    trainings[0]["scaler"].scale(torch.ones(1))  # its scale is a number from the first use on
    trainings[0]["scaler"].update(12345.0)
    checkpoint = common.Checkpoint(tmp_path / "x.pt", "this")
    checkpoint.save(trainings[0], [{"number": 1}])
    assert checkpoint.load(trainings[1], before=2) == [{"number": 1}]
    assert trainings[1]["scaler"].get_scale() == 12345.0


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..", "a/../../b", ""])
def test_a_file_of_a_row_is_in_its_folder(tmp_path, name):
    row = dict.fromkeys(common.key_columns("resnet"), name)
    assert train_resnet.file_of(tmp_path, row).resolve().parent == tmp_path.resolve()


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
