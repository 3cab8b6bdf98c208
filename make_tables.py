"""Turn the rows of a results folder into tables, pictures and verdicts.

    python make_tables.py                      # write results/tables.md and pictures
    python make_tables.py --readme README.md   # fill the markers of a README with tables, too
    python make_tables.py --results-dir results/reference --readme README.md --check

tables.md holds the tables that the README does not. --check changes nothing and exits with 1 if a
page is not what the rows give. Every choice is made on validation images alone; test images only
measure what was chosen.
"""

import html
import json
import math
import os
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from urllib.parse import quote

import numpy as np
from filelock import FileLock
from scipy import stats

import common

NAMES = {  # as tables show them; any other name is shown as it is
    "mnist": "MNIST", "fashion": "FashionMNIST", "resnet18": "ResNet-18", "resnet34": "ResNet-34",
    "resnet50": "ResNet-50", "sgd": "SGD", "adam": "Adam", "cpu": "CPU", "cuda": "GPU",
}  # fmt: skip
# The assignment's data sets, networks, lines and most epochs.
DATA = MNIST, FASHION = "MNIST", "FashionMNIST"
NETWORKS = SMALL, LARGE = "ResNet-18", "ResNet-50"
GRID = common.combinations(batch_size=[16, 32], optimizer=["sgd", "adam"], lr=[1e-3, 1e-4])
EPOCHS = 5
FACTORS = {
    "resnet": ("arch", "optimizer", "lr", "momentum", "batch_size", "epochs", "amp"),
    "svm": ("kernel", "C", "gamma", "degree", "coef0", "solver"),
    "devices": ("device", "arch", "optimizer", "lr", "momentum", "batch_size", "epochs", "amp"),
}
HARD = "\N{NO-BREAK SPACE}"


# --- rows ----------------------------------------------------------------------------------------


def show(value) -> str:
    """A factor's value or a name, as tables show it: 0.001, 16, scale, ResNet-18."""
    return f"{value:.9g}" if isinstance(value, (int, float)) else NAMES.get(value, str(value))


def count(number: float, noun: str) -> str:
    return f"{number:,.9g} {noun}{'' if number == 1 else 's'}"


def harmless(text: str) -> str:
    """A text on one line, without characters that mean something in markdown, HTML or Liquid."""
    kept = "".join(c if c.isprintable() and c not in "|`<>[]{}\\" else " " for c in text[:200])
    return " ".join(kept.split())


def load(folder: Path) -> list[dict]:
    """All rows of a folder, with columns that follow from others. Exits 2 if a history is damaged,
    or if two runs of one seed have seen different splits."""
    rows, splits = [], {}
    for kind in FACTORS:
        path = folder / f"{kind}.csv"
        for row in common.read_rows(path):
            key = common.key_of(path, row)
            for name, value in row.items():
                if isinstance(value, str) and name != "history":
                    row[name] = harmless(value)
                if isinstance(value, float) and name in FACTORS[kind]:
                    row[name] = float(f"{value:.9g}")  # other software may add 1e-19
            part = f", {count(row['limit'], 'image')}" if row["limit"] else ""
            row |= {
                "kind": kind, "key": key, "data": show(row["dataset"]) + part,
                "model": f"SVM, {row['kernel']}" if kind == "svm" else show(row["arch"]),
                "train_ms": row["fit_time_ms" if kind == "svm" else "train_time_ms"],
                "machine": (row.get("device", "cpu"), row["device_name"], row["threads"]),
                "curve": curve(path, row),
            }  # fmt: skip
            split, own = (row["data"], row["split_seed"]), row["split_id"]
            if row["status"] == "ok" and splits.setdefault(split, own) != own:
                common.fail(f"{path}: runs of {split} differ in split_id; remove the wrong ones")
            rows.append(row)
    return rows


def curve(path: Path, row: dict) -> np.ndarray:
    """Training and validation accuracy after each epoch, percent [epochs, 2]."""
    names = "train_accuracy", "val_accuracy"
    try:
        epochs = json.loads(row.get("history") or "[]")
        values = np.array([[epoch[name] for name in names] for epoch in epochs], float)
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError
    except (ArithmeticError, LookupError, TypeError, ValueError, RecursionError):
        common.fail(f"{path}: the history of seed {row['seed']} is damaged; mend or remove its row")
    return 100 * values.reshape(-1, 2)


# --- settings ------------------------------------------------------------------------------------

FORMS: dict[str, Callable] = {  # of factors that are not shown as name and value
    "optimizer": show, "batch_size": lambda size: f"batch {show(size)}",
    "epochs": partial(count, noun="epoch"), "solver": lambda _: "scikit-learn",
}  # fmt: skip
UNSHOWN = {("momentum", 0.9), ("solver", "gram"), ("amp", "yes")}


