"""Kill three processes that share a folder at random moments, and compare what they leave.

    python tests/drill.py                # 50 kills: minutes
    python tests/drill.py --kills 4      # as in the tests

Each runs the same small grid on the embedded digits and is started again after its kill, by
SIGKILL, SIGTERM or SIGINT, until all rows are in. The rows must be those of an undisturbed process
but for their times, each of them there once, and nothing else beside them. Prints one line, and
exits 1 if not.
"""

import argparse
import csv
import json
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
import torch

import common
import train_resnet
import train_svm

RESNETS = "--device cpu --opt sgd adam --bs 32 64 --epochs 1 3"
SVMS = "--kernel rbf --C 0.1 1 --gamma scale 0.01"
ROWS = 12


def grid(folder: Path) -> int:
    """All rows of the drill; returns the exit code."""
    train_resnet.CHECKPOINT_SECONDS = 0
    data = ["--dataset", "digits", "--limit", "100", "--results-dir", str(folder)]
    return train_svm.main([*data, *SVMS.split()]) or train_resnet.main([*data, *RESNETS.split()])


def start(folder: Path) -> int:
    """Run the grid in a process of its own, its output thrown away; returns its id."""
    if process := os.fork():
        return process
    code = 99  # a traceback
    try:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's & ignores it
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        common.run_main(lambda: grid(folder))
    except SystemExit as stop:
        code = stop.code
    except KeyboardInterrupt:  # before run_main
        code = 130
    finally:
        os._exit(code)


def kill_at_random(folder: Path, kills: int, chance: random.Random) -> Counter:
    """Run the grid in three processes, of which some are killed; counts the signals."""
    signals, processes = Counter(), [start(folder) for _ in range(3)]
    while processes:
        process, number = processes.pop(chance.randrange(len(processes))), 0
        if signals.total() < kills:
            time.sleep(chance.choice([chance.uniform(0, 0.2), chance.uniform(0, 1)]))
            number = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
            os.kill(process, number)
        code = os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])
        if number and code == (130 if number == signal.SIGINT else -number):
            signals[number.name] += 1
            processes.append(start(folder))
        elif code != 0:
            raise SystemExit(f"error: the grid ended with {code} after {number}")
    return signals


def read(path: Path) -> dict[str, dict]:
    """The rows by their key columns, without their times. Exits if one is torn or doubled."""
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file, strict=True))
    rows = {}
    for row in lines:
        history = json.loads(row.get("history") or "[]")
        for times in (row, *history):
            for name in [name for name in times if name.endswith("_ms")]:
                del times[name]
        rows[str(common.key_of(path, row))] = row | {"finished_utc": "", "history": history}
    if len(rows) != len(lines):
        raise SystemExit(f"error: {path} has doubled rows")
    return rows


def left_behind(folder: Path) -> list[str]:
    """Files beside the rows. (Locks stay in .running, and checkpoints whose last row is in.)"""
    return [path.name for path in folder.iterdir() if path.is_file() and path.suffix != ".csv"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=50)
    args = parser.parse_args()
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    chance, signals = random.Random(0), Counter()
    with tempfile.TemporaryDirectory() as parent:
        folder = whole = Path(parent, "whole")
        os.waitpid(start(whole), 0)
        expected = read(whole / "svm.csv") | read(whole / "resnet.csv")
        while signals.total() < args.kills:
            folder = Path(parent, str(signals.total()))
            signals += kill_at_random(folder, args.kills - signals.total(), chance)
            rows = read(folder / "svm.csv") | read(folder / "resnet.csv")
            if rows != expected or len(rows) != ROWS or left_behind(folder):
                raise SystemExit(f"error: {signals}: other rows, or left {left_behind(folder)}")
    print(f"{dict(signals)}: {ROWS} rows, equal to those of an undisturbed grid")


if __name__ == "__main__":
    main()
