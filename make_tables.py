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
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import combinations, product
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
    "mps": "Apple GPU",
}  # fmt: skip
CLOTHES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
# The assignment fixes the models and data sets of its claims, and the eight lines of its tables.
MODELS = ("SVM", "ResNet-18", "ResNet-50")
CLAIMED = ("mnist", "fashion")
GRID = tuple(product((16, 32), ("sgd", "adam"), (1e-3, 1e-4)))
EPOCHS = 5  # of the assignment; longer trainings have a table of their own
# Rows that differ in one of these never stand in one table.
SETUP = ("fixed_split", "amp", "device", "device_name", "precision", "solver")
MACHINE = ("device", "device_name", "threads")  # times are compared on one of them
NO_FACTORS = {"dataset", "limit", "seed", "split_seed", "pin_memory", *SETUP}
FACTORS = {
    name: [column for column in common.key_columns(name) if column not in NO_FACTORS]
    for name in common.COLUMNS
}
# What two finished rows of one run have in common, as far as they hold it; times may differ.
SAME = ("split_id", "val_accuracy", "test_accuracy", "test_errors", "weights_sha256")
PACKED = ("history", "test_classes", "test_errors")
MISSING = "not measured"
Results = dict[str, list[dict]]  # the rows of each file


# --- rows ----------------------------------------------------------------------------------------


def load(folders: list[Path]) -> tuple[Results, dict[str, str]]:
    """The rows of all folders, each run once, and the SHA-256 of each file; exits 2 if a row is
    broken or two rows disagree."""
    results, digests = {}, {}
    for name in common.COLUMNS:
        paths = [folder / f"{name}.csv" for folder in folders]
        rows = [prepare(path, row) for path in paths for row in common.read_rows(path)]
        results[name] = each_once(rows)
        for path in filter(Path.exists, paths):
            label = harmless(path.name if len(folders) == 1 else str(path))
            digests[label] = hashlib.sha256(path.read_bytes()).hexdigest()
    splits = {}
    for row in finished([row for rows in results.values() for row in rows]):
        split = row["dataset"], row["split_seed"], row["limit"]
        first = splits.setdefault(split, row)
        if first["split_id"] != row["split_id"]:
            common.fail(
                f"{first['file']} and {row['file']}: rows of {split[0]} with split seed {split[1]}"
                " differ in split_id, so they saw other images; remove the rows of one"
            )
    return results, digests


def prepare(path: Path, row: dict) -> dict:
    """A row with texts that are safe in markdown, and its packed columns read."""
    row = {
        name: harmless(value) if isinstance(value, str) and name not in PACKED else value
        for name, value in row.items()
    }
    required = "C" if path.stem == "svm" else "arch optimizer lr batch_size epochs"
    for name in ("dataset", "seed", "split_seed", *required.split()):
        if row[name] is None:
            common.fail(f"{path}: a row has no {name}; mend or remove it")
    row = {"device": "cpu"} | row | {"file": path, "key": common.key_of(path, row)}
    row["model"] = "SVM" if path.stem == "svm" else name_of(row["arch"])
    row["train_ms"] = row["fit_time_ms" if path.stem == "svm" else "train_time_ms"]
    # Seeds that share one split show less than those that each draw their own.
    row["fixed_split"] = row["split_seed"] if row["split_seed"] != row["seed"] else None
    if row["status"] == "ok":
        row["accuracy_by_epoch"] = read_history(row)
        row["codes"], row["confusion"] = read_errors(row)
    return row


def harmless(text: str) -> str:
    """A text on one line, without characters that end a table's cell, or start code, a tag, a link
    or (on GitHub Pages) a Liquid expression."""
    text = "".join(filter(str.isprintable, " ".join(text.split())))
    text = re.sub(r"([{\]])(?=[{%(\[])", r"\1 ", text)
    return text.replace("|", "/").replace("`", "'").replace("<", "&lt;")[:200]


def refuse(row: dict, problem: str):
    common.fail(f"{row['file']}: a row's {problem}; mend or remove the row of {row['key']}")


def read_history(row: dict) -> np.ndarray:
    """Training and validation accuracy after each epoch [epochs, 2]."""
    try:
        epochs = json.loads(row.get("history") or "[]")
        pairs = [(each["train_accuracy"], each["val_accuracy"]) for each in epochs]
        history = np.array(pairs, float).reshape(-1, 2)
        if ((history >= 0) & (history <= 1)).all():
            return history
    except (KeyError, TypeError, ValueError, RecursionError):
        pass
    refuse(row, "history does not hold accuracies of epochs")


def read_errors(row: dict) -> tuple[np.ndarray | None, np.ndarray | None]:
    """The code of each test image (0 if it is right, else 1 + 10 * label + prediction) and the
    confusion matrix [label, prediction]; None, None if the row keeps no errors."""
    if not row.get("test_errors"):
        return None, None
    try:
        inflate, size = zlib.decompressobj(), min(int(row["n_test"]), 10**6)
        packed = base64.b64decode(row["test_errors"], validate=True)
        # No more than the row's size is unpacked, however much there is.
        codes = np.frombuffer(inflate.decompress(packed, size + 1), np.uint8)
        classes = np.array(json.loads(row["test_classes"]), np.int64)
        confusion = np.bincount(codes, minlength=256)[1:101].reshape(10, 10)
        wrong = np.count_nonzero(codes)
        agrees = (
            inflate.eof
            and len(codes) == row["n_test"] == classes.sum()
            and classes.shape == (10,)
            and (confusion.sum(1) <= classes).all()
            and confusion.sum() == wrong
            and not confusion.diagonal().any()
            and abs(1 - wrong / size - row["test_accuracy"]) < 1e-9
        )
    except (ValueError, TypeError, OverflowError, RecursionError, zlib.error):
        agrees = False
    if not agrees:
        refuse(row, "test_errors do not agree with test_classes, n_test or test_accuracy")
    return codes, confusion + np.diag(classes - confusion.sum(1))


def each_once(rows: list[dict]) -> list[dict]:
    """One row of each run, a finished one if there is one; exits 2 if two finished ones differ."""
    kept = {}
    for row in rows:
        first = kept.setdefault(row["key"], row)
        if first["status"] != "ok":
            kept[row["key"]] = row if row["status"] == "ok" else first
        elif row["status"] == "ok":
            for name in SAME:
                if None not in (first.get(name), row.get(name)) and first[name] != row[name]:
                    files = " and ".join(dict.fromkeys((str(first["file"]), str(row["file"]))))
                    common.fail(
                        f"{files}: the run {row['key']} is there twice and differs in {name};"
                        " remove one of its rows"
                    )
    return list(kept.values())


def select(rows: list[dict], **values) -> list[dict]:
    """The rows that have these values."""
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def finished(rows: list[dict], **values) -> list[dict]:
    """Rows with a result. Collapsed runs are among them: to leave them out would be bias."""
    return select(rows, status="ok", **values)


def groups(rows: list[dict], names: Iterable[str]) -> dict[tuple, list[dict]]:
    """Rows by their values in some columns; a column that they lack counts as None."""
    found = {}
    for row in rows:
        found.setdefault(tuple(row.get(name) for name in names), []).append(row)
    return found


# --- settings ------------------------------------------------------------------------------------


def name_of(value) -> str:
    return NAMES.get(value, str(value))


@dataclass(frozen=True, eq=False)
class Setting:
    """A model with its hyperparameters on a data set, and a finished run for each seed."""

    dataset: str
    model: str
    factors: dict[str, object]
    runs: dict[int, dict]

    @property
    def first(self) -> dict:
        return next(iter(self.runs.values()))

    def values(self, column: str) -> np.ndarray:
        """A column's value for each seed; nan where a row has none."""
        return np.array([row.get(column) for row in self.runs.values()], float)

    def mean(self, column: str = "test_accuracy") -> float:
        return float(self.values(column).mean())

    def median(self, column: str) -> float:
        return float(np.median(self.values(column)))

    def only(self, seeds: Iterable) -> "Setting":
        return replace(self, runs={seed: self.runs[seed] for seed in self.runs if seed in seeds})

    def __str__(self) -> str:
        row = self.factors
        if self.model == "SVM":
            parts = [f"{k} {plain(v)}" for k, v in row.items() if k != "kernel" and v is not None]
            return ", ".join([name_of(row["kernel"]), *parts])
        momentum = "" if row["momentum"] in (None, 0.9) else f", momentum {plain(row['momentum'])}"
        return (
            f"{name_of(row['optimizer'])}, lr {plain(row['lr'])}{momentum},"
            f" batch {plain(row['batch_size'])}, {count(row['epochs'], 'epoch')}"
        )


