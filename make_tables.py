"""Turn the rows in results/ into tables, pictures and verdicts.

    python make_tables.py --readme README.md   # fill its markers, write results/README.md, pictures
    python make_tables.py --check              # exit 1 if one of these is not what the rows give
    python make_tables.py --results-dir DIR    # write DIR/README.md and pictures, print the answer
    python make_tables.py --results-dir A B    # rows of several folders; the page goes to the first
    python make_tables.py --table claims       # print one table

Every choice (hyperparameters, epochs, the best model) is made on validation accuracy alone. Chosen
settings are compared on test images. A difference inside its uncertainty is a tie.
"""

import argparse
import base64
import hashlib
import html
import json
import math
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial, reduce
from itertools import combinations, islice, product
from pathlib import Path
from urllib.parse import quote

import numpy as np
from filelock import FileLock
from scipy import stats

import common
import train_resnet

NAMES = {  # as tables show them; any other name is shown as it is
    "mnist": "MNIST", "fashion": "FashionMNIST", "resnet18": "ResNet-18", "resnet34": "ResNet-34",
    "resnet50": "ResNet-50", "sgd": "SGD", "adam": "Adam", "cpu": "CPU", "cuda": "GPU",
}  # fmt: skip
CLOTHES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
# The assignment fixes the models and data sets of its claims, and the eight lines of its tables.
MODELS = ("SVM", "ResNet-18", "ResNet-50")
CLAIMED = ("mnist", "fashion")
GRID = common.combinations(batch_size=[16, 32], optimizer=["sgd", "adam"], lr=[1e-3, 1e-4])
EPOCHS = 5  # of the assignment; longer trainings have a table of their own
# Rows that differ in one of these never stand in one table.
SETUP = ("fixed_split", "amp", "device", "device_name", "precision", "solver")
MACHINE = ("device", "device_name", "threads")  # times are compared on one of them
FACTORS = {
    "resnet": ["arch", "optimizer", "lr", "momentum", "batch_size", "epochs"],
    "svm": ["kernel", "C", "gamma", "degree", "coef0"],
}
# Two finished rows of one run agree in these, as far as they have them; times may differ.
SAME = ("split_id", "val_accuracy", "test_accuracy", "test_errors", "weights_sha256")
MISSING = "not measured"
SINGLE = "With a single seed a comparison holds for these trained models only."


# --- rows ----------------------------------------------------------------------------------------


def load(folders: list[Path]) -> tuple[dict[str, list[dict]], dict[str, str]]:
    """The rows of each kind, each run once, and the SHA-256 of each file."""
    results, digests, splits = {}, {}, {}
    for name in common.COLUMNS:
        paths, kept = [folder / f"{name}.csv" for folder in folders], {}
        rows = [prepare(path, row) for path in paths for row in common.read_rows(path)]
        for row in sorted(rows, key=lambda row: row["status"] != "ok"):  # finished ones first
            first = kept.setdefault(row["key"], row)
            if row["status"] == "ok":
                must_agree(first, row, SAME)
                split = row["dataset"], row["split_seed"], row["limit"]
                must_agree(splits.setdefault(split, row), row, ["split_id"])
        results[name] = list(kept.values())
        for path in filter(Path.exists, paths):
            label = harmless(path.name if len(folders) == 1 else str(path))
            digests[label] = hashlib.sha256(path.read_bytes()).hexdigest()
    return results, digests


def must_agree(first: dict, second: dict, columns: Iterable[str]) -> None:
    """Exit 2 if two finished rows differ in a column that both fill in."""
    for name in columns:
        if len({first.get(name), second.get(name)} - {None}) > 1:
            files = f"{first['file']} and {second['file']}"
            common.fail(f"{files}: rows of {second['key']} differ in {name}; remove one of them")


def prepare(path: Path, row: dict) -> dict:
    """A row with texts that are safe in markdown, and with columns that follow from others."""
    for name, value in row.items():
        if isinstance(value, str) and name not in ("history", "test_classes", "test_errors"):
            row[name] = harmless(value)
    is_svm = path.stem == "svm"
    required = ("C",) if is_svm else ("arch", "optimizer", "lr", "batch_size", "epochs")
    for name in ("dataset", "seed", "split_seed", *required):
        if row[name] is None:
            common.fail(f"{path}: a row has no {name}; mend or remove it")
    row = {"device": "cpu"} | row | {"file": path, "key": common.key_of(path, row)}
    row["model"] = "SVM" if is_svm else show(row["arch"])
    row["train_ms"] = row["fit_time_ms" if is_svm else "train_time_ms"]
    # Seeds that share one split show less than those that each draw their own.
    row["fixed_split"] = row["split_seed"] if row["split_seed"] != row["seed"] else None
    if row["status"] == "ok":
        row["error"] = binomial_error(row)
        row["prediction_flops"] = prediction_flops(row)
        try:
            row["curve"], row["codes"], row["confusion"] = unpack(row)
        except (ArithmeticError, KeyError, TypeError, ValueError, RecursionError, zlib.error):
            common.fail(
                f"{path}: history, test_classes or test_errors of the row of {row['key']} are"
                " damaged or do not agree with n_test or test_accuracy; mend or remove it"
            )
    return row


def harmless(text: str) -> str:
    """A text on one line, without characters that mean something in markdown, HTML or Liquid."""
    kept = "".join(c if c.isprintable() and c not in "|`<>[]{}\\" else " " for c in text[:200])
    return " ".join(kept.split())


def prediction_flops(row: dict) -> float:
    """FLOPs of the prediction of one image; nan if they are not known. An SVM multiplies its 784
    pixels by those of each support vector, and each kernel value by the coefficients of 9 other
    classes."""
    if row["model"] == "SVM":
        return 2 * (784 + 9) * row["support_vectors"]
    known = row["arch"] in train_resnet.ARCHITECTURES
    return train_resnet.network_costs(row["arch"])["forward_flops"] if known else math.nan


def unpack(row: dict) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Training and validation accuracy after each epoch [epochs, 2]; the code of each test image (0
    if it is right, else 1 + 10 * label + prediction) and the confusion matrix [label, prediction],
    or None, None if the row keeps no errors."""
    epochs = json.loads(row.get("history") or "[]")
    pairs = [(each["train_accuracy"], each["val_accuracy"]) for each in epochs]
    curve = np.array(pairs, float).reshape(-1, 2)
    if not ((curve >= 0) & (curve <= 1)).all():
        raise ValueError
    if not row.get("test_errors"):
        return curve, None, None
    packed = base64.b64decode(row["test_errors"], validate=True)
    codes = np.frombuffer(zlib.decompressobj().decompress(packed, 10**6), np.uint8)  # at most 1 MB
    classes = np.array(json.loads(row["test_classes"]), np.int64)
    confusion = np.bincount(codes, minlength=256)[1:101].reshape(10, 10)
    right = classes - confusion.sum(1)
    gap = abs(right.sum() / row["n_test"] - row["test_accuracy"])
    if len(codes) != row["n_test"] or right.shape != (10,) or right.min() < 0 or not gap < 1e-9:
        raise ValueError
    return curve, codes, confusion + np.diag(right)


def select(rows: list[dict], **values) -> list[dict]:
    """The rows that have these values. A collapsed run is "ok": to leave it out would be bias."""
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def groups(rows: list[dict], names: Iterable[str]) -> dict[tuple, list[dict]]:
    """Rows by their values in some columns; a column that they lack counts as None."""
    found = {}
    for row in rows:
        found.setdefault(tuple(row.get(name) for name in names), []).append(row)
    return found


# --- settings ------------------------------------------------------------------------------------


def show(value) -> str:
    """A factor's value or a name, as tables show it: 0.001, 16, scale, ResNet-18."""
    return f"{value:.9g}" if isinstance(value, (int, float)) else NAMES.get(value, str(value))


@dataclass(eq=False)
class Setting:
    """A model with its hyperparameters on a data set, and a finished run for each seed."""

    factors: dict[str, object]
    runs: dict[int, dict]

    def __post_init__(self):
        self.first = next(iter(self.runs.values()))
        self.dataset, self.model = self.first["dataset"], self.first["model"]

    def values(self, column: str) -> np.ndarray:
        """A column's value for each seed; nan where a row has none."""
        return np.array([row.get(column) for row in self.runs.values()], float)

    def mean(self, column: str = "test_accuracy") -> float:
        return float(self.values(column).mean())

    def cost(self, column: str) -> float:
        """The shortest time over the seeds, as other work on a machine can only slow a run; of
        FLOPs and the like, which it cannot change, the median."""
        return float((np.min if column.endswith("_ms") else np.median)(self.values(column)))

    def __str__(self) -> str:
        if self.model == "SVM":
            kernel, *others = [item for item in self.factors.items() if item[1] is not None]
            return ", ".join([show(kernel[1]), *(f"{name} {show(each)}" for name, each in others)])
        row = self.factors
        momentum = "" if row["momentum"] in (None, 0.9) else f", momentum {show(row['momentum'])}"
        return (
            f"{show(row['optimizer'])}, lr {show(row['lr'])}{momentum},"
            f" batch {show(row['batch_size'])}, {count(row['epochs'], 'epoch')}"
        )


