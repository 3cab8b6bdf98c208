"""Grids: shared among ranks and nodes, none of the work done twice, and no failure hidden."""

import csv
import os
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT
from torch import distributed as dist

import common
import train_resnet
import train_svm

COLUMNS = ("status", "reason", "name", "device", "n_val", "val_accuracy", *common.ENVIRONMENT)
SMALL = ["--dataset", "digits", "--limit", "100"]


def read(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


# --- in one process ------------------------------------------------------------------------------


def job(name: str, *, val_accuracy: float = 0.9, error: Exception | None = None) -> common.Job:
    """A job of one row, that takes no time."""

    def run(rows):
        if error:
            raise error
        yield {"name": name, "device": "cpu", "n_val": 7000, "val_accuracy": val_accuracy}

    return common.Job(name, [{"name": name, "device": "cpu"}], lambda _: None, run)


def run(folder: Path, jobs: list[common.Job], *flags: str) -> int:
    args = common.make_parser("").parse_args([*flags, "--results-dir", str(folder)])
    return common.run_jobs(
        args, jobs, folder / "rows.csv", columns=COLUMNS, key=("name",),
        summary=lambda row: row["name"], main=None,
    )  # fmt: skip


def statuses(folder: Path) -> dict[str, str]:
    return {row["name"]: row["status"] for row in read(folder / "rows.csv")}


FAILURES = [
    (FloatingPointError("epoch 1: loss is nan"), "diverged"),
    (torch.OutOfMemoryError("CUDA out of memory.\nmore"), "out_of_memory"),
    (MemoryError("not enough memory for a Gram matrix"), "out_of_memory"),
]


@pytest.mark.parametrize(("error", "status"), FAILURES)
def test_a_failed_run_is_a_row_and_the_others_go_on(tmp_path, capsys, error, status):
    assert run(tmp_path, [job("a"), job("b", error=error), job("c")]) == 1
    assert statuses(tmp_path) == {"a": "ok", "b": status, "c": "ok"}
    assert "1 rows failed" in capsys.readouterr().out
    assert run(tmp_path, [job("a", error=error), job("b"), job("c", error=error)]) == 0
    assert set(statuses(tmp_path).values()) == {"ok"}, "only the failed one was run again"


def test_a_mistake_in_the_program_is_no_row(tmp_path):
    with pytest.raises(ZeroDivisionError):
        run(tmp_path, [job("a"), job("b", error=ZeroDivisionError()), job("c")])
    assert statuses(tmp_path) == {"a": "ok"}


def test_fail_fast_stops_at_the_first_failure(tmp_path):
    jobs = [job("a"), job("b", error=FAILURES[0][0]), job("c")]
    assert run(tmp_path, jobs, "--fail-fast") == 1
    assert statuses(tmp_path) == {"a": "ok", "b": "diverged"}


def test_a_collapsed_run_keeps_its_figures_and_is_not_run_again(tmp_path, capsys):
    assert run(tmp_path, [job("a", val_accuracy=0.1), job("b")]) == 0
    assert statuses(tmp_path) == {"a": "collapsed", "b": "ok"}
    out = capsys.readouterr().out
    assert "1 rows collapsed" in out
    assert "collapsed: validation accuracy 10.00%" in out
    assert read(tmp_path / "rows.csv")[0]["val_accuracy"] == "0.1"
    assert run(tmp_path, [job("a", error=ZeroDivisionError()), job("b")]) == 0
    assert "2 are in" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("val_accuracy", "n_val", "status"),
    [(0.1, 7000, "collapsed"), (0.18, 7000, "collapsed"), (0.19, 7000, "ok"), (0.25, 7000, "ok"),
     (0.1, 180, "collapsed"), (0.12, 180, "ok"), (0.0, 10, "ok")],
)  # fmt: skip
def test_a_run_has_collapsed_if_it_is_surely_worse_than_twice_chance(val_accuracy, n_val, status):
    """Ten validation images prove nothing."""
    row = {"val_accuracy": val_accuracy, "n_val": n_val}
    assert common.judge(row)["status"] == status


