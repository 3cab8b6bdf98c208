"""Run recorded rows again, in another folder, and compare the results.

    python tests/verify.py resnet 3
    python tests/verify.py svm 5 --seed 1 --results-dir results

Takes rows at random among the finished ones of this machine's devices, each with the number of
threads that it had, on which bits depend. Prints what differs in results and in environment, and
exits 1 if a result does. It takes as long as the rows took.
"""

import argparse
import random
import sys
import tempfile
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
import common
import train_resnet
import train_svm

SCRIPTS = {"resnet": train_resnet, "svm": train_svm}
RESULTS = (
    "status", "split_id", "val_accuracy", "test_accuracy", "test_errors", "weights_sha256",
    "support_vectors", "iterations",
)  # fmt: skip
FLAGS = {"optimizer": "opt", "batch_size": "bs"}  # where a flag is not named as its column


def run_again(row: dict, name: str, data_dir: Path) -> dict:
    """The row that the same flags give now."""
    flags = ["--no-amp"] if row.get("amp") == "false" else []
    for column in common.key_columns(name):  # precision follows from the device and amp
        if row[column] not in (None, "n/a") and column not in ("amp", "precision"):
            flag = FLAGS.get(column, column).replace("_", "-")
            flags.append(f"--{flag}={row[column]}")
    torch.set_num_threads(row["threads"])
    with tempfile.TemporaryDirectory() as folder:
        SCRIPTS[name].main([*flags, f"--results-dir={folder}", f"--data-dir={data_dir}"])
        (now,) = common.read_rows(Path(folder) / f"{name}.csv")
    return now


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.add_argument("file", choices=SCRIPTS)
    parser.add_argument("count", type=common.number(int, low=1))
    parser.add_argument("--seed", type=int, default=0, help="of the choice of rows")
    parser.add_argument("--results-dir", type=Path, default=Path("results"))
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    args = parser.parse_args(argv)
    path = args.results_dir / f"{args.file}.csv"
    rows = [row for row in common.read_rows(path) if row["status"] == "ok"]
    rows = [row for row in rows if not common.device_problem(row.get("device", "cpu"))]
    if not rows:
        common.fail(f"{path} has no finished row that this machine's devices could run")
    chosen, same = random.Random(args.seed).sample(rows, min(args.count, len(rows))), 0
    for row in chosen:
        now = run_again(row, args.file, args.data_dir)
        results = [name for name in RESULTS if row.get(name) not in (None, now.get(name))]
        same += not results
        print(f"{common.label(row)}: {'differs in ' + ', '.join(results) if results else 'same'}")
        for column in common.ENVIRONMENT[:-1]:
            if row[column] != now[column]:
                print(f"  {column} was {row[column]!r:.60}, is {now[column]!r}")
    print(f"{same} of {len(chosen)} rows came out the same")
    return 0 if same == len(chosen) else 1


if __name__ == "__main__":
    raise SystemExit(main())