def settings_of(rows: list[dict], factors: list[str]) -> list[Setting]:
    """The settings of some rows of a data set. Runs that differ in pin_memory alone train the same:
    the pinned one counts."""
    rows = sorted(rows, key=lambda row: (row["seed"], row.get("pin_memory") == "true"))
    return [
        Setting(dict(zip(factors, values, strict=True)), {row["seed"]: row for row in alike})
        for values, alike in groups(rows, factors).items()
    ]


def shared(settings: list[Setting]) -> list[Setting]:
    """With only the seeds that all have; as they are if they share none."""
    seeds = set.intersection(*(set(each.runs) for each in settings)) if settings else set()
    if not seeds:
        return settings
    return [replace(each, runs={seed: each.runs[seed] for seed in each.runs if seed in seeds})
            for each in settings]  # fmt: skip


def validation(settings: list[Setting]) -> dict[Setting, float]:
    """The mean validation accuracy of each over the seeds that all have; equal ones are equal to
    the last bit."""
    means = [round(each.mean("val_accuracy"), 9) for each in shared(settings)]
    return dict(zip(settings, means, strict=True))


def most_accurate(settings: list[Setting]) -> Setting | None:
    """The highest mean validation accuracy over the seeds that all have, the first of equals."""
    means = validation(settings)
    return max(means, key=means.get, default=None)


def best_of_each(settings: list[Setting]) -> dict[str, Setting]:
    """The best setting of each model, the best model first: one after another is set against the
    best so far, on all seeds that the two share."""
    models = {}
    for each in settings:
        models.setdefault(each.model, []).append(each)
    found = [most_accurate(alike) for alike in models.values()]
    if found:
        winner = reduce(lambda best, each: most_accurate([best, each]), found)
        found.sort(key=lambda each: (each is not winner, -each.mean("val_accuracy")))
    return {each.model: each for each in found}


def find(settings: list[Setting], **factors) -> Setting | None:
    """The best of the settings that have these factors."""
    return most_accurate([each for each in settings if factors.items() <= each.factors.items()])


def ratio(first: Setting, second: Setting, column: str) -> float:
    return first.cost(column) / second.cost(column)


def same_machine(*settings: Setting) -> bool:
    return len(groups([row for each in settings for row in each.runs.values()], MACHINE)) == 1


class Study:
    """All rows, and for each data set the settings of one size and one setup."""

    def __init__(self, results: dict[str, list[dict]], digests: dict[str, str]):
        self.results, self.digests, self.aside = results, digests, []
        self.settings, self.longer, self.devices = {}, {}, {}  # settings by data set
        rows = results["resnet"] + results["svm"]
        names = dict.fromkeys(row["dataset"] for row in rows) or CLAIMED
        for dataset in sorted(names, key=lambda name: (name not in CLAIMED, name == "fashion")):
            finished = select(rows, dataset=dataset, status="ok")
            sized, found, used = largest(finished, ["limit"]), [], set()
            for name in ("resnet", "svm"):
                alike = one_setup([row for row in sized if row["file"].stem == name])
                found += settings_of(alike, FACTORS[name])
                used |= {row["key"] for row in alike}
            self.aside += [row for row in finished if row["key"] not in used]
            found.sort(key=lambda each: each.mean("val_accuracy"), reverse=True)
            longer = [each for each in found if each.factors.get("epochs", 0) > EPOCHS]
            self.longer[dataset] = longer
            self.settings[dataset] = [each for each in found if each not in longer]
        devices = groups(select(results["devices"], status="ok"), ["dataset"])
        for (dataset,), rows in devices.items():
            # The work that most rows did; of several machines of a kind the one with most rows.
            rows = one_setup(rows, ["limit", "batch_size", "lr", "epochs", "amp", "fixed_split"])
            machine = ["device_name", "threads", "precision", "momentum"]
            cells = groups(rows, ["device", "arch", "optimizer"]).values()
            rows = [row for cell in cells for row in largest(cell, machine)]
            self.devices[dataset] = settings_of(rows, [*FACTORS["resnet"], "device"])

    def of(self, dataset: str, *models: str) -> list[Setting]:
        found = self.settings.get(dataset, [])
        return [each for each in found if not models or each.model in models]

    def validation(self, dataset: str) -> dict[Setting, float]:
        """For every setting the validation accuracy by which the best of its model is chosen."""
        means = {}
        for model in dict.fromkeys(each.model for each in self.of(dataset)):
            means |= validation(self.of(dataset, model))
        return means

    def bests(self, dataset: str, *models: str) -> dict[str, Setting]:
        return best_of_each(self.of(dataset, *models))

    def best(self, dataset: str, *models: str) -> Setting | None:
        return next(iter(self.bests(dataset, *models).values()), None)


def largest(rows: list[dict], names: Iterable[str]) -> list[dict]:
    """The group with most rows; one of a whole data set goes before."""
    return max(groups(rows, names).values(), key=extent, default=[])


def extent(rows: list[dict]) -> tuple[bool, int]:
    return bool(select(rows[:1], limit=None)), len(rows)


def one_setup(rows: list[dict], names: Iterable[str] = SETUP) -> list[dict]:
    """The largest group of one setup. On a fixed split, its own seed's runs belong to it."""
    found = [largest(rows, names)]
    for split in sorted({row["fixed_split"] for row in rows} - {None}):
        own = {"fixed_split": split}
        on_it = [row | own if row["split_seed"] == split else row for row in rows]
        found.append(largest(on_it, names))
    return max(found, key=extent)


# --- statistics ----------------------------------------------------------------------------------

LEVEL = 0.05  # of significance
NOISE = 2  # times of equal work on machines of one kind differed by up to this factor
OUTLYING = 4  # times the median deviation over seeds; a collapsed run gives far more
DEARER, MARGIN = 1.5, 0.01  # a gain below one point of accuracy is not worth so many times the cost


@dataclass(frozen=True)
class Difference:
    """Of two test accuracies, over the splits (seeds) that both were trained on."""

    size: float
    error: float  # its standard error
    freedom: float  # degrees
    p: float  # two-sided
    seeds: int = 1

    def interval(self) -> tuple[float, float]:
        half = stats.t.ppf(1 - LEVEL / 2, self.freedom) * self.error
        return self.size - half, self.size + half

    def sign(self) -> int:
        """1 or -1 if the difference is shown to be above or below 0, else 0."""
        return int(np.sign(self.size)) if self.p < LEVEL else 0

    def p_text(self) -> str:
        return f"p = {self.p:.3f}" if self.p >= 0.001 else "p < 0.001"

    def basis(self) -> str:
        """p, and what the difference holds for."""
        seeds = f"{self.seeds} seeds" if self.seeds > 1 else "one run each"
        return f"{self.p_text()}, {seeds}"

    def __str__(self) -> str:
        low, high = (100 * end for end in self.interval())
        return f"{100 * self.size:+.2f} [{low:+.2f}, {high:+.2f}]"


def student(size: float, error: float, freedom: float = math.inf, seeds: int = 1) -> Difference:
    """With the two-sided p of Student's t; of the normal distribution for math.inf."""
    p = float(2 * stats.t.sf(abs(size) / error, freedom))
    return Difference(size, error, freedom, p, seeds)


def holm(differences: list[Difference | None]) -> list[Difference | None]:
    """The same with p adjusted for the number of comparisons (S. Holm, Scandinavian Journal of
    Statistics 6, 1979); None stays, for one that could not be made."""
    order = sorted((each.p, place) for place, each in enumerate(differences) if each)
    adjusted, least = list(differences), 0.0
    for rank, (p, place) in enumerate(order):
        least = max(least, min(1.0, (len(order) - rank) * p))
        adjusted[place] = replace(differences[place], p=least)
    return adjusted


def paired(only_first: int, only_second: int, total: int) -> Difference:
    """From the images that only one of two models has wrong: mid-p of McNemar's test (Fagerland,
    Lydersen and Laake, BMC Medical Research Methodology 13:91, 2013) and the standard error of
    Bonett and Price (Journal of Educational and Behavioral Statistics 37, 2012)."""
    fewer, either = min(only_first, only_second), only_first + only_second
    p = 2 * stats.binom.cdf(fewer - 1, either, 0.5) + stats.binom.pmf(fewer, either, 0.5)
    a, b = (only_first + 1) / (total + 2), (only_second + 1) / (total + 2)
    error = math.sqrt((a + b - (a - b) ** 2) / (total + 2))
    return Difference((only_second - only_first) / total, error, math.inf, float(p))