@dataclass(eq=False)
class Setting:
    """A model with its hyperparameters on a data set, and the newest finished run of each seed."""

    data: str
    model: str
    factors: dict[str, object]
    runs: dict[int, dict]
    machine: tuple = ()  # device, its name and threads of the newest run

    def __post_init__(self):
        self.family = "SVM" if "kernel" in self.factors else self.model
        self.name = "the SVM" if self.family == "SVM" else self.model
        self.epochs = self.factors.get("epochs", 0)
        shown = [
            FORMS[name](value) if name in FORMS else f"{name} {show(value)}"
            for name, value in self.factors.items()
            if value is not None and (name, value) not in UNSHOWN
            and name not in ("arch", "kernel", "device")
        ]  # fmt: skip
        self.text = ", ".join(shown)

    def values(self, column: str) -> np.ndarray:
        """A column's value for each seed; nan where a row has none."""
        return np.array([row[column] for row in self.runs.values()], float)

    def mean(self, column: str = "test_accuracy") -> float:
        """In percent; equal ones are equal to the last bit."""
        return round(100 * float(self.values(column).mean()), 9)

    def flops(self) -> float:
        """Of one training, the median over seeds; nan if they are not known."""
        return float(np.median(self.values("training_flops")))

    def ms(self, column: str = "train_ms") -> float:
        """The shortest time on its machine: other work can only slow a run."""
        return min(row[column] for row in self.runs.values() if row["machine"] == self.machine)

    def order(self) -> tuple:
        """By validation accuracy; of equal ones with fewer FLOPs, then by name."""
        flops = np.nan_to_num(self.flops(), nan=math.inf)
        return -self.mean("val_accuracy"), flops, self.model, self.text


def settings_of(rows: list[dict]) -> list[Setting]:
    """The settings of finished rows, the best on validation images first. A run counts if its seed
    drew its split; of several, such as on a CPU and a GPU, the newest."""
    found = {}
    for row in sorted(rows, key=lambda row: (row["finished_utc"] or "", str(row["key"]))):
        if row["status"] == "ok" and row["split_seed"] == row["seed"]:
            factors = {name: row[name] for name in FACTORS[row["kind"]]}
            key = row["data"], row["model"], str([show(value) for value in factors.values()])
            setting = found.setdefault(key, Setting(*key[:2], factors, {}))
            setting.runs[row["seed"]], setting.machine = row, row["machine"]
    for setting in found.values():
        setting.runs = dict(sorted(setting.runs.items()))
    return sorted(found.values(), key=Setting.order)


def best(settings: Iterable[Setting | None]) -> Setting | None:
    """The best on validation images. Those of fewer than 3 seeds count only where none has 3."""
    settings = [each for each in settings if each]
    settings = [each for each in settings if len(each.runs) >= 3] or settings
    return min(settings, key=Setting.order, default=None)


@dataclass(frozen=True)
class Lead:
    """Test accuracy of one setting less another's, in points, for each seed that both have."""

    gaps: dict[int, float]
    overlap: float  # test images / training images

    @property
    def mean(self) -> float:
        return float(np.mean([*self.gaps.values()]))

    def interval(self) -> tuple[float, float]:
        """95 %, Student's t; splits share images (C. Nadeau and Y. Bengio, Machine Learning 52,
        2003). Without limits for fewer than 3 seeds."""
        n = len(self.gaps)
        if n < 3:
            return -math.inf, math.inf
        error = np.std([*self.gaps.values()], ddof=1) * math.sqrt(1 / n + self.overlap)
        half = float(stats.t.ppf(0.975, n - 1) * error)
        return self.mean - half, self.mean + half

    def sign(self, bound: float = 0) -> int:
        """1 or -1 if the mean is clearly above or below the bound, else 0."""
        return above(bound, *self.interval())

    def __str__(self) -> str:
        low, high = self.interval()
        limits = f" [{low:+.2f}, {high:+.2f}]" if len(self.gaps) > 2 else ""
        return f"{self.mean:+.2f}{limits}"


def above(bound: float, low: float, high: float) -> int:
    """1 or -1 if a range is above or below a bound, else 0."""
    return int(low > bound) - int(high < bound)


def lead(first: Setting | None, second: Setting | None) -> Lead | None:
    """Of the first setting over the second; None if one is missing or they share no seed."""
    if not (first and second and (seeds := [seed for seed in first.runs if seed in second.runs])):
        return None
    row, ours, theirs = first.runs[seeds[0]], first.runs, second.runs
    gaps = {s: 100 * (ours[s]["test_accuracy"] - theirs[s]["test_accuracy"]) for s in seeds}
    return Lead(gaps, row["n_test"] / row["n_train"])


class Study:
    """The rows of a folder and their settings, each list with the best on validation first."""

    def __init__(self, rows: list[dict]):
        self.rows = rows
        self.devices = settings_of([row for row in rows if row["kind"] == "devices"])
        self.all = settings_of([row for row in rows if row["kind"] != "devices"])
        # scikit-learn's solver is here to compare the time of a fit; it is never chosen.
        self.settings = [each for each in self.all if each.factors.get("solver") != "sklearn"]
        found = {each.data for each in self.all}
        self.all_data = [*(name for name in DATA if name in found), *sorted(found - {*DATA})]
        # The whole data sets of the assignment, or else all.
        chosen = {each.data for each in self.settings}
        chosen = chosen & {*DATA} or chosen
        self.data = [data for data in self.all_data if data in chosen]
        models = {each.model for each in self.all}
        self.kernels = sorted({name for name in models if name.startswith("SVM")}, reverse=True)
        self.networks = sorted(models - {*self.kernels}, key=lambda name: (len(name), name))

    def of(self, data: str, model: str = "", most: float = EPOCHS, **factors) -> list[Setting]:
        """The settings of a data set with at most so many epochs, of a model (SVM: of all kernels)
        or of all, with these factors."""
        return [
            each for each in self.settings
            if each.data == data and model in ("", each.model, each.family)
            and each.epochs <= most and factors.items() <= each.factors.items()
        ]  # fmt: skip

    def short(self, data: str, model: str, **factors) -> Setting | None:
        """The best within EPOCHS."""
        return best(self.of(data, model, **factors))

    def longest(self, data: str, model: str, beyond: int = EPOCHS) -> Setting | None:
        """The best of the longest trainings, if they have more epochs than that."""
        found = self.of(data, model, most=math.inf)
        last = max((each.epochs for each in found), default=0)
        return best(each for each in found if each.epochs == last > beyond)


