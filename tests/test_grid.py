"""Grids: shared among processes, none of the work done twice, no failure hidden."""

import errno
import re
import shutil
import signal
import subprocess
import time
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
    columns = ("dataset", "seed", *common.ACCURACY, "train_time_ms", *common.ENVIRONMENT)
    monkeypatch.setitem(common.COLUMNS, "rows", columns)
    monkeypatch.setitem(common.KEY, "rows", columns[:2])


def run(
    folder: Path, *flags: str, count: int = 3, together: int = 1, errors: dict | None = None
) -> int:
    """A grid of count rows, so many of them in a job, which take no time; errors are raised by the
    rows' seeds."""
    flags = ["--dataset", "digits", "--results-dir", str(folder), *flags]

    def work(rows, scratch):
        numbers = {"n_train": 7, "n_val": 1, "n_test": 2, "train_time_ms": 5.0}
        for row in rows:
            if error := (errors or {}).get(row["seed"]):
                raise error
            yield row | numbers | {"val_accuracy": 0.9, "test_accuracy": 0.8}

    rows = [{"dataset": "digits", "seed": seed} for seed in range(count)]
    jobs = [rows[start : start + together] for start in range(0, count, together)]
    args = common.make_grid_parser("").parse_args(flags)
    return common.run_grid(args, "rows", jobs, work, seconds=None)


def statuses(folder: Path) -> dict[int, str]:
    return {row["seed"]: row["status"] for row in common.read_rows(folder / "rows.csv")}


FAILURES = [
    (FloatingPointError("epoch 1: loss is nan"), "diverged"),
    (torch.OutOfMemoryError("CUDA out of memory.\nmore"), "out_of_memory"),
    (MemoryError(), "out_of_memory"),
]


@pytest.mark.parametrize(("error", "status"), FAILURES)
def test_a_failed_run_is_a_row_and_the_others_go_on(tmp_path, capsys, error, status):
    assert run(tmp_path, errors={1: error}) == 1
    assert statuses(tmp_path) == {0: "ok", 1: status, 2: "ok"}
    (row,) = (row for row in common.read_rows(tmp_path / "rows.csv") if row["status"] != "ok")
    assert row["reason"] == common.first_line(error)
    assert f"digits seed=1: {status}, {row['reason']}" in capsys.readouterr().out
    assert run(tmp_path, errors={0: error, 2: error}) == 0
    assert set(statuses(tmp_path).values()) == {"ok"}, "only the failed one was run again"
    assert run(tmp_path, "--force", errors={1: error}) == 1
    assert "other processes" not in capsys.readouterr().out


def test_a_mistake_in_the_program_is_shown_and_is_no_row(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, errors={1: ZeroDivisionError()})
    assert statuses(tmp_path) == {0: "ok"}


def test_a_failure_in_a_job_of_several_rows_costs_those_that_are_left(tmp_path, monkeypatch):
    """torchrun, which stops all processes if one exits with 1, is told by rows alone."""
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")  # without RANK, as a shell may leave it
    assert run(tmp_path, together=3, errors={1: FAILURES[1][0]}) == 0
    assert statuses(tmp_path) == {0: "ok", 1: "out_of_memory", 2: "out_of_memory"}


def test_a_grid_of_5000_rows_beside_as_many_starts_in_seconds(tmp_path):
    run(tmp_path, count=1)
    header, first = (tmp_path / "rows.csv").read_text().splitlines()
    rows = [first.replace("digits,0,", f"digits,{seed},") for seed in range(5000)]
    (tmp_path / "rows.csv").write_text("\n".join([header, *rows, ""]))
    start = time.perf_counter()
    assert run(tmp_path, count=5001) == 0
    assert time.perf_counter() - start < 10
    assert len(statuses(tmp_path)) == 5001


@pytest.mark.parametrize("flags", [[], ["--force"]])
def test_rows_that_another_command_finishes_meanwhile_are_not_run(tmp_path, monkeypatch, flags):
    begin = common.begin

    def run_other(path):
        monkeypatch.setattr(common, "begin", begin)
        assert run(tmp_path, *flags) == 0
        begin(path)

    monkeypatch.setattr(common, "begin", run_other)
    assert run(tmp_path, *flags, errors=dict.fromkeys(range(3), ZeroDivisionError())) == 0
    assert statuses(tmp_path) == dict.fromkeys(range(3), "ok")


def test_a_job_that_another_process_holds_is_left_to_it(tmp_path, capsys):
    job = [{"dataset": "digits", "seed": 1}]
    lock = common.checkpoint_file(tmp_path / "rows.csv", job).with_suffix(".lock")
    lock.parent.mkdir()
    with FileLock(lock):
        assert run(tmp_path) == 0
    assert statuses(tmp_path) == {0: "ok", 2: "ok"}
    assert "rows that are left to other processes: 1\n" in capsys.readouterr().out


REFUSALS = {
    "fcntl.flock": OSError(errno.ENOLCK, "No locks available"),
    "os.open": PermissionError(errno.EACCES, "Permission denied"),
    "filelock.FileLock.acquire": NotImplementedError("FileSystem does not support flock"),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_a_folder_that_refuses_locks_is_one_line_before_any_training(
    tmp_path, capsys, monkeypatch, name
):
    def refuse(*_, **__):
        raise REFUSALS[name]

    monkeypatch.setattr(name, refuse)
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

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", 2]
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


KILLED = """
import os, signal, common, train_resnet
save_row, train_resnet.CHECKPOINT_SECONDS = common.save_row, 0
def save_then_die(*args):
    save_row(*args)
    if os.environ["RANK"] == "1" and not os.path.exists("killed"):
        open("killed", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
common.save_row = save_then_die
common.run_main(train_resnet.main)
"""


def test_a_process_of_torchrun_that_is_killed_costs_no_row_and_its_work_is_taken_up(tmp_path):
    (tmp_path / "killed.py").write_text(KILLED)
    command = [*TORCHRUN, "--max-restarts", 1, "killed.py", *RESNET, "--epochs", "1", "4"]
    code, out, error = finish(start(*command, cwd=tmp_path))
    assert code == 0, out + error
    path = tmp_path / "results/resnet.csv"
    rows = sorted((row["batch_size"], row["epochs"], row["status"]) for row in read(path))
    assert rows == list(product(("16", "32"), ("1", "4"), ["ok"]))
    assert (tmp_path / "killed").exists()
    assert not list(path.parent.rglob("*.pt"))


@pytest.mark.parametrize("times", [1, 2])
def test_ctrl_c_is_one_line_even_if_it_is_pressed_twice(tmp_path, times):
    flags = [*SMALL, "--device", "cpu", "--epochs", "1", "1000"]
    process = start(ROOT / "train_resnet.py", *flags, cwd=tmp_path)
    while "epoch 3/" not in process.stdout.readline():
        assert process.poll() is None
    for _ in range(times):
        process.send_signal(signal.SIGINT)
        time.sleep(0.01)
    code, _, error = finish(process)
    assert (code, error.count("\n")) == (130, 1), error
    assert error.startswith("interrupted: ")
    assert [row["epochs"] for row in read(tmp_path / "results/resnet.csv")] == ["1"]


def test_the_drill_ends_with_the_rows_of_an_undisturbed_grid(tmp_path):
    code, out, error = finish(start(ROOT / "tests/drill.py", "--kills", "4", cwd=tmp_path))
    assert code == 0, error
    assert "12 rows, equal" in out