def settings_of(rows: list[dict], factors: list[str]) -> list[Setting]:
    """The settings of some rows. Runs that differ in pin_memory alone train the same: the pinned
    one counts."""
    rows = sorted(rows, key=lambda row: (row["seed"], row.get("pin_memory") == "true"))
    return [
        Setting(alike[0]["dataset"], alike[0]["model"], dict(zip(factors, values, strict=True)),
                {row["seed"]: row for row in alike})
        for values, alike in groups(rows, factors).items()
    ]  # fmt: skip


def common_seeds(settings: Iterable[Setting]) -> set:
    seeds = [set(each.runs) for each in settings]
    return set.intersection(*seeds) if seeds else set()


def find(settings: list[Setting], **factors) -> Setting | None:
    """The best of the settings that have these factors."""
    return most_accurate([each for each in settings if factors.items() <= each.factors.items()])


def most_accurate(candidates: list[Setting]) -> Setting | None:
    """The highest mean validation accuracy over the seeds that all have (over each one's own if
    they share none)."""
    seeds = common_seeds(candidates)
    return max(
        candidates,
        key=lambda each: (each.only(seeds) if seeds else each).mean("val_accuracy"),
        default=None,
    )


@dataclass(frozen=True)
class Study:
    """What the tables show: for each data set the settings of one size and one setup."""

    results: Results
    digests: dict[str, str]
    settings: dict[str, list[Setting]] = field(default_factory=dict)  # within EPOCHS
    longer: dict[str, list[Setting]] = field(default_factory=dict)
    devices: dict[str, list[Setting]] = field(default_factory=dict)

    def of(self, dataset: str, *models: str) -> list[Setting]:
        found = self.settings.get(dataset, [])
        return [each for each in found if not models or each.model in models]

    def best(self, dataset: str, *models: str) -> Setting | None:
        """The best setting of each model, and of these the best: one after another is set against
        the best so far, on all seeds that the two share."""
        winner = None
        for model in dict.fromkeys(each.model for each in self.of(dataset, *models)):
            setting = most_accurate(self.of(dataset, model))
            winner = most_accurate([winner, setting]) if winner else setting
        return winner

    def bests(self, dataset: str) -> dict[str, Setting]:
        """The best setting of each model, the best model first."""
        models = dict.fromkeys(each.model for each in self.of(dataset))
        found = [self.best(dataset, model) for model in models]
        winner = self.best(dataset)
        found.sort(key=lambda each: (each is not winner, -each.mean("val_accuracy")))
        return {each.model: each for each in found}

    def whole(self) -> "Study":
        """The data sets that were used whole: claims are judged on no others."""
        settings, devices = (
            {dataset: [each for each in found if each.first["limit"] is None]
             for dataset, found in kind.items()}
            for kind in (self.settings, self.devices)
        )  # fmt: skip
        return replace(self, settings=settings, devices=devices)


def make_study(results: Results, digests: dict[str, str]) -> Study:
    """Pool the rows. A ratio or difference across sizes would say nothing, so all models of a data
    set are shown at one size."""
    study = Study(results, digests)
    for dataset in datasets_of(results["resnet"] + results["svm"]):
        rows = finished(results["resnet"] + results["svm"], dataset=dataset)
        sized, found = largest(rows, ["limit"]), []
        for name, is_svm in (("resnet", False), ("svm", True)):
            alike = largest([row for row in sized if (row["model"] == "SVM") == is_svm], SETUP)
            found += settings_of(alike, FACTORS[name])
        found.sort(key=lambda each: each.mean("val_accuracy"), reverse=True)
        longer = [each for each in found if each.factors.get("epochs", 0) > EPOCHS]
        study.longer[dataset] = longer
        study.settings[dataset] = [each for each in found if each not in longer]
    for dataset in dict.fromkeys(row["dataset"] for row in finished(results["devices"])):
        # The work that most rows did; of several machines of a kind the one with most rows.
        work = ("limit", "batch_size", "lr", "epochs", "amp", "fixed_split")
        rows = largest(finished(results["devices"], dataset=dataset), work)
        cells = groups(rows, ("device", "arch", "optimizer")).values()
        machine = ("device_name", "threads", "precision", "momentum")
        rows = [row for cell in cells for row in largest(cell, machine)]
        study.devices[dataset] = settings_of(rows, [*FACTORS["devices"], "device"])
    return study


def largest(rows: list[dict], names: Iterable[str]) -> list[dict]:
    """The group with most rows; one without a value in the first column (no limit, no split that
    is shared by seeds) goes before."""
    found = groups(rows, names)
    return max(found.values(), key=lambda g: (g[0][names[0]] is None, len(g)), default=[])


def datasets_of(rows: list[dict]) -> list[str]:
    """The data sets of some rows, MNIST and FashionMNIST first; without rows these two."""
    names = list(dict.fromkeys(row["dataset"] for row in rows)) or list(CLAIMED)
    return sorted(names, key=lambda name: (name not in CLAIMED, name == "fashion"))


def ratio(first: Setting, second: Setting, column: str) -> float:
    return first.median(column) / second.median(column)


def same_machine(*settings: Setting) -> bool:
    return len(groups([row for each in settings for row in each.runs.values()], MACHINE)) == 1


def network_cost(arch: str, name: str) -> float:
    """Of train_resnet.network_costs; nan for a network that it does not know."""
    known = arch in train_resnet.ARCHITECTURES
    return float(train_resnet.network_costs(arch)[name]) if known else math.nan


def prediction_flops(setting: Setting) -> float:
    """FLOPs of one test image. An SVM multiplies its 784 pixels by those of each support vector,
    and each kernel value by the coefficients of 9 other classes."""
    if setting.model == "SVM":
        return 2 * (784 + 9) * setting.median("support_vectors")
    return network_cost(setting.factors["arch"], "forward_flops")


# --- statistics ----------------------------------------------------------------------------------

LEVEL = 0.05  # of significance
NOISE = 1.5  # costs within this factor count as equal
MARGIN = 0.01  # one point of accuracy: a smaller gain is not worth a cost above NOISE


@dataclass(frozen=True)
class Difference:
    """Of two test accuracies: size, standard error, degrees of freedom and two-sided p; seeds is
    the number of splits that both were trained on."""

    size: float
    error: float
    freedom: float
    p: float
    seeds: int = 1

    def interval(self) -> tuple[float, float]:
        half = stats.t.ppf(1 - LEVEL / 2, self.freedom) * self.error
        return self.size - half, self.size + half

    def sign(self) -> int:
        """1 or -1 if the difference is shown to be above or below 0, else 0."""
        return int(np.sign(self.size)) if self.p < LEVEL else 0

    def __neg__(self) -> "Difference":
        return replace(self, size=-self.size)

    def plus(self, margin: float) -> "Difference":
        size = self.size + margin
        return replace(self, size=size, p=student_p(size, self.error, self.freedom))

    def __str__(self) -> str:
        low, high = (100 * end for end in self.interval())
        return f"{100 * self.size:+.2f} [{low:+.2f}, {high:+.2f}]"


def student_p(size: float, error: float, freedom: float) -> float:
    """Two-sided p of Student's t; of the normal distribution for math.inf."""
    return float(2 * stats.t.sf(abs(size) / error, freedom))


