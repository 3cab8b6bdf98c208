"""Train support vector machines on pixels / 255; several values of a flag make a grid.

    python train_svm.py --dataset mnist fashion
    python train_svm.py --kernel rbf --C 1 10 --gamma scale 0.01 --train-size 10000

Writes a row for each setting to results/svm.csv; what is there is not run again. Without flags it
runs 24 settings: C 0.1 and 1, gamma scale, auto, 0.01 and 0.1, and for poly degree 2 and 3.
fit_time_ms and predict_time_ms (all test images) cover nothing but scikit-learn's fit and predict.
"""

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from statistics import median

import torch
from sklearn.model_selection import train_test_split
from sklearn.svm import SVC

import common

KERNELS = {"poly": ("C", "gamma", "degree", "coef0"), "rbf": ("C", "gamma")}


@dataclass(frozen=True)
class Setting:
    """One SVM. Its fields are the row's key columns."""

    dataset: str
    limit: int | None
    train_size: int | None  # None: the whole training part
    kernel: str
    C: float
    gamma: float | str  # a number, scale: 1 / (features * variance), or auto: 1 / features
    degree: int | None  # None: the kernel has none
    coef0: float | None
    solver: str
    device: str
    seed: int
    split_seed: int

    def __str__(self) -> str:
        factors = " ".join(f"{name}={getattr(self, name)}" for name in KERNELS[self.kernel])
        return f"{self.dataset} {self.kernel} {factors} seed={self.seed}"


KEY = tuple(field.name for field in fields(Setting))
COLUMNS = (
    "status", "reason", *KEY, "n_train", "n_val", "n_test", "split_id", "gamma_value",
    "val_accuracy", "test_accuracy", "support_vectors", "iterations", "fit_time_ms",
    "predict_time_ms", "test_classes", "test_errors", *common.ENVIRONMENT,
)  # fmt: skip


def pixels(part: common.Part):
    """Pixels / 255, float64 [n, 784]."""
    return part.images.flatten(1).double().div(255).numpy()


def subset(part: common.Part, size: int | None, seed: int) -> common.Part:
    """A stratified choice of size images; all of them for None."""
    if size is None:
        return part
    chosen, _ = train_test_split(
        range(len(part.labels)), train_size=size, stratify=part.labels, random_state=seed
    )
    chosen = torch.tensor(sorted(chosen))
    return common.Part(part.images[chosen], part.labels[chosen], part.indices[chosen])


def cache_mib(labels: torch.Tensor) -> int:
    """MiB that hold the float32 kernel matrix of the two largest classes, libsvm's hardest pair."""
    pair = labels.bincount().sort().values[-2:].sum().item()
    return math.ceil(4 * pair**2 / 2**20) + 1


def train(setting: Setting, split: common.Split) -> dict:
    """Fit one SVM, measure it, and return its row."""
    part = subset(split.train, setting.train_size, setting.split_seed)
    cpu = torch.device("cpu")
    images, labels = pixels(part), part.labels.numpy()
    test_images = pixels(split.test)
    svm = SVC(
        kernel=setting.kernel, C=setting.C, gamma=setting.gamma,
        degree=3 if setting.degree is None else setting.degree, coef0=setting.coef0 or 0.0,
        cache_size=cache_mib(part.labels),
    )  # fmt: skip
    start = common.clock(cpu)
    svm.fit(images, labels)
    fitted = common.clock(cpu)
    predictions = svm.predict(test_images)
    predicted = common.clock(cpu)
    return asdict(setting) | {
        "n_train": len(labels),
        "n_val": len(split.val.labels),
        "n_test": len(split.test.labels),
        "split_id": split.split_id,
        "gamma_value": float(svm._gamma),
        "val_accuracy": svm.score(pixels(split.val), split.val.labels.numpy()),
        **common.outcome(torch.from_numpy(predictions), split.test.labels),
        "support_vectors": int(svm.n_support_.sum()),
        "iterations": int(svm.n_iter_.sum()),
        "fit_time_ms": 1e3 * (fitted - start),
        "predict_time_ms": 1e3 * (predicted - fitted),
    }