# --- cells ---------------------------------------------------------------------------------------


def table(header: str, lines: list[list[str]]) -> str:
    """A markdown table; bars separate the header's names. Its cells do not break, which keeps it
    flat on a phone."""
    names = header.split("|")
    rows = [[cell.replace(" ", HARD) for cell in line] for line in (names, *lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(names), *rows[1:]))


def listed(words: list[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def slashed(values: list[str]) -> str:
    """One value, or one for each data set: 359 / 380."""
    return values[0] if len(set(values)) == 1 else " / ".join(values)


def rounded(value: float, digits: int = 3) -> str:
    """Some digits, or all of a whole number: 0.251, 25.4, 1,479."""
    if math.isnan(value):
        return "unknown"
    power = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{min(6, max(0, digits - 1 - power))}f}"


def percent(setting: Setting) -> str:
    """Test accuracy: mean ± standard deviation over seeds, or a single run's. A deviation is at
    least the one that the number of test images leaves (A. Agresti and B. Caffo, The American
    Statistician 54, 2000: with one more image of each kind)."""
    values, images = setting.values("test_accuracy"), setting.values("n_test")
    share = (values * images + 1) / (images + 2)
    least = np.sqrt((share * (1 - share) / (images + 2)).mean())
    spread = f" ± {100 * max(values.std(ddof=1), least):.2f}" if len(values) > 1 else ""
    return f"{setting.mean():.2f}{spread}"


def seconds(setting: Setting, column: str = "train_ms") -> str:
    """A time, and where it was measured if that is no CPU."""
    return rounded(setting.ms(column) / 1e3) + " (GPU)" * (setting.machine[0] == "cuda")


CELLS: dict[str, Callable[[Setting], str]] = {  # columns of tables, by their headers
    "Data set": lambda each: each.data,
    "Model": lambda each: each.model,
    "Device": lambda each: show(each.factors["device"]),
    "Accuracy (%)": percent,
    "Validation (%)": lambda each: f"{each.mean('val_accuracy'):.2f}",
    "Training (s)": seconds,
    "Testing (s)": partial(seconds, column="predict_time_ms"),
    "FLOPs (10¹²)": lambda each: rounded(each.flops() / 1e12),
    "MFLOPs an image": lambda each: rounded(
        each.flops() / each.values("n_train")[0] / each.epochs / 1e6, 4
    ),
    "Splits": lambda each: str(len(each.runs)),
    "Setting": lambda each: each.text,
}


def listing(header: str, settings: list[Setting]) -> str:
    """A table with a line for each setting and columns of CELLS."""
    return table(header, [[CELLS[name](each) for name in header.split("|")] for each in settings])


def hardware(settings: list[Setting]) -> str:
    """The machines that times were measured on."""
    words = {
        name if device == "cuda" else f"{count(threads, 'thread')} of a CPU ({name})"
        for device, name, threads in (each.machine for each in settings)
    }
    return listed(sorted(words))


# --- the answer ----------------------------------------------------------------------------------


def answer(study: Study) -> Iterator[str]:
    """The best of each model on each data set, who is ahead, at what cost, and the pictures."""
    lines, used = [], []
    for model, pick in [
        *((model, study.short) for model in (*study.networks, *study.kernels)),
        *((model, study.longest) for model in study.networks),
    ]:
        found = [pick(data, model) for data in study.data]
        if known := [each for each in found if each]:
            used += known
            epochs = slashed([count(each.epochs, "epoch") for each in known if each.epochs])
            cells = [percent(each) if each else "not measured" for each in found]
            for name in ("Training (s)", "FLOPs (10¹²)", "Splits"):
                cells.append(slashed([CELLS[name](each) if each else "-" for each in found]))
            lines.append([f"{model}, {epochs}" if epochs else model, *cells])
    if lines:
        names = "|".join(f"{data} (%)" for data in study.data)
        yield table(f"Model|{names}|Training (s)|FLOPs (10¹²)|Splits", lines)
        yield how_to_read(study, used)
        yield "\n".join(f"- {data}: {' '.join(sentences(study, data))}" for data in study.data)
        drawn = [data for data in study.data if picture(study, data)]
        if drawn:
            words = "validation accuracy against FLOPs of training"
            yield "\n".join(f"![{data}: {words}](./{slug(data)}.svg)" for data in drawn)
            yield (
                "Pictures show validation images: numbers are epochs, bands the range over splits,"
                " dotted curves training accuracy, faint points other SVM settings. What lies on"
                " the lower edge is below it."
            )


def how_to_read(study: Study, used: list[Setting]) -> str:
    """What the figures of the answer are."""
    rows = [row for each in used for row in each.runs.values()]
    totals = {sum(row[name] for name in ("n_train", "n_val", "n_test")) for row in rows}
    size = f" of {count(*totals, 'image')}" if len(totals) == 1 else ""
    kinds = sorted({row["precision"] for row in rows if "precision" in row})
    precision = f", networks in {listed(kinds)}" if kinds else ""
    text = (
        "Each line shows, for each data set, the setting that is best on validation images and its"
        f" accuracy on test images: mean ± standard deviation over random 70/10/20 splits{size}."
        f" Models are compared on the splits that both have. Times are for {hardware(used)}"
        f"{precision}."
    )
    text += f" *a / b* is {' / '.join(study.data)}." if study.data[1:] else ""
    text += no_gpu([*study.all, *study.devices])
    if study.data[0] in DATA:
        text += " Our test images are not the official ones: published figures differ."
    others = [data for data in study.all_data if data not in study.data]
    return text + (f" Only tables.md has the rows of {listed(others)}." if others else "")


def no_gpu(settings: list[Setting]) -> str:
    is_known = any(each.machine[0] == "cuda" for each in settings)
    return "" if is_known else " No GPU was measured."


def sentences(study: Study, data: str) -> Iterator[str]:
    """Which is ahead on a data set, the best network or the best SVM: within EPOCHS, and after most
    epochs."""
    svm = study.short(data, "SVM")
    network = best(study.short(data, model) for model in study.networks)
    long = best(study.longest(data, model) for model in study.networks)
    if svm and network:
        yield versus(network, svm, f"within {count(EPOCHS, 'epoch')}")
    if svm and long:
        yield versus(long, svm, f"after {count(long.epochs, 'epoch')}")
    if not svm or not (network or long):
        only = svm or network or long
        yield f"{only.name} has {percent(only)} % ({only.text})."


def versus(network: Setting, svm: Setting, when: str) -> str:
    """Which of the two is ahead, by how much, on how many splits, and at what cost."""
    gap = lead(network, svm)
    if not gap:
        return f"{when.capitalize()} {network.name} and the SVM share no split."
    first, second, sign = (network, svm, 1) if gap.mean >= 0 else (svm, network, -1)
    n, won = len(gap.gaps), sum(sign * each > 0 for each in gap.gaps.values())
    clearly, but = ("clearly ", "") if gap.sign() else ("", ", but not clearly")
    few = "" if n >= 3 else ", too few for an interval"
    return (
        f"**{when.capitalize()} {first.name} is {clearly}ahead of {second.name}{but}**, by"
        f" {abs(gap.mean):.2f} points, on {won} of {count(n, 'common split')}{few}."
        f" {cost(network, svm)}."
    )


def cost(first: Setting, second: Setting) -> str:
    """How the training times of two settings compare, if they are of one machine."""
    fast, slow = sorted((first, second), key=Setting.ms)
    text = f"{slow.name} trains {rounded(slow.ms() / fast.ms(), 2)} times as long"
    if not math.isnan(more := slow.flops() / fast.flops()):
        text += f", with {rounded(more, 2)} times the FLOPs"
    if fast.machine != slow.machine:
        times = [f"{each.name} trains in {seconds(each)} s" for each in (fast, slow)]
        text = f"{listed(times)}, on different hardware"
    return text[0].upper() + text[1:]


# --- tables --------------------------------------------------------------------------------------


def resnets(study: Study) -> Iterator[str]:
    """A line for each batch size, optimizer, learning rate and momentum, at its best epochs."""
    names = ("batch_size", "optimizer", "lr", "momentum")
    columns = [(data, model) for data in study.data for model in study.networks]
    tried = [row for row in study.rows if (row["data"], row["model"]) in columns]
    tried = [row for row in tried if row["kind"] == "resnet" and row["epochs"] <= EPOCHS]
    most = max((row["epochs"] for row in tried), default=0)

    def cell(data: str, model: str, line: dict) -> str:
        if setting := study.short(data, model, **line):
            return percent(setting) + f" ({show(setting.epochs)})" * (setting.epochs < most)
        same = {"data": data, "model": model, **line}
        failed = {row["status"] for row in tried if same.items() <= row.items()}
        return listed(sorted(failed)).replace("_", " ") or "not measured"

    lines = []
    keys = {tuple(row[name] for name in names) for row in tried}
    for key in sorted(keys, key=lambda key: (key[0], key[1] != "sgd", key[1], -key[2], str(key))):
        size, optimizer, lr, momentum = key
        own = f", momentum {show(momentum)}" * (momentum not in (None, 0.9))
        line = dict(zip(names, key, strict=True))
        cells = [cell(*column, line) for column in columns]
        lines.append([show(size), show(optimizer) + own, show(lr), *cells])
    if lines:
        heads = "|".join(f"{data}, {model}" for data, model in columns)
        yield table(f"Batch|Optimizer|Rate|{heads}", lines)
        yield (
            f"Test accuracy (%) after {count(most, 'epoch')}, or after the number in parentheses if"
            " that is better on validation images or the only one."
        )


def svms(study: Study) -> Iterator[str]:
    """The best setting of each kernel on each data set."""
    found = [study.short(data, model) for data in study.data for model in study.kernels]
    if any(found):
        names = "Data set|Model|Accuracy (%)|Training (s)|Testing (s)|Setting"
        yield listing(names, list(filter(None, found)))


def devices(study: Study) -> Iterator[str]:
    """The same trainings on a CPU and on a GPU, as far as they were measured."""
    found = sorted(study.devices, key=lambda e: (e.data, str(e.factors["device"]), e.model, e.text))
    if found:
        names = "Data set|Device|Model|Setting|Accuracy (%)|Training (s)|MFLOPs an image"
        yield listing(names, found)
        text = f"On {hardware(found)}. MFLOPs are those of training, forward and backward."
        yield text + no_gpu(found)


def settings(study: Study) -> Iterator[str]:
    """Every setting, the best on validation images first."""
    columns = "Validation (%)|Accuracy (%)|Training (s)|Testing (s)|FLOPs (10¹²)|Splits"
    for data in study.all_data:
        for models in (study.networks, study.kernels):
            found = [e for e in study.all if e.data == data and e.model in models]
            if found:
                kind = "SVMs" if models == study.kernels else "ResNets"
                title = f"{data}: {count(len(found), 'setting')} of {kind}"
                yield f"<details><summary>{title}</summary>"
                yield listing(f"Model|Setting|{columns}", found)
                yield "</details>"


def failures(study: Study) -> Iterator[str]:
    """Failed runs, and finished ones that stand in no table."""
    names = ("kind", "data", "model", "seed", "status", "reason")
    failed = [row for row in study.rows if row["status"] != "ok"]
    lines = sorted([show(row[name]) for name in names] for row in failed)
    yield table("File|Data set|Model|Seed|Status|Reason", lines) if lines else "No run failed."
    yield apart(study)


def apart(study: Study) -> str:
    """How many finished rows stand in no table."""
    used = {id(row) for e in (*study.all, *study.devices) for row in e.runs.values()}
    used |= {id(row) for pair in pinned_pairs(study) for row in pair.values()}  # of claim 9
    left = sum(row["status"] == "ok" and id(row) not in used for row in study.rows)
    why = "made with --split-seed, or not the newest of their setting and seed"
    return f"{count(left, 'finished row')} in no table: {why}." if left else ""


def is_assigned(row: dict) -> bool:
    """Whether the assignment asks for a finished row, on its one seed."""
    if row["kind"] == "svm" and not (row["C"] in (0.1, 1) and row["solver"] == "gram"):
        return False
    gammas = ("scale", "auto", 0.01, 0.1)
    is_first = row["seed"] == row["split_seed"] == 0
    return is_first and row.get("epochs", 0) <= EPOCHS and row.get("gamma", 0.1) in gammas


def spent(rows: list[dict]) -> str:
    """Hours of training and testing by model; of the rows of one training the longest counts."""
    longest, total = {}, Counter()
    for row in sorted(rows, key=lambda row: row["train_ms"]):
        key = zip(common.KEY[row["kind"]], row["key"], strict=True)
        longest[row["kind"], *(value for name, value in key if name != "epochs")] = row
    for row in longest.values():
        family = "SVMs" if row["kind"] == "svm" else row["model"]
        total[family] += (row["train_ms"] + row["predict_time_ms"]) / 3.6e6
    words = [f"{name} {hours:.1f}" for name, hours in sorted(total.items())]
    return f"{total.total():.1f} hours ({', '.join(words)})"


def hours(study: Study) -> Iterator[str]:
    """What the assignment took, and all runs."""
    rows = [row for row in study.rows if row["status"] == "ok"]
    if part := [row for row in rows if is_assigned(row)]:
        machines = hardware(settings_of(part))
        yield (
            f"The assignment takes {spent(part)}, for one process on {machines}; two on 2 cores"
            f" take half of it. Everything here took {spent(rows)}."
        )


# --- claims --------------------------------------------------------------------------------------
#
# A judge gives the figures that a claim needs on a data set, each with a sign: 1 as claimed, -1 not
# so, 0 within its uncertainty. results/README.md tells the rules in words.

WORDS = {1: "yes", -1: "no", 0: "not clear"}
DEARER = 1.5  # a gain below one point of accuracy is not worth so many times the FLOPs
NOISE = 2  # times of equal work on machines with the same instructions differed by up to this
LITTLE = 1.1  # a factor of time
Judge = Callable[[Study, str], Iterator[tuple[int, str]]]


def most_lines(study: Study, data: str):
    gaps = [lead(*(study.short(data, model, **line) for model in NETWORKS)) for line in GRID]
    gaps = list(filter(None, gaps))
    seeds = set.intersection(*(set(gap.gaps) for gap in gaps)) if gaps else set()
    if seeds:
        # A seed counts once, by the mean of its gaps over the lines.
        means = {seed: float(np.mean([gap.gaps[seed] for gap in gaps])) for seed in seeds}
        overall, won = Lead(means, gaps[0].overlap), sum(gap.mean > 0 for gap in gaps)
        agree = (won > len(gaps) / 2) == (overall.mean > 0) and len(gaps) > len(GRID) / 2
        yield overall.sign() if agree else 0, f"{won} of {len(gaps)} lines, {overall}"


def peak(study: Study, data: str):
    runs = [100 * v for each in study.of(data, SMALL) for v in each.values("test_accuracy")]
    if runs:
        yield 1 if max(runs) >= 99.295 else -1, f"best of {count(len(runs), 'run')} {max(runs):.2f}"


def not_worth_it(study: Study, data: str):
    small, large = (study.short(data, model) for model in NETWORKS)
    if gap := lead(large, small):
        dearer = large.flops() / small.flops()
        sign = -gap.sign(bound=1 if dearer > DEARER else 0)  # at equal cost any gain is worth it
        yield sign, f"gains {gap}<br>for {rounded(dearer)} times the FLOPs"


def lower_on_fashion(study: Study, data: str):
    mnist = {(each.model, each.text): each for each in study.of(MNIST)}
    gaps = [lead(mnist.get((each.model, each.text)), each) for each in study.of(data)]
    if gaps := list(filter(None, gaps)):
        lower = sum(gap.mean > 0 for gap in gaps)
        yield 1 if lower == len(gaps) else -1, f"in {lower} of {len(gaps)} settings"


def svm_costs_less(study: Study, data: str, cost: Callable, solver: str = "gram", noise: float = 1):
    svm = study.short(data, "SVM")
    factors = svm and svm.factors | {"solver": solver}
    svm = next((each for each in study.all if (each.data, each.factors) == (data, factors)), None)
    for model in NETWORKS:
        network = study.short(data, model)
        if svm and network and (cost is Setting.flops or svm.machine == network.machine):
            more = cost(network) / cost(svm)
            yield above(1, more / noise, more * noise), f"{model} {rounded(more)}"


def svm_is_behind(study: Study, data: str):
    for model in NETWORKS:
        if gap := lead(study.short(data, model), study.short(data, "SVM")):
            yield gap.sign(), f"{model} {gap}"


def gap_is_wider(study: Study, data: str):
    networks = {name: best(study.short(name, model) for model in NETWORKS) for name in DATA}
    gaps = [lead(networks[name], study.short(name, "SVM")) for name in DATA]
    if all(gaps):
        (low, high), (other_low, other_high) = (gap.interval() for gap in gaps)
        sign = int(low > other_high) - int(high < other_low)
        yield sign, f"{gaps[0].mean:+.2f} against {gaps[1].mean:+.2f}"


def gpu_gain(study: Study, data: str, model: str, claimed: int):
    """CPU time over GPU time of equal trainings; claimed is 1 for a gain above 2, -1 for below."""
    found = [each for each in study.devices if (each.data, each.model) == (data, model)]
    for gpu in found:
        cpu = [each for each in found if each.factors == gpu.factors | {"device": "cpu"}]
        rows = [next(iter(each.runs.values())) for each in (*cpu, gpu)]
        if cpu and gpu.factors["device"] == "cuda" and rows[0]["cpu_name"] == rows[1]["cpu_name"]:
            gain = cpu[0].ms() / gpu.ms()
            ends = [rows[0][f"step_ms_{a}"] / rows[1][f"step_ms_{b}"]
                    for a, b in (("min", "max"), ("max", "min"))]  # fmt: skip
            sign = claimed * above(2, min(gain, *ends), max(gain, *ends))
            yield sign, f"{show(gpu.factors['optimizer'])} {rounded(gain)} times as fast"


def adam_is_best(study: Study, data: str):
    found = study.of(data)
    adam, winner = study.short(data, SMALL, optimizer="adam", lr=1e-3), best(found)
    if adam and found[1:]:
        gap = lead(adam, winner)
        sign = 1 if adam is winner else min(gap.sign(), 0) if gap else 0
        behind = f"<br>{gap} from the best" if gap and adam is not winner else ""
        yield sign, f"rank {1 + found.index(adam)} of {len(found)}{behind}"


def pinned_pairs(study: Study) -> list[dict[str, dict]]:
    """Runs on a GPU with pinned memory (yes) and without (no), all else equal."""
    pairs = {}
    for row in study.rows:
        if row["kind"] == "resnet" and row["status"] == "ok" and row["machine"][0] == "cuda":
            same = [row[name] for name in common.KEY["resnet"] if name != "pin_memory"]
            pairs.setdefault(str((row["machine"], same)), {})[row["pin_memory"]] = row
    return [pair for pair in pairs.values() if len(pair) == 2]


def pinning_changes_nothing(study: Study, data: str):
    pairs = [pair for pair in pinned_pairs(study) if pair["no"]["data"] == data]
    if pairs:
        equal = sum(pair["yes"]["weights_sha256"] == pair["no"]["weights_sha256"] for pair in pairs)
        ratios = [pair["no"]["train_ms"] / pair["yes"]["train_ms"] for pair in pairs]
        more = float(np.median(ratios))
        yield 1 if equal == len(pairs) else -1, f"{equal} of {len(pairs)} pairs of equal weights"
        yield 1 if 1 / LITTLE < more < LITTLE else -1, f"{more:.2f} times as long without"


CLAIMS: dict[str, tuple[Judge, tuple[str, ...]]] = {  # and the data sets that they are about
    "1a ResNet-18 beats 50 on MNIST": (most_lines, (MNIST,)),
    "1b ResNet-18 peaks at 99.30 %": (peak, (MNIST,)),
    "2 ResNet-50 is not worth its cost": (not_worth_it, DATA),
    "3 MNIST is easier everywhere": (lower_on_fashion, (FASHION,)),
    "4a SVMs train faster (times)": (partial(svm_costs_less, cost=Setting.ms, noise=NOISE), DATA),
    "4a' ... with scikit-learn's solver": (
        partial(svm_costs_less, cost=Setting.ms, noise=NOISE, solver="sklearn"), DATA
    ),
    "4b ... with fewer FLOPs (times)": (partial(svm_costs_less, cost=Setting.flops), DATA),
    "5a SVMs are less accurate": (svm_is_behind, DATA),
    "5b ... more so on MNIST": (gap_is_wider, (MNIST,)),
    "6 A GPU halves ResNet-50's time": (partial(gpu_gain, model=LARGE, claimed=1), DATA),
    "7 ... but not ResNet-18's": (partial(gpu_gain, model=SMALL, claimed=-1), DATA),
    "8 ResNet-18, Adam, 0.001 is best": (adam_is_best, DATA),
    "9 pin_memory changes little": (pinning_changes_nothing, DATA),
}  # fmt: skip


def claims(study: Study) -> Iterator[str]:
    """An earlier report's claims, judged on each whole data set."""
    lines, missing = [], []
    for claim, (judge, about) in CLAIMS.items():
        cells = []
        for data in DATA:
            figures = {}
            for sign, text in judge(study, data) if data in about else ():
                figures.setdefault(f"**{WORDS[sign]}**: ", []).append(text)
            cells.append("<br>".join(word + ", ".join(texts) for word, texts in figures.items()))
        if any(cells):
            lines.append([claim, *cells])
        else:
            missing.append(claim.replace("... ", ""))
    if lines:
        yield table("Claim|" + "|".join(DATA), lines)
    yield f"Not measured: {'; '.join(missing)}." if missing else ""


# --- pictures ------------------------------------------------------------------------------------

WIDTH, HEIGHT = 410, 326
LEFT, RIGHT, TOP, BOTTOM = 46, 400, 92, 276  # of the axes
# Colours of M. Okabe and K. Ito, which all kinds of colour vision tell apart, on light and on dark.
STYLE = """
text { font: 14px system-ui, sans-serif; fill: #1f2328 } .title { font-weight: bold }
.paper { fill: #ffffff } path { fill: none; stroke: var(--c); stroke-width: 2 }
circle { fill: var(--c) } .axis { stroke: #8c959f; stroke-width: 1 }
.faint { opacity: 0.4 } .band { fill: var(--c); stroke: none; opacity: 0.2 }
.dotted { stroke-dasharray: 2 4; stroke-width: 1.5 } .dashed { stroke-dasharray: 9 5 }
.name { fill: var(--c); font-weight: bold }
.m0 { --c: #0072B2 } .m1 { --c: #C04F00 } .m2 { --c: #007A59 } .m3 { --c: #AA4499 }
@media (prefers-color-scheme: dark) {
text { fill: #e6edf3 } .paper { fill: #0d1117 } .axis { stroke: #6e7681 }
.m0 { --c: #56B4E9 } .m1 { --c: #E69F00 } .m2 { --c: #2FC79B } .m3 { --c: #DD9CC0 } }
"""


class Plot:
    """An SVG of accuracies (%) against FLOPs; what lies below the axes is drawn on their edge."""

    def __init__(self, title: str, x: Iterable[float], y: tuple[float, float]):
        logs = np.log10(x)
        margin = 0.05 * (max(logs) - min(logs)) or 0.5
        self.x, self.y = (min(logs) - margin, max(logs) + margin), y
        self.parts = [f"<title>{html.escape(title)}</title><style>{STYLE}</style>",
                      '<rect width="100%" height="100%" class="paper"/>',
                      f'<path d="M{LEFT},{TOP}V{BOTTOM}H{RIGHT}" class="axis"/>']  # fmt: skip
        self.text(8, 20, title, "title")
        self.text(8, TOP - 14, "validation accuracy (%)")
        self.text(RIGHT, HEIGHT - 8, "FLOPs of training (10¹²)", anchor="end")
        for tick in (digit * 10.0**power for power in range(-4, 6) for digit in (1, 2, 5)):
            if self.x[0] < math.log10(tick) < self.x[1]:
                self.text(self.at(tick, y[0])[0], BOTTOM + 18, f"{tick:,.6g}", anchor="middle")
        step = next(step for step in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20) if y[1] - y[0] <= 6 * step)
        for tick in np.arange(0, 100 + step, step):
            if y[0] < tick < min(y[1], 100.01):
                self.text(LEFT - 6, self.at(x[0], tick)[1] + 5, f"{tick:.6g}", anchor="end")

    def at(self, x, y) -> tuple:
        """Pixels of points."""
        return np.interp(np.log10(x), self.x, (LEFT, RIGHT)), np.interp(y, self.y, (BOTTOM, TOP))

    def text(self, x: float, y: float, text: str, css: str = "", anchor: str = "start") -> None:
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}">'
                          f"{html.escape(text)}</text>")  # fmt: skip

    def dot(self, x: float, y: float, css: str, radius: float = 3) -> None:
        across, down = self.at(x, y)
        self.parts.append(f'<circle cx="{across:.1f}" cy="{down:.1f}" r="{radius}" class="{css}"/>')

    def line(self, x, y, css: str) -> None:
        pixels = "L".join(f"{a:.1f},{b:.1f}" for a, b in zip(*self.at(x, y), strict=True))
        self.parts.append(f'<path d="M{pixels}" class="{css}"/>')

    def curve(self, css: str, x, runs) -> None:
        """Of [seeds, epochs, (training, validation)] the mean, its range, and points to read it."""
        train, val = np.moveaxis(runs, 2, 0)
        self.line([*x, *x[::-1]], [*val.min(0), *val.max(0)[::-1]], f"{css} band")
        inside = train.mean(0) < self.y[1]
        self.line(x[inside], train.mean(0)[inside], f"{css} dotted")
        self.line(x, val.mean(0), css)
        for epoch, (at, value) in enumerate(zip(x, val.mean(0), strict=True), 1):
            self.dot(at, value, css)
            if epoch in (1, EPOCHS, len(x)):
                across, down = self.at(at, value)
                below = epoch == 1 and down < BOTTOM - 20
                self.text(across, down + (17 if below else -8), str(epoch), anchor="middle")

    def svg(self) -> str:
        size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
        body = "\n".join(self.parts)
        return f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">\n{body}\n</svg>\n'


