"""An interrupted training resumes to the same bits; what does not fit starts it anew."""

import errno
import io
import os
import signal
import subprocess
import sys
from pathlib import Path

import drill
import pytest
import torch
from conftest import ROOT, SMALL, python

import common
import train_resnet

DATA = [*SMALL, "--device", "cpu"]


def rows(folder: Path) -> dict[str, dict]:
    """The rows of a folder by their keys, without their times."""
    return drill.read(folder / "resnet.csv")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(folder, *flags, stop=n) trains, broken off in the n-th epoch that it trains; returns the
    number of epochs that were trained to their end."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(common, "CHECKPOINT_SECONDS", 0)
    train_epoch = common.train_epoch

    def call(folder: str, *flags: str, stop: int | None = None) -> int:
        trained = 0

        def counted(*args, **options):
            nonlocal trained
            if trained + 1 == stop:
                raise KeyboardInterrupt
            trained += 1
            return train_epoch(*args, **options)

        monkeypatch.setattr(common, "train_epoch", counted)
        try:
            train_resnet.main([*DATA, "--results-dir", folder, *flags])
        except KeyboardInterrupt:
            assert stop
        return trained

    return call


def checkpoints(folder: str) -> list[Path]:
    return sorted(Path(folder).glob(".checkpoints/*"))


@pytest.mark.parametrize(
    ("flags", "stops"),
    [("--opt sgd", [2]), ("--opt sgd", [3]), ("--opt adam", [1]), ("--opt adam --no-amp", [2, 2])],
)
def test_a_resumed_training_gives_the_rows_of_an_undisturbed_one(run, tmp_path, flags, stops):
    """Also one that is interrupted in every epoch but its first."""
    flags = [*flags.split(), "--epochs", "2", "3"]
    assert run("whole", *flags) == 3
    trained = 0
    for stop in stops:
        trained += run("broken", *flags, stop=stop)
        assert len(checkpoints("broken")) == (stop > 1)
    assert trained + run("broken", *flags) == 3, "no epoch is trained twice"
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")
    assert checkpoints("broken") == []


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
    assert rows(tmp_path / "whole").items() <= rows(tmp_path / "broken").items()


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
    assert [row["status"] for row in rows(Path("results")).values()] == ["ok"]


class Evil:
    def __reduce__(self):
        return os.system, ("touch owned",)


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
    "a flipped bit": lambda content: content[:5000] + bytes([content[5000] ^ 1]) + content[5001:],
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
    path.with_name(f"{path.name}.1-2.tmp").write_bytes(b"what a killed writer left")
    capsys.readouterr()
    assert run("broken", "--epochs", "2") == 2
    assert capsys.readouterr().out.count("training starts anew") == 1
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")
    assert checkpoints("broken") == []
    assert not Path("owned").exists(), "code in a checkpoint is never run"


def test_the_identity_of_a_training_is_all_that_its_bits_depend_on(small, monkeypatch):
    """A change of any of these, and of no other factor than the epochs, makes another identity."""
    (job,) = train_resnet.grid(train_resnet.parse_args(DATA), torch.device("cpu"))
    (row,) = job
    same = train_resnet.identity(row, small)
    assert train_resnet.identity(row | {"epochs": 9}, small) == same
    others = [train_resnet.identity(row | {name: "x"}, small) for name in row if name != "device"]
    changes = [(torch, "__version__", "0"), (torch, "get_num_threads", lambda: 99)]
    changes += [(common, name, lambda: "other") for name in ("cpu_name", "code_digest")]
    for owner, name, value in changes:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            others.append(train_resnet.identity(row, small))
    assert len({*others, same}) == len(row) - 2 + 4 + 1


def test_the_digest_of_the_code_is_taken_when_the_grid_starts(run, monkeypatch):
    """Code that is edited while a training runs is not what its checkpoint was made with."""
    events, fit, read = [], common.fit, common.code_digest.__wrapped__
    digest = common.cache(lambda: events.append("digest") or read())
    monkeypatch.setattr(common, "code_digest", digest)
    monkeypatch.setattr(common, "fit", lambda *a, **k: events.append("fit") or fit(*a, **k))
    run("results", "--epochs", "1")
    assert events == ["digest", "fit"]


def test_the_state_of_fp16s_scaler_comes_back(tmp_path):
    former, scaler = torch.amp.GradScaler("cpu"), torch.amp.GradScaler("cpu")
    former.scale(torch.ones(1))  # its scale is a number from the first use on
    former.update(12345.0)
    checkpoint = common.Checkpoint(tmp_path / "x.pt", "this")
    checkpoint.save({"scaler": former}, [{"number": 1}])
    assert checkpoint.load({"scaler": scaler}, before=2) == [{"number": 1}]
    assert scaler.get_scale() == 12345.0


@pytest.mark.parametrize("name", ["../../x", "/etc/x", "..", "a/../../b", ""])
def test_a_file_of_a_row_is_in_its_folder(tmp_path, name):
    row = dict.fromkeys(common.key_columns("resnet"), name)
    assert train_resnet.file_of(tmp_path, row).resolve().parent == tmp_path.resolve()


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_stops_in_one_line_and_keeps_the_checkpoint(tmp_path, number, code):
    script = "import common, train_resnet; common.CHECKPOINT_SECONDS = 0;"
    script += "common.run_main(train_resnet.main)"
    process = subprocess.Popen(
        [sys.executable, "-c", script, *DATA, "--epochs", "1", "1000"],
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
    assert [row["epochs"] for row in rows(tmp_path / "results").values()] == ["1"]
    assert len(checkpoints(str(tmp_path / "results"))) == 1


def test_the_drill_ends_with_the_rows_of_an_undisturbed_grid(tmp_path):
    done = python(ROOT / "tests/drill.py", "--kills", "4", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "12 rows, equal" in done.stdout