def holm(differences: list[Difference | None]) -> list[Difference | None]:
    """The same with p adjusted for the number of comparisons (S. Holm, Scandinavian Journal of
    Statistics 6, 1979); None stays, for one that could not be made."""
    order = sorted((each.p, place) for place, each in enumerate(differences) if each)
    adjusted, largest = list(differences), 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        adjusted[place] = replace(differences[place], p=largest)
    return adjusted


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Two-sided mid-p of McNemar's test, from the images that only one of two models has wrong
    (Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13:91, 2013)."""
    fewer, total = min(only_first, only_second), only_first + only_second
    return float(2 * stats.binom.cdf(fewer - 1, total, 0.5) + stats.binom.pmf(fewer, total, 0.5))


def on_one_split(first: dict, second: dict) -> Difference:
    """Of two runs: paired by test image; as if on images of their own where these differ or errors
    are not kept, which is too careful, as models err on the same images."""
    if first["split_id"] != second["split_id"] or first["codes"] is None or second["codes"] is None:
        return independent(first, second)
    wrong = [row["codes"] > 0 for row in (first, second)]
    return paired(
        int((wrong[0] & ~wrong[1]).sum()), int((wrong[1] & ~wrong[0]).sum()), len(wrong[0])
    )


def paired(only_first: int, only_second: int, total: int) -> Difference:
    """From the images that only one of two models has wrong. The standard error is that of Bonett
    and Price (Journal of Educational and Behavioral Statistics 37, 2012)."""
    p, q = (only_first + 1) / (total + 2), (only_second + 1) / (total + 2)
    error = math.sqrt((p + q - (p - q) ** 2) / (total + 2))
    size = (only_second - only_first) / total
    return Difference(size, error, math.inf, mcnemar_p(only_first, only_second))


def independent(first: dict, second: dict) -> Difference:
    """Of two proportions, with the error of Agresti and Caffo (The American Statistician 54, 2000):
    one more image of each kind."""
    error = math.hypot(binomial_error(first), binomial_error(second))
    size = first["test_accuracy"] - second["test_accuracy"]
    return Difference(size, error, math.inf, student_p(size, error, math.inf))


def binomial_error(row: dict, column: str = "test_accuracy") -> float:
    """The standard error that the number of images leaves to an accuracy."""
    total = row[f"n_{column.split('_')[0]}"]
    p = (row[column] * total + 1) / (total + 2)
    return math.sqrt(p * (1 - p) / (total + 2))


def over_seeds(values: np.ndarray, floors: list[float], row: dict) -> Difference:
    """The mean over seeds that each draw their own split. The deviation is at least the one that
    the number of test images leaves (floors). Splits overlap, so that a plain t test is too sure:
    the variance is multiplied by 1 / n + test / training images (C. Nadeau and Y. Bengio, Machine
    Learning 52, 2003)."""
    size, freedom = float(values.mean()), len(values) - 1
    deviation = max(values.std(ddof=1), math.sqrt(np.square(floors).mean()))
    error = float(deviation * math.sqrt(1 / len(values) + row["n_test"] / row["n_train"]))
    return Difference(size, error, freedom, student_p(size, error, freedom), len(values))


def compare(
    first: Setting | None, second: Setting | None, same: str = "split_id"
) -> Difference | None:
    """Test accuracy of one setting less that of another: over the splits that both have, on the
    images of a single one; None if they have none. same="seed" compares two data sets."""
    if not (first and second):
        return None
    others = {row[same]: row for row in second.runs.values()}
    pairs = [(row, others[row[same]]) for row in first.runs.values() if row[same] in others]
    if len(pairs) < 2:
        return next((on_one_split(*pair) for pair in pairs), None)
    gaps = np.array([a["test_accuracy"] - b["test_accuracy"] for a, b in pairs])
    return over_seeds(gaps, [on_one_split(*pair).error for pair in pairs], first.first)


def deviation(setting: Setting, column: str = "test_accuracy") -> float:
    """Over seeds, at least the one that the number of images leaves."""
    floors = [binomial_error(row, column) for row in setting.runs.values()]
    return max(setting.values(column).std(ddof=1), math.sqrt(np.square(floors).mean()))


def accuracy_interval(setting: Setting) -> tuple[float, float]:
    """95 % interval of a setting's test accuracy: Wilson's of one run, else over seeds."""
    if len(setting.runs) == 1:
        return wilson(setting.first["test_accuracy"], setting.first["n_test"])
    floors = [binomial_error(row) for row in setting.runs.values()]
    return over_seeds(setting.values("test_accuracy"), floors, setting.first).interval()


def wilson(share: float, total: float) -> tuple[float, float]:
    """95 % interval of a proportion (E. B. Wilson, JASA 22, 1927, p. 209)."""
    interval = stats.binomtest(round(share * total), round(total)).proportion_ci(method="wilson")
    return interval.low, interval.high


# --- cells and tables ----------------------------------------------------------------------------


def table(title: str, header: list[str], lines: list[list[str]], *notes: str) -> str:
    """A markdown table under its title, with notes below."""
    rows = (header, ["---"] * len(header), *(lines or [[MISSING] * len(header)]))
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return "\n\n".join(filter(None, (f"**{title}**", text, *notes)))


def interval(mean: float, low: float, high: float, form: str = ".2f") -> str:
    return f"{mean:{form}} [{low:{form}}, {high:{form}}]"


def percent(setting: Setting | None, column: str = "test_accuracy") -> str:
    """An accuracy in percent: mean ± deviation over seeds, or one run's interval."""
    if not setting:
        return MISSING
    mean = 100 * setting.mean(column)
    if len(setting.runs) > 1:
        return f"{mean:.2f} ± {100 * deviation(setting, column):.2f}"
    total = setting.first[f"n_{column.split('_')[0]}"]
    return interval(mean, *(100 * end for end in wilson(mean / 100, total)))


def figure(value: float, form: str = ",.0f") -> str:
    return MISSING if math.isnan(value) else format(value, form)


def short(value: float) -> str:
    """Three digits, or all of a whole number: 0.251, 25.4, 1,479."""
    digits = math.floor(math.log10(abs(value))) if value and not math.isnan(value) else 0
    return figure(value, f",.{min(6, max(0, 2 - digits))}f")


def plain(value) -> str:
    """A factor's value as one types it: 0.001, 16, scale."""
    return f"{value:.9g}" if isinstance(value, (int, float)) else str(value)


def p_of(difference: Difference) -> str:
    return f"p = {difference.p:.3f}" if difference.p >= 0.001 else "p < 0.001"


def count(number: float, noun: str) -> str:
    return f"{plain(number)} {noun}" if number == 1 else f"{plain(number)} {noun}s"


def times(value: float) -> str:
    """A ratio with two digits or more: 1.5, 16, 140."""
    return f"{value:.0f}" if value >= 9.95 else f"{value:.1f}"


def listed(words: Iterable[str], joint: str = "and") -> str:
    """a, b and c."""
    *most, last = words
    return f"{', '.join(most)} {joint} {last}" if most else last


def span(values: list, form: Callable = plain) -> str:
    """The least and the most, or the only value: 3 to 5."""
    return " to ".join(dict.fromkeys((form(min(values)), form(max(values)))))


def the(model: str) -> str:
    return "the SVM" if model == "SVM" else model


CELLS: dict[str, Callable[[Setting], str]] = {  # columns of tables, by their headers
    "Data set": lambda each: name_of(each.dataset),
    "Model": lambda each: each.model,
    "Device": lambda each: name_of(each.factors["device"]),
    "Optimizer": lambda each: name_of(each.factors["optimizer"]),
    "Test accuracy (%)": percent,
    "Validation (%)": lambda each: f"{100 * each.mean('val_accuracy'):.2f}",
    "Training (s)": lambda each: short(each.median("train_ms") / 1e3),
    "Testing (s)": lambda each: short(each.median("predict_time_ms") / 1e3),
    "FLOPs (10¹²)": lambda each: short(each.median("training_flops") / 1e12),
    "Support vectors": lambda each: figure(each.median("support_vectors")),
    "Seeds": lambda each: str(len(each.runs)),
    "Step (ms)": lambda each: interval(
        each.median("step_ms"), each.values("step_ms_min").min(), each.values("step_ms_max").max()
    ),
    "Peak memory (MiB)": lambda each: figure(each.median("peak_memory_mib")),
    "Parameters": lambda each: figure(network_cost(each.factors["arch"], "parameters")),
    "of them in use": lambda each: figure(
        network_cost(each.factors["arch"], "trimmed_parameters")
        / network_cost(each.factors["arch"], "parameters"), ".0%"
    ),
    "Setting": str,
}  # fmt: skip


def cells(setting: Setting, names: Iterable[str]) -> list[str]:
    return [CELLS[name](setting) for name in names]


def notes_on(settings: list[Setting]) -> str:
    """What ± and brackets are, how many images there are, and where times were measured."""
    rows = [row for each in settings for row in each.runs.values()]
    several = [len(each.runs) for each in settings if len(each.runs) > 1]
    notes = [
        f"± is the standard deviation over {span(several)} seeds (each draws its own split,"
        " initial weights and batch order), at least the one that the number of images leaves."
    ] if several else []  # fmt: skip
    if any(len(each.runs) == 1 for each in settings):
        notes.append("Brackets hold the 95 % Wilson interval of a single run.")
    notes += [
        f"Images: {' / '.join(f'{size:,.0f}' for size in sizes)} to train / validate / test."
        for sizes in groups(rows, ("n_train", "n_val", "n_test"))
    ]
    machines = groups(rows, ("device_name", "threads", "torch"))
    notes += [f"Hardware: {name}, {count(threads, 'thread')}, torch {version}."
              for name, threads, version in machines]  # fmt: skip
    return " ".join(notes)


# --- the answer ----------------------------------------------------------------------------------


def answer(study: Study) -> list[str]:
    """The best setting of each model, who wins, by how much and at what cost, and the picture."""
    names = ["Data set", "Model", "Test accuracy (%)", "Training (s)", "Testing (s)", "Setting"]
    lines, used, sentences = [], [], []
    gaps = headline(study)
    for dataset in study.settings:
        bests = study.bests(dataset)
        for setting in bests.values():
            line = cells(setting, names)
            if setting is study.best(dataset):
                line[1:3] = [f"**{cell}**" for cell in line[1:3]]
            lines.append(line)
        lacking = [model for model in MODELS if model not in bests]
        lines += [[name_of(dataset), model, *[MISSING] * 3, ""] for model in lacking]
        used += bests.values()
        sentences += [f"- {winner(bests, gaps)}{costs(bests)}"] if bests else []
    title = f"The best setting of each model within {EPOCHS} epochs, chosen on validation images"
    note = (
        "Times are medians over seeds. An interval in brackets is of one comparison; p is adjusted"
    )
    note += " for all of them (Holm)."
    return [
        table(title, names, lines),
        "\n".join([*sentences, *solver_costs(study)]),
        *shown(study, "accuracy"),
        f"{note} {notes_on(used)}" if used else "",
    ]