def slug(data: str) -> str:
    """The name of a data set's picture."""
    return re.sub("[^a-z0-9]+", "-", data.lower())


def picture(study: Study, data: str) -> str | None:
    """Validation accuracy against FLOPs of training. Each SVM is a faint point, the best one a
    solid point with a line across. Each network is the curve of its best longest training, with a
    point for each epoch."""
    svms = [each for each in study.of(data, "SVM") if each.flops() > 0]
    points = [(each.flops() / 1e12, each.mean("val_accuracy")) for each in svms]
    curves = {}
    for model in study.networks:
        one = study.longest(data, model, beyond=0)
        runs = [row["curve"] for row in one.runs.values()] if one else []
        if {len(run) for run in runs} == {one and one.epochs} and one.flops() > 0:
            across = one.flops() / 1e12 * np.arange(1, one.epochs + 1) / one.epochs
            curves[model] = across, np.array(runs)
            points += zip(across, curves[model][1][..., 1].mean(0), strict=True)
    if not points:
        return None
    x, y = zip(*points, strict=True)
    low, high = np.quantile(y, 0.15), max(y)  # the worst would press all others together
    plot = Plot(f"{data}: what more computation buys", x, (low, high + 0.1 * (high - low) + 0.01))
    for point in points[: len(svms)]:
        plot.dot(*point, "m0 faint")
    for place, (model, (across, runs)) in enumerate(curves.items(), 1):
        css = f"m{min(place, 3)}"
        plot.curve(css, across, runs)
        text = f"{model} {runs[:, -1, 1].mean():.2f} after {count(len(across), 'epoch')}"
        text += f", {count(len(runs), 'split')}"
        plot.text(RIGHT, 21 + 17 * place, text, f"name {css}", "end")
    if winner := best(svms):
        at, level = winner.flops() / 1e12, winner.mean("val_accuracy")
        plot.line([at, max(x)], [level, level], "m0 dashed")
        plot.dot(at, level, "m0", 5)
        across, down = plot.at(at, level)
        plot.text(max(across + 12, LEFT + 124), down - 9, f"best SVM {level:.2f}", "name m0", "end")
    return plot.svg()