def binomial_error(row: dict) -> float:
    """The standard error that the number of images leaves to a test accuracy, with one more image
    of each kind (A. Agresti and B. Caffo, The American Statistician 54, 2000)."""
    total = row["n_test"]
    p = (row["test_accuracy"] * total + 1) / (total + 2)
    return math.sqrt(p * (1 - p) / (total + 2))


def on_one_split(first: dict, second: dict) -> Difference:
    """Of two runs: paired by test image; as if on images of their own where these differ or errors
    are not kept, which is too careful, as models err on the same images."""
    if first["split_id"] != second["split_id"] or first["codes"] is None or second["codes"] is None:
        error = math.hypot(binomial_error(first), binomial_error(second))
        return student(first["test_accuracy"] - second["test_accuracy"], error)
    wrong, other = first["codes"] > 0, second["codes"] > 0
    return paired(int((wrong & ~other).sum()), int((other & ~wrong).sum()), len(wrong))


def deviation(values: np.ndarray, floors: list[float]) -> float:
    """Over seeds, at least the one that the number of test images leaves (floors)."""
    return max(float(values.std(ddof=1)), math.sqrt(np.square(floors).mean()))


def over_seeds(
    values: np.ndarray, floors: list[float], row: dict, least: float = 0, freedom: float = 0
) -> Difference:
    """The mean over seeds that each draw their own split. Splits overlap, so that a plain t test is
    too sure: the variance is multiplied by 1 / n + test / training images (C. Nadeau and Y. Bengio,
    Machine Learning 52, 2003). A least deviation may be known, with its degrees of freedom."""
    share = 1 / len(values) + row["n_test"] / row["n_train"]
    error = max(deviation(values, floors), least) * math.sqrt(share)
    return student(values.mean(), error, freedom or len(values) - 1, len(values))


def matched(first: Setting, second: Setting) -> dict[int, tuple[dict, dict]]:
    """The runs of two settings by seed, those of one data set only on equal splits."""
    runs = {seed: (row, second.runs[seed]) for seed, row in first.runs.items()
            if seed in second.runs}  # fmt: skip
    other = first.dataset != second.dataset
    return {
        seed: (a, b) for seed, (a, b) in runs.items() if other or a["split_id"] == b["split_id"]
    }


def compare(first: Setting | None, second: Setting | None, *least: float) -> Difference | None:
    """Test accuracy of one setting less that of another, over the seeds that both have (on one
    data set with equal splits); None if they share none or are one setting. least: see pooled."""
    if not (first and second) or first is second:
        return None
    found = [on_one_split(*pair) for pair in matched(first, second).values()]
    if len(found) < 2:
        return found[0] if found else None
    sizes, errors = np.array([(each.size, each.error) for each in found]).T
    better = least and least[1] > len(found) - 1
    return over_seeds(sizes, errors, first.first, *(least if better else ()))


def steady(pairs: list[tuple[Setting, Setting]]) -> list[tuple[Setting, Setting]]:
    """Comparisons over several seeds, without those that deviate far more than most: a collapsed
    run tells nothing of other settings. Genes that vary too much are kept from others likewise (B.
    Phipson et al., Annals of Applied Statistics 10, 2016)."""
    spreads = {
        pair: np.std([a["test_accuracy"] - b["test_accuracy"] for a, b in runs.values()], ddof=1)
        for pair in pairs
        if len(runs := matched(*pair)) > 1
    }
    limit = OUTLYING * np.median([*spreads.values()]) if spreads else 0
    return [pair for pair, spread in spreads.items() if spread <= limit]


def pooled(pairs: list[tuple[Setting, Setting]]) -> tuple[float, ...]:
    """The deviation over seeds of comparisons of the same two models together, and its degrees of
    freedom; nothing if they share too few seeds.

    Some seeds are better for all of these (say, a lucky run of the one best setting), so they are
    not independent: the variance is the sum of two mean squares of an analysis of variance with
    seeds as blocks, and has F. E. Satterthwaite's degrees of freedom (Biometrics Bulletin 2, 1946).
    Rows of one training that differ in epochs count once."""
    seeds = set.intersection(*(set(matched(*pair)) for pair in pairs)) if pairs else set()
    trainings = {str([{**each.factors, "epochs": None} for each in pair]) for pair in pairs}
    if len(seeds) < 2 or len(trainings) < 2:
        return ()
    runs = [[matched(*pair)[seed] for seed in seeds] for pair in pairs]
    gaps = np.array([[a["test_accuracy"] - b["test_accuracy"] for a, b in row] for row in runs])
    rest = gaps - gaps.mean(1, keepdims=True)  # [pairs, seeds]
    together = rest.mean(0)
    freedom = len(seeds) - 1
    parts = np.array([(together**2).sum(), ((rest - together) ** 2).sum() / len(pairs)]) / freedom
    if not parts.any():
        return ()
    by_part = freedom * np.array([1, len(trainings) - 1])
    return math.sqrt(parts.sum()), float(parts.sum() ** 2 / (parts**2 / by_part).sum())


def equal_seeds(pairs: list[tuple]) -> list[tuple]:
    """With only the seeds that all settings have: more seeds of some would be another standard of
    proof. A single run beside pairs of several takes no part, as it would leave one to all."""
    several = [
        (first, second)
        for first, second in pairs
        if first is not second and first and second and min(len(first.runs), len(second.runs)) > 1
    ]
    settings = list(dict.fromkeys(each for pair in several or pairs for each in pair if each))
    fair = dict(zip(settings, shared(settings), strict=True))
    return [(fair.get(first), fair.get(second)) for first, second in pairs]


def compare_all(pairs: Iterable[tuple]) -> list[Difference | None]:
    """One family of comparisons, adjusted for their number. Those of the same two models learn from
    each other how much seeds differ: three seeds alone tell too little."""
    pairs, alike, least = list(pairs), {}, {}
    for first, second in pairs:
        if first and second and first is not second:
            models = first.dataset, first.model, second.dataset, second.model
            alike.setdefault(models, []).append((first, second))
    for found in map(steady, alike.values()):
        least |= dict.fromkeys(found, pooled(found))
    return holm([compare(*pair, *least.get(pair, ())) for pair in pairs])


def error_bar(setting: Setting) -> tuple[float, float]:
    """Of a test accuracy: mean - and + deviation over seeds; of a single run the 95 % interval of
    E. B. Wilson (JASA 22, 1927, p. 209)."""
    mean, total = setting.mean(), round(setting.first["n_test"])
    if len(setting.runs) == 1:
        return tuple(stats.binomtest(round(mean * total), total).proportion_ci(method="wilson"))
    half = deviation(setting.values("test_accuracy"), setting.values("error"))
    return mean - half, mean + half


# --- cells and tables ----------------------------------------------------------------------------


def table(title: str, header: list[str], lines: list[list[str]], *notes: str) -> str:
    """A markdown table under its title, with notes below."""
    rows = (header, ["---"] * len(header), *lines)
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return "\n\n".join((f"**{title}**", text, *notes))


def interval(mean: float, low: float, high: float, form: str = ".2f") -> str:
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def percent(setting: Setting) -> str:
    """Test accuracy in percent: mean ± deviation over seeds, or one run's interval."""
    mean, low, high = (100 * value for value in (setting.mean(), *error_bar(setting)))
    if len(setting.runs) == 1:
        return interval(mean, low, high)
    return f"{mean:.2f} ± {high - mean:.2f}"


def short(value: float, digits: int = 3) -> str:
    """Some digits, or all of a whole number: 0.251, 25.4, 1,479."""
    if math.isnan(value):
        return MISSING
    power = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{min(6, max(0, digits - 1 - power))}f}"


times = partial(short, digits=2)  # a ratio


def count(number: float, noun: str) -> str:
    return f"{show(number)} {noun}" if number == 1 else f"{show(number)} {noun}s"