def headline(study: Study) -> dict[tuple[str, str, str], Difference | None]:
    """The best setting of each model against that of each other, the better on validation first, on
    all data sets: one family of comparisons for Holm."""
    pairs = {
        (dataset, first.model, second.model): compare(first, second)
        for dataset in study.settings
        for first, second in combinations(study.bests(dataset).values(), 2)
    }
    return dict(zip(pairs, holm(list(pairs.values())), strict=True))


def winner(bests: dict[str, Setting], gaps: dict) -> str:
    """Which model wins, and by how much."""
    first, *others = bests.values()
    parts = {1: [], 0: [], -1: []}
    for other in others:
        if gap := gaps[first.dataset, first.model, other.model]:
            seeds = count(gap.seeds, "seed") if gap.seeds > 1 else "these two trained models"
            size = str(gap).replace("+", "")
            parts[gap.sign()].append(f"{the(other.model)} ({size} points, {p_of(gap)}, {seeds})")
    text = f"{name_of(first.dataset)}: {the(first.model)} is best with {100 * first.mean():.2f} %"
    text = f"**{text}{', but no lead is significant' if parts[0] and not parts[1] else ''}.**"
    text += f" It beats {listed(parts[1])}." if parts[1] else ""
    text += f" It does not significantly beat {listed(parts[0], 'or')}." if parts[0] else ""
    return text + (f" On test images it is behind {listed(parts[-1])}." if parts[-1] else "")


def costs(bests: dict[str, Setting]) -> str:
    """Training times and FLOPs as multiples of the fastest model's, on one machine."""
    fastest = min(bests.values(), key=lambda each: each.median("train_ms"))
    parts = []
    for each in bests.values():
        if each is not fastest and same_machine(each, fastest):
            time, work = (ratio(each, fastest, name) for name in ("train_ms", "training_flops"))
            known = "" if math.isnan(work) else f" ({times(work)} times the FLOPs)"
            parts.append(f"{the(each.model)} {times(time)} times as long{known}")
    if not parts:
        return ""
    name, seconds = the(fastest.model), short(fastest.median("train_ms") / 1e3)
    return f" {name[0].upper()}{name[1:]} trains in {seconds} s, {listed(parts)}."


def with_solver(study: Study, setting: Setting | None, solver: str) -> Setting | None:
    """The same SVM, trained with a solver."""
    if not setting:
        return None
    same = {name: setting.first[name] for name in ("dataset", "limit", *FACTORS["svm"])}
    rows = finished(study.results["svm"], solver=solver, **same)
    return next(iter(settings_of(rows, FACTORS["svm"])), None)


def solver_costs(study: Study) -> list[str]:
    """How long scikit-learn's solver takes, for the settings that were timed with both."""
    ratios = []
    for setting in [each for name in study.settings for each in study.of(name, "SVM")]:
        ours, theirs = (with_solver(study, setting, name) for name in ("gram", "sklearn"))
        if ours and theirs and same_machine(ours, theirs):
            ratios.append(ratio(theirs, ours, "train_ms"))
    if not ratios:
        return []
    return [
        f"- The SVMs use this repository's solver; scikit-learn's takes {span(ratios, times)}"
        f" times as long to train ({count(len(ratios), 'setting')} timed with both)."
    ]


# --- claims --------------------------------------------------------------------------------------
#
# A judge gives a sign for each figure that a claim needs (1: shown to be as claimed, -1: shown not
# to be, 0: its uncertainty holds both, None: not measured), and the figures as text.

SUPPORTED, CONTRADICTED, UNRESOLVED = "supported", "contradicted", "not resolved"
Judgement = tuple[list[int | None], str]


def verdict(signs: list[int | None]) -> str:
    """All figures must be as claimed; a single one that is not contradicts the claim."""
    known = [sign for sign in signs if sign is not None]
    if not known or -1 in known:
        return CONTRADICTED if known else MISSING
    return SUPPORTED if all(sign == 1 for sign in signs) else UNRESOLVED


def signs_of(differences: Iterable[Difference | None]) -> list[int | None]:
    return [each and each.sign() for each in differences]


def above(bound: float, low: float, high: float) -> int:
    """The sign of a figure that is claimed to be above a bound and known to lie in a range."""
    return 1 if low > bound else -1 if high < bound else 0


def most_lines(study: Study) -> Judgement:
    gaps = []
    for line in GRID:
        at = dict(zip(("batch_size", "optimizer", "lr"), line, strict=True))
        gaps.append(compare(*(find(study.of("mnist", model), **at) for model in MODELS[1:])))
    signs = [sign for sign in signs_of(holm(gaps)) if sign is not None]
    won, lost, half = signs.count(1), signs.count(-1), len(GRID) / 2
    sign = 1 if won > half else -1 if lost >= half else 0
    text = f"{won} won, {lost} lost, {signs.count(0)} tied of {len(signs)} measured"
    return ([sign], text) if signs else ([None], "")


def peak(study: Study) -> Judgement:
    best = study.best("mnist", "ResNet-18")
    if not best:
        return [None], ""
    low, high = accuracy_interval(best)
    sign = 1 if low <= 0.993 <= high else -1
    return [sign], interval(100 * best.mean(), 100 * low, 100 * high)


def not_worth_it(study: Study) -> Judgement:
    signs, parts, gaps = [], [], []
    for dataset in CLAIMED:
        small, large = (study.best(dataset, model) for model in MODELS[1:])
        gap = compare(small, large)
        gaps.append(gap and gap.plus(MARGIN))
        if gap:
            cost = ratio(large, small, "training_flops")
            signs.append(above(NOISE, cost, cost))
            parts.append(f"{name_of(dataset)}: {-gap} points for {times(cost)} times the FLOPs")
    return signs + signs_of(holm(gaps)), "; ".join(parts)


def lower_on_fashion(study: Study) -> Judgement:
    first, second = ({f"{each.model}, {each}": each for each in study.of(d)} for d in CLAIMED)
    names = [name for name in first if name in second]
    gaps = holm([compare(first[name], second[name], same="seed") for name in names])
    known = {name: gap for name, gap in zip(names, gaps, strict=True) if gap}
    if not known:
        return [None], ""
    least = min(known, key=lambda name: known[name].size)
    lower = sum(gap.size > 0 for gap in known.values())
    text = f"lower in {lower} of {count(len(known), 'setting')}; least: {known[least]} ({least})"
    return signs_of(gaps), text


def over_svm(
    study: Study, cost: str | Callable, solver: str | None = None, noise: float = 1
) -> Judgement:
    """A cost of the best ResNets over that of the best SVM. With a solver it is a time, which is
    compared on one machine only."""
    signs, parts = [], []
    figure_of = cost if callable(cost) else lambda setting: setting.median(cost)
    for dataset, model in product(CLAIMED, MODELS[1:]):
        resnet, svm = study.best(dataset, model), study.best(dataset, "SVM")
        svm = with_solver(study, svm, solver) if solver else svm
        known = resnet and svm and (not solver or same_machine(resnet, svm))
        more = figure_of(resnet) / figure_of(svm) if known else math.nan
        signs.append(None if math.isnan(more) else above(1, more / noise, more * noise))
        parts += [f"{name_of(dataset)} {model} {times(more)}"] if signs[-1] is not None else []
    return signs, f"{', '.join(parts)} times" if parts else ""


def svm_is_behind(study: Study) -> Judgement:
    """With the p of the answer: one comparison has one p on a page."""
    gaps, signs, parts = headline(study), [], []
    for dataset, model in product(CLAIMED, MODELS[1:]):
        other = gaps.get((dataset, "SVM", model))
        gap = -other if other else gaps.get((dataset, model, "SVM"))
        signs.append(gap and gap.sign())
        parts += [f"{name_of(dataset)} {model} {gap} ({p_of(gap)})"] if gap else []
    return signs, "; ".join(parts)


def gap_is_wider(study: Study) -> Judgement:
    first, second = (
        compare(study.best(name, *MODELS[1:]), study.best(name, "SVM")) for name in CLAIMED
    )
    if not (first and second):
        return [None], ""
    size, error = first.size - second.size, math.hypot(first.error, second.error)
    freedom = min(first.freedom, second.freedom)  # fewer than Welch's, so never too sure
    gap = Difference(size, error, freedom, student_p(size, error, freedom))
    return [gap.sign()], f"{gap} ({p_of(gap)})"


