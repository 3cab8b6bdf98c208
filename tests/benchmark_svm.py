"""Time one SVM setting in ours and in scikit-learn, everything that a single fit needs included.

    python tests/benchmark_svm.py --data-dir data
    python tests/benchmark_svm.py --dataset mnist --kernel rbf --limit 10000
    python tests/benchmark_svm.py --kernel rbf --machine ours scikit-learn-intelex ours

gamma = scale, poly of degree 3 with coef0 = 1, the split of seed 0. scikit-learn-intelex is timed
if it is installed. Prints a markdown table, line by line, in the order of --machine: of all images
scikit-learn takes minutes a line.
"""

import argparse
import sys
import time
from contextlib import suppress
from itertools import product
from pathlib import Path

import torch
from sklearn.svm import SVC

sys.path.insert(0, str(Path(__file__).parents[1]))
import common
import train_svm

PARAMETERS = {"rbf": {}, "poly": {"coef0": 1.0}}
MACHINES = {"ours": train_svm.GramSVC, "scikit-learn": SVC}
with suppress(ImportError):
    from sklearnex.svm import SVC as FastSVC

    MACHINES["scikit-learn-intelex"] = FastSVC


def measure(svm, kind: str, split: common.Split) -> list[str]:
    """Seconds of fit, predict and both, test accuracy, support vectors."""
    train, test = (train_svm.inputs(part, kind) for part in (split.train, split.test))
    start = time.perf_counter()
    svm.fit(train, split.train.labels.numpy())
    fitted = time.perf_counter()
    predictions = torch.from_numpy(svm.predict(test))
    predicted = time.perf_counter()
    times = [fitted - start, predicted - fitted, predicted - start]
    accuracy = common.accuracy(predictions, split.test.labels)
    return [*(f"{value:.1f}" for value in times), f"{accuracy:.4f}", str(len(svm.support_))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    add = parser.add_argument
    add("--dataset", nargs="+", choices=common.DATASETS, default=["mnist", "fashion"])
    add("--kernel", nargs="+", choices=PARAMETERS, default=list(PARAMETERS))
    add("--machine", nargs="+", choices=MACHINES, default=list(MACHINES))
    add("--C", type=float, default=10.0)
    add("--limit", type=int, metavar="N")
    add("--data-dir", type=Path, default=Path("data"), metavar="DIR")
    args = parser.parse_args()
    print(f"{common.cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}\n")
    print("| data set | kernel | training images | machine | fit (s) | predict (s) | both (s) |"
          " test accuracy | support vectors |")  # fmt: skip
    print("|" + " --- |" * 9, flush=True)
    for name in args.machine:
        for dataset, kernel in product(args.dataset, args.kernel):
            split = common.load_split(dataset, args.data_dir, split_seed=0, limit=args.limit)
            svm = MACHINES[name](kernel=kernel, C=args.C, **PARAMETERS[kernel])
            line = [dataset, kernel, str(len(split.train.labels)), name]
            line += measure(svm, "gram" if name == "ours" else "sklearn", split)
            print(f"| {' | '.join(line)} |", flush=True)


if __name__ == "__main__":
    main()