def listed(words: Iterable[str]) -> str:
    """a, b and c."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def span(values: list, form: Callable = show) -> str:
    """The least and the most, or the only value: 3 to 5."""
    return " to ".join(dict.fromkeys((form(min(values)), form(max(values)))))


def the(model: str) -> str:
    return "the SVM" if model == "SVM" else model


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


CELLS: dict[str, Callable[[Setting], str]] = {  # columns of tables, by their headers
    "Data set": lambda each: show(each.dataset),
    "Model": lambda each: each.model,
    "Device": lambda each: show(each.factors["device"]),
    "Optimizer": lambda each: show(each.factors["optimizer"]),
    "Test accuracy (%)": percent,
    "Training (s)": lambda each: short(each.cost("train_ms") / 1e3),
    "Testing (s)": lambda each: short(each.cost("predict_time_ms") / 1e3),
    "FLOPs (10¹²)": lambda each: short(each.cost("training_flops") / 1e12),
    "MFLOPs": lambda each: short(
        each.cost("training_flops") / each.first["n_train"] / each.first["epochs"] / 1e6, 4
    ),
    "Support vectors": lambda each: short(each.cost("support_vectors")),
    "Seeds": lambda each: str(len(each.runs)),
    "Step (ms)": lambda each: interval(
        each.cost("step_ms"), each.values("step_ms_min").min(), each.values("step_ms_max").max()
    ),
    "Peak memory (MiB)": lambda each: short(each.cost("peak_memory_mib")),
    "Setting": str,
}


def cells(setting: Setting | None, names: Iterable[str]) -> list[str]:
    return [CELLS[name](setting) if setting else MISSING for name in names]


def notes_on(settings: list[Setting]) -> str:
    """What ± and brackets are, how many images there are, and where times were measured."""
    rows = [row for each in settings for row in each.runs.values()]
    seeds, notes = {len(each.runs) for each in settings}, []
    if several := seeds - {1}:
        notes.append(
            f"± is one standard deviation: the one over {span(several)} seeds, or the one that the"
            " number of test images leaves, if that is larger."
        )
        own = "split, " if all(row["fixed_split"] is None for row in rows) else ""
        notes.append(f"Each seed draws its own {own}initial weights and batch order.")
    if 1 in seeds:
        notes.append("Brackets after an accuracy hold the 95 % Wilson interval of a single run.")
    for sizes in groups(rows, ("n_train", "n_val", "n_test")):
        text = " / ".join(f"{size:,.0f}" for size in sizes)
        notes.append(f"Images: {text} to train / validate / test.")
    for kind, name, threads, version in groups(rows, (*MACHINE, "torch")):
        version, _, _ = version.partition("+")  # without its kind of build
        notes.append(f"Hardware: {show(kind)} {name}, {count(threads, 'thread')}, torch {version}.")
    return " ".join(notes)


# --- the answer ----------------------------------------------------------------------------------


def answer(study: Study) -> Iterator[str]:
    """The best setting of each model, who wins, by how much and at what cost, and the picture."""
    names = ["Data set", "Model", "Test accuracy (%)", "Training (s)", "Testing (s)", "Seeds"]
    names += ["Setting"]
    gaps, lines, used, sentences = headline(study), [], [], []
    for dataset in study.settings:
        bests = study.bests(dataset)
        used += bests.values()
        for setting in bests.values():
            line = cells(setting, names)
            gap = gaps.get((dataset, study.best(dataset).model, setting.model))
            if setting is study.best(dataset) or (gap and gap.sign() == 0):  # it or a tie
                line[1:3] = [f"**{cell}**" for cell in line[1:3]]
            lines.append(line)
        lacking = [model for model in MODELS if model not in bests]
        lines += [[show(dataset), model, *[MISSING] * 3, "", ""] for model in lacking]
        sentences += [f"- {winner(bests, gaps)}{costs(bests)}"] if bests else []
    title = "The best setting of each model, chosen by validation accuracy"
    title += f" (ResNets: at most {EPOCHS} epochs; bold: the leader and ties)"
    yield table(title, names, lines)
    if used:
        yield "\n".join(
            [*sentences, *equally_chosen(study), *more_epochs(study), *solver_costs(study)]
        )
        yield from shown(study, "accuracy")
        yield from how_to_read(study, used)


def equally_chosen(study: Study) -> Iterator[str]:
    """The settings that are exactly as good on validation images as the best of their model, and
    which comparisons of best models would end otherwise with them."""
    before = headline(study)
    for dataset in study.settings:
        means = study.validation(dataset)
        for model, best in study.bests(dataset).items():
            found = study.of(dataset, model)
            for other in found:
                if other is best or means[other] != means[best]:
                    continue
                seeds = count(len(shared(found)[0].runs), "seed")
                changes = other_outcomes(before, headline(study, other))
                yield (
                    f"- {show(dataset)}: {other} is exactly as good as the best setting of"
                    f" {the(model)} on the validation images of {seeds}. With it"
                    f" {listed(changes) if changes else 'no verdict changes'}."
                )


def other_outcomes(before: dict, after: dict) -> list[str]:
    """The comparisons that end otherwise, as they end after."""
    return [
        f"{the(first)} {VERBS[gap.sign()]} {behind_by(second, gap)} on {show(dataset)}"
        for (dataset, first, second), gap in after.items()
        if gap and (old := before[dataset, first, second]) and old.sign() != gap.sign()
    ]


def how_to_read(study: Study, used: list[Setting]) -> Iterator[str]:
    """What the answer's figures are."""
    tried = {
        model: [len(study.of(name, model)) for name in study.settings]
        for model in dict.fromkeys(each.model for each in used)
    }
    models = listed(f"{span(counts)} settings ({model})" for model, counts in tried.items())
    scatter = max(max(each.values("train_ms")) / min(each.values("train_ms")) for each in used)
    text = f"Each is the best of {models}."
    if scatter > 1:
        text += " A time is the shortest over seeds; in one setting the longest is up to"
        text += f" {times(scatter)} times as long."
    yield f"{text} {notes_on(used)}"
    if pairs := headline(study):
        yield (
            "A comparison uses the seeds that both models have, so it may differ from what two"
            f" lines of the table give. p is adjusted for the {len(pairs)} comparisons of best"
            " models (Holm); the brackets, a 95 % interval, are not. So an interval can exclude 0"
            " although p is above 0.05. A tie is no proof of equality."
            " [The tests](./README.md#statistics) allow for overlapping splits."
        )


def headline(
    study: Study, other: Setting | None = None
) -> dict[tuple[str, str, str], Difference | None]:
    """All pairs of best models, the better on validation first: one family of comparisons. other
    takes the place of the best of its model."""
    pairs = {}
    for dataset in study.settings:
        bests = study.bests(dataset)
        bests |= {other.model: other} if other and other.dataset == dataset else {}
        for first, second in combinations(bests.values(), 2):
            pairs[dataset, first.model, second.model] = first, second
    return dict(zip(pairs, compare_all(pairs.values()), strict=True))


VERBS = {1: "beats", 0: "has no significant lead over", -1: "is, on test images, behind"}


def behind_by(other: str, gap: Difference) -> str:
    """A model, and how far another one is ahead of it."""
    return f"{the(other)} ({str(gap).replace('+', '')} points, {gap.basis()})"


def winner(bests: dict[str, Setting], gaps: dict) -> str:
    """Which model leads, and how far each is ahead of those after it."""
    names, first = list(bests), next(iter(bests.values()))
    dataset = first.dataset
    ties = [the(name) for name in names[1:]
            if (gap := gaps[dataset, names[0], name]) and gap.sign() == 0]  # fmt: skip
    text = f"**{show(dataset)}: {the(names[0])} leads with {100 * first.mean():.2f} %"
    text += f", in a tie with {listed(ties)}.**" if ties else ".**"
    for place, name in enumerate(names):
        parts = {1: [], 0: [], -1: []}
        for other in names[place + 1 :]:
            if gap := gaps[dataset, name, other]:
                parts[gap.sign()].append(behind_by(other, gap))
        for sign, others in parts.items():
            subject = capital(the(name)) if place else "It"
            text += f" {subject} {VERBS[sign]} {listed(others)}." if others else ""
    return text


def costs(bests: dict[str, Setting]) -> str:
    """Training times and FLOPs as multiples of the fastest model's, on one machine."""
    fastest, parts = min(bests.values(), key=lambda each: each.cost("train_ms")), []
    for each in bests.values():
        if each is not fastest and same_machine(each, fastest):
            time, work = (ratio(each, fastest, name) for name in ("train_ms", "training_flops"))
            known = "" if math.isnan(work) else f" ({times(work)} times the FLOPs)"
            parts.append(f"{the(each.model)} takes {times(time)} times as long{known}")
    if not parts:
        return ""
    name, seconds = the(fastest.model), short(fastest.cost("train_ms") / 1e3)
    return f" {capital(name)} trains in {seconds} s; {listed(parts)}."


def more_epochs(study: Study) -> Iterator[str]:
    """What the best of the longer trainings gains over the best within EPOCHS."""
    bests = [next(iter(best_of_each(found).values()), None) for found in study.longer.values()]
    pairs = [(longer, study.best(name)) for name, longer in zip(study.longer, bests, strict=True)]
    for (longer, best), gap in zip(pairs, compare_all(pairs), strict=True):
        if gap:
            seconds = short(longer.cost("train_ms") / 1e3)
            yield (
                f"- {show(longer.dataset)} with more epochs: {the(longer.model)} reaches"
                f" {100 * longer.mean():.2f} % ({longer}; {seconds} s). The difference from"
                f" {the(best.model)} above is {'' if gap.sign() else 'not '}significant:"
                f" {gap} points ({gap.basis()})."
            )


def with_solver(study: Study, setting: Setting, solver: str) -> Setting | None:
    """The same SVM, trained with a solver."""
    names = ("dataset", "limit", "fixed_split", *FACTORS["svm"])
    same = {name: setting.first[name] for name in names}
    rows = select(study.results["svm"], status="ok", solver=solver, **same)
    return next(iter(settings_of(rows, FACTORS["svm"])), None)


