"""Grids: shared among processes and nodes, none of the work done twice, no failure hidden."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest
import torch
from conftest import ROOT, SMALL, python, read

import common

# --- in one process ------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def columns(monkeypatch):
    columns = ("dataset", "seed", *common.ACCURACY, "train_time_ms", *common.ENVIRONMENT)
    monkeypatch.setitem(common.COLUMNS, "rows", columns)


def run(
    folder: Path, *flags: str, count=3, together=1, errors: dict | None = None,
    seconds=lambda rows: 1800.0,
) -> int:  # fmt: skip
    """A grid of count rows, so many of them in a job, which take no time; errors are raised by the
    rows' seeds."""
    args = common.make_parser("").parse_args([*flags, "--results-dir", str(folder)])

    def work(rows):
        numbers = {"n_train": 7, "n_val": 1, "n_test": 2, "train_time_ms": 5.0}
        for row in rows:
            if error := (errors or {}).get(row["seed"]):
                raise error
            yield row | numbers | {"val_accuracy": 0.9, "test_accuracy": 0.8}

    rows = [{"dataset": "digits", "seed": seed} for seed in range(count)]
    jobs = [rows[start : start + together] for start in range(0, count, together)]
    return common.run_grid(args, "rows", jobs, work, seconds)


def statuses(folder: Path) -> dict[int, str]:
    return {row["seed"]: row["status"] for row in common.read_rows(folder / "rows.csv")}


FAILURES = [
    (FloatingPointError("epoch 1: loss is nan"), "diverged"),
    (torch.OutOfMemoryError("CUDA out of memory.\nmore"), "out_of_memory"),
    (MemoryError("Unable to allocate 58.6 MiB for an array"), "out_of_memory"),
    (MemoryError(), "out_of_memory"),
    (RuntimeError("could not create a primitive"), "out_of_memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
    (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling x"), "out_of_memory"),
    (RuntimeError("cuDNN error: INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"), "out_of_memory"),
]


@pytest.mark.parametrize(("error", "status"), FAILURES)
def test_a_failed_run_is_a_row_and_the_others_go_on(tmp_path, capsys, error, status):
    assert run(tmp_path, errors={1: error}) == 1
    assert statuses(tmp_path) == {0: "ok", 1: status, 2: "ok"}
    (row,) = (row for row in common.read_rows(tmp_path / "rows.csv") if row["status"] != "ok")
    assert row["reason"] == common.first_line(error)
    assert "1 run failed" in capsys.readouterr().out
    assert run(tmp_path, errors={0: error, 2: error}) == 0
    assert set(statuses(tmp_path).values()) == {"ok"}, "only the failed one was run again"


@pytest.mark.parametrize(
    "error",
    [ZeroDivisionError(), RuntimeError("CUDA error: an illegal memory access was encountered")],
)
def test_a_mistake_in_the_program_is_shown_and_is_no_row(tmp_path, error):
    with pytest.raises(type(error)):
        run(tmp_path, errors={1: error})
    assert statuses(tmp_path) == {0: "ok"}


def test_a_failure_in_a_job_of_several_rows_costs_those_that_are_left(tmp_path):
    assert run(tmp_path, together=3, errors={1: FAILURES[1][0]}) == 1
    assert statuses(tmp_path) == {0: "ok", 1: "out_of_memory", 2: "out_of_memory"}


def test_fail_fast_stops_at_the_first_failure(tmp_path):
    assert run(tmp_path, "--fail-fast", errors={1: FAILURES[0][0]}) == 1
    assert statuses(tmp_path) == {0: "ok", 1: "diverged"}


def test_a_grid_of_5000_rows_beside_as_many_starts_in_seconds(tmp_path):
    run(tmp_path, count=1)
    header, first = (tmp_path / "rows.csv").read_text().splitlines()
    rows = [first.replace("digits,0,", f"digits,{seed},") for seed in range(5000)]
    (tmp_path / "rows.csv").write_text("\n".join([header, *rows, ""]))
    start = time.perf_counter()
    assert run(tmp_path, count=5001) == 0
    assert time.perf_counter() - start < 10
    assert len(statuses(tmp_path)) == 5001


def test_rows_that_another_command_finishes_meanwhile_are_not_run(tmp_path, monkeypatch):
    """The file is read again before a job that seems to be left."""
    label = common.label
    monkeypatch.setattr(common, "label", lambda row: run_other(row) or label(row))

    def run_other(row):
        monkeypatch.setattr(common, "label", label)
        assert run(tmp_path, count=2) == 0

    assert run(tmp_path, count=2, errors={1: ZeroDivisionError()}) == 0
    assert statuses(tmp_path) == {0: "ok", 1: "ok"}


def test_the_dry_run_lists_what_is_left_once_with_one_total(tmp_path, capsys):
    run(tmp_path, count=1)
    capsys.readouterr()
    assert run(tmp_path, "--dry-run") == 0
    out = capsys.readouterr().out
    assert "2 of 3 rows to run" in out
    assert re.findall(r"^  digits seed=(\d): about 30:00 min$", out, re.MULTILINE) == ["1", "2"]
    assert "in all about 1:00:00 h (3600 s)" in out
    assert run(tmp_path, "--dry-run", count=1) == 0
    assert "in all" not in capsys.readouterr().out


def test_the_dry_run_goes_on_after_a_run_that_is_too_large(tmp_path, capsys):
    def seconds(rows):
        if rows[0]["seed"] == 1:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory")
        return 1800.0

    assert run(tmp_path, "--dry-run", seconds=seconds) == 0
    out = capsys.readouterr().out
    assert "  digits seed=1: out_of_memory: DefaultCPUAllocator" in out
    assert "in all about 1:00:00 h (3600 s)" in out


def test_a_file_system_without_locks_is_one_line(tmp_path):
    script = (
        "import common; from filelock import FileLock\n"
        "def refuse(*_): raise NotImplementedError('FileSystem does not support flock')\n"
        "FileLock.acquire = refuse\n"
        "import train_svm; common.run_main(train_svm.main)"
    )
    done = python("-c", script, *SMALL, "--kernel", "rbf", "--C", "1", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: FileSystem does not support flock\n"


def test_the_commit_of_another_project_is_never_recorded(tmp_path):
    """Of one in a folder above or in GIT_DIR, where this code has no .git of its own."""
    (tmp_path / "code").mkdir()
    shutil.copy(ROOT / "common.py", tmp_path / "code")
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "other"], check=True)
    command = ["-c", "import common; print(common.code_commit())"]
    for where in ({}, {"GIT_DIR": str(tmp_path / ".git")}):
        done = python(*command, cwd=tmp_path, PYTHONPATH=str(tmp_path / "code"), **where)
        assert done.stdout == "unknown\n", done.stderr


# --- torchrun ------------------------------------------------------------------------------------


def torchrun(cwd: Path, *command) -> subprocess.Popen:
    """Start it in a folder, with flags of its own, a script and the script's flags."""
    cwd.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *map(str, command)],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def finish(process: subprocess.Popen) -> tuple[int, str]:
    try:
        out, _ = process.communicate(timeout=240)
    finally:
        process.terminate()
    return process.returncode, out


