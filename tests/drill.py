"""Kill a grid with SIGKILL, SIGTERM or SIGINT at random moments, run it again, and compare.

    python tests/drill.py                # 100 kills: minutes
    python tests/drill.py --kills 4      # as in the tests

The grid is small, on the embedded digits. It is started again after every kill until all rows are
in; then one undisturbed process makes the rows anew, and both must be equal but for their times,
without a torn line, a doubled row or a checkpoint left behind. Prints one line and exits 1 if not.
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


def grid(folder: Path) -> int:
    """All rows of the drill; returns the exit code."""
    common.CHECKPOINT_SECONDS = 0
    data = ["--dataset", "digits", "--limit", "100", "--results-dir", str(folder)]
    svms = train_svm.main([*data, *SVMS.split()])
    return svms or train_resnet.main([*data, *RESNETS.split()])


def start(folder: Path) -> int:
    """Run the grid in a process of its own, its output thrown away; returns its id."""
    process = os.fork()
    if process:
        return process
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.dup2(null, 2)
    try:
        common.run_main(lambda: grid(folder))
    except SystemExit as stop:
        os._exit(stop.code)
    finally:
        os._exit(99)  # a traceback


def kill_at_random(folder: Path, kills: int, chance: random.Random) -> Counter:
    """Kill the grid so often, then let it come to its end; counts how its processes ended."""
    ends = Counter()
    while ends["finished"] == 0:
        process, number = start(folder), None
        if ends.total() < kills:
            time.sleep(chance.choice([chance.uniform(0, 0.3), chance.uniform(0, 2)]))
            number = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
            os.kill(process, number)
        _, status = os.waitpid(process, 0)
        code = os.waitstatus_to_exitcode(status)
        if code == 0 and number:  # all was done before the kill: begin again
            for path in folder.glob("*.csv"):
                path.unlink()
        elif code != 0 and (number is None or code not in (-number, 128 + number)):
            # -number: it came before its handler was there, or the second time.
            raise SystemExit(f"error: the grid ended with {code} after {number}")
        ends["finished" if code == 0 and not number else signal.Signals(number).name] += 1
    return ends


def read(path: Path) -> dict[str, dict]:
    """The rows by their key columns, without their times. Exits if one is torn or doubled."""
    with path.open(newline="") as file:
        lines = list(csv.DictReader(file, strict=True))
    rows = {}
    for row in lines:
        history = json.loads(row.get("history") or "[]")
        total = sum(epoch.pop("train_time_ms") for epoch in history)
        if history and abs(total - float(row["train_time_ms"])) > 1e-6 * total:
            raise SystemExit(f"error: {path}: train_time_ms does not add up")
        row = {name: text for name, text in row.items() if not name.endswith("_ms")}
        rows[str(common.key_of(path, row))] = row | {"finished_utc": "", "history": history}
    if len(rows) != len(lines):
        raise SystemExit(f"error: {path} has doubled rows")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and the signals")
    args = parser.parse_args()
    torch.set_num_threads(1)  # OpenMP's threads do not survive a fork
    with tempfile.TemporaryDirectory() as folder:
        killed, whole = Path(folder, "killed"), Path(folder, "whole")
        ends = dict(kill_at_random(killed, args.kills, random.Random(args.seed)))
        os.waitpid(start(whole), 0)
        rows = [{**read(each / "svm.csv"), **read(each / "resnet.csv")} for each in (killed, whole)]
        left = [path.name for path in killed.rglob("*") if path.suffix in (".pt", ".tmp")]
    if rows[0] != rows[1] or left:
        raise SystemExit(f"error: rows differ after {ends}, or this is left behind: {left}")
    print(f"{ends}: {len(rows[0])} rows, equal to those of an undisturbed grid")


if __name__ == "__main__":
    main()
