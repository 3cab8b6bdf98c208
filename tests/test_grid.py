"""Grids: shared among processes, none of the work done twice, no failure hidden."""

import errno
import re
import shutil
import signal
import subprocess
from itertools import product
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL, assert_refused, finish, read, start
from filelock import FileLock

import common
import train_svm

# --- in one process ------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def columns(monkeypatch):
    columns = ("dataset", "seed", "epochs", *common.RESULTS, *common.ENVIRONMENT)
    monkeypatch.setitem(common.COLUMNS, "rows", columns)
    monkeypatch.setitem(common.KEY, "rows", columns[:3])


def run(folder: Path, *flags: str, count: int = 3, epochs=(1,), errors: dict | None = None) -> int:
    """A grid of count jobs, with a row for each of the epochs, which take no time; errors are
    raised by the rows' seeds."""
    numbers = {"n_train": 7, "n_val": 1, "n_test": 2, "train_time_ms": 5.0, "predict_time_ms": 1}

    def train(rows, scratch):
        for row in rows:
            if (error := (errors or {}).get(row["seed"])) and row["epochs"] != 1:
                raise error
            yield row | numbers | {"val_accuracy": 0.9, "test_accuracy": 0.8}

    rows = [
        {"dataset": "digits", "seed": seed, "epochs": e} for e in epochs for seed in range(count)
    ]
    return common.run_grid(
        folder / "rows.csv", rows, train, None, dry_run=False, again=lambda _: "--force" in flags
    )


def statuses(folder: Path, epochs: int = 2) -> dict[int, str]:
    rows = common.read_rows(folder / "rows.csv")
    return {row["seed"]: row["status"] for row in rows if row["epochs"] == epochs}


FAILURES = [
    (FloatingPointError("epoch 1: loss is nan"), "diverged"),
    (torch.OutOfMemoryError("CUDA out of memory.\nmore"), "failed"), (MemoryError(), "failed"),
]  # fmt: skip


@pytest.mark.parametrize(("error", "status"), FAILURES)
def test_whatever_fails_is_a_row_and_the_others_go_on(tmp_path, capsys, error, status):
    assert run(tmp_path, epochs=(1, 2), errors={1: error}) == 1
    assert statuses(tmp_path, 1) == dict.fromkeys(range(3), "ok"), "saved before the error"
    assert statuses(tmp_path) == {0: "ok", 1: status, 2: "ok"}
    (row,) = (row for row in common.read_rows(tmp_path / "rows.csv") if row["status"] != "ok")
    assert row["reason"] == f"{type(error).__name__}: {common.first_line(error)}"
    out, traceback = capsys.readouterr()
    assert f"digits epochs=2 seed=1: {status}, {row['reason']}" in out
    assert ("Traceback" in traceback) == (status == "failed")
    again = {0: error, 2: error}
    assert run(tmp_path, epochs=(1, 2), errors=again) == 0, "only the failed one was run again"
    assert set(statuses(tmp_path).values()) == {"ok"}
    assert run(tmp_path, "--force", epochs=(2,), errors={1: error}) == 1
    assert "another process" not in capsys.readouterr().out


def test_a_disk_that_is_full_or_a_refusal_ends_the_command(tmp_path):
    for error in (OSError(errno.ENOSPC, "No space left"), SystemExit(2)):
        with pytest.raises(type(error)):
            run(tmp_path, epochs=(2,), errors={1: error})
    assert statuses(tmp_path) == {0: "ok"}


def test_an_error_of_cuda_that_stays_ends_the_process_after_its_row(tmp_path, monkeypatch):
    """All later operations of the process would fail as well."""
    ones, error = torch.ones, torch.AcceleratorError("CUDA error: illegal memory access", 700)

    def stay(*shape, device="cpu"):
        if torch.device(device).type == "cuda":
            raise error
        return ones(*shape)

    def train():
        raise error
        yield

    monkeypatch.setattr(torch, "ones", stay)
    monkeypatch.setattr(common, "device_name", lambda device: "GPU")
    monkeypatch.setitem(common.COLUMNS, "rows", (*common.COLUMNS["rows"], "device"))
    (tmp_path / ".running").mkdir()
    row = {"dataset": "digits", "seed": 0, "epochs": 2, "device": "cuda"}
    with pytest.raises(torch.AcceleratorError):
        common.run_job(tmp_path / "rows.csv", [row], train())
    assert statuses(tmp_path) == {0: "failed"}