# --- pages ---------------------------------------------------------------------------------------

TABLES: dict[str, Callable] = {
    make.__name__: make
    for make in (answer, resnets, svms, devices, claims, hours, settings, failures)
}
MARKED = re.compile(
    rf"^<!-- table: ({'|'.join(TABLES)}) -->[ \t]*\n.*?^<!-- end: \1 -->[ \t]*$",
    re.MULTILINE | re.DOTALL,
)


def render(name: str, study: Study, place: str = "") -> str:
    """A table in markdown; place is the folder of its pictures."""
    parts = [part for part in TABLES[name](study) if part]
    text = "\n\n".join(parts) or "Nothing was measured for this table."
    return text.replace("](./", f"]({place}")


def fill(readme: Path, study: Study, place: str) -> tuple[bytes, set[str]]:
    """A README with a table between each pair of its markers, and their names. Exits 2 if it cannot
    be read, or if markers are not in pairs."""
    try:
        text = readme.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        common.fail(f"cannot read {readme}: {error}")
    names = MARKED.findall(text)
    if not names or 2 * len(names) != len(re.findall(r"^\s*<!-- (?:table|end): ", text, re.M)):
        common.fail(
            f"{readme}: markers must be in pairs, as <!-- table: answer --> and <!-- end: answer"
            f" -->, each on a line of its own, for {', '.join(TABLES)}"
        )

    def part(match: re.Match) -> str:
        content = render(match[1], study, place)
        return f"<!-- table: {match[1]} -->\n\n{content}\n\n<!-- end: {match[1]} -->"

    return MARKED.sub(part, text).encode(), set(names)