def solver_costs(study: Study) -> Iterator[str]:
    """How long scikit-learn's solver takes for the best SVMs, and how far it agrees with ours."""
    bests, gaps = [], []
    for setting in [each for name in study.settings for each in study.of(name, "SVM")]:
        theirs = with_solver(study, setting, "sklearn")
        if not theirs or setting.first["solver"] != "gram":
            continue
        theirs, ours = shared([theirs, setting])
        gaps.append(100 * abs(theirs.mean() - ours.mean()))
        if setting is study.best(setting.dataset, "SVM") and same_machine(theirs, ours):
            seconds, more = short(theirs.cost("train_ms") / 1e3), ratio(theirs, ours, "train_ms")
            words = f"{seconds} s for the best on {show(setting.dataset)}"
            bests.append(f"{words} ({times(more)} times as long)")
    if gaps:
        text = "- The SVMs use this repository's solver."
        text += f" scikit-learn's takes {listed(bests)}." if bests else ""
        text += f" Accuracies differ by {max(gaps):.2f} points at most in the"
        yield f"{text} {count(len(gaps), 'setting')} run with both."


# --- claims --------------------------------------------------------------------------------------
#
# A judge yields a sign for each figure that a claim needs (1: shown to be as claimed, -1: shown not
# to be, 0: its uncertainty holds both, None: not measured), and the figures as text. The rule of
# each claim is told in words in results/README.md.

SUPPORTED, CONTRADICTED, UNRESOLVED = "supported", "contradicted", "not resolved"
Judgement = Iterator[int | str | None]


def verdict(judgement: Judgement) -> tuple[str, str]:
    """All figures must be as claimed; a single one that is not contradicts the claim."""
    found = list(judgement)
    text = "; ".join(each for each in found if isinstance(each, str))
    signs = [each for each in found if not isinstance(each, str)]
    if -1 in signs:
        return CONTRADICTED, text
    if all(sign is None for sign in signs):
        return MISSING, text
    return SUPPORTED if all(sign == 1 for sign in signs) else UNRESOLVED, text


def above(bound: float, low: float, high: float) -> int:
    """The sign of a figure that is claimed to be above a bound and known to lie in a range."""
    return 1 if low > bound else -1 if high < bound else 0


def most_lines(study: Study) -> Judgement:
    small, large = (study.of("mnist", model) for model in MODELS[1:])
    pairs = [(find(small, **line), find(large, **line)) for line in GRID]
    gaps = [gap for gap in compare_all(equal_seeds(pairs)) if gap]
    won, lost, tied = ([gap.sign() for gap in gaps].count(sign) for sign in (1, -1, 0))
    if gaps:  # more than half must be won; those that are not lost may be
        yield above(len(GRID) / 2 + 0.5, won, len(GRID) - lost)
        seeds = count(min(gap.seeds for gap in gaps), "seed")
        yield f"{won} won, {lost} lost, {tied} tied of {len(gaps)} measured, on {seeds}"


def peak(study: Study) -> Judgement:
    """A peak is one run's. The best setting tells where one more run would lie."""
    if best := study.best("mnist", "ResNet-18"):
        number, row = len(best.runs), best.first
        spread, share = row["error"], 2.0  # a single run tells nothing of other seeds
        if number > 1:
            spread = deviation(best.values("test_accuracy"), best.values("error"))
            share = 1 + 1 / number + row["n_test"] / row["n_train"]
        error = spread * math.sqrt(share)
        low, high = student(best.mean(), error, number - 1 or math.inf).interval()
        found = [each.values("test_accuracy") for each in study.of("mnist", "ResNet-18")]
        runs = np.concatenate(found)
        yield -1 if not low <= 0.993 <= high else int(max(runs) >= 0.993)
        yield f"mean {100 * best.mean():.2f}"
        yield f"one more run would lie within [{100 * low:.2f}, {100 * high:.2f}]"
        yield f"{100 * max(runs):.2f} in the best of {count(len(runs), 'single run')}"


def not_worth_it(study: Study) -> Judgement:
    margins = []
    for dataset in CLAIMED:
        small, large = (study.best(dataset, model) for model in MODELS[1:])
        gap = compare(large, small)
        if not gap:
            yield None
            continue
        margins.append(student(MARGIN - gap.size, gap.error, gap.freedom))
        cost = ratio(large, small, "training_flops")
        yield above(DEARER, cost, cost)
        yield f"{show(dataset)}: {gap} points for {times(cost)} times the FLOPs"
    yield from (margin.sign() for margin in holm(margins))


def lower_on_fashion(study: Study) -> Judgement:
    first, second = ({f"{each.model}, {each}": each for each in study.of(d)} for d in CLAIMED)
    names = [name for name in first if name in second]
    gaps = compare_all([(first[name], second[name]) for name in names])
    yield from (gap and gap.sign() for gap in gaps)
    if known := [(gap.size, name, gap) for name, gap in zip(names, gaps, strict=True) if gap]:
        lower = sum(size > 0 for size, _, _ in known)
        _, name, least = min(known)
        most = replace(least, size=-least.size)
        yield (
            f"lower in {lower} of {count(len(known), 'setting')}; FashionMNIST less MNIST is at"
            f" most {most} points ({name})"
        )


def over_svm(study: Study, cost: str, solver: str | None = None, noise: float = 1) -> Judgement:
    """A cost of the best ResNets over the best SVM's; with a solver a time, so on one machine."""
    parts = []
    for dataset, model in product(CLAIMED, MODELS[1:]):
        resnet, svm = study.best(dataset, model), study.best(dataset, "SVM")
        svm = with_solver(study, svm, solver) if svm and solver else svm
        known = resnet and svm and (not solver or same_machine(resnet, svm))
        more = ratio(resnet, svm, cost) if known else math.nan
        yield None if math.isnan(more) else above(1, more / noise, more * noise)
        parts += [] if math.isnan(more) else [f"{show(dataset)} {model} {times(more)}"]
    if parts:
        yield f"{', '.join(parts)} times"


def svm_is_behind(study: Study) -> Judgement:
    """With p adjusted as in the answer: one comparison has one p on a page."""
    gaps = headline(study)
    for dataset, model in product(CLAIMED, MODELS[1:]):
        gap = gaps.get((dataset, model, "SVM"))
        if other := gaps.get((dataset, "SVM", model)):
            gap = replace(other, size=-other.size)
        yield gap and gap.sign()
        if gap:
            yield f"{show(dataset)} {model}'s lead {gap} ({gap.p_text()})"


def gap_is_wider(study: Study) -> Judgement:
    first, second = (
        compare(study.best(name, *MODELS[1:]), study.best(name, "SVM")) for name in CLAIMED
    )
    if first and second:
        freedom = min(first.freedom, second.freedom)  # fewer than Welch's
        gap = student(first.size - second.size, math.hypot(first.error, second.error), freedom)
        yield gap.sign()
        leads = f"{first} on MNIST and {second} on FashionMNIST"
        yield f"{gap} ({gap.p_text()}); the lead of the best ResNet is {leads}"


def gpu_gain(study: Study, model: str, claimed: int) -> Judgement:
    """CPU time over GPU time; claimed is 1 for a gain above 2, -1 for one below."""
    found = [each for each in study.devices.get("fashion", []) if each.model == model]
    for optimizer in ("sgd", "adam"):
        cpu, gpu = (find(found, device=name, optimizer=optimizer) for name in ("cpu", "cuda"))
        rows = [row for each in (cpu, gpu) if each for row in each.runs.values()]
        if not (cpu and gpu) or len(groups(rows, ("cpu_name", "threads"))) > 1:
            yield None
            continue
        gain = ratio(cpu, gpu, "train_ms")
        low = min(gain, cpu.values("step_ms_min").min() / gpu.values("step_ms_max").max())
        high = max(gain, cpu.values("step_ms_max").max() / gpu.values("step_ms_min").min())
        yield claimed * above(2, low, high)
        yield f"{show(optimizer)} {interval(gain, low, high, '.1f')} times as fast"


def adam_is_best(study: Study) -> Judgement:
    bests = [study.best(dataset) for dataset in CLAIMED]
    adams = [find(study.of(name, "ResNet-18"), optimizer="adam", lr=1e-3) for name in CLAIMED]
    gaps = compare_all(zip(adams, bests, strict=True))
    for dataset, best, adam, gap in zip(CLAIMED, bests, adams, gaps, strict=True):
        if not gap and not (best and best is adam):
            yield None
            continue
        yield min(gap.sign(), 0) if gap else 1
        text = f"{show(dataset)}: best on validation is {the(best.model)} ({best})"
        if gap:
            state = ("not significantly different", "better", "worse")[gap.sign()]
            text += f"; ResNet-18 ({adam}) is {state}, {gap} points ({gap.basis()})"
        yield text