@pytest.mark.parametrize("flags", [[], ["--force"]])
def test_rows_that_another_command_finishes_meanwhile_are_not_run(tmp_path, monkeypatch, flags):
    begin = common.begin

    def run_other(path):
        monkeypatch.setattr(common, "begin", begin)
        assert run(tmp_path, *flags) == 0
        begin(path)

    monkeypatch.setattr(common, "begin", run_other)
    assert run(tmp_path, *flags, errors=dict.fromkeys(range(3), ZeroDivisionError())) == 0
    assert statuses(tmp_path, 1) == dict.fromkeys(range(3), "ok")


def test_a_job_that_another_process_holds_is_left_to_it(tmp_path, capsys):
    row = {"dataset": "digits", "seed": 1, "epochs": 1}
    lock = common.lock_of(tmp_path / "rows.csv", row)
    lock.parent.mkdir()
    with FileLock(lock):
        assert run(tmp_path) == 0
    assert statuses(tmp_path, 1) == {0: "ok", 2: "ok"}
    assert "1 row is being made by another process\n" in capsys.readouterr().out


REFUSALS = {
    "fcntl.flock": [OSError(errno.ENOLCK, "No locks available"), OSError(errno.ENOSYS, "No flock")],
    "os.open": [PermissionError(errno.EACCES, "Permission denied")],
    "filelock.FileLock.acquire": [NotImplementedError("FileSystem does not support flock")],
}


@pytest.mark.filterwarnings("ignore")  # filelock tells of its soft locks
@pytest.mark.parametrize(
    ("name", "error"), [(name, error) for name, errors in REFUSALS.items() for error in errors]
)
def test_a_folder_that_refuses_locks_is_one_line_before_any_training(
    tmp_path, capsys, monkeypatch, name, error
):
    """Without flock, filelock's files would stay after a crash, for ever."""

    def refuse(*_, **__):
        raise error

    monkeypatch.setattr(name, refuse)
    monkeypatch.setattr(common, "LOCK_SECONDS", 0.1)
    monkeypatch.setattr(train_svm, "train", lambda *_, **__: pytest.fail("it trains"))
    flags = [*SMALL, "--results-dir", str(tmp_path)]
    assert_refused(capsys, lambda: train_svm.main(flags), "--results-dir: ", "locked")


def test_the_commit_is_that_of_this_code_and_says_if_it_was_changed(tmp_path, monkeypatch):
    """A file that git does not know changes nothing."""
    monkeypatch.setattr(common, "__file__", str(shutil.copy(ROOT / "common.py", tmp_path)))
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    assert common.code_commit.__wrapped__() == "unknown"
    for command in (["init"], ["add", "."], ["commit", "-m", "this"]):
        subprocess.run([*git, *command], check=True, capture_output=True)
    (tmp_path / "new.py").touch()
    assert re.fullmatch(r"[0-9a-f]{10}", common.code_commit.__wrapped__())
    (tmp_path / "common.py").write_text("changed")
    assert re.fullmatch(r"[0-9a-f]{10}-dirty", common.code_commit.__wrapped__())


# --- in several ----------------------------------------------------------------------------------

RESNET = [*SMALL, "--device", "cpu", "--opt", "sgd", "--bs", "16", "32"]


def test_two_commands_at_once_share_a_grid_and_a_failed_run_stops_none(tmp_path):
    flags = [*RESNET, "--lr", "1e20", "1e-3", "1e-2", "--epochs", "1", "2"]
    processes = [start(ROOT / "train_resnet.py", *flags, cwd=tmp_path) for _ in range(2)]
    codes, outs, _ = zip(*map(finish, processes), strict=True)
    assert 1 in codes
    assert set(codes) <= {0, 1}
    rows = read(tmp_path / "results/resnet.csv")
    assert sorted((row["batch_size"], row["lr"], row["epochs"]) for row in rows) == sorted(
        product(("16", "32"), ("1e+20", "0.001", "0.01"), ("1", "2"))
    )
    assert {row["lr"] for row in rows if row["status"] == "diverged"} == {"1e+20"}
    assert "".join(outs).count(": ok, validation ") == 8, "none was made twice"
    assert "".join(outs).count(": diverged, ") == 4


def test_ctrl_c_is_one_line(tmp_path):
    flags = [*SMALL, "--device", "cpu", "--epochs", "1", "1000"]
    process = start(ROOT / "train_resnet.py", *flags, cwd=tmp_path)
    while "epoch 3/" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, _, error = finish(process)
    assert (code, error.count("\n")) == (130, 1), error
    assert error.startswith("interrupted: ")
    assert [row["epochs"] for row in read(tmp_path / "results/resnet.csv")] == ["1"]


def test_the_drill_ends_with_the_rows_of_an_undisturbed_grid(tmp_path):
    code, out, error = finish(start(ROOT / "tests/drill.py", "--kills", "4", cwd=tmp_path))
    assert code == 0, error
    assert "12 rows, equal" in out