def grid(args) -> list[Setting]:
    """All SVMs that the flags ask for; each kernel varies only the factors that it has. An SVM has
    no randomness but its split, so its seed is the split's."""
    seeds = args.seed if args.split_seed is None else [args.split_seed]
    settings = []
    for kernel in dict.fromkeys(args.kernel):
        factors = {name: getattr(args, name) for name in KERNELS[kernel]}
        settings += [
            Setting(
                **{"degree": None, "coef0": None} | values,
                kernel=kernel,
                limit=args.limit,
                train_size=args.train_size,
                solver="sklearn",
                device="cpu",
                split_seed=values["seed"],
            )
            for values in common.combinations(dataset=args.dataset, seed=seeds, **factors)
        ]
    return sorted(settings, key=lambda setting: args.dataset.index(setting.dataset))


def estimate_seconds(setting: Setting, finished: list[dict[str, str]]) -> float | None:
    """Median time of this CPU's rows of the kernel, in proportion to the training size squared."""
    rates = [
        (float(row["fit_time_ms"]) + float(row["predict_time_ms"])) / int(row["n_train"]) ** 2
        for row in finished
        if (row["dataset"], row["kernel"], row["cpu_name"])
        == (setting.dataset, setting.kernel, common.cpu_name())
    ]
    n_train, _, _ = common.part_sizes(setting.limit or common.DATASETS[setting.dataset].size)
    return median(rates) / 1e3 * (setting.train_size or n_train) ** 2 if rates else None


def gamma(text: str) -> float | str:
    """scale, auto, or a number above 0."""
    return text if text in ("scale", "auto") else common.number(float, low=0, above=True)(text)


def parse_args(argv: list[str] | None = None):
    parser = common.make_parser(__doc__)
    # fmt: off
    group = parser.add_argument_group("factors, each with one or more values")
    group.add_argument("--kernel", nargs="+", choices=KERNELS, default=list(KERNELS))
    group.add_argument("--C", nargs="+", default=[0.1, 1.0], metavar="C",
                       type=common.number(float, low=0, above=True))
    group.add_argument("--gamma", nargs="+", default=["scale", "auto", 0.01, 0.1], metavar="GAMMA",
                       type=gamma, help="numbers above 0, scale or auto")
    group.add_argument("--degree", nargs="+", type=common.number(int, low=1), default=[2, 3],
                       metavar="N", help="of poly")
    group.add_argument("--coef0", nargs="+", type=common.number(float, low=0), default=[1.0],
                       metavar="COEF0", help="of poly")
    parser.add_argument("--train-size", type=common.number(int, low=common.CLASSES), metavar="N",
                        help="train on a stratified choice of N training images")
    # fmt: on
    args = common.parse(parser, argv)
    for name in args.dataset:
        n_train, _, _ = common.part_sizes(args.limit or common.DATASETS[name].size)
        if args.train_size is not None and args.train_size > n_train - common.CLASSES:
            common.fail(f"--train-size {args.train_size}: {name} has {n_train} training images")
    return args


def summary(row: dict) -> str:
    return (
        f"  validation {row['val_accuracy']:.2%}, test {row['test_accuracy']:.2%}, fitted in"
        f" {common.format_time(row['fit_time_ms'] / 1e3)}, test predicted in"
        f" {common.format_time(row['predict_time_ms'] / 1e3)}"
    )


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    path = args.results_dir / "svm.csv"
    finished = [row for row in common.load_rows(path, COLUMNS) if row["status"] == "ok"]

    def job(setting: Setting) -> common.Job:
        def run(rows: list[dict]) -> Iterator[dict]:
            yield train(setting, common.split_of(setting, args.data_dir))

        return common.Job(
            name=str(setting),
            rows=[asdict(setting)],
            estimate=lambda rows: estimate_seconds(setting, finished),
            run=run,
        )

    return common.run_jobs(
        args, [job(setting) for setting in grid(args)], path,
        columns=COLUMNS, key=KEY, summary=summary,
    )  # fmt: skip


if __name__ == "__main__":
    common.run_main(main)