def pinned_pairs(study: Study) -> list[tuple[dict, dict]]:
    """Runs on a GPU with pinned memory and without, all else equal."""
    names = [name for name in common.key_columns("resnet") if name != "pin_memory"]
    rows = select(study.results["resnet"], status="ok", device="cuda")
    rows = [row for row in rows if row["dataset"] in CLAIMED]
    pairs = [{row["pin_memory"]: row for row in alike}
             for alike in groups(rows, [*names, *MACHINE]).values()]  # fmt: skip
    return [(pair["true"], pair["false"]) for pair in pairs if {"true", "false"} <= set(pair)]


def pinning_keeps_accuracy(study: Study) -> Judgement:
    if pairs := pinned_pairs(study):
        same = sum(a["weights_sha256"] == b["weights_sha256"] is not None for a, b in pairs)
        differ = any(gap.sign() for gap in holm([on_one_split(*pair) for pair in pairs]))
        yield 1 if same == len(pairs) else -1 if differ else 0
        yield f"{same} of {count(len(pairs), 'pair')} with the same weights"


def pinning_costs_little(study: Study) -> Judgement:
    logs = np.log([a["train_ms"] / b["train_ms"] for a, b in pinned_pairs(study)])
    if len(logs) > 1:
        half = stats.t.ppf(1 - LEVEL / 2, len(logs) - 1) * stats.sem(logs)
        low, high, little = logs.mean() - half, logs.mean() + half, math.log(1.1)
        yield 1 if max(-low, high) < little else -1 if min(-low, high) < -little else 0
        yield interval(*np.exp([logs.mean(), low, high]))


FASTER, FEWER = "SVMs train significantly faster than the ResNets", "SVMs need fewer resources"
CLAIMS: dict[str, tuple[str, Callable[[Study], Judgement]]] = {
    "1a": ("ResNet-18 beats ResNet-50 on MNIST in most settings.", most_lines),
    "1b": ("ResNet-18's peak accuracy on MNIST is 99.30 %.", peak),
    "2": ("ResNet-50's accuracy does not justify its computational cost.", not_worth_it),
    "3": ("Accuracy is lower on FashionMNIST than on MNIST in every configuration.",
          lower_on_fashion),
    "4a": (f"{FASTER} (this repository's solver).",
           partial(over_svm, cost="train_ms", solver="gram", noise=NOISE)),
    "4a'": (f"{FASTER} (scikit-learn's solver).",
            partial(over_svm, cost="train_ms", solver="sklearn", noise=NOISE)),
    "4b": (f"{FEWER} (FLOPs of training).", partial(over_svm, cost="training_flops")),
    "4b'": (f"{FEWER} (FLOPs of a prediction).", partial(over_svm, cost="prediction_flops")),
    "5a": ("SVMs are less accurate than the ResNets.", svm_is_behind),
    "5b": ("That gap is more pronounced on MNIST.", gap_is_wider),
    "6": ("A GPU cuts ResNet-50's training time by more than 50 %.",
          partial(gpu_gain, model="ResNet-50", claimed=1)),
    "7": ("For ResNet-18, CPU training remains competitive with the GPU.",
          partial(gpu_gain, model="ResNet-18", claimed=-1)),
    "8": ("ResNet-18 with Adam at lr 0.001 is the best configuration overall.", adam_is_best),
    "9a": ("pin_memory makes no difference to accuracy.", pinning_keeps_accuracy),
    "9b": ("pin_memory makes little difference to time.", pinning_costs_little),
}  # fmt: skip


def claims(study: Study) -> Iterator[str]:
    rows = {name: select(rows, limit=None) for name, rows in study.results.items()}
    whole, lines = Study(rows, study.digests), []
    for number, (sentence, judge) in CLAIMS.items():
        state, text = verdict(judge(whole))
        lines.append([number, sentence, f"**{state}**", text])
    note = (
        f"Whole data sets are judged, no subsets, and ResNets of at most {EPOCHS} epochs."
        " *Not resolved*: the rows fit both, or a part is not measured. Brackets hold 95 %"
        " intervals; differences are points of accuracy; p is Holm-adjusted within a claim (5a: for"
        " all pairs of best models)."
    )
    if any(len(each.runs) == 1 for name in CLAIMED for each in whole.of(name)):
        note += f" {SINGLE}"
    header = ["", "Claim", "Verdict", "Figures"]
    yield table("An earlier report's claims, judged by the rows", header, lines, note)


# --- tables --------------------------------------------------------------------------------------


def resnet_tables(study: Study) -> Iterator[str]:
    """For each data set a line for each batch size, optimizer and learning rate."""
    used = []
    for dataset in study.settings:
        found = [each for each in study.of(dataset) if each.model != "SVM"]
        models = sorted({*MODELS[1:], *(each.model for each in found)})
        lines = []
        for line in GRID:
            accuracies = [resnet_cell(study, dataset, model, **line) for model in models]
            lines.append([*map(show, line.values()), *accuracies])
        header = ["Batch size", "Optimizer", "Learning rate"]
        header += [f"{model} accuracy (%)" for model in models]
        title = f"{show(dataset)}: test accuracy within {EPOCHS} epochs"
        yield table(title, header, lines)
        used += found
    note = "In parentheses stands the number of epochs, chosen on validation images."
    yield f"{note} {notes_on(used)}"


def resnet_cell(study: Study, dataset: str, model: str, **factors) -> str:
    """The accuracy of the best at these factors; without one, how its runs failed."""
    if best := find(study.of(dataset, model), **factors):
        return f"{percent(best)} ({show(best.factors['epochs'])})"
    rows = select(study.results["resnet"], dataset=dataset, model=model, **factors)
    failed = sorted({row["status"].replace("_", " ") for row in rows if row["status"] != "ok"})
    return listed(failed) if failed else MISSING


def device_tables(study: Study) -> Iterator[str]:
    """For each data set CPU against GPU: accuracy, time and FLOPs."""
    names = ["Test accuracy (%)", "Training (s)", "MFLOPs"]
    for dataset in study.devices or ["fashion"]:
        found = study.devices.get(dataset, [])
        header, lines = ["Device", "Optimizer"], []
        for arch in train_resnet.ARCHITECTURES:
            header += [f"{show(arch)} accuracy (%)", "training (s)", "MFLOPs"]
        for device, optimizer in product(("cpu", "cuda"), ("sgd", "adam")):
            lines.append([show(device), show(optimizer)])
            for arch in train_resnet.ARCHITECTURES:
                setting = find(found, device=device, optimizer=optimizer, arch=arch)
                lines[-1] += cells(setting, names)
        title = f"{show(dataset)}, CPU and GPU"
        if found:
            row = found[0].first
            title += f": batch size {show(row['batch_size'])}, lr {show(row['lr'])},"
            title += f" {count(row['epochs'], 'epoch')}"
        note = (
            "MFLOPs are those of training on one image, forward and backward, 2 for each"
            f" multiply-accumulate. {SINGLE} {notes_on(found)}"
        )
        yield table(title, header, lines, note, *deeper_networks(found))


def deeper_networks(found: list[Setting]) -> list[str]:
    """What a deeper network costs and gains on each device, against ResNet-18."""
    pairs, lines = [], []
    for deep in found:
        at = {name: deep.factors[name] for name in ("device", "optimizer")}
        base = find(found, **at, arch="resnet18")
        if base and base is not deep and same_machine(base, deep):
            pairs.append((deep, base))
    for (deep, base), gap in zip(pairs, compare_all(pairs), strict=True):
        if gap:
            where = ", ".join(cells(deep, ["Device", "Optimizer"]))
            work, time = (times(ratio(deep, base, name)) for name in ("training_flops", "train_ms"))
            lines.append(
                f"- {where}: {deep.model} takes {work} times the FLOPs and {time} times the time"
                f" of ResNet-18. Its accuracy {'differs' if gap.sign() else 'does not differ'}"
                f" significantly: {gap} points ({gap.p_text()})."
            )
    return ["\n".join(lines)] if lines else []


def device_costs(study: Study) -> Iterator[str]:
    """What the runs of the device tables cost."""
    names = ["Device", "Model", "Optimizer", "Test accuracy (%)", "Training (s)", "Testing (s)"]
    names += ["Step (ms)", "Peak memory (MiB)"]
    note = "A step's time is the median and range over windows of training steps."
    for dataset, found in study.devices.items():
        lines = [cells(each, names) for each in found]
        yield table(f"Costs of training on {show(dataset)}", names, lines, note)