def outputs(study: Study, folder: Path, readme: Path | None) -> dict[Path, bytes]:
    """The content of every file that is written."""
    drawn = {folder / f"{slug(data)}.svg": picture(study, data) for data in study.all_data}
    files, names = {path: svg.encode() for path, svg in drawn.items() if svg}, set()
    if readme:
        place = Path(os.path.relpath(folder, readme.parent)).as_posix()
        files[readme], names = fill(readme, study, quote(f"{place}/"))
    head = "# Tables\n\nmake_tables.py writes this page from the rows beside it.\n"
    parts = [
        f"## {make.__doc__.rstrip('.')}\n\n{render(name, study)}\n"
        for name, make in TABLES.items() if name not in names
    ]  # fmt: skip
    files[folder / "tables.md"] = "\n".join([head, *parts]).encode()
    return files


def parse_args(argv: list[str] | None = None):
    parser = common.make_parser(__doc__)
    add = parser.add_argument
    add("--results-dir", type=Path, default=Path("results"), metavar="DIR", help="where rows are")
    add("--readme", type=Path, metavar="FILE", help="fill the markers of a README, too")
    add("--check", action="store_true", help="change nothing, name stale files")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    folder = args.results_dir
    if not folder.is_dir():
        common.fail(f"--results-dir {folder}: there is no such folder; train something first")
    study = Study(load(folder))
    files = outputs(study, folder, args.readme)
    stale = [p for p, content in files.items() if not p.exists() or p.read_bytes() != content]
    if args.check:
        for path in stale:
            common.say(f"{path} is stale: run make_tables.py without --check")
        return 1 if stale else 0
    lock = common.running(folder / "tables.md", ".lock")
    lock.parent.mkdir(exist_ok=True)
    with FileLock(lock):
        for path in stale:
            common.write_file(path, files[path])
    common.say(render("answer", study, f"{folder}/").replace(HARD, " "))
    common.say("\n".join(["", apart(study), f"All tables: {folder / 'tables.md'}"]))
    return 0


if __name__ == "__main__":
    common.run_main(main)
