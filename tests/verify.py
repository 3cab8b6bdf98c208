"""Run finished rows again, in another folder, and compare their results.

    python tests/verify.py resnet 3
    python tests/verify.py svm 5 --results-dir results

Takes rows at random, of those whose device and precision this machine has. On the same CPU or GPU
and with the same PyTorch, all results must be the same. Elsewhere bits differ: there the split must
be the same, and test accuracy within one point. Exits 1 if not. It takes as long as the rows took.
"""

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
RESULTS = ("status", "split_id", "val_accuracy", "test_accuracy", "weights_sha256",
           "support_vectors", "iterations")  # fmt: skip
PLACE = ("device_name", "cpu_name", "torch")
FLAGS = {"optimizer": "opt", "batch_size": "bs"}  # where a flag is not named as its column


def can_repeat(row: dict) -> bool:
    """Whether this machine has a row's device and precision."""
    device = torch.device(row.get("device") or "cpu")
    if device.type == "cuda" and common.gpu_problem():
        return False
    precision = common.pick_precision(device, row.get("amp") == "yes")
    return row.get("precision") in (None, str(precision).removeprefix("torch."))


def run_again(row: dict, name: str, data_dir: Path) -> dict:
    """The row that the same flags give now, with as many threads."""
    flags = ["--no-amp"] if row.get("amp") == "no" else []
    for column in common.KEY[name]:
        if row[column] is not None and column not in ("amp", "precision"):
            flags.append(f"--{FLAGS.get(column, column).replace('_', '-')}={row[column]}")
    torch.set_num_threads(row["threads"])
    with tempfile.TemporaryDirectory() as folder:
        SCRIPTS[name].main([*flags, f"--results-dir={folder}", f"--data-dir={data_dir}"])
        (now,) = common.read_rows(Path(folder) / f"{name}.csv")
    return now


def compare(row: dict, now: dict) -> tuple[bool, str]:
    """Whether the new row confirms the old one, and in what words."""
    differ = [name for name in RESULTS if row.get(name) != now.get(name)]
    if not differ:
        return True, "the same"
    if all(row[name] == now[name] for name in PLACE) or "split_id" in differ:
        return False, f"differs in {', '.join(differ)}"
    gap = 100 * (now["test_accuracy"] - row["test_accuracy"])
    return abs(gap) <= 1, f"{gap:+.2f} points, other bits as on any other CPU, GPU or PyTorch"


def main(argv: list[str] | None = None) -> int:
    parser, confirmed = common.make_parser(__doc__), 0
    parser.add_argument("file", choices=SCRIPTS)
    parser.add_argument("count", type=common.number(int, 1))
    parser.add_argument("--results-dir", type=Path, default=Path("results/reference"))
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    args = parser.parse_args(argv)
    rows = common.read_rows(args.results_dir / f"{args.file}.csv")
    rows = [row for row in rows if row["status"] == "ok" and can_repeat(row)]
    if not rows:
        common.fail(f"no row of {args.results_dir} has a device and precision that are here")
    chosen = random.sample(rows, min(args.count, len(rows)))
    for row in chosen:
        is_fine, words = compare(row, run_again(row, args.file, args.data_dir))
        confirmed += is_fine
        print(f"{common.describe(row)}: {words}")
    print(f"{confirmed} of {len(chosen)} rows confirmed")
    return 0 if confirmed == len(chosen) else 1


if __name__ == "__main__":
    raise SystemExit(main())