def settings_tables(study: Study, svm: bool) -> Iterator[str]:
    """For each data set every setting beside the best one of all models on validation."""
    first = ["Test accuracy (%)"] if svm else ["Model", "Test accuracy (%)"]
    last = ["Training (s)", "Testing (s)", "FLOPs (10¹²)"]
    last += ["Support vectors", "Setting"] if svm else ["Setting"]
    header = [*first, "Difference (points)", "Holm-adjusted p", "Validation (%)", *last]
    for dataset in study.settings:
        means, best = study.validation(dataset), study.best(dataset)
        found = sorted(means, key=means.get, reverse=True)
        gaps = compare_all(equal_seeds([(each, best) for each in found]))
        used, lines = [], []
        for setting, gap in zip(found, gaps, strict=True):
            if (setting.model == "SVM") != svm:
                continue
            beside = ["", "best"] if setting is best else [MISSING, ""]
            if gap:
                state = ("not significant, ", "better, ", "worse, ")[gap.sign()]
                beside = [str(gap), state + gap.p_text()]
            beside.append(f"{100 * means[setting]:.2f}")
            lines.append([*cells(setting, first), *beside, *cells(setting, last)])
            used.append(setting)
        title = f"{show(dataset)}, {'SVMs' if svm else 'ResNets'}: all settings"
        note = "Differences are points of test accuracy from the best setting of all models"
        if used:
            note += f" on validation, {the(best.model)} ({best})"
            if seeds := {gap.seeds for gap in gaps if gap}:
                note += f", over the {count(min(seeds), 'seed')} that all have"
            note += ". Validation accuracy, by which the best of a model is chosen, is the mean"
            note += " over the seeds that all its settings have."
            notes = [note, *([SINGLE] if 1 in seeds else []), notes_on(used)]
            yield table(title, header, lines, " ".join(notes))


def longer_trainings(study: Study) -> Iterator[str]:
    """What more epochs than the assignment's buy."""
    names = ["Data set", "Model", "Test accuracy (%)", "Setting", "Training (s)", "Seeds"]
    pairs, lines = [], []
    used = [each for found in study.longer.values() for each in found]
    for setting in used:
        same = {name: value for name, value in setting.factors.items() if name != "epochs"}
        pairs.append((setting, find(study.of(setting.dataset), **same)))
    gaps = compare_all(pairs)
    for setting, gap in zip(used, gaps, strict=True):
        beside = [str(gap), gap.p_text()] if gap else [MISSING, ""]
        lines.append([*cells(setting, names), *beside])
    header = [*names, f"Gain over up to {EPOCHS} epochs (points)", "Holm-adjusted p"]
    if lines:
        notes = [SINGLE] if any(gap and gap.seeds == 1 for gap in gaps) else []
        title = f"Trainings of more than {EPOCHS} epochs"
        yield table(title, header, lines, " ".join([*notes, notes_on(used)]))
    else:
        yield f"No training has more than {EPOCHS} epochs yet."
    yield from shown(study, "longer")


def confusion_tables(study: Study) -> Iterator[str]:
    """Test images by class and prediction, of the best of each model."""
    for best in [each for name in study.settings for each in shared([*study.bests(name).values()])]:
        found = [row["confusion"] for row in best.runs.values() if row["confusion"] is not None]
        if not found:
            continue
        names = CLOTHES if best.dataset == "fashion" else [str(k) for k in range(10)]
        total, lines = sum(found), []
        shares = [100 * each.diagonal() / each.sum(1) for each in found]  # [seeds, classes]
        for name, counts, share in zip(names, total, np.array(shares).T, strict=True):
            accuracy = f"{share.mean():.2f}"
            accuracy += f" ± {share.std(ddof=1):.2f}" if len(share) > 1 else ""
            lines.append([name, *map(str, counts), accuracy])
        wrong = total - np.diag(total.diagonal())
        most = sorted(np.argwhere(wrong), key=lambda at: -wrong[tuple(at)])[:5]
        errors = ", ".join(f"{names[i]} taken for {names[j]} ({wrong[i, j]})" for i, j in most)
        title = f"Best {best.model} on {show(best.dataset)}: test images by class and prediction"
        note = f"Sum over {count(len(found), 'seed')}. A line is a class, a column a prediction."
        note += f" Most frequent: {errors}." if errors else ""
        yield table(title, ["", *names, "Accuracy (%)"], lines, note)


def failures(study: Study) -> Iterator[str]:
    rows = [row for rows in study.results.values() for row in rows if row["status"] != "ok"]
    lines = [[show(row["dataset"]), row["model"], show(row["seed"]), row["file"].name,
              str(row["status"]), str(row["reason"])] for row in rows]  # fmt: skip
    header = ["Data set", "Model", "Seed", "File", "Status", "Reason"]
    yield table("Runs that failed", header, lines) if lines else "No run failed."


# --- pictures ------------------------------------------------------------------------------------

WIDTH, HEIGHT = 410, 340
LEFT, RIGHT, TOP, BOTTOM = 50, 398, 72, 290  # of the axes
# Colours of M. Okabe and K. Ito, which all kinds of colour vision tell apart, on light and on dark;
# and shapes for those who see none: circle, square, triangle, and a diamond for any other network.
KINDS = {model: kind for kind, model in enumerate(MODELS)}
STYLE = """
text { font: 15px system-ui, sans-serif; fill: #1f2328 } .paper { fill: #ffffff }
path { fill: none; stroke: var(--c); stroke-width: 2 } .axis { stroke: #8c959f }
.title { font-weight: bold } .filled { fill: var(--c) } .faint { opacity: 0.3 }
.dotted { stroke-dasharray: 2 4 }
.name { fill: var(--c); stroke: #ffffff; stroke-width: 4px; paint-order: stroke; font-weight: bold }
.m0 { --c: #0072B2 } .m1 { --c: #D55E00 } .m2 { --c: #007A59 } .m3 { --c: #AA4499 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .paper { fill: #0d1117 } .axis { stroke: #6e7681 }
.name { fill: var(--c); stroke: #0d1117 }
.m0 { --c: #56B4E9 } .m1 { --c: #E69F00 } .m2 { --c: #2FC79B } .m3 { --c: #DD9CC0 } }
"""
SHAPES = ("M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0", "M-4.5,-4.5h9v9h-9z", "M0,-6L6,5H-6z",
          "M0,-6.5L6.5,0L0,6.5L-6.5,0z")  # fmt: skip