LOCAL = ["--standalone", "--nproc-per-node", 2]
SVM, RESNET = ROOT / "train_svm.py", ROOT / "train_resnet.py"
GRID = [*SMALL, "--device", "cpu", "--opt", "sgd", "--bs", "16", "32"]


def test_processes_share_a_grid_and_a_failed_run_stops_none(tmp_path):
    flags = [*GRID, "--lr", "1e20", "1e-3", "1e-2", "--epochs", "1", "2"]
    code, out = finish(torchrun(tmp_path, *LOCAL, RESNET, *flags))
    assert code == 0, out
    rows = read(tmp_path / "results/resnet.csv")
    assert sorted((row["batch_size"], row["lr"], row["epochs"]) for row in rows) == sorted(
        product(("16", "32"), ("1e+20", "0.001", "0.01"), ("1", "2"))
    )
    assert {row["lr"] for row in rows if row["status"] == "diverged"} == {"1e+20"}
    assert out.count(": diverged: ") == 4
    assert sorted(re.findall(r"^\[(\d)/6\]", out, re.MULTILINE)) == list("123456")
    assert out.count("12 of 12 rows to run") == 1
    assert sum(map(int, re.findall(r"^(\d) runs? failed", out, re.MULTILINE))) == 4


KILLED = """
import os, signal, common, train_resnet
save_row, common.CHECKPOINT_SECONDS = common.save_row, 0
def save_then_die(*args):
    save_row(*args)
    if os.environ["RANK"] == "1" and not os.path.exists("killed"):
        open("killed", "w").close()
        os.kill(os.getpid(), signal.SIGKILL)
common.save_row = save_then_die
common.run_main(train_resnet.main)
"""


@pytest.mark.parametrize("restarts", [pytest.param(0, marks=pytest.mark.slow), 1])
def test_a_killed_process_costs_no_row_and_its_work_is_taken_up(tmp_path, restarts):
    """By torchrun's restart, or by the same command."""
    (tmp_path / "killed.py").write_text(KILLED)
    command = [*LOCAL, "--max-restarts", restarts, "killed.py", *GRID, "--epochs", "1", "4"]
    code, out = finish(torchrun(tmp_path, *command))
    assert (code == 0) == bool(restarts), out
    path = tmp_path / "results/resnet.csv"
    if not restarts:
        before = read(path)
        assert "interrupted: finished rows are kept" in out, "its neighbour stopped cleanly"
        code, out = finish(torchrun(tmp_path, *command))
        assert code == 0, out
        assert all(row in read(path) for row in before)
    rows = sorted((row["batch_size"], row["epochs"], row["status"]) for row in read(path))
    assert rows == list(product(("16", "32"), ("1", "4"), ["ok"]))
    assert list(path.parent.glob(".checkpoints/*")) == []


def test_nodes_without_a_shared_folder_have_all_rows_together(tmp_path):
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    where = ["--nnodes", 2, "--nproc-per-node", 1, "--master-addr", "localhost"]
    where += ["--master-port", port, "--node-rank"]
    nodes = [
        torchrun(tmp_path / f"node{rank}", *where, rank, SVM, *SMALL, "--kernel", "rbf")
        for rank in range(2)
    ]
    for node in nodes:
        code, out = finish(node)
        assert code == 0, out
    files = tmp_path.glob("node*/results/svm.csv")
    rows = sorted((row["C"], row["gamma"]) for path in files for row in read(path))
    assert rows == list(product(("0.1", "1.0"), ("0.01", "0.1", "auto", "scale")))
