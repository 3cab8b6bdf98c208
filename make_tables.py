"""Turn the rows in results/ into markdown tables, charts and verdicts.

    python make_tables.py                      # all of it to stdout, for pasting
    python make_tables.py --readme README.md   # into its markers, and into results/README.md
    python make_tables.py --check              # exit 1 if the two are not what the rows give
    python make_tables.py --table verdicts     # one of them
    python make_tables.py --results-dir A B    # rows in several folders, of a cluster's nodes

A choice among runs (epochs, hyperparameters, the best model) is made on validation accuracy alone;
what was chosen is compared on test images. A difference inside its uncertainty is a tie.
"""

import argparse
import base64
import csv
import hashlib
import io
import json
import math
import os
import re
import shutil
import stat
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from itertools import combinations, product
from pathlib import Path
from statistics import mean, stdev

DATASETS = {"mnist": "MNIST", "fashion": "FashionMNIST", "digits": "digits"}
ARCHITECTURES = {"resnet18": "ResNet-18", "resnet34": "ResNet-34", "resnet50": "ResNet-50"}
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam"}
DEVICES = {"cpu": "CPU", "cuda": "GPU", "mps": "Apple GPU"}
MODELS = ("SVM", *ARCHITECTURES.values())
COMPARED = ("SVM", "ResNet-18", "ResNet-50")  # the models and data sets of the claims
CLAIMED = ("mnist", "fashion")
CLOTHES = (
    "T-shirt/top", "trouser", "pullover", "dress", "coat",
    "sandal", "shirt", "sneaker", "bag", "ankle boot",
)  # fmt: skip
GRID = tuple(product((16.0, 32.0), OPTIMIZERS, (1e-3, 1e-4)))  # the lines of the ResNet tables
SVM = ("kernel", "C", "gamma", "degree", "coef0")
TRAINING = ("batch_size", "optimizer", "lr", "momentum", "epochs")
# Rows that differ in one of these are never put into one table.
SETUP = (
    "limit", "train_size", "fixed_split", "amp", "device", "device_name", "precision", "solver",
)  # fmt: skip
WORK = ("limit", "batch_size", "lr", "epochs", "amp", "fixed_split")  # of a device table
MACHINE = ("device", "device_name", "threads")  # times are compared among rows of one of them
FINISHED = ("ok", "collapsed")  # a collapsed run has failed at nothing but learning
MISSING = "not measured"
Results = dict[str, list[dict]]  # the rows of each file
ACCURACY = ("n_train", "n_val", "n_test", "val_accuracy", "test_accuracy", "predict_time_ms")
RESNET = (*ACCURACY, "lr", "batch_size", "epochs", "train_time_ms")
NUMBERS = {  # the columns of each file that must be numbers in a finished row
    "resnet": RESNET,
    "svm": (*ACCURACY, "C", "fit_time_ms", "support_vectors"),
    "devices": (
        *RESNET, "step_ms", "step_ms_min", "step_ms_max", "images_per_second", "peak_memory_mib",
        "parameters", "live_parameters", "forward_macs", "forward_flops", "training_flops",
        "achieved_flops_per_second",
    ),
}  # fmt: skip
# What tells a run from all others; and where it is there twice, what must be equal, what must be if
# both rows keep it, and what may explain that it is not. Times may differ.
RUN = ("dataset", "limit", "device", "seed", "split_seed")
TRAINED = (*RUN, "arch", *TRAINING, "amp")
KEYS = {
    "resnet": (*TRAINED, "pin_memory", "precision"),
    "svm": (*RUN, "train_size", *SVM, "solver"),
    "devices": TRAINED,
}
SAME = ("split_id", "val_accuracy", "test_accuracy")
SAME_IF_KEPT = ("test_errors", "weights_sha256")
WHERE = ("torch", "threads", "device_name", "cpu_name")
SCRIPTS = {"resnet": "train_resnet.py", "svm": "train_svm.py", "devices": "compare_devices.py"}
MAX_FILE_BYTES = 2**30
NAMES = {"dataset": DATASETS, "arch": ARCHITECTURES, "optimizer": OPTIMIZERS, "device": DEVICES}
CURVES = ("train_loss", "val_loss", "train_accuracy", "val_accuracy")
# Test accuracy (%) that others report, without augmentation.
PUBLISHED = {
    ("mnist", "SVM"): "97.7 - 97.9", ("fashion", "SVM"): "86.3 - 88.3",
    ("mnist", "ResNet-18"): "98.7 - 99.5", ("fashion", "ResNet-18"): "87 - 93",
    ("mnist", "ResNet-50"): "98.0 - 99.3", ("fashion", "ResNet-50"): "1 less than ResNet-18",
}  # fmt: skip
PUBLISHED_SOURCE = (
    "Published: ResNets without augmentation in public repositories, after 2 to 10 epochs; SVMs are"
    " scikit-learn's defaults (poly and rbf), trained on the official 60,000 images."
)


def fail(message: str):
    """Print one line on stderr, of what can be printed, and exit with code 2."""
    line = "".join(letter if letter.isprintable() else "?" for letter in message[:2000])
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(2)


# --- rows ----------------------------------------------------------------------------------------


def load(folders: list[Path]) -> tuple[Results, dict[Path, str]]:
    """All rows of some folders, each run once, and the SHA-256 of each file. Exits 2 if a file is
    broken, or two do not agree."""
    results, digests = {}, {}
    for name in NUMBERS:
        rows, columns = [], None
        for path in [folder / f"{name}.csv" for folder in folders]:
            content = read_bytes(path, name)
            digests[path] = hashlib.sha256(content).hexdigest() if content is not None else "none"
            header, found = read_rows(path, content or b"", name)
            columns = columns or header
            if header and header != columns:
                odd = ", ".join(sorted(set(header) ^ set(columns))) or "in another order"
                fail(f"{path} does not have the columns of the files before it: {odd}")
            rows += found
        results[name] = each_once(rows, name)
    return results, digests