def gpu_gain(study: Study, model: str, claimed: int) -> Judgement:
    """CPU time over GPU time for each optimizer: of the full training, and the least and the most
    by windows of training steps. claimed is 1 for a gain above 2, -1 for one below."""
    signs, parts = [], []
    found = [each for each in study.devices.get("fashion", []) if each.model == model]
    for optimizer in ("sgd", "adam"):
        cpu, gpu = (find(found, device=name, optimizer=optimizer) for name in ("cpu", "cuda"))
        if not (cpu and gpu):
            signs.append(None)
            continue
        gain = ratio(cpu, gpu, "train_ms")
        low = min(gain, cpu.values("step_ms_min").min() / gpu.values("step_ms_max").max())
        high = max(gain, cpu.values("step_ms_max").max() / gpu.values("step_ms_min").min())
        signs.append(claimed * above(2, low, high))
        parts.append(f"{name_of(optimizer)} {interval(gain, low, high, '.1f')} times as fast")
    return signs, "; ".join(parts)


def adam_is_best(study: Study) -> Judgement:
    bests = [study.best(dataset) for dataset in CLAIMED]
    adams = [find(study.of(name, "ResNet-18"), optimizer="adam", lr=1e-3) for name in CLAIMED]
    gaps = holm([None if a is b else compare(a, b) for a, b in zip(adams, bests, strict=True)])
    signs, parts = [], []
    for dataset, best, adam, gap in zip(CLAIMED, bests, adams, gaps, strict=True):
        signs.append(min(gap.sign(), 0) if gap else 1 if best and best is adam else None)
        if signs[-1] is not None:
            text = f"{name_of(dataset)}: best on validation is {the(best.model)} ({best})"
            state = ("a tie", "better", "worse")[gap.sign()] if gap else ""
            parts.append(f"{text}; this one is {state}, {gap} points" if gap else text)
    return signs, "; ".join(parts)


def pinned_pairs(study: Study) -> list[tuple[dict, dict]]:
    """Runs on a GPU with pinned memory and without, all else equal."""
    names = [name for name in common.key_columns("resnet") if name != "pin_memory"]
    rows = finished(study.results["resnet"], device="cuda")
    pairs = [{row["pin_memory"]: row for row in alike}
             for alike in groups(rows, [*names, *MACHINE]).values()]  # fmt: skip
    return [(pair["true"], pair["false"]) for pair in pairs if {"true", "false"} <= set(pair)]


def pinning_keeps_accuracy(study: Study) -> Judgement:
    pairs = pinned_pairs(study)
    same = sum(a["weights_sha256"] == b["weights_sha256"] is not None for a, b in pairs)
    differ = any(signs_of(holm([on_one_split(*pair) for pair in pairs])))
    sign = 1 if same == len(pairs) else -1 if differ else 0
    text = f"{same} of {count(len(pairs), 'pair')} with the same weights"
    return ([sign], text) if pairs else ([None], "")


def pinning_costs_little(study: Study) -> Judgement:
    logs = np.log([a["train_ms"] / b["train_ms"] for a, b in pinned_pairs(study)])
    if len(logs) < 2:
        return [None], ""
    half = stats.t.ppf(1 - LEVEL / 2, len(logs) - 1) * logs.std(ddof=1) / math.sqrt(len(logs))
    low, high, little = logs.mean() - half, logs.mean() + half, math.log(1.1)
    sign = 1 if max(-low, high) < little else -1 if min(-low, high) < -little else 0
    return [sign], interval(*np.exp([logs.mean(), low, high]))


FASTER, FEWER = "SVMs train significantly faster than the ResNets", "SVMs need fewer resources"
BOTH = "the best ResNet-18 and of the best ResNet-50, over those of the best SVM, on both data sets"
# fmt: off
CLAIMS = {  # the sentence, the rule in words, and its judge
    "1a": ("ResNet-18 beats ResNet-50 on MNIST in most settings.",
        "Supported if ResNet-18 is shown to be better in more than half of the eight lines of the"
        " MNIST table, contradicted if it is shown to be worse in at least half.", most_lines),
    "1b": ("ResNet-18's peak accuracy on MNIST is 99.30 %.",
        "Supported if 99.30 % lies inside the 95 % interval of the best ResNet-18, contradicted if"
        " it lies outside, on either side.", peak),
    "2": ("ResNet-50's accuracy does not justify its computational cost.",
        f"Supported if the best ResNet-50 is shown to gain less than {100 * MARGIN:.0f} point over"
        f" the best ResNet-18 for more than {NOISE} times the FLOPs of training, on both data sets;"
        " contradicted if it is shown to gain more, or costs less.", not_worth_it),
    "3": ("Accuracy is lower on FashionMNIST than on MNIST in every configuration.",
        "Every setting that is measured on both must be shown to be lower on FashionMNIST.",
        lower_on_fashion),
    "4a": (f"{FASTER} (this repository's solver).",
        f"Training times of {BOTH}: above 1 even if a timing is wrong by a factor of {NOISE}.",
        partial(over_svm, cost="train_ms", solver="gram", noise=NOISE)),
    "4a'": (f"{FASTER} (scikit-learn's solver).", "As 4a, with scikit-learn's times.",
        partial(over_svm, cost="train_ms", solver="sklearn", noise=NOISE)),
    "4b": (f"{FEWER} (FLOPs of training).", f"FLOPs of training of {BOTH}: above 1.",
        partial(over_svm, cost="training_flops")),
    "4b'": (f"{FEWER} (FLOPs of a prediction).", "As 4b, for one test image: an SVM computes"
        " 2 x (784 + 9) for each support vector. Memory is not judged: SVM rows do not hold it.",
        partial(over_svm, cost=prediction_flops)),
    "5a": ("SVMs are less accurate than the ResNets.",
        "The best ResNet-18 and the best ResNet-50, each less the best SVM, on both data sets: all"
        " four must be shown to be above 0. p is that of the answer, for all pairs of best models.",
        svm_is_behind),
    "5b": ("That gap is more pronounced on MNIST.",
        "The best ResNet less the best SVM: the gap on MNIST less the gap on FashionMNIST.",
        gap_is_wider),
    "6": ("A GPU cuts ResNet-50's training time by more than 50 %.",
        "CPU time over GPU time on FashionMNIST, in brackets the range over windows of training"
        " steps: above 2 with both optimizers.", partial(gpu_gain, model="ResNet-50", claimed=1)),
    "7": ("For ResNet-18, CPU training remains competitive with the GPU.",
        "As 6, the other way: competitive means less than twice the GPU's time.",
        partial(gpu_gain, model="ResNet-18", claimed=-1)),
    "8": ("ResNet-18 with Adam at lr 0.001 is the best configuration overall.",
        "Supported if it is the best of all settings on validation images, on both data sets;"
        " contradicted if test images show it to be worse than the best on one.", adam_is_best),
    "9a": ("pin_memory makes no difference to accuracy.",
        "GPU runs that differ in pin_memory alone: supported if all pairs end in the same weights,"
        " contradicted if a pair's test errors are shown to differ.", pinning_keeps_accuracy),
    "9b": ("pin_memory makes little difference to time.",
        "Time with pinned memory over time without, 95 % interval of the geometric mean over those"
        " pairs: supported within 10 % of 1, contradicted outside.", pinning_costs_little),
}
# fmt: on


def claims(study: Study) -> list[str]:
    lines, whole = [], study.whole()
    limits = {each.first["limit"] for name in CLAIMED for each in study.of(name)} - {None}
    for number, (sentence, _, judge) in CLAIMS.items():
        signs, text = judge(whole)
        if verdict(signs) == MISSING and limits:
            text = f"not judged: {listed(f'{limit:,} images' for limit in sorted(limits))}"
        lines.append([number, sentence, f"**{verdict(signs)}**", text])
    note = (
        "*Not resolved*: the uncertainty holds both, or a part is not measured. Brackets hold 95 %"
        " intervals; differences are points of accuracy; p is Holm-adjusted within a claim. With a"
        " single seed a comparison holds for these trained models only."
    )
    header = ["", "Claim", "Verdict", "Figures"]
    return [table("An earlier report's claims, judged by the rows", header, lines, note)]


def rules(study: Study) -> list[str]:
    """How each verdict is computed."""
    return ["\n".join(f"- {number}: {rule}" for number, (_, rule, _) in CLAIMS.items())]


# --- tables --------------------------------------------------------------------------------------


def resnet_tables(study: Study) -> list[str]:
    """For each data set a line for each batch size, optimizer and learning rate."""
    tables, used = [], []
    for dataset in datasets_of(study.results["resnet"]):
        found = [each for each in study.of(dataset) if each.model != "SVM"]
        models = sorted({*MODELS[1:], *(each.model for each in found)})
        lines = [
            [str(batch), name_of(optimizer), plain(lr),
             *(resnet_cell(study, dataset, model, batch_size=batch, optimizer=optimizer, lr=lr)
               for model in models)]
            for batch, optimizer, lr in GRID
        ]  # fmt: skip
        header = ["Batch size", "Optimizer", "Learning rate"]
        header += [f"{model} accuracy (%)" for model in models]
        title = f"{name_of(dataset)}: test accuracy within {EPOCHS} epochs"
        tables.append(table(title, header, lines))
        used += found
    note = "In parentheses stands the number of epochs, chosen on validation images."
    return [*tables, f"{note} {notes_on(used)}"]