def test_ranks_take_every_job_once(tmp_path):
    store, jobs = dist.HashStore(), [job(name) for name in "abcdefg"]
    first, second = (common.take_jobs(store, jobs, owner=o, fail_fast=False) for o in "12")
    taken = [next(first), next(second), next(second), *first, *second]
    assert [number for number, _ in taken] == list(range(1, 8))
    anew = common.take_jobs(store, jobs, owner="2", fail_fast=False)
    assert [number for number, _ in anew] == [2, 3], "a rank that is started anew keeps its own"


def test_a_failure_on_one_rank_stops_all_with_fail_fast():
    store, jobs = dist.HashStore(), [job(name) for name in "abc"]
    first, second = (common.take_jobs(store, jobs, owner=o, fail_fast=True) for o in "12")
    assert next(first)[0] == 1
    store.set("failed", "yes")
    assert [*first, *second] == []


# --- verify --------------------------------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path, monkeypatch, capsys) -> Path:
    """A file of four SVM rows."""
    monkeypatch.chdir(tmp_path)
    assert train_svm.main([*SMALL, "--C", "1", "--gamma", "scale", "0.01", "--degree", "2"]) == 0
    capsys.readouterr()
    return tmp_path / "results/svm.csv"


def test_verify_runs_recorded_rows_again_and_changes_nothing(recorded, capsys):
    before = recorded.read_bytes()
    assert train_svm.main(["--verify", "9"]) == 0
    out = capsys.readouterr().out
    assert "4 of 4 rows came out the same\n" in out
    assert out.count("environment: the same") == 4
    assert recorded.read_bytes() == before
    assert sorted(os.listdir(recorded.parent)) == [".lock", "svm.csv"]


def test_verify_takes_the_number_of_threads_of_each_row(recorded, monkeypatch):
    taken = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    now = torch.get_num_threads()
    recorded.write_text(recorded.read_text().replace(f",{now},3.", f",{now + 1},3."))
    train_svm.main(["--verify", "4"])
    assert taken.count(now + 1) == 4  # the solver sets others


def test_verify_tells_what_differs_and_where_it_was_made(recorded, capsys):
    text = recorded.read_text()
    accuracy = read(recorded)[0]["test_accuracy"]
    recorded.write_text(text.replace(f",{accuracy},", ",0.123,").replace(torch.__version__, "1.0"))
    assert train_svm.main(["--verify", "9"]) == 1
    out = capsys.readouterr().out
    assert "differs in test_accuracy" in out
    assert f"torch was '1.0', is '{torch.__version__}'" in out


