"""Grids: shared among processes and nodes, none of the work done twice, no failure hidden."""

import csv
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from conftest import ROOT

import common
import train_svm

SMALL = ["--dataset", "digits", "--limit", "100"]


def read(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- in one process ------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def columns(monkeypatch):
    columns = ("dataset", "seed", *common.ACCURACY, "train_time_ms", *common.ENVIRONMENT)
    monkeypatch.setitem(common.COLUMNS, "rows", columns)


def run(folder: Path, *flags: str, count: int = 3, errors: dict | None = None) -> int:
    """A grid of jobs of one row each, which take no time; errors are raised by the jobs' seeds."""
    args = common.make_parser("").parse_args([*flags, "--results-dir", str(folder)])

    def work(rows):
        if error := (errors or {}).get(rows[0]["seed"]):
            raise error
        numbers = {"n_train": 7, "n_val": 1, "n_test": 2, "train_time_ms": 5.0}
        yield rows[0] | numbers | {"val_accuracy": 0.9, "test_accuracy": 0.8}

    jobs = [[{"dataset": "digits", "seed": seed}] for seed in range(count)]
    return common.run_grid(args, "rows", jobs, work, lambda rows: 1800.0)


def statuses(folder: Path) -> dict[int, str]:
    return {row["seed"]: row["status"] for row in common.read_rows(folder / "rows.csv")}


FAILURES = [
    (FloatingPointError("epoch 1: loss is nan"), "diverged"),
    (torch.OutOfMemoryError("CUDA out of memory.\nmore"), "out_of_memory"),
    (MemoryError("Unable to allocate 58.6 MiB for an array"), "out_of_memory"),
    (MemoryError(), "out_of_memory"),
    (RuntimeError("could not create a primitive"), "out_of_memory"),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "out_of_memory"),
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


def test_fail_fast_stops_at_the_first_failure(tmp_path):
    assert run(tmp_path, "--fail-fast", errors={1: FAILURES[0][0]}) == 1
    assert statuses(tmp_path) == {0: "ok", 1: "diverged"}


def test_a_grid_of_5000_rows_beside_as_many_starts_in_seconds(tmp_path):
    columns, rows = common.COLUMNS["rows"], []
    for seed in range(5000):
        row = {"dataset": "digits", "seed": seed, "status": "ok", "val_accuracy": 0.9}
        row |= {"test_accuracy": 0.8, "n_train": 7, "n_val": 1, "n_test": 2, "train_time_ms": 5}
        rows.append(",".join(str(row.get(name, 1)) for name in columns))
    (tmp_path / "rows.csv").write_text("\n".join([",".join(columns), *rows, ""]))
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


def test_a_bad_folder_is_refused_in_one_line(tmp_path, capsys, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        run(tmp_path / "file" / "below")
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_a_file_system_without_locks_is_one_line(tmp_path):
    script = (
        "import common; from filelock import FileLock\n"
        "def refuse(*_): raise NotImplementedError('FileSystem does not support flock')\n"
        "FileLock.acquire = refuse\n"
        "import train_svm; common.run_main(train_svm.main)"
    )
    command = [sys.executable, "-c", script, *SMALL, "--kernel", "rbf", "--C", "1"]
    done = subprocess.run(
        command, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == "error: FileSystem does not support flock\n"


@pytest.mark.parametrize("where", ["GIT_DIR", "a folder above"])
def test_the_commit_of_another_project_is_never_recorded(tmp_path, where):
    """Where this code has no .git of its own, the commit is unknown."""
    for name in ("common.py", "train_svm.py"):
        (tmp_path / "code").mkdir(exist_ok=True)
        (tmp_path / "code" / name).write_bytes((ROOT / name).read_bytes())
    git = ["git", "-c", "user.name=a", "-c", "user.email=a@b", "-C", str(tmp_path)]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "other"], check=True)
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "code")}
    if where == "GIT_DIR":
        environment["GIT_DIR"] = str(tmp_path / ".git")
    command = [sys.executable, "-c", "import common; print(common.code_commit())"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout == "unknown\n"


# --- torchrun ------------------------------------------------------------------------------------


def torchrun(cwd: Path, *flags, script: Path = ROOT / "train_svm.py") -> subprocess.Popen:
    cwd.mkdir(exist_ok=True)
    return subprocess.Popen(
        [sys.executable, "-m", "torch.distributed.run", *map(str, flags[0]), str(script),
         *map(str, flags[1])],
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
GRID = [*SMALL, "--device", "cpu", "--opt", "sgd", "--bs", "16", "32"]


def test_processes_share_a_grid_and_a_failed_run_stops_none(tmp_path):
    flags = [*GRID, "--lr", "1e20", "1e-3", "1e-2", "--epochs", "1", "2"]
    code, out = finish(torchrun(tmp_path, LOCAL, flags, script=ROOT / "train_resnet.py"))
    assert code == 0, out
    rows = read(tmp_path / "results/resnet.csv")
    assert sorted((row["batch_size"], row["lr"], row["epochs"]) for row in rows) == sorted(
        (batch, lr, epochs) for batch in ("16", "32") for lr in ("1e+20", "0.001", "0.01")
        for epochs in "12"
    )  # fmt: skip
    assert {row["lr"] for row in rows if row["status"] == "diverged"} == {"1e+20"}
    assert out.count(": diverged: ") == 4
    assert sorted(re.findall(r"^\[(\d)/6\]", out, re.MULTILINE)) == list("123456")
    assert out.count("12 of 12 rows to run") == 1
    assert sum(map(int, re.findall(r"^(\d) runs? failed", out, re.MULTILINE))) == 4


def test_the_dry_run_of_many_processes_prints_once(tmp_path):
    code, out = finish(torchrun(tmp_path, LOCAL, [*SMALL, "--C", 1, "--dry-run"]))
    assert code == 0
    assert out.count("12 of 12 rows to run") == out.count("in all about") == 1
    assert not (tmp_path / "results").exists()


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
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    grid = [*GRID, "--epochs", "1", "4"]
    command = [*LOCAL, "--max-restarts", restarts], grid
    code, out = finish(torchrun(tmp_path, *command, script=script))
    assert (code == 0) == bool(restarts), out
    path = tmp_path / "results/resnet.csv"
    if not restarts:
        before = read(path)
        assert "interrupted: finished rows are kept" in out, "its neighbour stopped cleanly"
        code, out = finish(torchrun(tmp_path, *command, script=script))
        assert code == 0, out
        assert all(row in read(path) for row in before)
    rows = read(path)
    assert sorted((row["batch_size"], row["epochs"]) for row in rows) == [
        ("16", "1"), ("16", "4"), ("32", "1"), ("32", "4"),
    ]  # fmt: skip
    assert {row["status"] for row in rows} == {"ok"}
    assert list(path.parent.glob(".checkpoints/*")) == []


def nodes(tmp_path: Path, flags: list) -> list[subprocess.Popen]:
    """Two nodes of one process each, in folders of their own."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    where = ["--nnodes", 2, "--nproc-per-node", 1, "--master-addr", "localhost"]
    return [
        torchrun(tmp_path / f"node{node}", [*where, "--master-port", port, "--node-rank", node],
                 flags)
        for node in range(2)
    ]  # fmt: skip


def test_nodes_without_a_shared_folder_have_all_rows_together(tmp_path, monkeypatch):
    for node in nodes(tmp_path, [*SMALL, "--kernel", "rbf"]):
        code, out = finish(node)
        assert code == 0, out
    files = [tmp_path / f"node{node}/results/svm.csv" for node in range(2)]
    rows = [(row["C"], row["gamma"]) for file in files if file.exists() for row in read(file)]
    assert sorted(rows) == sorted(
        (C, gamma) for C in ("0.1", "1.0") for gamma in ("scale", "auto", "0.01", "0.1")
    )
    monkeypatch.chdir(tmp_path)
    assert not train_svm.main([*SMALL, "--kernel", "rbf", "--results-dir", "node0/results"])


@pytest.mark.slow
def test_processes_stop_at_ctrl_c(tmp_path):
    flags = [*GRID, "--epochs", "1", "1000"]
    process = torchrun(tmp_path, LOCAL, flags, script=ROOT / "train_resnet.py")
    while "after epoch 1," not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, out = finish(process)
    assert code != 0
    assert "interrupted: finished rows are kept" in out
    assert {row["epochs"] for row in read(tmp_path / "results/resnet.csv")} == {"1"}