def resnet_cell(study: Study, dataset: str, model: str, **factors) -> str:
    """The accuracy of the best at these factors; without one, how its runs failed."""
    best = find(study.of(dataset, model), **factors)
    if best:
        return f"{percent(best)} ({plain(best.factors['epochs'])})"
    rows = select(study.results["resnet"], dataset=dataset, model=model, **factors)
    failed = sorted({row["status"].replace("_", " ") for row in rows if row["status"] != "ok"})
    return listed(failed) if failed else MISSING


def device_tables(study: Study) -> list[str]:
    """For each data set CPU against GPU: accuracy, time and FLOPs."""
    tables = []
    for dataset in study.devices or ["fashion"]:
        found = study.devices.get(dataset, [])
        title = f"{name_of(dataset)}, CPU and GPU"
        if found:
            row = found[0].factors
            title += f": batch size {plain(row['batch_size'])}, lr {plain(row['lr'])},"
            title += f" {count(row['epochs'], 'epoch')}"
        note = "MFLOPs are those of training on one image, forward and backward, 2 for each"
        note += " multiply-accumulate. A comparison of single runs holds for these trained models"
        note += f" only. {notes_on(found)}"
        header, lines = device_lines(found)
        tables.append(table(title, header, lines, note, *deeper_networks(found)))
    return tables


def device_lines(found: list[Setting]) -> tuple[list[str], list[list[str]]]:
    archs = list(train_resnet.ARCHITECTURES)
    archs += dict.fromkeys(
        each.factors["arch"] for each in found if each.factors["arch"] not in archs
    )
    devices = dict.fromkeys(["cpu", "cuda", *(each.factors["device"] for each in found)])
    header, lines = ["Device", "Optimizer"], []
    for arch in archs:
        header += [f"{name_of(arch)} accuracy (%)", "training (s)", "MFLOPs"]
    for device, optimizer in product(devices, ("sgd", "adam")):
        line = [name_of(device), name_of(optimizer)]
        for arch in archs:
            cell = find(found, device=device, optimizer=optimizer, arch=arch)
            work = figure(network_cost(arch, "training_flops") / 1e6, ".1f")
            names = ["Test accuracy (%)", "Training (s)"]
            line += [*cells(cell, names), work] if cell else [MISSING] * 3
        lines.append(line)
    return header, lines


def deeper_networks(found: list[Setting]) -> list[str]:
    """What a deeper network costs and gains on each device, against ResNet-18."""
    texts, gaps = [], []
    for deep in found:
        at = {name: deep.factors[name] for name in ("device", "optimizer")}
        base = find(found, **at, arch="resnet18")
        if base and base is not deep and same_machine(base, deep):
            work, time = (ratio(deep, base, name) for name in ("training_flops", "train_ms"))
            gaps.append(compare(deep, base))
            where = f"{name_of(at['device'])}, {name_of(at['optimizer'])}"
            texts.append(
                f"- {where}: {deep.model} takes {times(work)} times the FLOPs and {times(time)}"
                " times the time of ResNet-18. Its accuracy differs by"
            )
    texts = [f"{text} {gap} points ({p_of(gap)})."
             for text, gap in zip(texts, holm(gaps), strict=True) if gap]  # fmt: skip
    return ["\n".join(texts)] if texts else []


def device_costs(study: Study) -> list[str]:
    """What the runs of the device tables cost."""
    names = ["Device", "Model", "Optimizer", "Test accuracy (%)", "Training (s)", "Testing (s)"]
    names += ["Step (ms)", "Peak memory (MiB)", "Parameters", "of them in use"]
    return [
        table(f"Costs of training on {name_of(dataset)}", names, [cells(e, names) for e in found],
              "A step's time is the median and range over windows of training steps.")
        for dataset, found in study.devices.items()
    ] or [MISSING]  # fmt: skip


def settings_tables(study: Study, svm: bool) -> list[str]:
    """For each data set every setting beside the best one of all models. All are compared on the
    seeds that all have: more seeds of some would be another standard of proof. The best is chosen
    on validation, so its luck in the choice does not count as a difference."""
    first = ["Test accuracy (%)"] if svm else ["Model", "Test accuracy (%)"]
    last = ["Validation (%)", "Training (s)", "Testing (s)", "FLOPs (10¹²)"]
    last += ["Support vectors", "Setting"] if svm else ["Setting"]
    header, tables = [*first, "Difference (points)", "Holm-adjusted p", *last], []
    for dataset in study.settings:
        found, best = study.of(dataset), study.best(dataset)
        seeds = common_seeds(found) or {seed for each in found for seed in each.runs}
        gaps = [compare(each.only(seeds), best.only(seeds)) for each in found if each is not best]
        gaps = dict(zip((each for each in found if each is not best), holm(gaps), strict=True))
        used = [each for each in found if (each.model == "SVM") == svm]
        lines = [[*cells(each, first), *beside_best(gaps, each), *cells(each, last)]
                 for each in used]  # fmt: skip
        title = f"{name_of(dataset)}, {'SVMs' if svm else 'ResNets'}: all settings"
        note = "Differences are points of test accuracy from the best setting of all models"
        note += f" on validation, {the(best.model)} ({best})." if best else "."
        notes = [f"{note} {notes_on(used)}", left_out(study, dataset)]
        tables += [table(title, header, lines, *notes)] if used else []
    return tables or [MISSING]


def beside_best(gaps: dict[Setting, Difference | None], setting: Setting) -> list[str]:
    """A setting's difference from the best, and whether it is a tie: not shown to be worse."""
    gap = gaps.get(setting)
    if not gap:
        return [MISSING, ""] if setting in gaps else ["", "best"]
    return [str(gap), ("tie, ", "better, ", "")[gap.sign()] + p_of(gap)]


def left_out(study: Study, dataset: str) -> str:
    """A line on the finished rows that no table of a data set shows."""
    used = study.settings[dataset] + study.longer[dataset]
    shown = {id(row) for each in used for row in each.runs.values()}
    rows = finished(study.results["resnet"] + study.results["svm"], dataset=dataset)
    number = sum(id(row) not in shown for row in rows)
    return (
        f"Not shown: {count(number, 'row')} of another size, solver, device or split."
        if number
        else ""
    )


def longer_trainings(study: Study) -> list[str]:
    """What more epochs than the assignment's buy."""
    names = ["Data set", "Model", "Test accuracy (%)", "Setting", "Training (s)", "Seeds"]
    lines, gaps = [], []
    for setting in [each for found in study.longer.values() for each in found]:
        same = {name: value for name, value in setting.factors.items() if name != "epochs"}
        gaps.append(compare(setting, find(study.of(setting.dataset, setting.model), **same)))
        lines.append(cells(setting, names))
    if not lines:
        return [f"No training has more than {EPOCHS} epochs yet."]
    for line, gap in zip(lines, holm(gaps), strict=True):
        line += [str(gap), p_of(gap)] if gap else [MISSING, ""]
    header = [*names, f"Gain over up to {EPOCHS} epochs (points)", "Holm-adjusted p"]
    title = f"Trainings of more than {EPOCHS} epochs"
    return [table(title, header, lines), *shown(study, "longer")]


def confusion_tables(study: Study) -> list[str]:
    """Confusion matrix and accuracy by class of the best of each model, over the seeds that all of
    these have."""
    tables = []
    for dataset in study.settings:
        bests = list(study.bests(dataset).values())
        seeds = common_seeds(bests)
        for best in (each.only(seeds) for each in bests if seeds):
            found = [row["confusion"] for row in best.runs.values() if row["confusion"] is not None]
            tables += [confusion_table(best, np.array(found))] if found else []
    return tables or [MISSING]


def confusion_table(best: Setting, matrices: np.ndarray) -> str:
    """Of matrices [seeds, label, prediction]."""
    names = CLOTHES if best.dataset == "fashion" else [str(k) for k in range(10)]
    total, shares = matrices.sum(0), 100 * matrices.diagonal(0, 1, 2) / matrices.sum(2)
    lines = []
    for name, counts, share in zip(names, total, shares.T, strict=True):
        accuracy = f"{share.mean():.2f}"
        accuracy += f" ± {share.std(ddof=1):.2f}" if len(share) > 1 else ""
        lines.append([name, *map(str, counts), accuracy])
    wrong = total - np.diag(total.diagonal())
    most = sorted(np.ndindex(10, 10), key=lambda at: -wrong[at])[:5]
    errors = ", ".join(f"{names[i]} taken for {names[j]} ({wrong[i, j]})" for i, j in most)
    title = f"Best {best.model} on {name_of(best.dataset)}: test images by class and prediction"
    note = f"Sum over {count(len(matrices), 'seed')}. A line is a class, a column a prediction."
    return table(title, ["", *names, "Accuracy (%)"], lines, f"{note} Most frequent: {errors}.")