def test_verify_trains_a_resnet_to_the_same_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--device", "cpu", "--opt", "sgd", "adam", "--momentum", "0.5", "--no-amp"]
    train_resnet.main([*SMALL, *flags, "--epochs", "1", "2", "--seed", "1", "--split-seed", "3"])
    assert train_resnet.main(["--verify", "2"]) == 0
    assert "2 of 2 rows came out the same" in capsys.readouterr().out
    path = tmp_path / "results/resnet.csv"
    path.write_text(re.sub(r"[0-9a-f]{64}", 64 * "0", path.read_text()))
    assert train_resnet.main(["--verify", "1"]) == 1
    assert "differs in weights_sha256\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value"),
    [("dataset", "--help"), ("dataset", "../../etc"), ("kernel", "rbf --force"), ("C", "nan"),
     ("C", "1e999"), ("gamma", "--results-dir=/"), ("seed", "-1"), ("limit", "1e9"),
     ("train_size", "9" * 5000), ("degree", "2;ls"), ("device", "tpu"), ("device", "\x1b[2J"),
     ("threads", "0"), ("threads", "\x1b[2J")],
)  # fmt: skip
def test_verify_refuses_rows_that_no_command_makes(recorded, capsys, name, value):
    rows = [row | {name: value} for row in read(recorded)]
    with recorded.open("w", newline="") as file:
        writer = csv.DictWriter(file, train_svm.COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    before = recorded.read_bytes()
    with pytest.raises(SystemExit) as stop:
        train_svm.main(["--verify", "1"])
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert error[:-1].isprintable()
    assert recorded.read_bytes() == before


def test_verify_without_rows_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        train_svm.main(["--verify", "1"])
    assert "--verify" in capsys.readouterr().err


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


def test_ranks_share_a_grid_and_a_failed_run_stops_no_rank(tmp_path):
    flags = [*GRID, "--lr", "1e20", "1e-3", "1e-2", "--epochs", "1", "2"]
    restart = [*LOCAL, "--max-restarts", 1]  # for the exit code of 1: it finds nothing to do
    code, out = finish(torchrun(tmp_path, restart, flags, script=ROOT / "train_resnet.py"))
    assert code == 1, out
    assert out.count("  diverged: ") == 4
    rows = read(tmp_path / "results/resnet.csv")
    assert sorted((row["batch_size"], row["lr"], row["epochs"]) for row in rows) == sorted(
        (batch, lr, epochs) for batch in ("16", "32") for lr in ("1e+20", "0.001", "0.01")
        for epochs in "12"
    )  # fmt: skip
    assert {row["lr"] for row in rows if row["status"] == "diverged"} == {"1e+20"}
    assert sorted(re.findall(r"^\[(\d)/6\]", out, re.MULTILINE)) == list("123456")
    for line in ("12 rows asked for", "4 rows failed", "pin_memory has nothing to do"):
        assert out.count(line) == 2, "once, and once after the restart"


def test_dry_run_prints_once(tmp_path):
    code, out = finish(torchrun(tmp_path, LOCAL, [*SMALL, "--C", 1, "--dry-run"]))
    assert code == 0
    assert out.count("12 rows asked for") == out.count("in all") == 1
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
def test_a_killed_rank_costs_no_row_and_its_work_is_taken_up(tmp_path, restarts):
    """By torchrun's restart, or by the same command."""
    script = tmp_path / "killed.py"
    script.write_text(KILLED)
    grid = [*GRID, "--epochs", "1", "4"]
    command = ["--standalone", "--nproc-per-node", 2, "--max-restarts", restarts], grid
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
    assert list(path.parent.glob(".checkpoints/*.pt")) == []


def test_nodes_without_a_shared_folder_leave_disjoint_files(tmp_path, monkeypatch):
    """Also when one of them has rows already."""
    (tmp_path / "node1").mkdir()
    monkeypatch.chdir(tmp_path / "node1")
    assert train_svm.main([*SMALL, "--kernel", "rbf", "--C", "1"]) == 0
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    where = ["--nnodes", 2, "--nproc-per-node", 1, "--master-addr", "localhost"]
    nodes = [
        torchrun(tmp_path / f"node{node}", [*where, "--master-port", port, "--node-rank", node],
                 [*SMALL, "--kernel", "rbf"])
        for node in range(2)
    ]  # fmt: skip
    for node in nodes:
        code, out = finish(node)
        assert code == 0, out
    files = [tmp_path / f"node{node}/results/svm.csv" for node in range(2)]
    rows = [(row["C"], row["gamma"]) for file in files if file.exists() for row in read(file)]
    assert sorted(rows) == sorted(
        (C, gamma) for C in ("0.1", "1.0") for gamma in ("scale", "auto", "0.01", "0.1")
    )


@pytest.mark.slow
def test_ranks_stop_at_ctrl_c(tmp_path):
    flags = [*GRID, "--epochs", "1", "1000"]
    process = torchrun(tmp_path, LOCAL, flags, script=ROOT / "train_resnet.py")
    while "after epoch 1:" not in process.stdout.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    code, out = finish(process)
    assert code != 0
    assert "interrupted: finished rows are kept" in out
    assert {row["epochs"] for row in read(tmp_path / "results/resnet.csv")} == {"1"}