def read_bytes(path: Path, name: str) -> bytes | None:
    """A file's content, None if it is absent. Exits 2 if it is no whole file of ours."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
            raise OSError(f"it is not a file of at most {MAX_FILE_BYTES:,} bytes")
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        fail(f"cannot read {path}: {error}")
    if content and not content.endswith(b"\n"):
        script = f"python {SCRIPTS[name]} --results-dir {path.parent}"
        fail(f"cannot read {path}: its last line is torn; run {script} again, which sets it aside")
    return content


def read_rows(path: Path, content: bytes, name: str) -> tuple[list[str], list[dict]]:
    """The columns and rows of a file, with numbers as float. Exits 2 if it is broken."""
    csv.field_size_limit(2**31 - 1)  # a long training's history is longer than the default
    try:
        reader = csv.DictReader(io.StringIO(content.decode(), newline=""), strict=True)
        rows = [parse_row(row, name) | {"file": path} for row in reader]
        return list(reader.fieldnames or ()), rows
    except KeyError as error:
        fail(f"cannot read {path}: it has no column {error}")
    except (ValueError, csv.Error) as error:
        fail(f"cannot read {path}: {error}; mend it or use another --results-dir")


def each_once(rows: list[dict], name: str) -> list[dict]:
    """Of the rows of each run a finished one, else a failed one, else one that was skipped; of
    several the first. Exits 2 if two finished ones do not agree."""
    kept = []
    for run, alike in groups(rows, KEYS[name]).items():
        done = finished(alike)
        for pair in combinations(done, 2):
            check_same(*pair, dict(zip(KEYS[name], run, strict=True)))
        failed = [row for row in alike if row["status"] != "skipped"]
        kept.append([*done, *failed, *alike][0])
    return kept


def check_same(first: dict, second: dict, run: dict) -> None:
    """Exit 2 if two finished rows of one run differ in what its key should have settled."""
    differ = [name for name in SAME if first[name] != second[name]]
    for name in SAME_IF_KEPT:
        values = {row.get(name, "") for row in (first, second)}
        differ += [name] if len(values) == 2 and "" not in values else []
    if not differ:
        return
    named = ", ".join(f"{name} {plain(value)}" for name, value in run.items() if value != "")
    places = [name for name in WHERE if first.get(name, "") != second.get(name, "")]
    why = ", ".join(f"{name} ({first[name]}, {second[name]})" for name in places)
    why = f"{why} may explain it" if places else f"{', '.join(WHERE)} do not explain it"
    files = " and ".join(listed([first, second], "file"))
    fail(
        f"{files}: the run {named} is there twice and differs in {', '.join(differ)}; {why};"
        " remove one of its rows"
    )


def parse_row(row: dict[str, str], file: str) -> dict:
    """Convert numbers, check names, and take from the texts what would break a table."""
    if None in row or None in row.values():
        raise ValueError("a row is torn")
    row = {name: harmless(text) for name, text in row.items()}
    for name, known in NAMES.items():
        if name in row and row[name] not in known:
            raise ValueError(f"unknown {name} {row[name]!r:.80}")
    done = row["status"] in FINISHED
    for name in (*NUMBERS[file], *(["shared_time_ms"] if row.get("shared_time_ms") else [])):
        if done or row[name]:
            row[name] = float(row[name])
            fraction = name.endswith("accuracy")
            high = 1 if fraction else sys.float_info.max
            positive = not fraction and name != "shared_time_ms"
            if not 0 <= row[name] <= high or (positive and row[name] == 0):
                raise ValueError(f"{name} is {row[name]}")
    row["model"] = "SVM" if file == "svm" else ARCHITECTURES[row["arch"]]
    if done:
        row["train_ms"] = row["fit_time_ms" if file == "svm" else "train_time_ms"]
        # The Gram matrix is made once for all SVMs; a single one would have to wait for it too.
        row["train_ms"] += row.get("shared_time_ms") or 0
        if row.get("concurrent", "1") not in ("", "1"):  # it says little of how long it takes alone
            row["train_ms"] = row["predict_time_ms"] = math.nan
        row |= {"history": read_history(row.get("history")), **read_errors(row)}
    # Seeds that share one split show less than those that each draw their own.
    row["fixed_split"] = row["split_seed"] if row["split_seed"] != row["seed"] else ""
    return row


def harmless(text: str) -> str:
    """A text in one line, without what ends a cell, a code span or a block, or starts a tag, a link
    or, on GitHub Pages, a Liquid expression."""
    text = " ".join(text.split())
    if not text.isprintable():
        text = "".join(filter(str.isprintable, text))
    text = re.sub(r"([{\]])(?=[{%(\[])", r"\1 ", text)
    return text.replace("|", "/").replace("`", "'").replace("<", "&lt;")


def read_history(text: str | None) -> list[dict[str, float]]:
    """The figures of each epoch. ValueError if they are none."""
    try:
        epochs = [
            {name: float(epoch[name]) for name in CURVES} for epoch in json.loads(text or "[]")
        ]
    except (KeyError, TypeError, RecursionError):
        raise ValueError("history does not hold the figures of each epoch") from None
    if not all(math.isfinite(value) for epoch in epochs for value in epoch.values()):
        raise ValueError("history holds a figure that is not finite")
    return epochs


def read_errors(row: dict) -> dict:
    """What a row keeps of its test images: the places of the wrong ones (None if it keeps none),
    how many of each label and prediction they are, and the images of each class. They are packed as
    a byte for each: 0, or 1 + 10 * label + prediction. ValueError if it contradicts itself."""
    if not row.get("test_errors"):
        return {"wrong": None, "confused": Counter(), "classes": []}
    try:
        inflate, size = zlib.decompressobj(), min(int(row["n_test"]), 10**6)
        packed = base64.b64decode(row["test_errors"], validate=True)
        codes = inflate.decompress(packed, size + 1)  # no more than that, however much it holds
        classes = json.loads(row["test_classes"])
        wrong = frozenset(place for place, code in enumerate(codes) if code)
        confused = Counter(divmod(code - 1, 10) for code in codes.translate(None, b"\0"))
        labels = [sum(confused[k, j] for j in range(10)) for k in range(10)]
        right = (
            inflate.eof
            and not inflate.unused_data
            and len(codes) == row["n_test"] == sum(classes)
            and list(map(type, classes)) == [int] * 10
            and all(map(int.__ge__, classes, labels))
            and sum(labels) == len(wrong)
            and not any(confused[k, k] for k in range(10))
            and abs(1 - len(wrong) / size - row["test_accuracy"]) < 1e-9
        )
    except (ValueError, TypeError, RecursionError, zlib.error):
        right = False
    if not right:
        raise ValueError("test_errors does not agree with test_classes, n_test or test_accuracy")
    return {"wrong": wrong, "confused": confused, "classes": classes}


def finished(rows: list[dict]) -> list[dict]:
    """The rows that hold a result. To leave out those that collapsed would be survivorship bias."""
    return [row for row in rows if row["status"] in FINISHED]


def check_splits(rows: list[dict]) -> None:
    """Exit 2 if rows that should have been trained on the same images were not."""
    splits = {}
    for row in rows:
        split = row["dataset"], row["split_seed"], row["limit"]
        first = splits.setdefault(split, row)
        if first["split_id"] != row["split_id"]:
            files = " and ".join(listed([first, row], "file"))
            named = f"{split[0]} with split seed {split[1]}"
            fail(f"{files}: rows of {named} differ in split_id, so in images")


def select(rows: list[dict], **values) -> list[dict]:
    """The rows that have these values."""
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def groups(rows: list[dict], names: Iterable[str]) -> dict[tuple, list[dict]]:
    """Rows by their values in some columns; a column that they do not have counts as empty."""
    result = {}
    for row in rows:
        result.setdefault(tuple(row.get(name, "") for name in names), []).append(row)
    return result


def one_setup(rows: list[dict]) -> list[dict]:
    """The rows of one setup, failed ones too: whole data sets before trials, seeds with splits of
    their own before one split, then the setup with most finished rows."""

    def rank(setup: tuple) -> tuple[bool, int]:
        return not any(setup[:3]), len(finished(by_setup[setup]))

    by_setup = groups(rows, SETUP)
    return by_setup[max(by_setup, key=rank)] if rows else []


def one_pinning(rows: list[dict]) -> list[dict]:
    """Of runs that differ in pin_memory alone, and so train the same, the one with it."""
    rows = sorted(rows, key=lambda row: row["pin_memory"])  # false, n/a, true
    return [alike[-1] for alike in groups(rows, ("model", *TRAINING, "seed")).values()]


def settings(results: Results, dataset: str, *models: str) -> list[list[dict]]:
    """The finished runs of each setting of these models (of all), one for each seed, in order."""
    rows = finished(one_setup(select(results["svm"], dataset=dataset)))
    rows += one_pinning(finished(one_setup(select(results["resnet"], dataset=dataset))))
    found = groups(rows, ("model", *SVM, *TRAINING))

    def order(key: tuple) -> tuple:  # numbers before words
        return MODELS.index(key[0]), *((isinstance(value, str), value) for value in key[1:])

    return [found[key] for key in sorted(found, key=order) if not models or key[0] in models]


def best(candidates: list[list[dict]]) -> list[dict]:
    """The best setting of each model, and of these the best, found by setting one model after
    another against the best so far, on all seeds that the two have."""
    by_model, winner = {}, []
    for rows in candidates:
        by_model.setdefault(rows[0]["model"], []).append(rows)
    for rows in map(most_accurate, by_model.values()):
        winner = most_accurate([winner, rows]) if winner else rows
    return winner


def most_accurate(candidates: list[list[dict]]) -> list[dict]:
    """The setting with the best mean validation accuracy over the seeds that all of them have (over
    each one's own if they share none); of equal ones the first."""
    seeds = [{row["seed"] for row in rows} for rows in candidates]
    shared = set.intersection(*seeds) if seeds else set()

    def rank(rows: list[dict]) -> float:
        return mean(row["val_accuracy"] for row in rows if not shared or row["seed"] in shared)

    return max(candidates, key=rank, default=[])


def same_machine(first: list[dict], second: list[dict]) -> bool:
    """Whether all runs were timed, each alone, on one device of one kind with as many threads."""
    rows = [*first, *second]
    alone = not any(math.isnan(row["train_ms"]) for row in rows)
    return alone and len(groups(rows, MACHINE)) == 1


# --- statistics ----------------------------------------------------------------------------------

LEVEL = 0.05  # of significance
NOISE = 1.5  # training times within this factor are a tie, as those of equal work differ too
TESTING_NOISE = 2.5  # likewise testing times, which are of seconds only and differ more


def wilson_interval(p: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a proportion p of n trials (E. B. Wilson, JASA 22, 1927, p. 209)."""
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return center - half, center + half


def mcnemar_p(only_first: int, only_second: int) -> float:
    """Two-sided mid-p of McNemar's test, from the images that only one of two models has wrong
    (Fagerland, Lydersen and Laake, BMC Medical Research Methodology 13:91, 2013)."""
    total, ways, below = only_first + only_second, 1, 0
    for count in range(min(only_first, only_second)):
        below, ways = below + ways, ways * (total - count) // (count + 1)
    return (2 * below + ways) / 2**total


def student_p(t: float, freedom: float) -> float:
    """Two-sided p of Student's t for a whole number of degrees of freedom, in closed form
    (Abramowitz and Stegun 26.7.3 and 26.7.4); of the normal distribution for math.inf."""
    if math.isinf(freedom):
        return math.erfc(abs(t) / math.sqrt(2))
    odd, angle = freedom % 2, math.atan(abs(t) / math.sqrt(freedom))
    term, total = math.cos(angle) ** odd, 0.0
    for k in range(2 + odd, freedom + odd + 1, 2):
        total += term
        term *= math.cos(angle) ** 2 * (k - 1) / k
    inside = math.sin(angle) * total
    return max(0.0, 1 - (2 / math.pi * (angle + inside) if odd else inside))


def student_bound(freedom: float) -> float:
    """The t whose two-sided p is 0.05, by bisection."""
    low, high = 0.0, 100.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if student_p(middle, freedom) > LEVEL else (low, middle)
    return low


def holm(values: list[float | None]) -> list[float | None]:
    """p adjusted for the number of comparisons (S. Holm, Scandinavian J. of Statistics 6, 1979);
    None stays, for one that could not be made."""
    known = sorted((p, place) for place, p in enumerate(values) if p is not None)
    adjusted, largest = [None] * len(values), 0.0
    for rank, (p, place) in enumerate(known):
        adjusted[place] = largest = max(largest, min(1.0, (len(known) - rank) * p))
    return adjusted


@dataclass(frozen=True)
class Difference:
    """Of two test accuracies: size, standard error, degrees of freedom and two-sided p."""

    size: float
    error: float
    freedom: float
    p: float

    def interval(self) -> tuple[float, float]:
        half = student_bound(self.freedom) * self.error
        return self.size - half, self.size + half

    def __str__(self) -> str:
        low, high = self.interval()
        interval = f" [{100 * low:+.2f}, {100 * high:+.2f}]" if math.isfinite(self.error) else ""
        points = f"{100 * self.size:+.2f}{interval} points"
        return f"{points}, p {chance(self.p)}"


def over_seeds(values: list[float], share: float) -> Difference:
    """The mean of differences over seeds that each draw their own split. Their parts overlap, so
    that a plain t test is too sure: the variance is multiplied by 1 / n + share, with share test
    images to training images (C. Nadeau and Y. Bengio, Machine Learning 52, 2003)."""
    size, freedom = mean(values), len(values) - 1
    # Values that are all equal say nothing of how far the next one may be.
    error = stdev(values) * math.sqrt(1 / len(values) + share) or math.inf
    return Difference(size, error, freedom, student_p(size / error, freedom))


def compare(first: list[dict], second: list[dict], same: str = "split_id") -> Difference | None:
    """Test accuracy of one setting less that of another: over seeds where they have several splits
    in common, else on the images of the one that they have; None if they have none. With
    same="seed" the two are of different data sets."""
    others = {row[same]: row for row in reversed(second)}
    pairs = {row[same]: (row, others[row[same]]) for row in reversed(first) if row[same] in others}
    if len(pairs) < 2:
        return next((on_one_split(*pair) for pair in pairs.values()), None)
    gaps = [a["test_accuracy"] - b["test_accuracy"] for a, b in pairs.values()]
    return over_seeds(gaps, first[0]["n_test"] / first[0]["n_train"])


def on_one_split(first: dict, second: dict) -> Difference:
    """Of two runs: paired by test image; as if on images of their own where these differ, or where
    test errors are not kept, which is too careful, as models err on the same images."""
    if first["split_id"] != second["split_id"] or None in (first["wrong"], second["wrong"]):
        return independent(first, second)
    only_first, only_second = first["wrong"] - second["wrong"], second["wrong"] - first["wrong"]
    return paired(len(only_first), len(only_second), first["n_test"])


def paired(only_first: int, only_second: int, total: float) -> Difference:
    """From the images that only one of two models has wrong. The standard error is that of Bonett
    and Price (Journal of Educational and Behavioral Statistics 37, 2012)."""
    p, q = (only_first + 1) / (total + 2), (only_second + 1) / (total + 2)
    error = math.sqrt((p + q - (p - q) ** 2) / (total + 2))
    size = (only_second - only_first) / total
    return Difference(size, error, math.inf, mcnemar_p(only_first, only_second))


def independent(first: dict, second: dict) -> Difference:
    """Of two proportions, the normal approximation after Agresti and Caffo (The American
    Statistician 54, 2000): one more of each kind."""
    totals = [row["n_test"] + 2 for row in (first, second)]
    p, q = (
        (row["test_accuracy"] * row["n_test"] + 1) / (row["n_test"] + 2) for row in (first, second)
    )
    error = math.sqrt(p * (1 - p) / totals[0] + q * (1 - q) / totals[1])
    size = first["test_accuracy"] - second["test_accuracy"]
    return Difference(size, error, math.inf, student_p(size / error, math.inf))


def accuracy_interval(rows: list[dict]) -> tuple[float, float]:
    """95 % interval of a setting's test accuracy: Wilson's of one run, else over seeds."""
    if len(rows) == 1:
        return wilson_interval(rows[0]["test_accuracy"], rows[0]["n_test"])
    share = rows[0]["n_test"] / rows[0]["n_train"]
    return over_seeds([row["test_accuracy"] for row in rows], share).interval()


def beside_best(candidates: list[list[dict]]) -> list[list[str]]:
    """Of each setting what it has less than the best, p after Holm, and best, better, tie or
    nothing (shown to be worse, or not compared). The best is chosen on validation and compared on
    test images, so that luck in the choice does not count as a difference; Holm keeps the chance
    that any setting as good as it is left out at 5 %. All are compared on the seeds that all have,
    as more seeds of some would be another standard of proof."""
    winner = best(candidates)
    seeds = [{row["seed"] for row in rows} for rows in candidates]
    shared = set.intersection(*seeds) or set.union(*seeds) if seeds else set()
    runs = [[row for row in rows if row["seed"] in shared] for rows in candidates]
    base = [row for row in winner if row["seed"] in shared]
    gaps = [
        None if rows is winner else compare(run, base)
        for rows, run in zip(candidates, runs, strict=True)
    ]
    cells = []
    for rows, gap, p in zip(candidates, gaps, holm([gap and gap.p for gap in gaps]), strict=True):
        if gap:
            mark = "tie" if p >= LEVEL else "better" if gap.size > 0 else ""
            cells.append([str(gap).partition(" points")[0], chance(p), mark])
        else:
            cells.append(["", "", "best"] if rows is winner else [MISSING, "", ""])
    return cells


def top(candidates: list[list[dict]]) -> list[list[dict]]:
    """The best setting, and those that are not shown to be worse."""
    cells, winner = beside_best(candidates), best(candidates)
    pairs = zip(candidates, cells, strict=True)
    found = [rows for rows, cell in pairs if cell[2] or cell[0] == MISSING]
    return sorted(found, key=lambda rows: rows is not winner)


# --- cells and tables ----------------------------------------------------------------------------


def table(title: str, header: list[str], lines: list[list[str]], note: str = "") -> str:
    """A markdown table under its title, with a note below."""
    rows = (header, ["---"] * len(header), *(lines or [[MISSING] * len(header)]))
    text = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return "\n\n".join(filter(None, (f"**{title}**", text, note)))


# A contrast of 3 to 1 or more on white and on Mermaid's dark grey; after the colours of M. Okabe
# and K. Ito, which all kinds of colour vision tell apart.
COLOURS = {"blue": "#1F83D6", "orange": "#D55E00", "green": "#009E73", "pink": "#CC79A7"}


def chart(title: str, x: tuple, y: tuple, lines: dict[str, list[float]], note: str = "") -> str:
    """A Mermaid line chart and, as it has no legend, a line that names its colours. x is a name and
    categories, y a name and a range. No text of a row may come here."""
    theme = {"themeVariables": {"xyChart": {"plotColorPalette": ", ".join(COLOURS.values())}}}
    categories = ", ".join(f'"{category}"' for category in x[1])
    plots = [f"    line [{', '.join(f'{value:.4f}' for value in line)}]" for line in lines.values()]
    source = [f"%%{{init: {json.dumps(theme)}}}%%", "xychart-beta", f'    title "{title}"']
    source += [f'    x-axis "{x[0]}" [{categories}]']
    source += [f'    y-axis "{y[0]}" {y[1]:.4f} --> {y[2]:.4f}']
    legend = ", ".join(f"{name} {colour}" for colour, name in zip(COLOURS, lines, strict=False))
    return "\n".join(["```mermaid", *source, *plots, "```", "", f"Lines: {legend}. {note}".strip()])


def percent(rows: list[dict], column: str = "test_accuracy") -> str:
    """An accuracy in percent: mean ± standard deviation over seeds, or one run's interval."""
    if not rows:
        return MISSING
    values = [100 * row[column] for row in rows]
    if len(values) > 1:
        return f"{mean(values):.2f} ± {stdev(values):.2f}"
    total = rows[0][f"n_{column.split('_')[0]}"]
    return proportion(rows[0][column] * total, total)


def collapsed(rows: list[dict]) -> str:
    """The mark behind a figure: nothing, collapsed, or 1 of 3 collapsed."""
    number = len(select(rows, status="collapsed"))
    share = f"{number} of {len(rows)} " if len(rows) > 1 else ""
    return f" {share}collapsed" if number else ""


def proportion(hits: float, total: float) -> str:
    """In percent, with its Wilson interval."""
    if not total:
        return ""
    low, high = wilson_interval(hits / total, total)
    return f"{100 * hits / total:.2f} [{100 * low:.2f}, {100 * high:.2f}]"


def average_of(rows: list[dict], name: str) -> float:
    return mean(row[name] for row in rows)


def average(rows: list[dict], name: str, unit: float = 1, form: str = ",.0f") -> str:
    """Mean of a column over seeds, in units of unit."""
    value = average_of(rows, name) if rows else math.nan
    return MISSING if math.isnan(value) else format(value / unit, form)


milliseconds = partial(average_of, name="train_ms")
testing = partial(average_of, name="predict_time_ms")


def clock(seconds: float) -> str:
    """0.5 s, 58 s, 12 min or 3.4 h."""
    if math.isnan(seconds):
        return MISSING
    for size, unit in ((3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


def chance(p: float) -> str:
    return f"{p:.3f}" if p >= 0.001 else "below 0.001"


def count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def absent(rows: list[dict]) -> str:
    """What stands where there is no figure: how its run failed, if it did."""
    status = rows[-1]["status"] if rows else "skipped"
    return MISSING if status == "skipped" else status.replace("_", " ")


def plain(value) -> str:
    """A factor's value as one types it: 0.001, 16, scale."""
    return str(value).removesuffix(".0")


def describe(rows: list[dict]) -> str:
    """A setting in words."""
    if not rows:
        return MISSING
    row = rows[0]
    if row["model"] == "SVM":
        values = [f"{name} {plain(row[name])}" for name in SVM[1:] if row[name] != ""]
        return f"{row['kernel']}, {', '.join(values)}"
    return (
        f"{OPTIMIZERS[row['optimizer']]}, lr {plain(row['lr'])}, batch"
        f" {plain(row['batch_size'])}, epochs {plain(row['epochs'])}"
    )


def listed(rows: list[dict], name: str) -> list[str]:
    """The values of a column, each once, in the order of the rows."""
    return list(dict.fromkeys(plain(row[name]) for row in rows if row.get(name, "") != ""))


def machines(rows: list[dict]) -> str:
    """The hardware that rows were measured on."""
    return "; ".join(dict.fromkeys(
        f"{DEVICES[device]}: {name}, {plain(threads)} {'thread' if threads == '1' else 'threads'}"
        + (", CUDA graphs" if execution == "graph" else "")
        for device, name, threads, execution in groups(rows, (*MACHINE, "execution"))
    ))  # fmt: skip


def uncertainty(rows: list[dict]) -> str:
    """What ± and brackets are in a table of these rows."""
    seeds, runs = listed(rows, "seed"), groups(rows, ("dataset", "model", *SVM, *TRAINING)).values()
    several = [n for n in (len(listed(each, "seed")) for each in runs) if n > 1]
    if not several:
        one = f"One seed ({seeds[0]})" if len(seeds) == 1 else "One seed each"
        return f"{one}; in brackets the 95 % Wilson interval of a single run."
    n = span(several)
    which = f"the n = {n}" if min(several) == len(seeds) else f"n = {n} of the"
    return (
        f"± is the sample standard deviation over {which} seeds {', '.join(seeds)}, which set"
        " split, initial weights and batch order"
        + ("; brackets, where there is one seed only, the 95 % Wilson interval of a single run."
           if len(several) < len(runs) else ".")
    )  # fmt: skip


def caption(rows: list[dict], script: str, flags: dict[str, str]) -> str:
    """What the figures are, where they were measured, and the command that makes them."""
    if not rows:
        return f"No rows yet: run `python {script}`."
    note = uncertainty(rows)
    for row, *_ in groups(rows, ("n_train", "n_val", "n_test")).values():
        note += f" {row['n_train']:,.0f} / {row['n_val']:,.0f} / {row['n_test']:,.0f} images."
    for alike in groups(rows, (*MACHINE, "precision", "torch")).values():
        precision = f", {alike[0]['precision']}" if alike[0].get("precision") else ""
        note += f" {machines(alike)}{precision}, torch {alike[0]['torch']}, scikit-learn"
        note += f" {alike[0]['sklearn']}."
    return "\n".join([note, *(f"`{line}`" for line in commands(rows, script, flags))])


def commands(rows: list[dict], script: str, flags: dict[str, str]) -> list[str]:
    """What makes these rows, and the rest of an incomplete grid: a line for the seeds that all
    settings have, and one for each setting that has more; a single one if they share none."""
    names = [name for name in flags.values() if name not in ("seed", "epochs")]
    alike = groups(rows, names).values()
    shared = set.intersection(*({row["seed"] for row in each} for each in alike))
    if not shared:
        return [command(rows, script, flags)]
    more = ([row for row in each if row["seed"] not in shared] for each in alike)
    first = [row for row in rows if row["seed"] in shared]
    return [command(each, script, flags) for each in (first, *more) if each]


def command(rows: list[dict], script: str, flags: dict[str, str]) -> str:
    """What makes rows that have every combination of their factors."""
    threads = listed(rows, "threads")
    words = [f"OMP_NUM_THREADS={threads[0]}"] if len(threads) == 1 else []
    words += [f"python {script}"]
    for flag, name in flags.items():
        values = [value for value in listed(rows, name) if value != "n/a"]
        words += [flag, *values] if values else []
    words += ["--no-amp"] if rows[0].get("amp") == "false" else []
    return " ".join(words)


def left_out(rows: list[dict], shown: list[dict]) -> str:
    """A line on the finished rows that a table does not use."""
    number = len(finished(rows)) - len(finished(shown))
    line = f"\n{number} rows of other setups (device, precision, size ...) are not shown."
    return line if number else ""


RESNET_FLAGS = {
    "--dataset": "dataset", "--arch": "arch", "--opt": "optimizer", "--lr": "lr",
    "--bs": "batch_size", "--epochs": "epochs", "--pin-memory": "pin_memory",
    "--momentum": "momentum", "--device": "device", "--seed": "seed",
    "--split-seed": "fixed_split", "--limit": "limit",
}  # fmt: skip
SVM_FLAGS = {
    "--dataset": "dataset", "--kernel": "kernel", "--C": "C", "--gamma": "gamma",
    "--degree": "degree", "--coef0": "coef0", "--seed": "seed", "--limit": "limit",
    "--train-size": "train_size", "--solver": "solver", "--device": "device",
}  # fmt: skip


def datasets_of(rows: list[dict]) -> list[str]:
    """The data sets that there are rows of; without any, mnist and fashion."""
    found = {row["dataset"] for row in rows}
    return [name for name in DATASETS if name in found] or ["mnist", "fashion"]


def compared_datasets(results: dict[str, list[dict]]) -> list[str]:
    return datasets_of(results["resnet"] + results["svm"])


# --- the answer ----------------------------------------------------------------------------------


def answer(results: Results) -> list[str]:
    """What the rows say: the findings, the best of each model, and accuracy against time."""
    findings = "\n".join(f"- {line}" for finding in FINDINGS for line in finding(results))
    charts = [part for name in compared_datasets(results) for part in budget(results, name)]
    return [best_table(results), findings, *charts]


def best_of(results: Results, dataset: str, *models: str) -> list[dict]:
    return best(settings(results, dataset, *models))


def versus(
    results: Results, first: tuple, second: tuple, datasets: Iterable[str] = CLAIMED
) -> dict[str, Difference | None]:
    """For each data set the best of some models less the best of others; None where they were not
    trained on as many images."""
    found = {}
    for dataset in datasets:
        pair = [best_of(results, dataset, *models) for models in (first, second)]
        sizes = {row["n_train"] for rows in pair for row in rows}
        found[dataset] = compare(*pair) if len(sizes) == 1 else None
    return found


def told(differences: dict[str, Difference | None]) -> str:
    return "; ".join(f"{DATASETS[name]} {each or MISSING}" for name, each in differences.items())


def finding_gaps(results: Results) -> list[str]:
    """How the best of each model compare in accuracy."""
    parts = {}
    for first, second in ((COMPARED[1], "SVM"), (COMPARED[2], "SVM"), COMPARED[1:]):
        datasets = compared_datasets(results)
        for dataset, gap in versus(results, [first], [second], datasets).items():
            if gap:
                words = f"is {'more' if gap.size > 0 else 'less'} accurate than"
                words = words if gap.p < LEVEL else "is not shown to differ from"
                text = f"{first} {words} {'the SVM' if second == 'SVM' else second} ({gap})"
                parts.setdefault(DATASETS[dataset], []).append(text)
    lines = [f"{name}: {'; '.join(parts[name])}." for name in DATASETS.values() if name in parts]
    return lines or ["The models have not been compared yet."]


def finding_costs(results: Results) -> list[str]:
    """How long each best ResNet trains, over the best SVM, and scikit-learn's solver over ours."""
    ratios = resnet_over_svm(results, milliseconds, datasets=compared_datasets(results))
    parts = [
        f"{model} {span([ratio for name, ratio in ratios.items() if model in name])}"
        for model in COMPARED[1:]
        if any(model in name for name in ratios)
    ]
    found = [f"Training takes {' and '.join(parts)} times as long as the SVM."] if parts else []
    names = [name for name in (*KEYS["svm"], *MACHINE) if name != "solver"]
    both = [
        {row["solver"]: row for row in alike}
        for alike in groups(finished(results["svm"]), names).values()
    ]
    both = [rows for rows in both if {"gram", "sklearn"} <= set(rows)]
    parts = []
    for name, verb in (("train_ms", "train"), ("predict_time_ms", "test")) if both else ():
        seconds = [rows["sklearn"][name] / 1e3 for rows in both]
        ratios = [rows["sklearn"][name] / rows["gram"][name] for rows in both]
        parts += [f"{span(seconds)} s to {verb} ({span(ratios)} times as long)"]
    found += [
        f"SVMs are fitted by this repository's solver; scikit-learn's takes {' and '.join(parts)},"
        f" in {count(len(both), 'setting')} timed with both."
    ] if both else []  # fmt: skip
    return [" ".join(found)] if found else []


def span(values: list[float]) -> str:
    """The smallest and the largest value, or the only one: 0.8 - 16."""
    ends = (min(values), max(values))
    forms = ("d" if isinstance(end, int) else ".0f" if end >= 10 else ".1f" for end in ends)
    return " - ".join(dict.fromkeys(map(format, ends, forms)))


def finding_devices(results: Results) -> list[str]:
    parts = []
    for arch, name in ARCHITECTURES.items():
        gains = [gain for _, gain, _ in gains_of(results, arch).values()]
        parts += [f"{name} {mean(gains):.1f}"] if gains else []
    if parts:
        return [f"A GPU trains {', '.join(parts)} times as fast as a CPU, at equal work."]
    skipped = select(results["devices"], device="cuda", status="skipped")
    why = ", ".join(listed(skipped, "reason"))
    return [f"A GPU against a CPU, at equal work: {MISSING}{why and f' ({why})'}."]


def finding_ties(results: Results) -> list[str]:
    """How many settings are as good as the best, as far as the rows show."""
    lines = []
    for dataset in compared_datasets(results):
        found = settings(results, dataset)
        if found:
            winner, *ties = top(found)
            tied = Counter(rows[0]["model"] for rows in ties)
            tied = ", ".join(f"{number} {model}" for model, number in sorted(tied.items()))
            lines.append(
                f"{DATASETS[dataset]}, {count(len(found), 'setting')}: best on validation is"
                f" {winner[0]['model']} ({describe(winner)}); not shown to be worse:"
                f" {tied or 'no other'}."
            )
    return lines


def finding_errors(results: Results) -> list[str]:
    parts = []
    for dataset in compared_datasets(results):
        runs = [row for row in best_of(results, dataset) if row["classes"]]
        parts += [
            f"{DATASETS[dataset]} (seed {row['seed']}) {mistaken(row, 3)}" for row in runs[:1]
        ]
    found = "; ".join(parts) or MISSING
    return [f"Most frequent errors of the best, with their number of test images: {found}."]


def mistaken(row: dict, number: int) -> str:
    """The most frequent pairs of class and wrong prediction, with their number of test images."""
    names, wrong = class_names(row), row["confused"]
    most = sorted(sorted(wrong), key=wrong.get, reverse=True)[:number]
    return ", ".join(f"{names[i]} taken for {names[j]} ({wrong[i, j]})" for i, j in most) or "none"


def class_names(row: dict) -> tuple[str, ...]:
    return CLOTHES if row["dataset"] == "fashion" else tuple("0123456789")


def finding_verdicts(results: Results) -> list[str]:
    verdicts = Counter(claim.rule(results)[0] for claim in CLAIMS)
    counts = ", ".join(f"{verdicts[verdict]} {verdict}" for verdict in VERDICTS)
    return [f"Of {len(CLAIMS)} claims of an earlier report, judged below: {counts}."]


FINDINGS = (
    finding_gaps, finding_costs, finding_devices, finding_ties, finding_errors, finding_verdicts,
)  # fmt: skip


def best_table(results: Results) -> str:
    """The best of each model beside what others report, and the floor."""
    lines, used = [], []
    for dataset in compared_datasets(results):
        found = settings(results, dataset)
        present = {rows[0]["model"] for rows in found} | set(COMPARED)
        for model in filter(present.__contains__, MODELS):
            winner = best_of(results, dataset, model)
            used += winner
            work = flops(results, winner) if winner else math.nan
            times = [clock(figure(winner) / 1e3) if winner else MISSING
                     for figure in (milliseconds, testing)]  # fmt: skip
            lines.append([
                DATASETS[dataset], model, describe(winner), str(len(winner)),
                percent(winner) + collapsed(winner), *times,
                MISSING if math.isnan(work) else f"{work / 1e6:.1f} M",
                PUBLISHED.get((dataset, model), ""),
            ])  # fmt: skip
        classes = next((row["classes"] for rows in found for row in rows if row["classes"]), None)
        floor = f"{100 * max(classes) / sum(classes):.2f}" if classes else MISSING
        lines.append([DATASETS[dataset], "majority class", "", "", floor, "", "", "", ""])
    header = ["Data set", "Model", "Best setting", "Seeds", "Accuracy (%)", "Training", "Testing"]
    header += ["FLOPs of a test image", "Published (%)"]
    note = f"{uncertainty(used)} {machines(used)}. {PUBLISHED_SOURCE}" if used else PUBLISHED_SOURCE
    return table("The best of each model, chosen on validation", header, lines, note)


def flops(results: Results, rows: list[dict]) -> float:
    """Of the prediction of one image: a ResNet's are those that compare_devices.py counted; an SVM
    multiplies its 784 pixels by those of each support vector, and each kernel value by the
    coefficients of 9 other classes. nan if they were not counted."""
    if rows[0]["model"] == "SVM":
        return 2 * (784 + 9) * average_of(rows, "support_vectors")
    counted = select(finished(results["devices"]), arch=rows[0]["arch"])
    return counted[0]["forward_flops"] if counted else math.nan


STEPS = [unit * step for unit in (1, 60, 3600) for step in (1, 2, 5, 10, 20, 30)]  # seconds


def budget(results: Results, dataset: str) -> list[str]:
    """A chart of the accuracy that each model reaches in a training time; none of a single step."""
    found = {name: settings(results, dataset, name) for name in MODELS}
    found = {name: each for name, each in found.items() if each}
    times = sorted(
        milliseconds(rows) / 1e3 for each in found.values() for rows in each
        if not math.isnan(milliseconds(rows))
    )  # fmt: skip
    steps = [step for step in STEPS if times and times[0] <= step <= 2.5 * times[-1]]
    if len(steps) < 2:
        return []
    curves = {name: [within(each, step) for step in steps] for name, each in found.items()}
    values = [value for curve in curves.values() for value in curve if value]
    low, high = math.floor(min(values) - 0.2), min(100, math.ceil(max(values)))
    note = "Joined only to guide the eye; on the bottom edge, no setting is done by then. "
    for place, names in groups(
        [{"name": name, "place": machines([row for rows in each for row in rows])}
         for name, each in found.items()], ["place"],
    ).items():  # fmt: skip
        note += f"{', '.join(each['name'] for each in names)} on {place[0]}. "
    return [chart(
        f"{DATASETS[dataset]}: accuracy within a training time",
        ("training time, at most", map(clock, steps)), ("test accuracy (%)", low, high),
        {name: [value or low for value in curve] for name, curve in curves.items()}, note,
    )]  # fmt: skip


def within(found: list[list[dict]], seconds: float) -> float:
    """Test accuracy (%) of the best on validation of what is trained by then; 0 if nothing is."""
    done = best([rows for rows in found if milliseconds(rows) <= 1e3 * seconds])
    return 100 * average_of(done, "test_accuracy") if done else 0.0


# --- verdicts ------------------------------------------------------------------------------------

VERDICTS = SUPPORTED, CONTRADICTED, UNRESOLVED, UNMEASURED = (
    "supported", "contradicted", "not resolved", MISSING,
)  # fmt: skip


@dataclass(frozen=True)
class Claim:
    """A sentence of the earlier report and the rule that judges it: rule(results) gives the verdict
    and the numbers behind it; the rule's docstring says how, to the reader."""

    number: str
    sentence: str
    rule: Callable[[dict], tuple[str, str]]


def judge(differences: Iterable[Difference | None]) -> str:
    """On the claim that all differences are above 0. Each shown at the 5 % level, all are (R. L.
    Berger, Technometrics 24, 1982); one below 0 must be shown after Holm's adjustment."""
    differences = list(differences)
    known = [each for each in differences if each]
    if not known:
        return UNMEASURED
    adjusted = holm([each.p for each in known])
    if any(each.size < 0 and p < LEVEL for each, p in zip(known, adjusted, strict=True)):
        return CONTRADICTED
    shown = all(each and each.size > 0 and each.p < LEVEL for each in differences)
    return SUPPORTED if shown else UNRESOLVED


def judge_ranges(ranges: Iterable[tuple[float, float] | None], bound: float) -> str:
    """On the claim that all figures, each known to lie in a range, are above a bound."""
    ranges = list(ranges)
    known = [each for each in ranges if each]
    if not known:
        return UNMEASURED
    if any(high < bound for _, high in known):
        return CONTRADICTED
    return SUPPORTED if all(each and each[0] > bound for each in ranges) else UNRESOLVED


def lines_won(results: Results) -> tuple[str, str]:
    """ResNet-18 less ResNet-50 at each of the eight lines of the MNIST table, after Holm: supported
    if it wins more than half of them, contradicted if it loses at least half; a tie, or a line that
    is not measured, is neither."""

    def best_at(line: tuple, model: str) -> list[dict]:
        found = settings(results, "mnist", model)
        return best([rows for rows in found if tuple(rows[0][k] for k in TRAINING[:3]) == line])

    duels = [compare(best_at(line, "ResNet-18"), best_at(line, "ResNet-50")) for line in GRID]
    known = [each for each in duels if each]
    adjusted = holm([each.p for each in known])
    won = [each.size > 0 for each, p in zip(known, adjusted, strict=True) if p < LEVEL]
    wins, losses, half = sum(won), len(won) - sum(won), len(GRID) / 2
    numbers = f"{wins} won, {losses} lost, {len(known) - len(won)} tied of {len(known)} measured"
    if not known:
        return UNMEASURED, ""
    verdict = SUPPORTED if wins > half else CONTRADICTED if losses >= half else UNRESOLVED
    return verdict, numbers


def peak(results: Results) -> tuple[str, str]:
    """The ResNet-18 that is the best on validation: supported if the 95 % interval of its test
    accuracy is above 99.30 %, contradicted if it is below."""
    rows = best_of(results, "mnist", "ResNet-18")
    ranges = [accuracy_interval(rows)] if rows else []
    middle = average(rows, "test_accuracy", 0.01, ".2f")
    numbers = [f"{middle} [{100 * low:.2f}, {100 * high:.2f}]" for low, high in ranges]
    return judge_ranges(ranges, 0.9930), "".join(numbers)


def fifty_is_not_worth_it(results: Results) -> tuple[str, str]:
    """The best ResNet-18 less the best ResNet-50: supported if above 0 on both data sets,
    contradicted if below on one; a tie does not show that the cost buys nothing."""
    gaps = versus(results, ("ResNet-18",), ("ResNet-50",))
    pairs = [[best_of(results, name, f"ResNet-{depth}") for depth in (50, 18)] for name in CLAIMED]
    timed = [pair for pair in pairs if all(pair) and same_machine(*pair)]
    times = ", ".join(f"{milliseconds(a) / milliseconds(b):.1f}" for a, b in timed)
    numbers = told(gaps) + (f"; training takes {times} times as long" if times else "")
    return judge(gaps.values()), numbers


def lower_on_fashion(results: Results) -> tuple[str, str]:
    """MNIST less FashionMNIST for every setting that is measured on both: supported if above 0 for
    all, contradicted if below for one."""
    first, second = (
        {f"{rows[0]['model']}, {describe(rows)}": rows for rows in settings(results, name)}
        for name in CLAIMED
    )
    both = filter(second.__contains__, first)
    gaps = {name: compare(first[name], second[name], same="seed") for name in both}
    known = {name: gap for name, gap in gaps.items() if gap}
    if not known:
        return UNMEASURED, ""
    least = min(known, key=lambda name: known[name].size)
    above = sum(gap.size > 0 for gap in known.values())
    numbers = f"above 0 in {above} of {count(len(known), 'setting')}; smallest: {known[least]}"
    numbers += f" ({least})"
    return judge(gaps.values()), numbers


def resnet_over_svm(
    results: Results, figure: Callable, *, timed: bool = True, datasets: Iterable[str] = CLAIMED
) -> dict[str, float]:
    """A figure of each best ResNet over that of the best SVM, where it is known; times of one
    machine only."""
    found = {}
    for dataset, model in product(datasets, COMPARED[1:]):
        resnet, svm = best_of(results, dataset, model), best_of(results, dataset, "SVM")
        if resnet and svm and (same_machine(resnet, svm) or not timed):
            ratio = figure(resnet) / figure(svm)
            found |= {} if math.isnan(ratio) else {f"{DATASETS[dataset]} {model}": ratio}
    return found


def told_ratios(name: str, ratios: dict[str, float]) -> str:
    return f"{name}: {', '.join(f'{key} {ratios[key]:.2f}' for key in ratios) or MISSING}"


def judge_ratios(ratios: dict[str, float], noise: float) -> list[tuple[float, float] | None]:
    """Each ratio with room for noise, and None for those of the four that are not measured."""
    found = [(ratio / noise, ratio * noise) for ratio in ratios.values()]
    return found + [None] * (4 - len(found))


def svm_trains_faster(results: Results) -> tuple[str, str]:
    """Training time of the best ResNet of each kind over that of the best SVM, on one machine, for
    both data sets: supported if all are above 1.5, contradicted if one is below 1 / 1.5, as single
    timings repeat no better."""
    times = resnet_over_svm(results, milliseconds)
    return judge_ranges(judge_ratios(times, NOISE), 1), told_ratios("times as long", times)


def svm_needs_less(results: Results) -> tuple[str, str]:
    """What prediction needs, ResNet over SVM: time, judged as above but with 2.5 for 1.5; and
    FLOPs of an image and bytes stored (4 for a weight, or 784 for a support vector's pixels and 8
    for each of its 9 coefficients), where any difference counts."""
    weights = {row["arch"]: row["parameters"] for row in finished(results["devices"])}

    def stored(rows: list[dict]) -> float:
        if rows[0]["model"] == "SVM":
            return (784 + 8 * 9) * average_of(rows, "support_vectors")
        return 4 * weights.get(rows[0]["arch"], math.nan)

    ratios = {
        "time": resnet_over_svm(results, testing),
        "FLOPs": resnet_over_svm(results, partial(flops, results), timed=False),
        "bytes": resnet_over_svm(results, stored, timed=False),
    }
    ranges = judge_ratios(ratios["time"], TESTING_NOISE)
    ranges += judge_ratios(ratios["FLOPs"], 1) + judge_ratios(ratios["bytes"], 1)
    return judge_ranges(ranges, 1), "; ".join(told_ratios(*each) for each in ratios.items())


def svm_is_less_accurate(results: Results) -> tuple[str, str]:
    """The best ResNet less the best SVM, trained on the same images: supported if above 0 on both
    data sets, contradicted if below on one."""
    gaps = versus(results, COMPARED[1:], COMPARED[:1])
    return judge(gaps.values()), told(gaps)


def gap_is_wider_on_mnist(results: Results) -> tuple[str, str]:
    """That gap, in points, on MNIST less the one on FashionMNIST: supported if above 0."""
    first, second = versus(results, COMPARED[1:], COMPARED[:1]).values()
    if not (first and second):
        return UNMEASURED, ""
    size, error = first.size - second.size, math.hypot(first.error, second.error)
    freedom = min(first.freedom, second.freedom)  # fewer than Welch's, so never too sure
    gap = Difference(size, error, freedom, student_p(size / error, freedom))
    return judge([gap]), str(gap)


def gains_of(results: Results, arch: str) -> dict[str, tuple[float, float, float]]:
    """For each optimizer how many times as fast a GPU trains on FashionMNIST: least, full training,
    most. Least and most are of the windows of training steps; same work on both."""
    rows = select(finished(device_rows(results["devices"], "fashion")), arch=arch)
    found = {}
    for optimizer in OPTIMIZERS:
        alike = select(rows, optimizer=optimizer)
        cpus, gpus = (one_device(select(alike, device=name)) for name in ("cpu", "cuda"))
        if cpus and gpus:
            gain = average_of(cpus, "train_ms") / average_of(gpus, "train_ms")
            low = min(row["step_ms_min"] for row in cpus) / max(row["step_ms_max"] for row in gpus)
            high = max(row["step_ms_max"] for row in cpus) / min(row["step_ms_min"] for row in gpus)
            found[optimizer] = min(low, gain), gain, max(high, gain)
    return found


def told_gains(found: dict[str, tuple[float, float, float]]) -> str:
    return "; ".join(
        f"{OPTIMIZERS[name]}: {gain:.1f} times as fast [{low:.1f}, {high:.1f}]"
        for name, (low, gain, high) in found.items()
    )


def gpu_halves(results: Results) -> tuple[str, str]:
    """CPU time over GPU time, in brackets the range over repeated windows of steps: supported if
    above 2 for each optimizer, contradicted if below for one."""
    found = gains_of(results, "resnet50")
    return judge_ranges(((low, high) for low, _, high in found.values()), 2), told_gains(found)


def cpu_competes(results: Results) -> tuple[str, str]:
    """Competitive is less than twice the GPU's time: the rule of the claim before, turned round."""
    found = gains_of(results, "resnet18")
    return judge_ranges(((-high, -low) for low, _, high in found.values()), -2), told_gains(found)


def adam_is_best(results: Results) -> tuple[str, str]:
    """Of the settings not shown to be worse than the best of a data set: supported if all are
    ResNet-18 with Adam at 0.001, on both data sets, with all three models measured; contradicted if
    none is, on one where it was measured."""
    shares, complete, numbers = [], True, []
    for dataset in CLAIMED:
        found = settings(results, dataset)
        complete &= {rows[0]["model"] for rows in found} >= set(COMPARED)
        if any(map(is_adam, found)):
            named = list(map(is_adam, top(found)))
            shares.append(mean(named))
            numbers.append(f"{DATASETS[dataset]}: {sum(named)} of the {len(named)} best")
    if not shares or 0 in shares:
        return CONTRADICTED if shares else UNMEASURED, "; ".join(numbers)
    return SUPPORTED if complete and min(shares) == 1 else UNRESOLVED, "; ".join(numbers)


def is_adam(rows: list[dict]) -> bool:
    row = rows[0]
    return row["model"] == "ResNet-18" and (row["optimizer"], row["lr"]) == ("adam", 1e-3)


def pinned_pairs(results: Results) -> list[tuple[dict, dict]]:
    """Runs on a GPU with pinned memory and without, all else equal."""
    names = (*SETUP, *MACHINE, *TRAINING, "dataset", "model", "seed", "split_id", "execution")
    found = groups(select(finished(results["resnet"]), device="cuda"), names).values()
    found = [{row["pin_memory"]: row for row in rows} for rows in found]
    return [(rows["true"], rows["false"]) for rows in found if {"true", "false"} <= set(rows)]


def pinning_keeps_accuracy(results: Results) -> tuple[str, str]:
    """Pairs of runs that differ in pin_memory alone: supported if all end in the same weights,
    contradicted if one pair's test errors are shown to differ, after Holm."""
    pairs = pinned_pairs(results)
    same = sum(a["weights_sha256"] == b["weights_sha256"] != "" for a, b in pairs)
    numbers = f"{same} of {count(len(pairs), 'pair')} with the same weights"
    if not pairs:
        return UNMEASURED, ""
    worse = any(p < LEVEL for p in holm([on_one_split(*pair).p for pair in pairs]))
    return (SUPPORTED if same == len(pairs) else CONTRADICTED if worse else UNRESOLVED), numbers


def pinning_costs_little(results: Results) -> tuple[str, str]:
    """Time with pinned memory over time without, 95 % interval of the geometric mean over pairs:
    supported if it lies within 10 % of 1, contradicted if outside."""
    logs = [math.log(a["train_ms"] / b["train_ms"]) for a, b in pinned_pairs(results)]
    logs = [log for log in logs if not math.isnan(log)]
    if len(logs) < 2:
        return UNMEASURED, count(len(logs), "pair") if logs else ""
    half = student_bound(len(logs) - 1) * stdev(logs) / math.sqrt(len(logs))
    low, high = mean(logs) - half, mean(logs) + half
    numbers = f"{math.exp(mean(logs)):.2f} [{math.exp(low):.2f}, {math.exp(high):.2f}]"
    little = math.log(1.1)
    inside, outside = -little < low and high < little, low > little or high < -little
    return (SUPPORTED if inside else CONTRADICTED if outside else UNRESOLVED), numbers


# fmt: off
CLAIMS = (
    Claim("1a", "ResNet-18 beats ResNet-50 on MNIST in most settings.", lines_won),
    Claim("1b", "ResNet-18's peak accuracy on MNIST is 99.30 %.", peak),
    Claim("2", "ResNet-50's accuracy does not justify its computational cost.",
          fifty_is_not_worth_it),
    Claim("3", "Accuracy is lower on FashionMNIST than on MNIST in every configuration.",
          lower_on_fashion),
    Claim("4a", "SVMs train significantly faster than the ResNets.", svm_trains_faster),
    Claim("4b", "SVMs need fewer resources.", svm_needs_less),
    Claim("5a", "SVMs are less accurate than the ResNets.", svm_is_less_accurate),
    Claim("5b", "That gap is more pronounced on MNIST.", gap_is_wider_on_mnist),
    Claim("6", "A GPU cuts ResNet-50's training time by more than 50 %.", gpu_halves),
    Claim("7", "For ResNet-18, CPU training remains competitive with the GPU.", cpu_competes),
    Claim("8", "ResNet-18 with Adam at lr 0.001 is the best configuration overall.", adam_is_best),
    Claim("9a", "pin_memory makes no difference to accuracy.", pinning_keeps_accuracy),
    Claim("9b", "pin_memory makes little difference to time.", pinning_costs_little),
)
# fmt: on


def verdict_table(results: Results) -> list[str]:
    verdicts = [(claim, *claim.rule(results)) for claim in CLAIMS]
    lines = [[claim.number, claim.sentence, *verdict] for claim, *verdict in verdicts]
    note = (
        "Not resolved: the difference is inside its uncertainty, or too little is measured. In"
        " brackets 95 % intervals; p is two-sided, of one comparison alone. On one seed a"
        " comparison speaks of these trained models, not of what another seed would give. A best is"
        " one of the settings measured:"
    )
    found = [rows for dataset in compared_datasets(results) for rows in settings(results, dataset)]
    measured = Counter(f"{DATASETS[rows[0]['dataset']]} {rows[0]['model']}" for rows in found)
    note += f" {', '.join(f'{name} {number}' for name, number in measured.items()) or 'none'}"
    note += ". [The rules](results/README.md#rules) are beside the rows."
    fewest, most = (pick(map(len, found), default=0) for pick in (min, max))
    seeds = count(most, "seed") if fewest == most else f"{fewest} to {most} seeds"
    header = ["", "Claim", f"Verdict, on {seeds}", "Numbers"]
    return [table("The claims of an earlier report, judged by the rows", header, lines, note)]


def rules(results: Results) -> list[str]:
    """How each verdict is computed."""
    lines = [f"- {claim.number}: {' '.join(claim.rule.__doc__.split())}" for claim in CLAIMS]
    return ["\n".join(lines)]


# --- tables --------------------------------------------------------------------------------------


def resnet_tables(results: Results) -> list[str]:
    """For each data set a line for each batch size, optimizer and learning rate."""
    tables = []
    for dataset in datasets_of(results["resnet"]):
        every = select(results["resnet"], dataset=dataset)
        tried = one_setup(every)
        rows = one_pinning(finished(tried))
        archs = [arch for arch in ARCHITECTURES if arch != "resnet34" or select(rows, arch=arch)]
        extra = set(groups(rows, TRAINING[:3])) - set(GRID)
        lines = []
        for batch_size, optimizer, lr in [*GRID, *sorted(extra)]:
            line = [plain(batch_size), OPTIMIZERS[optimizer], plain(lr)]
            for arch in archs:
                factors = {"arch": arch, "batch_size": batch_size, "optimizer": optimizer, "lr": lr}
                found = best(list(groups(select(rows, **factors), TRAINING).values()))
                figure = f"{percent(found)} ({plain(found[0]['epochs'])})" if found else ""
                line.append(figure + collapsed(found) or absent(select(tried, **factors)))
            lines.append(line)
        title = f"{DATASETS[dataset]}, ResNets: test accuracy, in parentheses the number of epochs,"
        header = ["Batch size", "Optimizer", "Learning rate"]
        header += [f"{ARCHITECTURES[arch]} accuracy (%)" for arch in archs]
        note = caption(finished(tried), "train_resnet.py", RESNET_FLAGS) + left_out(every, tried)
        tables.append(table(f"{title} chosen on validation", header, lines, note))
    return tables


def device_rows(every: list[dict], dataset: str) -> list[dict]:
    """The rows of the work (size, batch size, learning rate, epochs) that most rows have done."""
    works = groups(select(every, dataset=dataset), WORK).values()
    return max(works, key=lambda rows: (not rows[0]["limit"], len(rows)), default=[])


def device_tables(results: Results) -> list[str]:
    """For each data set CPU against GPU: accuracy, time and FLOPs."""
    every = results["devices"]
    return [device_table(every, name) for name in (datasets_of(every) if every else ["fashion"])]


def device_table(every: list[dict], dataset: str) -> str:
    tried = device_rows(every, dataset)
    rows = finished(tried)
    devices = [device for device in DEVICES if device != "mps" or select(rows, device=device)]
    header, lines = ["Device", "Optimizer"], []
    for name in ARCHITECTURES.values():
        header += [f"{name} accuracy (%)", "training time (ms)", "FLOPs"]
    for device, optimizer in product(devices, OPTIMIZERS):
        line = [DEVICES[device], OPTIMIZERS[optimizer]]
        for arch in ARCHITECTURES:
            factors = {"device": device, "optimizer": optimizer, "arch": arch}
            cell = one_device(select(rows, **factors))
            if cell:
                flops = average(cell, "training_flops", 1e6, ",.1f")
                line += [percent(cell) + collapsed(cell), average(cell, "train_ms"), f"{flops} M"]
            else:
                line += [absent(select(tried, **factors))] * 3
        lines.append(line)
    title = f"{DATASETS[dataset]}, CPU and GPU"
    if rows:
        title += f": batch size {plain(rows[0]['batch_size'])}, lr {plain(rows[0]['lr'])}"
        title += f", epochs {plain(rows[0]['epochs'])}"
    note = (
        "FLOPs are those of training on one 1x28x28 image, forward and backward, 2 for each"
        " multiply-accumulate, counted on torchvision's network."
    )
    for device in devices:
        reasons = {row["reason"] for row in select(tried, device=device, status="skipped")}
        note += "".join(f" {DEVICES[device]} not measured: {reason}." for reason in sorted(reasons))
    flags = {flag: name for flag, name in RESNET_FLAGS.items() if flag != "--pin-memory"}
    note += "\n\n" + caption(rows, "compare_devices.py", flags)
    note += left_out(select(every, dataset=dataset), tried)
    return "\n\n".join([table(title, header, lines, note), *depth_costs(rows)])


def depth_costs(rows: list[dict]) -> list[str]:
    """What a deeper network costs and gains on each device, against ResNet-18."""
    lines = []
    for device, (arch, name) in product(DEVICES, ARCHITECTURES.items()):
        parts = []
        for optimizer in OPTIMIZERS:
            alike = select(rows, device=device, optimizer=optimizer)
            deep, base = (one_device(select(alike, arch=each)) for each in (arch, "resnet18"))
            if arch != "resnet18" and deep and base and same_machine(deep, base):
                work, time = (
                    average_of(deep, figure) / average_of(base, figure)
                    for figure in ("training_flops", "train_ms")
                )
                parts += [f"{work:.1f} times the FLOPs"] if not parts else []
                parts += [f"{OPTIMIZERS[optimizer]} {time:.1f} times the training time,"]
                parts[-1] += f" {compare(deep, base) or f'accuracy {MISSING}'}"
        if parts:
            lines.append(f"- {DEVICES[device]}, {name} against ResNet-18: {'; '.join(parts)}.")
    return ["\n".join(lines)] if lines else []


def one_device(rows: list[dict]) -> list[dict]:
    """Of the runs of a cell those of one device, precision and momentum."""
    return best(list(groups(rows, (*MACHINE, "precision", "momentum")).values()))


COSTS = {  # column, unit and form of the mean over seeds
    "Step (ms), median": ("step_ms", 1, ".2f"),
    "Images/s": ("images_per_second",),
    "Achieved GFLOP/s": ("achieved_flops_per_second", 1e9, ",.1f"),
    "Peak memory (MiB)": ("peak_memory_mib",),
    "Parameters": ("parameters",),
    "Forward MACs (M)": ("forward_macs", 1e6, ",.1f"),
    "Forward FLOPs (M)": ("forward_flops", 1e6, ",.1f"),
}


def device_details(results: Results) -> list[str]:
    """What the runs of the device tables cost in steps, memory and FLOPs; over seeds the mean, and
    the whole range of the windows."""
    header = ["Device", "Network", "Optimizer", *COSTS, "Step (ms), min - max"]
    header += ["Weights that never meet a pixel"]
    tables = []
    for dataset in datasets_of(results["devices"]) if results["devices"] else []:
        lines = []
        rows = finished(device_rows(results["devices"], dataset))
        for cell in groups(rows, ("device", "model", "optimizer")).values():
            runs = one_device(cell)
            line = [DEVICES[cell[0]["device"]], cell[0]["model"], OPTIMIZERS[cell[0]["optimizer"]]]
            line += [average(runs, *how) for how in COSTS.values()]
            low = min(row["step_ms_min"] for row in runs)
            high = max(row["step_ms_max"] for row in runs)
            dead = 1 - runs[0]["live_parameters"] / runs[0]["parameters"]
            lines.append([*line, f"{low:.2f} - {high:.2f}", f"{dead:.0%}"])
        tables.append(table(f"Costs of training on {DATASETS[dataset]}", header, lines))
    return tables or [MISSING]


def best_svms(results: Results) -> list[str]:
    """For each data set the best kernel and hyperparameters."""
    lines = []
    for dataset in datasets_of(results["svm"]):
        found = settings(results, dataset, "SVM")
        rows = best(found)
        names = ("train_ms", "predict_time_ms", "support_vectors")
        training, testing, vectors = (average(rows, name) for name in names)
        text = f"of {count(len(found), 'setting')} the best on validation is {describe(rows)}, with"
        mark = f" ({collapsed(rows).strip()})" if collapsed(rows) else ""
        text += f" {percent(rows)} % of the test images right{mark},"
        text += f" {training} ms of training, {testing} ms of testing and"
        text += f" {vectors} support vectors."
        lines.append(f"- {DATASETS[dataset]}: {text if rows else MISSING}")
    return ["\n".join(lines)]


def best_models(results: Results) -> list[str]:
    """For each data set the command that trains the best ResNet again and saves its weights."""
    found = [best_of(results, name, *COMPARED[1:]) for name in datasets_of(results["resnet"])]
    lines = [
        f"{command(rows[:1], 'train_resnet.py', RESNET_FLAGS)}"
        " --save-model models --results-dir models"
        for rows in filter(None, found)
    ]
    return ["\n".join(["```bash", *lines, "```"]) if lines else MISSING]


SETTING = {  # the columns that say what a setting is
    "svm": {"Kernel": "kernel"} | {name: name for name in SVM[1:]},
    "resnet": {
        "Network": "model", "Optimizer": "optimizer", "Learning rate": "lr",
        "Batch size": "batch_size", "Epochs": "epochs",
    },
}  # fmt: skip
FIGURES = {"Training time (ms)": "train_ms", "Testing time (ms)": "predict_time_ms"}
TOP_NOTE = (
    "The best is chosen on validation among all models of the data set. Top: that, or not shown to"
    " be worse on the test images (a tie) or even better, on the seeds that all settings have."
)
GRAM_NOTE = (
    " An SVM fitted in a grid has all of the inner products that the grid shares in its training"
    " time; one fitted alone may compute only those that it needs."
)


def settings_tables(results: Results, file: str = "resnet") -> list[str]:
    """For each data set every setting in a file beside the best one of all models."""
    return [settings_table(results, dataset, file) for dataset in compared_datasets(results)]


def settings_table(results: Results, dataset: str, file: str) -> str:
    found = settings(results, dataset)
    figures = FIGURES | ({"Support vectors": "support_vectors"} if file == "svm" else {})
    lines = []
    for rows, cells in zip(found, beside_best(found), strict=True):
        if (rows[0]["model"] == "SVM") == (file == "svm"):
            factors = [rows[0][name] for name in SETTING[file].values()]
            line = [OPTIMIZERS.get(factor, plain(factor)) for factor in factors]
            line += [percent(rows) + collapsed(rows)]
            line += [average(rows, name) for name in figures.values()]
            line += [percent(rows, "val_accuracy"), str(len(rows))]
            line += ["/".join(listed(rows, "threads"))]
            lines.append(line + cells)
    header = [*SETTING[file], "Test accuracy (%)", *figures, "Validation accuracy (%)", "Seeds"]
    header += ["Threads", "Less the best (points)", "p, Holm", "Top"]
    every = select(results[file], dataset=dataset)
    used = one_setup(every)
    models, note, flags = "ResNets", TOP_NOTE, RESNET_FLAGS
    if file == "svm":
        models, note, flags = "SVMs", TOP_NOTE + GRAM_NOTE, SVM_FLAGS
    note += f"\n\n{caption(finished(used), SCRIPTS[file], flags)}"
    title = f"{DATASETS[dataset]}, {models}: all settings"
    return table(title, header, lines, note + left_out(every, used))


def failures(results: Results) -> list[str]:
    """Runs that gave no figure and, apart from them, those that did no better than guessing."""
    header = ["Data set", "Model", "Setting", "Seed", "Status", "Reason"]
    lines = {"Runs that failed": [], "Runs that collapsed: a result, not a failure": []}
    failed, guessing = lines.values()
    for row in (row for rows in results.values() for row in rows):
        if row["status"] not in ("ok", "skipped"):
            line = [DATASETS[row["dataset"]], row["model"], describe([row]), row["seed"]]
            line += [absent([row]), row["reason"]]
            (guessing if row["status"] == "collapsed" else failed).append(line)
    tables = [table(title, header, found) for title, found in lines.items() if found]
    return tables if failed else ["No run failed.", *tables]


def curves(results: Results) -> list[str]:
    """Charts of the loss and accuracy of the best ResNets after each epoch, of two at least."""
    parts = []
    for dataset, model in product(compared_datasets(results), MODELS[1:]):
        rows = best_of(results, dataset, model)
        epochs = rows[0]["history"] if rows else []
        for name, unit in (("loss", 1), ("accuracy", 100)) if len(epochs) > 1 else ():
            lines = {
                part: [unit * epoch[f"{key}_{name}"] for epoch in epochs]
                for part, key in (("training", "train"), ("validation", "val"))
            }
            values = [value for line in lines.values() for value in line]
            low, high = (0, max(values)) if unit == 1 else (math.floor(min(values) - 0.2), 100)
            parts.append(chart(
                f"{DATASETS[dataset]}, {model}: {name}", ("epoch", range(1, len(epochs) + 1)),
                (name, low, high or 1), lines, f"{describe(rows)}, seed {rows[0]['seed']}.",
            ))  # fmt: skip
    note = "Training figures are means over an epoch, while the weights change."
    return [*parts, note] if parts else [MISSING]


def confusion_tables(results: Results) -> list[str]:
    """Confusion matrix and accuracy by class of the best of each model; what it confuses most."""
    tables = []
    for dataset, model in product(compared_datasets(results), MODELS):
        runs = [row for row in best_of(results, dataset, model) if row["classes"]]
        for row in runs[:1]:
            names, wrong, pairs = class_names(row), row["confused"], Counter(row["confused"])
            for k, total in enumerate(row["classes"]):
                pairs[k, k] = total - sum(wrong[k, j] for j in range(10))
            lines = []
            for k, name in enumerate(names):
                counts = [str(pairs[k, j]) for j in range(10)]
                lines.append([name, *counts, proportion(pairs[k, k], row["classes"][k])])
            title = f"Best {model} on {DATASETS[dataset]}: test images by class and prediction"
            note = f"Seed {row['seed']}. Most frequent errors: {mistaken(row, 5)}."
            tables.append(table(title, ["", *names, "Accuracy (%)"], lines, note))
    return tables or [MISSING]


BLOCKS = {  # of README.md
    "answer": answer,
    "verdicts": verdict_table,
    "resnet": resnet_tables,
    "best_svm": best_svms,
    "models": best_models,
    "devices": device_tables,
}
SECTIONS = {  # of results/README.md
    "svm": partial(settings_tables, file="svm"),
    "settings": settings_tables,
    "failures": failures,
    "curves": curves,
    "confusion": confusion_tables,
    "costs": device_details,
    "rules": rules,
}
TABLES = BLOCKS | SECTIONS


# --- files ---------------------------------------------------------------------------------------


def page(results: Results, digests: dict[Path, str]) -> str:
    """results/README.md: what README.md has no room for, and the digests of the rows."""
    several = len(digests) > len(NUMBERS)
    place = "these files" if several else "this folder"
    text = f"# All results\n\nWritten by `make_tables.py` from the rows in {place}:"
    for name in NUMBERS:
        files = " and ".join(
            f"`{harmless(str(path)) if several else path.name}` (SHA-256 `{digest}`)"
            for path, digest in digests.items()
            if path.stem == name
        )
        text += f"\n{count(len(results[name]), 'row')} of {files},"
    text = text.removesuffix(",") + "."
    for name, make in SECTIONS.items():
        heading = "SVM" if name == "svm" else name.capitalize()
        text += "\n\n".join([f"\n\n## {heading}", *make(results)])
    return text + "\n"


def fill(text: str, blocks: dict[str, str]) -> str:
    """Replace what stands between each table's markers. Exits 2 if a marker is not there once."""
    for name, block in blocks.items():
        start, end = f"<!-- table: {name} -->", f"<!-- end: {name} -->"
        before, found, rest = text.partition(start)
        _, closed, after = rest.partition(end)
        if not (found and closed) or start in after or end in before + after:
            fail(f"the markers {start} and {end} must stand in the file once, in this order")
        text = f"{before}{start}\n\n{block}\n\n{end}{after}"
    return text


def replace_files(texts: dict[Path, str]) -> None:
    """Write beside each file, then put all in place; nothing is left behind if that fails."""
    temporaries = {path: path.with_name(f".{path.name}.tmp") for path in texts}
    try:
        for path, temporary in temporaries.items():
            temporary.write_text(texts[path])
            if path.exists():
                shutil.copymode(path, temporary)
        for path, temporary in temporaries.items():
            os.replace(temporary, path)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = lambda message: fail(f"{message} (see {parser.prog} --help)")
    parser.add_argument(
        "--results-dir", type=Path, nargs="+", default=[Path("results")], metavar="DIR"
    )
    parser.add_argument("--readme", type=Path, metavar="FILE", help="write the tables into it")
    parser.add_argument("--check", action="store_true", help="compare with it, change nothing")
    parser.add_argument("--table", choices=TABLES, metavar="NAME", help=", ".join(TABLES))
    return parser.parse_args(argv)


def write(args: argparse.Namespace, blocks: dict[str, str], details: str) -> int:
    """Fill README's markers and write the page beside the first folder's rows, or compare; returns
    the exit code."""
    readme, beside = args.readme or Path("README.md"), args.results_dir[0] / "README.md"
    if readme.resolve() == beside.resolve():
        fail(f"{beside} is written whole; give --readme another file")
    try:
        old = {path: path.read_text() if path.exists() else None for path in (readme, beside)}
        new = {readme: fill(readme.read_text(), blocks), beside: details}
        changed = {path: text for path, text in new.items() if old[path] != text}
        if not args.check:
            replace_files(changed)
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{readme}, {beside}: {error}")
    for path in changed if args.check else ():
        print(f"{path} is out of date: run python make_tables.py --readme {readme}")
    return 1 if args.check and changed else 0


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    for folder in args.results_dir if len(args.results_dir) > 1 else ():
        if not folder.is_dir():
            fail(f"--results-dir {folder}: there is no such folder")
    results, digests = load(args.results_dir)
    try:
        check_splits([row for rows in results.values() for row in finished(rows)])
        if args.table:
            print("\n\n".join(TABLES[args.table](results)), flush=True)
            return 0
        blocks = {name: "\n\n".join(make(results)) for name, make in BLOCKS.items()}
        details = page(results, digests)
    except KeyError as error:
        fail(f"the rows in {', '.join(map(str, args.results_dir))} have no column {error}")
    if args.readme or args.check:
        return write(args, blocks, details)
    print("\n\n".join([*blocks.values(), details]), flush=True)
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        os._exit(1)