def failures(study: Study) -> list[str]:
    rows = [row for rows in study.results.values() for row in rows if row["status"] != "ok"]
    lines = [[name_of(row["dataset"]), row["model"], plain(row["seed"]), row["file"].name,
              str(row["status"]), str(row["reason"])] for row in rows]  # fmt: skip
    header = ["Data set", "Model", "Seed", "File", "Status", "Reason"]
    return [table("Runs that failed", header, lines)] if lines else ["No run failed."]


# --- pictures ------------------------------------------------------------------------------------

WIDTH, HEIGHT = 410, 340
LEFT, RIGHT, TOP, BOTTOM = 50, 398, 72, 290  # of the axes
# Colours of M. Okabe and K. Ito, which all kinds of colour vision tell apart, on light and on dark;
# and shapes for those who see none: circle, square, triangle, diamond, cross.
COLOURS = (("#0072B2", "#56B4E9"), ("#D55E00", "#E69F00"), ("#007A59", "#2FC79B"),
           ("#AA4499", "#DD9CC0"), ("#555555", "#BBBBBB"))  # fmt: skip
SHAPES = ("M-5,0a5,5 0 1,0 10,0a5,5 0 1,0 -10,0", "M-4.5,-4.5h9v9h-9z", "M0,-6L6,5H-6z",
          "M0,-6.5L6.5,0L0,6.5L-6.5,0z", "M-5,-5L5,5M-5,5L5,-5")  # fmt: skip
STYLE = """
text { font: 15px system-ui, sans-serif; fill: #1f2328 } .paper { fill: #ffffff }
path { fill: none; stroke: var(--c); stroke-width: 2 } .axis { stroke: #8c959f }
.title { font-weight: bold } .filled { fill: var(--c) } .faint { opacity: 0.3 }
.dashed { stroke-dasharray: 2 4 }
.name { fill: var(--c); stroke: #ffffff; stroke-width: 4px; paint-order: stroke; font-weight: bold }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .paper { fill: #0d1117 } .axis { stroke: #6e7681 }
.name { fill: var(--c); stroke: #0d1117 } }
"""


def nice_ticks(low: float, high: float) -> list[float]:
    """Three to seven round numbers in a range."""
    power = 10.0 ** math.floor(math.log10(high - low))
    step = next(step for step in (power / 5, power / 2, power, 2 * power) if high - low <= 6 * step)
    return [k * step for k in range(math.ceil(low / step), math.floor(high / step + 1e-9) + 1)]