def nice_ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers in a range."""
    power = 10.0 ** math.floor(math.log10(high - low))
    step = next(step for step in (power / 5, power / 2, power, 2 * power) if high - low <= 6 * step)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


class Plot:
    """An SVG of accuracies in percent; what lies outside the axes is drawn on their edge."""

    def __init__(self, title: str, x_label: str, models, x, y, x_ticks: dict[float, str]):
        gaps = [0.07 * (max(x) - min(x)) or 0.5, 0.1 * (max(y) - min(y)) or 0.5]
        self.x, self.y = (min(x) - gaps[0], max(x) + gaps[0]), (min(y) - gaps[1], max(y) + gaps[1])
        self.parts = [f"<title>{html.escape(title)}</title><style>{STYLE}</style>"]
        self.parts += ['<rect width="100%" height="100%" class="paper"/>']
        self.parts += [f'<path d="M{LEFT},{TOP}V{BOTTOM}H{RIGHT}" class="axis"/>']
        self.text(10, 20, title, "title")
        self.text(10, TOP - 10, "accuracy (%)")
        self.text((LEFT + RIGHT) / 2, HEIGHT - 8, x_label, anchor="middle")
        for tick, text in x_ticks.items():
            if self.x[0] < tick < self.x[1]:
                self.text(self.at(tick, 0)[0], BOTTOM + 18, text, anchor="middle")
        for tick in nice_ticks(*self.y):
            if tick <= 100:
                self.text(LEFT - 6, self.at(0, tick)[1] + 5, f"{tick:.6g}", anchor="end")
        place = 16
        for model in models:
            self.mark(place, 38, model)
            self.text(place + 11, 43, model)
            place += 40 + 8.5 * len(model)

    def at(self, x, y) -> tuple:
        """Pixels of points."""
        return np.interp(x, self.x, (LEFT, RIGHT)), np.interp(y, self.y, (BOTTOM, TOP))

    def text(self, x: float, y: float, text: str, css: str = "", anchor: str = "start") -> None:
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}">'
                          f"{html.escape(text)}</text>")  # fmt: skip

    def mark(self, x: float, y: float, model: str, css: str = "filled") -> None:
        kind = KINDS.get(model, 3)
        self.parts.append(f'<path d="{SHAPES[kind]}" class="m{kind} {css}"'
                          f' transform="translate({x:.1f} {y:.1f})"/>')  # fmt: skip

    def line(self, x, y, model: str, css: str = "") -> None:
        pixels = "L".join(f"{a:.1f},{b:.1f}" for a, b in zip(*self.at(x, y), strict=True))
        self.parts.append(f'<path d="M{pixels}" class="m{KINDS.get(model, 3)} {css}"/>')

    def marked_line(self, x, y, model: str) -> None:
        self.line(x, y, model)
        for pixel in zip(*self.at(x, y), strict=True):
            self.mark(*pixel, model)

    def svg(self) -> str:
        size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
        body = "\n".join(self.parts)
        return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n{body}\n</svg>\n'


def cost_picture(study: Study, dataset: str) -> str | None:
    """Accuracy against training FLOPs: every setting a point, the best of each model named."""
    flops = {each: each.cost("training_flops") / 1e12 for each in study.of(dataset)}
    x = {each: math.log10(value) for each, value in flops.items() if not math.isnan(value)}
    y = {each: 100 * each.mean() for each in x}
    bars = {each: [100 * end for end in error_bar(each)]
            for each in study.bests(dataset).values() if each in x}  # fmt: skip
    if not x:
        return None
    # The worst quarter would press all others together: it lies on the bottom edge.
    ends = [*np.ravel([*bars.values()]), np.quantile([*y.values()], 0.25), max(y.values())]
    ticks = {math.log10(d) + k: f"{d * 10.0**k:,.6g}" for k in range(-4, 6) for d in (1, 3)}
    title = f"{show(dataset)}: accuracy and cost"
    x_label = "FLOPs of training (10¹², logarithmic)"
    models = dict.fromkeys(each.model for each in (*bars, *x))
    plot = Plot(title, x_label, models, x.values(), ends, ticks)
    for each in x:
        if each not in bars:
            plot.mark(*plot.at(x[each], y[each]), each.model, "faint")
    for each, bar in bars.items():
        plot.line([x[each]] * 2, bar, each.model)
        plot.mark(*plot.at(x[each], y[each]), each.model)
    for place, (each, (low, high)) in enumerate(bars.items()):
        # The best model's name stands above its bar, those of the others below.
        across, down = plot.at(x[each], low if place else high)
        text, down = f"{each.model} {y[each]:.2f}", down + (20 if place else -9)
        half = 4.9 * len(text)
        across = np.clip(across, LEFT + half + 4, WIDTH - half - 3)
        down = np.clip(down, TOP + 10, BOTTOM - 6)
        plot.text(across, down, text, f"name m{KINDS.get(each.model, 3)}", "middle")
    return plot.svg()


def curve_picture(study: Study, dataset: str, longer: bool = False) -> str | None:
    """Accuracy after each epoch of the best ResNets, or of the best of their longest trainings:
    validation as mean and range over seeds, training dotted. The line across is that of the best
    SVM."""
    bests, curves = study.bests(dataset), []
    svm = bests.pop("SVM", None)
    if longer:  # 20 epochs hold the curve of 10
        order = sorted(
            study.longer[dataset],
            key=lambda each: (each.factors["epochs"], each.mean("val_accuracy")),
        )
        bests = {each.model: each for each in order}
    for setting in bests.values():
        runs = [100 * row["curve"] for row in setting.runs.values()]
        if len({len(run) for run in runs}) == 1 and len(runs[0]) > 1:
            train, val = np.moveaxis(np.array(runs), 2, 0)  # each [seeds, epochs]
            curves.append((setting.model, train.mean(0), val.mean(0), val.min(0), val.max(0)))
    if not curves:
        return None
    last = max(len(train) for _, train, *_ in curves)
    level = [100 * svm.mean("val_accuracy")] if svm else []
    values = np.concatenate([level, *(values for _, _, *lines in curves for values in lines)])
    title = f"{show(dataset)}: validation, dotted training"
    ticks = {tick: f"{tick:g}" for tick in nice_ticks(1, last) if tick == round(tick)}
    models = dict.fromkeys([*(model for model, *_ in curves), *(["SVM"] if svm else [])])
    plot = Plot(title, "epochs", models, [1, last], [np.quantile(values, 0.05), max(values)], ticks)
    for model, train, mean, low, high in curves:
        epochs = np.arange(1, len(mean) + 1)
        plot.line([*epochs, *epochs[::-1]], [*low, *high[::-1]], model, "filled faint")
        plot.line(epochs, train, model, "dotted")
        plot.marked_line(epochs, mean, model)
    for each in level:
        plot.marked_line([1, last], [each, each], "SVM")
    return plot.svg()


PICTURES = {  # how each is drawn, and what it shows in words
    "accuracy": (cost_picture, "test accuracy against FLOPs of training"),
    "curves": (curve_picture, "accuracy after each epoch"),
    "longer": (partial(curve_picture, longer=True), "accuracy after each of more epochs"),
}


def pictures(study: Study, kind: str) -> dict[str, tuple[str, str]]:
    """By file name: what a picture shows in words, and its content."""
    draw, words = PICTURES[kind]
    found = {}
    for dataset in study.settings:
        if svg := draw(study, dataset):
            name = re.sub("[^a-z0-9]+", "-", dataset.lower())
            found[f"{kind}-{name}.svg"] = f"{show(dataset)}: {words}", svg
    return found


def shown(study: Study, kind: str) -> Iterator[str]:
    """Markdown that shows the pictures of a kind, side by side where there is room."""
    yield "\n".join(f"![{words}](./{name})" for name, (words, _) in pictures(study, kind).items())


# --- files ---------------------------------------------------------------------------------------


def digests(study: Study) -> Iterator[str]:
    """The files, and how many of their rows stand in no table of settings."""
    yield "\n".join(f"- {name} (SHA-256 {digest})" for name, digest in study.digests.items())
    if files := groups(study.aside, ["file"]):
        names = [path.name if path.name in study.digests else str(path) for (path,) in files]
        counts = [
            f"{len(rows)} in {harmless(name)}"
            for name, rows in zip(names, files.values(), strict=True)
        ]
        yield (
            "Rows that are of another size, device, CPU, precision, solver or kind of split than"
            f" most, and so in no table of settings: {listed(counts)}."
        )


TABLES = {
    "answer": answer, "claims": claims, "resnet": resnet_tables,
    "devices": device_tables, "svm-settings": partial(settings_tables, svm=True),
    "resnet-settings": partial(settings_tables, svm=False), "longer": longer_trainings,
    "curves": partial(shown, kind="curves"), "confusion": confusion_tables,
    "costs": device_costs, "failures": failures, "rows": digests,
}  # fmt: skip
TEMPLATE = Path(__file__).parent / "results" / "README.md"


def render(name: str, study: Study) -> str:
    """A table of TABLES, with its notes and pictures, in markdown."""
    return "\n\n".join(part.strip() for part in TABLES[name](study) if part) or MISSING


def fill(template: Path, study: Study, folder: str = "") -> str:
    """A page with every table between its markers; folder is where its pictures are."""

    def block(match: re.Match) -> str:
        content = render(match[1], study).replace("](./", f"]({folder}")
        return f"<!-- table: {match[1]} -->\n\n{content}\n\n<!-- end: {match[1]} -->"

    text = template.read_text(encoding="utf-8")
    pattern = rf"<!-- table: ({'|'.join(TABLES)}) -->\n.*?<!-- end: \1 -->"
    filled, number = re.subn(pattern, block, text, flags=re.DOTALL)
    if not number or len(re.findall("<!-- (?:table|end): ", text)) != 2 * number:
        common.fail(f"{template}: markers such as <!-- table: answer --> and <!-- end: answer -->"
                    f" must be there, in pairs, for any of {', '.join(TABLES)}")  # fmt: skip
    return filled


def outputs(study: Study, folder: Path, readme: Path | None) -> dict[Path, str]:
    """The content of every file that is written."""
    drawn = {name: svg for kind in PICTURES for name, (_, svg) in pictures(study, kind).items()}
    files = {folder / name: svg for name, svg in drawn.items()}
    files[folder / "README.md"] = fill(TEMPLATE, study)
    if readme:
        if readme.resolve() == (folder / "README.md").resolve():
            common.fail(f"{readme} is the page of all results; give --readme another file")
        place = Path(os.path.relpath(folder, readme.parent)).as_posix()
        files[readme] = fill(readme, study, quote(f"{place}/"))
    return files


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.error = lambda message: common.fail(f"{message} (see {parser.prog} --help)")
    where = "where the rows are; tables and pictures go beside"
    parser.add_argument(
        "--results-dir", nargs="+", type=Path, default=[Path("results")], metavar="DIR", help=where
    )
    parser.add_argument("--readme", type=Path, metavar="FILE", help="fill its markers, too")
    parser.add_argument("--check", action="store_true", help="change nothing, name stale files")
    parser.add_argument("--table", choices=TABLES, metavar="NAME", help=", ".join(TABLES))
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    folder = args.results_dir[0]
    for each in args.results_dir:
        if not each.is_dir():
            common.fail(f"--results-dir {each}: there is no such folder")
    if args.check and not args.readme and args.results_dir == [Path("results")]:
        args.readme = Path("README.md")
    study = Study(*load(args.results_dir))
    if args.table:
        common.say(render(args.table, study))
        return 0
    files = {path: text.encode() for path, text in outputs(study, folder, args.readme).items()}
    stale = [path for path in files if not path.exists() or path.read_bytes() != files[path]]
    if args.check:
        for path in stale:
            common.say(f"{path} is stale: run make_tables.py without --check")
        return 1 if stale else 0
    with FileLock(folder / ".lock"):
        for path in stale:
            common.write_file(path, files[path])
    common.say("\n\n".join(islice(answer(study), 2)))
    common.say(f"\nAll tables and pictures: {folder / 'README.md'}")
    return 0


if __name__ == "__main__":
    common.run_main(main)
