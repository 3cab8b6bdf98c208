"""What the tests share: scripts, processes, refusals, and data, real ones if they are at hand."""

import csv
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import common

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT.parent / "shared" / "data", ROOT / "data")
SMALL = ["--dataset", "digits", "--limit", "100"]


def read(path: Path) -> list[dict[str, str]]:
    """The lines of a results file, every cell a text."""
    with path.open(newline="") as file:
        return list(csv.DictReader(file, strict=True))


def default_signals() -> None:
    """In a child: a shell that runs the tests in the background, or nohup, ignores these."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def start(*command, cwd: Path, **environment: str) -> subprocess.Popen:
    """Start Python in a process of its own, which finds the scripts."""
    return subprocess.Popen(
        [sys.executable, *map(str, command)], cwd=cwd, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True, preexec_fn=default_signals,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | environment,
    )  # fmt: skip


def finish(process: subprocess.Popen) -> tuple[int, str, str]:
    """Wait for its end: exit code, stdout, stderr."""
    try:
        out, error = process.communicate(timeout=240)
    finally:
        process.kill()
    return process.returncode, out, error


def assert_refused(capsys, call: Callable, *words: str) -> None:
    """One line on stderr that holds the words, and exit code 2."""
    with pytest.raises(SystemExit) as stop:
        call()
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1, error
    assert error[:-1].isprintable()
    assert all(word in error for word in words), error


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(module, flags...) -> exit code of a script, in a folder of its own, on the CPU."""
    monkeypatch.chdir(tmp_path)

    def call(module, *flags: str) -> int:
        device = [] if module.__name__ == "train_svm" else ["--device", "cpu"]
        return module.main([*device, *map(str, flags)])

    return call


@pytest.fixture(scope="session")
def real_data(tmp_path_factory) -> Path:
    """A writable folder with links to the archives of MNIST and FashionMNIST."""
    source = next((folder for folder in FOLDERS if list(folder.glob("*MNIST/raw/*.gz"))), None)
    if source is None:
        pytest.skip(f"no MNIST archives in {' or '.join(map(str, FOLDERS))}")
    target = tmp_path_factory.mktemp("data")
    for archive in source.glob("*MNIST/raw/*.gz"):
        link = target / archive.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(archive.resolve(), link)
    return target


@pytest.fixture(scope="session")
def digits() -> common.Split:
    return common.load_split("digits", Path("data"), seed=0)


@pytest.fixture(scope="session")
def small() -> common.Split:
    """100 digits: 70 / 10 / 20."""
    return common.load_split("digits", Path("data"), seed=0, limit=100)