class Plot:
    """A picture with one pair of axes, as SVG. y is an accuracy in percent; what lies outside the
    axes is drawn on their edge."""

    def __init__(self, study: Study, title: str, x_label: str, x, y, log: bool = False):
        models = [each.model for found in study.settings.values() for each in found]
        self.kinds = {
            name: k % len(SHAPES) for k, name in enumerate(dict.fromkeys([*MODELS, *models]))
        }
        self.scale, self.title = math.log10 if log else float, title
        x, y = [self.scale(value) for value in x], list(y)
        gaps = [0.07 * (max(x) - min(x)) or 0.5, 0.1 * (max(y) - min(y)) or 0.5]
        self.x, self.y = (min(x) - gaps[0], max(x) + gaps[0]), (min(y) - gaps[1], max(y) + gaps[1])
        self.parts, self.taken, self.legend = [], [], []
        self.text(10, 20, title, "title")
        self.text(10, TOP - 10, "accuracy (%)")
        self.text((LEFT + RIGHT) / 2, HEIGHT - 8, x_label, anchor="middle")
        self.path([(LEFT, TOP), (LEFT, BOTTOM), (RIGHT, BOTTOM)], "axis")
        for value in nice_ticks(*self.y):
            if value <= 100:
                self.text(LEFT - 6, self.at(x=1, y=value)[1] + 5, f"{value:.6g}", anchor="end")
        for value in self.x_ticks(log):
            self.text(self.at(value, 0)[0], BOTTOM + 18, f"{value:,.6g}", anchor="middle")

    def x_ticks(self, log: bool) -> list[float]:
        low, high = self.x
        if not log:
            return [value for value in nice_ticks(low, high) if value == round(value)]
        powers = range(math.floor(low), math.ceil(high) + 1)
        ticks = [d * 10.0**power for power in powers for d in ((1, 3) if len(powers) < 5 else (1,))]
        return [value for value in ticks if low < math.log10(value) < high]

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Pixels of a point."""
        shares = [(self.scale(x) - self.x[0]) / (self.x[1] - self.x[0]),
                  (y - self.y[0]) / (self.y[1] - self.y[0])]  # fmt: skip
        across, up = (min(1.0, max(0.0, share)) for share in shares)
        return LEFT + across * (RIGHT - LEFT), BOTTOM - up * (BOTTOM - TOP)

    def text(self, x: float, y: float, text: str, css: str = "", anchor: str = "start") -> None:
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}">'
                          f"{html.escape(text)}</text>")  # fmt: skip

    def path(self, pixels: list[tuple[float, float]], css: str) -> None:
        joined = "L".join(f"{x:.1f},{y:.1f}" for x, y in pixels) or "0,0"
        self.parts.append(f'<path d="M{joined}" class="{css}"/>')

    def line(self, points: Iterable[tuple[float, float]], model: str, css: str = "") -> None:
        self.path([self.at(*point) for point in points], f"m{self.kinds[model]} {css}")

    def mark(self, pixel: tuple[float, float], model: str, css: str) -> None:
        kind = self.kinds[model]
        place = "translate({:.1f} {:.1f})".format(*pixel)
        self.parts.append(f'<path d="{SHAPES[kind]}" class="m{kind} {css}" transform="{place}"/>')

    def points(
        self, points: Iterable[tuple[float, float]], model: str, css: str = "filled"
    ) -> None:
        self.legend += [model] if model not in self.legend else []
        for point in points:
            self.mark(self.at(*point), model, css)

    def bar(self, x: float, ends: tuple[float, float], model: str) -> None:
        """An error bar, which labels leave free."""
        self.line([(x, end) for end in ends], model)
        self.taken += [(*self.at(x, end), 8.0) for end in (*ends, sum(ends) / 2)]

    def label(self, x: float, ends: tuple[float, float], text: str, model: str) -> None:
        """Text above a bar, or where that is taken below it."""
        half = 4.9 * len(text)
        across = min(max(self.at(x, ends[0])[0], LEFT + half + 4), WIDTH - 3 - half)
        downs = [self.at(x, ends[1])[1] - 9, self.at(x, ends[0])[1] + 20]

        def is_free(down: float) -> bool:
            gaps = [(abs(across - a) - half - h, abs(down - 5 - b)) for a, b, h in self.taken]
            return not any(aside < 0 and apart < 13 for aside, apart in gaps)

        clear = list(filter(is_free, downs))
        down = min(max((clear or downs)[0], TOP + 10), BOTTOM - 6)
        self.taken.append((across, down - 5, half))
        self.text(across, down, text, f"name m{self.kinds[model]}", "middle")

    def svg(self) -> str:
        place = 16
        for model in self.legend:
            self.mark((place, 38), model, "filled")
            self.text(place + 11, 43, model)
            place += 40 + 8.5 * len(model)
        colours = ["".join(f".m{k} {{ --c: {c} }} " for k, c in enumerate(scheme))
                   for scheme in zip(*COLOURS, strict=True)]  # fmt: skip
        style = f"{STYLE}{colours[0]}\n@media (prefers-color-scheme: dark) {{ {colours[1]}}}\n"
        body = "\n".join(self.parts)
        return (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}"'
            f' viewBox="0 0 {WIDTH} {HEIGHT}" role="img"><title>{html.escape(self.title)}</title>\n'
            f'<style>{style}</style>\n<rect width="100%" height="100%" class="paper"/>\n{body}\n'
            "</svg>\n"
        )


def spread(setting: Setting, column: str = "test_accuracy") -> tuple[float, float]:
    """An error bar in percent: mean ± deviation over seeds, or the interval of one run."""
    if len(setting.runs) == 1:
        return tuple(100 * end for end in accuracy_interval(setting))
    mean, half = 100 * setting.mean(column), 100 * deviation(setting, column)
    return mean - half, mean + half


def cost_picture(study: Study, dataset: str) -> str | None:
    """Accuracy against training FLOPs: every setting a point, the best of each model named."""
    work = {each: each.median("training_flops") / 1e12 for each in study.of(dataset)}
    work = {each: flops for each, flops in work.items() if not math.isnan(flops)}
    if not work:
        return None
    bests = [each for each in study.bests(dataset).values() if each in work]
    means = {each: 100 * each.mean() for each in work}
    ends = [end for each in bests for end in spread(each)]
    # The worst quarter would press all others together: it lies on the bottom edge.
    low = min([float(np.quantile(list(means.values()), 0.25)), *ends])
    title, top = f"{name_of(dataset)}: accuracy and cost", max([*means.values(), *ends])
    x_label = "FLOPs of training (10¹², logarithmic)"
    plot = Plot(study, title, x_label, work.values(), [low, top], log=True)
    for each in (*bests, *work):
        plot.points([(work[each], means[each])], each.model, "filled" if each in bests else "faint")
    for each in bests:
        plot.bar(work[each], spread(each), each.model)
    for each in bests:
        plot.label(work[each], spread(each), f"{each.model} {means[each]:.2f}", each.model)
    return plot.svg()


def curve_picture(study: Study, dataset: str) -> str | None:
    """Accuracy after each epoch of the best ResNets: validation as mean and range over seeds,
    training dashed. The line across is the validation accuracy of the best SVM."""
    bests, chains = study.bests(dataset), []
    svm = bests.pop("SVM", None)
    for model, best in bests.items():
        runs = [100 * row["accuracy_by_epoch"] for row in best.runs.values()]
        if len({len(run) for run in runs}) == 1 and len(runs[0]) > 1:
            train, val = np.moveaxis(np.array(runs), 2, 0)  # each [seeds, epochs]
            numbers = range(1, len(runs[0]) + 1)
            points = zip(numbers, val.mean(0), val.min(0), val.max(0), strict=True)
            chains.append((model, list(points), list(zip(numbers, train.mean(0), strict=True))))
    title = f"{name_of(dataset)}: validation, dashed training"
    return lines_picture(study, title, chains, 100 * svm.mean("val_accuracy") if svm else None)


def longer_picture(study: Study, dataset: str) -> str | None:
    """Test accuracy by number of epochs, of the trainings that have more than EPOCHS."""
    chains = {}
    for setting in study.longer.get(dataset, []):
        same = {name: value for name, value in setting.factors.items() if name != "epochs"}
        every = [*study.of(dataset, setting.model), *study.longer[dataset]]
        chains[str(same)] = (setting.model, sorted(
            (each.factors["epochs"], 100 * each.mean(), *spread(each))
            for each in every
            if each.model == setting.model and same.items() <= each.factors.items()
        ), [])  # fmt: skip
    title = f"{name_of(dataset)}: more epochs"
    return lines_picture(study, title, list(chains.values()))


def lines_picture(
    study: Study, title: str, chains: list[tuple], level: float | None = None
) -> str | None:
    """Accuracy by epochs. A chain is a model, points (epochs, accuracy, low, high), drawn as a line
    in a band, and points (epochs, accuracy) of a dashed line; level is a line across."""
    if not chains:
        return None
    solid = np.array([point for _, points, _ in chains for point in points], float)
    levels = [] if level is None else [level]
    values = np.concatenate([solid[:, 1:].ravel(), levels])
    ends = [solid[:, 0].min(), solid[:, 0].max()]
    plot = Plot(study, title, "epochs", ends, [np.quantile(values, 0.05), values.max()])
    for model, points, dashed in chains:
        numbers, means, low, high = zip(*points, strict=True)
        band = [*zip(numbers, low, strict=True), *list(zip(numbers, high, strict=True))[::-1]]
        plot.line(band, model, "filled faint")
        plot.line(dashed, model, "dashed")
        plot.line(zip(numbers, means, strict=True), model)
        plot.points(zip(numbers, means, strict=True), model)
    for each in levels:
        plot.line([(end, each) for end in ends], "SVM")
        plot.points([(end, each) for end in ends], "SVM")
    return plot.svg()


PICTURES = {  # how each is drawn, and what it shows in words
    "accuracy": (cost_picture, "test accuracy against FLOPs of training"),
    "curves": (curve_picture, "accuracy after each epoch"),
    "longer": (longer_picture, "test accuracy after more epochs"),
}


def pictures(study: Study, kind: str) -> dict[str, str]:
    """The content of the pictures of a kind by data set."""
    drawn = {dataset: PICTURES[kind][0](study, dataset) for dataset in study.settings}
    return {dataset: svg for dataset, svg in drawn.items() if svg}


def picture_name(kind: str, dataset: str) -> str:
    return f"{kind}-{re.sub('[^a-z0-9]+', '-', dataset.lower())}.svg"


def shown(study: Study, kind: str) -> list[str]:
    """Markdown that shows the pictures of a kind, side by side where there is room."""
    links = [f"![{name_of(dataset)}: {PICTURES[kind][1]}](./{picture_name(kind, dataset)})"
             for dataset in pictures(study, kind)]  # fmt: skip
    return ["\n".join(links)] if links else []


# --- files ---------------------------------------------------------------------------------------


def digests(study: Study) -> list[str]:
    """The files that the tables were made from."""
    return ["\n".join(f"- {name} (SHA-256 {digest})" for name, digest in study.digests.items())]


TABLES = {
    "answer": answer,
    "claims": claims,
    "rules": rules,
    "resnet": resnet_tables,
    "devices": device_tables,
    "svm-settings": partial(settings_tables, svm=True),
    "resnet-settings": partial(settings_tables, svm=False),
    "longer": longer_trainings,
    "curves": partial(shown, kind="curves"),
    "confusion": confusion_tables,
    "costs": device_costs,
    "failures": failures,
    "rows": digests,
}
TEMPLATE = Path(__file__).parent / "results" / "README.md"


def fill(template: Path, study: Study, folder: str = "") -> str:
    """A page with every table between its markers; folder is where its pictures are."""
    text = template.read_text(encoding="utf-8")
    marker = re.compile(r"<!-- table: (\S+) -->\n.*?<!-- end: (\S+) -->", re.DOTALL)

    def block(match: re.Match) -> str:
        name, end = match.groups()
        if name != end or name not in TABLES:
            common.fail(f"{template}: no table has the markers {name} and {end}; mend them")
        content = "\n\n".join(TABLES[name](study)).replace("](./", f"]({folder}")
        return f"<!-- table: {name} -->\n\n{content}\n\n<!-- end: {name} -->"

    filled, number = marker.subn(block, text)
    if not number or len(re.findall("<!-- (?:table|end): ", text)) != 2 * number:
        common.fail(f"{template}: markers such as <!-- table: answer --> and <!-- end: answer -->"
                    " must stand in pairs; mend them")  # fmt: skip
    return filled


def outputs(study: Study, folder: Path, readme: Path | None) -> dict[Path, str]:
    """The content of every file that is written."""
    files = {folder / picture_name(kind, dataset): svg
             for kind in PICTURES for dataset, svg in pictures(study, kind).items()}  # fmt: skip
    files[folder / "README.md"] = fill(TEMPLATE, study)
    if readme:
        if readme.resolve() == (folder / "README.md").resolve():
            common.fail(f"{readme} is the page of all results; give --readme another file")
        files[readme] = fill(readme, study, quote(f"{os.path.relpath(folder, readme.parent)}/"))
    return files


def stale(files: dict[Path, str]) -> list[Path]:
    old = {path: path.read_bytes() if path.exists() else None for path in files}
    return [path for path, text in files.items() if old[path] != text.encode()]


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
    parser.error = lambda message: common.fail(f"{message} (see {parser.prog} --help)")
    parser.add_argument(
        "--results-dir",
        type=Path,
        nargs="+",
        default=[Path("results")],
        metavar="DIR",
        help="where the rows are; tables and pictures go beside",
    )
    parser.add_argument("--readme", type=Path, metavar="FILE", help="fill its markers, too")
    parser.add_argument("--check", action="store_true", help="change nothing, name stale files")
    parser.add_argument("--table", choices=TABLES, metavar="NAME", help=", ".join(TABLES))
    return parser.parse_args(argv)  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    folder = args.results_dir[0]
    for each in args.results_dir:
        if not each.is_dir():
            common.fail(f"--results-dir {each}: there is no such folder")
    if args.check and not args.readme and args.results_dir == [Path("results")]:
        args.readme = Path("README.md")
    study = make_study(*load(args.results_dir))
    if args.table:
        print("\n\n".join(TABLES[args.table](study)), flush=True)
        return 0
    files = outputs(study, folder, args.readme)
    if args.check:
        for path in stale(files):
            print(f"{path} is stale: run make_tables.py without --check", flush=True)
        return 1 if stale(files) else 0
    with FileLock(folder / ".lock"):
        for path in stale(files):
            common.write_file(path, files[path].encode())
    print(
        "\n\n".join([*answer(study)[:2], f"All tables and pictures: {folder / 'README.md'}"]),
        flush=True,
    )
    return 0


if __name__ == "__main__":
    common.run_main(main)
