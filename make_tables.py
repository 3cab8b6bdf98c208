"""Turn the rows of a results folder into tables, pictures and verdicts.

    python make_tables.py                      # write results/tables.md and pictures
    python make_tables.py --readme README.md   # fill the markers of a README with tables, too
    python make_tables.py --results-dir results/reference --readme README.md --check

--check changes nothing and exits with 1 if a page is not what the rows give. Every choice is made
on validation images; test images only measure what was chosen. results/README.md has the rules.
"""

import html
import json
import math
import os
import re
import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import cycle
from pathlib import Path
from urllib.parse import quote

import numpy as np
from scipy import stats

import common

NAMES = {  # as tables show them; any other name is shown as it is
    "mnist": "MNIST", "fashion": "FashionMNIST", "resnet18": "ResNet-18", "resnet34": "ResNet-34",
    "resnet50": "ResNet-50", "sgd": "SGD", "adam": "Adam", "cpu": "CPU", "cuda": "GPU",
}  # fmt: skip
DATA = MNIST, FASHION = "mnist", "fashion"  # the assignment's data sets, networks and most epochs
NETWORKS = SMALL, LARGE = "ResNet-18", "ResNet-50"
EPOCHS = 5
DEVICES = "device", ("cpu", "cuda"), ("precision", "pin_memory")  # for pairs of equal work
SOLVERS = "gram", "sklearn"
KINDS = {"networks": "arch", "SVMs": "kernel"}  # and the factor that only they have
SEEDS = 3  # the fewest that give an interval; settings of fewer count only where none has them
# Cells do not break, which keeps tables flat on a phone.
UNBROKEN = {" ": "\N{NO-BREAK SPACE}", "-": "\N{NON-BREAKING HYPHEN}"}


# --- rows and settings ---------------------------------------------------------------------------


def show(value) -> str:
    """A factor's value or a name, as tables show it: 0.001, 16, scale, ResNet-18."""
    return f"{value:.9g}" if isinstance(value, (int, float)) else NAMES.get(value, str(value))


def count(number: float, noun: str) -> str:
    return f"{number:,.9g} {noun}{'' if number == 1 else 's'}"


def clean(value):
    """A number without the .0 or 1e-19 that other software adds; a text on one line, without
    characters that mean something in markdown, HTML or Liquid."""
    if isinstance(value, (int, float)):
        value = float(f"{value:.9g}")
        return int(value) if value.is_integer() else value
    if value is None:
        return None
    kept = "".join(c if c.isprintable() and c not in "|`<>[]{}\\" else " " for c in value[:200])
    return " ".join(kept.split())


def place(row: dict) -> str:
    """Where a run was: a GPU (Tesla T4), one thread of a CPU (AMD EPYC)."""
    threads = "one thread" if row["threads"] == 1 else count(row["threads"], "thread")
    device = "a GPU" if row.get("device") == "cuda" else f"{threads} of a CPU"
    return f"{device} ({clean(row['device_name'])})"


# How factors are shown, else as name and value; those that are usual or told elsewhere are not.
FORMS = {"optimizer": "{}", "batch_size": "batch {}", "device": "{}", "precision": "{}",
         "pin_memory": "pinned memory", "solver": "scikit-learn"}  # fmt: skip
USUAL = {"momentum": 0.9, "device": "cpu", "pin_memory": "no", "solver": "gram"}
TOLD = {"dataset", "limit", "arch", "kernel", "epochs", "amp"}


@dataclass(eq=False)
class Setting:
    """A row's key without its seed, and the finished run of each seed."""

    factors: dict[str, object]
    runs: dict[int, dict] = field(default_factory=dict)
    place: str = ""  # where the runs were whose times count
    text: str = ""  # the factors in words

    def __post_init__(self):
        name, limit, kernel = (self.factors.get(n) for n in ("dataset", "limit", "kernel"))
        self.data = show(name) + (f", {count(limit, 'image')}" if limit else "")
        self.model = f"SVM, {kernel}" if kernel else show(self.factors["arch"])
        self.family, self.name = ("SVM", f"the {kernel} SVM") if kernel else (self.model,) * 2
        self.epochs = self.factors.get("epochs", 0)
        self.file = re.sub("[^a-z0-9]", "_", name)  # of its data set's picture
        self.file += (f"-{limit:.9g}" if limit else "") + ".svg"

    def values(self, column: str, seeds: Iterable[int] = ()) -> np.ndarray:
        """A column's value for each seed, or for these; nan where a row has none."""
        return np.array([self.runs[seed][column] for seed in seeds or self.runs], float)

    def mean(self, column: str = "test_accuracy", seeds: Iterable[int] = ()) -> float:
        """In percent; equal ones are equal to the last bit."""
        return round(100 * float(self.values(column, seeds).mean()), 9)

    def flops(self) -> float:
        """Of one training, the median over seeds; nan if they are not known."""
        return float(np.median(self.values("training_flops")))

    def ms(self, column: str = "train_time_ms") -> float:
        """The shortest time at its place: other work can only slow a run."""
        return min(row[column] for row in self.runs.values() if place(row) == self.place)

    def curve(self) -> np.ndarray:
        """Training and validation accuracy after each epoch, the mean over seeds, percent."""
        names = "train_accuracy", "val_accuracy"
        try:
            runs = [json.loads(row["history"] or "[]") for row in self.runs.values()]
            return 100 * np.mean([[[e[name] for name in names] for e in run] for run in runs], 0)
        except (LookupError, TypeError, ValueError):
            common.fail(f"resnet.csv: {self.model}, {self.text}: a history is damaged")

    def order(self) -> tuple:
        """Those of SEEDS first, then by validation accuracy, FLOPs and name."""
        few, flops = len(self.runs) < SEEDS, np.nan_to_num(self.flops(), nan=math.inf)
        return few, -self.mean("val_accuracy"), flops, self.model, str(self.factors)


def load(folder: Path) -> tuple[list[Setting], int]:
    """The settings of a folder's finished rows, the best first, and how many runs failed. Exits 2
    if two runs of one seed have seen different splits."""
    found: dict[str, Setting] = {}
    splits, used = {}, set()
    rows = [(kind, r) for kind in common.KEY for r in common.read_rows(folder / f"{kind}.csv")]
    done = [
        (row["finished_utc"], row["seed"], kind, row) for kind, row in rows if row["status"] == "ok"
    ]
    for _, seed, kind, row in sorted(done, key=lambda run: run[:2]):
        factors = {name: clean(row[name]) for name in common.KEY[kind] if name != "seed"}
        setting = found.setdefault(str(factors), Setting(factors))
        setting.runs[seed] = row
        used.add((row.get("device"), row.get("precision")))
        if splits.setdefault((setting.data, seed), row["split_id"]) != row["split_id"]:
            where = f"{folder / kind}.csv: runs of {setting.data} with seed {seed}"
            common.fail(f"{where} differ in split_id; remove the wrong ones")
    several = [device for device, _ in used]
    for each in found.values():
        each.runs = dict(sorted(each.runs.items()))
        told = TOLD if several.count(each.factors.get("device")) > 1 else TOLD | {"precision"}
        each.text = ", ".join(
            FORMS.get(name, f"{name} {{}}").format(show(value))
            for name, value in each.factors.items()
            if value is not None and USUAL.get(name) != value and name not in told
        )
    return sorted(found.values(), key=Setting.order), len(rows) - len(done)


def locate(settings: list[Setting], lines: list[Setting]) -> None:
    """Choose where the settings' times are of: where most lines of a table ran, then the newest run
    was. Other machines may be three times as fast."""
    ran = Counter(where for each in lines for where in {*map(place, each.runs.values())})
    for each in settings:
        runs = [(row["finished_utc"], place(row)) for row in each.runs.values()]
        each.place = max(runs, key=lambda run: (ran[run[1]], run))[1]


def best(settings: Iterable[Setting | None]) -> Setting | None:
    return min(filter(None, settings), key=Setting.order, default=None)


def pairs(settings: Iterable[Setting], name: str, values: tuple, but=()) -> list[tuple]:
    """Two settings each with these values of a factor, equal in all others but some. Settings come
    best first: of several, the best one counts."""
    groups: dict[str, dict] = {}
    for each in settings:
        same = {n: value for n, value in each.factors.items() if n not in (name, *but)}
        groups.setdefault(str(same), {}).setdefault(each.factors.get(name), each)
    return [tuple(map(found.get, values)) for found in groups.values() if {*values} <= found.keys()]


@dataclass(frozen=True)
class Lead:
    """Accuracy of one setting less another's, points, by seed; their mean, half its 95 % interval,
    and the mean as it is printed."""

    gaps: dict[int, float]
    mean: float
    half: float
    shown: float

    def sign(self) -> int:
        """1 or -1 if the mean is clearly above or below 0, else 0."""
        return int(self.mean > self.half) - int(self.mean < -self.half)

    def verdict(self, sign: int) -> str:
        return {1: "one split", 2: "two splits"}.get(len(self.gaps), WORDS[sign])

    def __str__(self) -> str:
        low, high = self.mean - self.half, self.mean + self.half
        return f"{self.shown:+.2f}" + f" [{low:+.2f}, {high:+.2f}]" * math.isfinite(self.half)


def average(gaps: dict[int, float], row: dict) -> Lead:
    """Student's interval; splits share images (C. Nadeau and Y. Bengio, Machine Learning 52, 2003).
    A difference of d takes at least d of the test images, which bounds the deviation."""
    values, n, half = np.array([*gaps.values()]), len(gaps), math.inf
    if n >= SEEDS:
        share = abs(values.mean()) / 100
        spread = max(values.std(ddof=1), 100 * math.sqrt(share * (1 - share) / row["n_test"]))
        spread *= math.sqrt(1 / n + row["n_test"] / row["n_train"])
        half = float(stats.t.ppf(0.975, n - 1) * spread)
    return Lead(gaps, float(values.mean()), half, float(values.mean()))


def lead(first: Setting | None, second: Setting | None) -> Lead | None:
    """Of the first setting over the second; printed is the difference of the printed means. None if
    one is missing or they share no seed."""
    if first and second and (seeds := [seed for seed in first.runs if seed in second.runs]):
        gaps = first.values("test_accuracy", seeds) - second.values("test_accuracy", seeds)
        gap = average(dict(zip(seeds, 100 * gaps, strict=True)), first.runs[seeds[0]])
        high, low = (round(each.mean(seeds=seeds), 2) for each in (first, second))
        return replace(gap, shown=high - low)


class Study:
    """The settings of a folder and of its page, the best first. A page is about the assignment's
    data sets: whole ones, or, if there is none, the largest subset of each; else about all others.
    Its networks were trained on each of its data sets."""

    def __init__(self, folder: Path):
        self.all, self.failed = load(folder)
        # scikit-learn's solver is here to compare the time of a fit; it is never chosen.
        ours = [each for each in self.all if each.factors.get("solver") != "sklearn"]
        ours.sort(key=lambda each: each.factors["limit"] or math.inf)
        found = {each.factors["dataset"]: each for each in ours}  # the largest
        found = {name: found[name] for name in DATA if name in found}
        whole = {name: each for name, each in found.items() if not each.factors["limit"]}
        self.assigned = {name: each.data for name, each in (whole or found).items()}
        self.data = [*self.assigned.values()] or sorted({each.data for each in ours})
        self.files = {each.data: each.file for each in ours}
        here = [each for each in ours if each.data in self.data]
        self.kernels = sorted({e.model for e in here if e.family == "SVM"}, reverse=True)
        models = [{e.model for e in here if e.data == data} for data in self.data]
        known = set().union(*models) - {*self.kernels}
        self.networks = sorted(known.intersection(*models) or known)
        self.settings = [e for e in here if e.model in (*self.networks, *self.kernels)]
        locate(self.all, [each for data in self.data for each in self.first_screen(data)])

    def of(self, data: str, model: str = "", most: float = EPOCHS, **factors) -> list[Setting]:
        """Settings of a data set, of a model (SVM: of all kernels) or all, with these factors."""
        found = [e for e in self.settings if e.data == data and e.epochs <= most]
        found = [each for each in found if model in ("", each.model, each.family)]
        return [each for each in found if factors.items() <= each.factors.items()]

    def short(self, data: str, model: str, **factors) -> Setting | None:
        """The best within EPOCHS."""
        return best(self.of(data, model, **factors))

    def longest(self, data: str, model: str, beyond: int = EPOCHS) -> Setting | None:
        """The best of the longest trainings of more epochs than that; those of SEEDS come first."""
        found = [e for e in self.of(data, model, most=math.inf) if e.epochs > beyond]
        return min(found, key=lambda e: (e.order()[0], -e.epochs, e.order()), default=None)

    def first_screen(self, data: str) -> list[Setting]:
        """The best of each model within EPOCHS, then those of the longest trainings."""
        found = [self.short(data, model) for model in (*self.networks, *self.kernels)]
        found += [self.longest(data, model) for model in self.networks]
        return [each for each in found if each]


# --- cells ---------------------------------------------------------------------------------------


def table(header: str, lines: list[list[str]]) -> str:
    """A markdown table; bars separate the header's names."""
    names, unbroken = header.split("|"), str.maketrans(UNBROKEN)
    rows = [[cell.translate(unbroken) for cell in line] for line in (names, *lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], ["---"] * len(names), *rows[1:]))


def listed(words: list[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, [", ".join(words[:-1]), *words[-1:]]))


def places(settings: Iterable[Setting]) -> str:
    return listed(sorted({each.place for each in settings}))


def rounded(value: float, digits: int = 3) -> str:
    """Some digits, or all of a whole number: 0.251, 25.4, 1,479."""
    if math.isnan(value):
        return "unknown"
    power = math.floor(math.log10(abs(value))) if value else 0
    return f"{value:,.{min(6, max(0, digits - 1 - power))}f}"


def span(values: Iterable[float]) -> str:
    """From the least to the largest: 2.4 to 3.1."""
    values = sorted(values)
    return " to ".join(dict.fromkeys(rounded(end, 2) for end in values[:1] + values[-1:]))


def percent(setting: Setting) -> str:
    """Test accuracy: mean ± standard deviation over seeds, which is at least the sampling error of
    the images (A. Agresti and B. Caffo, The American Statistician 54, 2000: with one more each)."""
    values, images = setting.values("test_accuracy"), setting.values("n_test")
    share = (values * images + 1) / (images + 2)
    least = np.sqrt((share * (1 - share) / (images + 2)).mean())
    spread = f" ± {100 * max(values.std(ddof=1), least):.2f}" if len(values) > 1 else ""
    return f"{setting.mean():.2f}{spread}"


CELLS: dict[str, Callable[[Setting], str]] = {  # columns of tables, by their headers
    "Data set": lambda each: each.data,
    "Model": lambda e: e.model + f", {count(e.epochs, 'epoch')}" * bool(e.epochs),
    "Test accuracy (%)": percent,
    "Validation (%)": lambda each: f"{each.mean('val_accuracy'):.2f}",
    "Training (s)": lambda each: rounded(each.ms() / 1e3),
    "Testing (s)": lambda each: rounded(each.ms("predict_time_ms") / 1e3),
    "FLOPs (10¹²)": lambda each: rounded(each.flops() / 1e12),
    "Splits": lambda each: str(len(each.runs)),
    "Setting": lambda each: each.text,
}


def listing(header: str, settings: list[Setting]) -> str:
    """A table with a line for each setting and columns of CELLS."""
    return table(header, [[CELLS[name](each) for name in header.split("|")] for each in settings])


def pivot(header: str, factors: tuple, settings: list[Setting], cells: Callable) -> str:
    """A table with a line for each value of the factors. cells(setting) gives its cells by their
    columns, each with a place in their order; of several settings, the first one counts."""
    lines: dict[tuple, dict] = {}
    for each in settings:
        line = tuple(each.factors[name] for name in factors)
        lines[line] = cells(each) | lines.get(line, {})
    columns = sorted(set().union(*lines.values()))
    order = sorted(sorted(lines, reverse=True), key=lambda line: line[0])  # SGD first, and 0.001
    cells = [[*map(show, n), *(lines[n].get(c, "not measured") for c in columns)] for n in order]
    return table("|".join([header, *(name for _, name in columns)]), cells)


# --- the answer ----------------------------------------------------------------------------------


def answer(study: Study) -> Iterator[str]:
    """Who is ahead on each data set, at what cost, the best of each model, and the pictures."""
    for data in study.data:
        yield f"### {data}\n{' '.join(sentences(study, data))}"
        columns = "Model|Test accuracy (%)|Training (s)|FLOPs (10¹²)|Splits|Setting"
        yield listing(columns, study.first_screen(data))
        if picture(study, data):
            yield f"![{data}: accuracy on validation images by epoch](./{study.files[data]})"
    if study.data:
        yield " ".join(how_to_read(study))


def how_to_read(study: Study) -> Iterator[str]:
    """What the figures of the answer are, and who fits the SVMs."""
    used = [each for data in study.data for each in study.first_screen(data)]
    kinds = sorted({e.factors["precision"] for e in used if "precision" in e.factors})
    yield (
        "A table's line is the setting that is best on validation images, with its accuracy on test"
        " images: mean ± standard deviation over random 70/10/20 splits. Two models are compared"
        " on the splits that both have. Times and FLOPs are those of training, on"
        f" {places(used)}{', networks in ' * bool(kinds)}{listed(kinds)}."
    )
    if any(len(each.runs) < SEEDS for each in used):
        yield "Fewer than three splits cannot tell a difference from luck."
    if study.kernels:
        twins = pairs([e for e in study.all if e.data in study.data], "solver", SOLVERS)
        times = span(b.ms() / a.ms() for a, b in twins if a.place == b.place)
        more = f"; scikit-learn's SVC takes {times} times as long" * bool(times)
        yield f"GramSVC, our own solver, fits the SVMs{more}."
    if {*map(show, DATA)} & {*study.data}:
        yield "Our test images are not the official ones: published figures differ."
    others = sorted({each.data for each in study.all} - {*study.data})
    more = f", and those of {listed(others)}" * bool(others)
    yield f"[All tables](./tables.md) have all settings, with testing times{more}."


def sentences(study: Study, data: str) -> Iterator[str]:
    """The best network against the best SVM, soon and after most epochs, then against others."""
    svm = study.short(data, "SVM")
    within = best(study.short(data, model) for model in study.networks)
    long = best(study.longest(data, model) for model in study.networks)
    if svm and within:
        yield versus(within, svm, f"Within {count(EPOCHS, 'epoch')} ")
    if svm and long:
        yield versus(long, svm, f"After {count(long.epochs, 'epoch')} ")
    main = long or within
    if not (svm and main):
        only = svm or main
        yield f"{capital(only.name)} has {percent(only)} % ({only.text})."
    for model in study.networks:
        other = study.longest(data, model) or study.short(data, model)
        if other and model != main.model:
            most = max(main.epochs, EPOCHS)
            when = f"{'After' if main.epochs > EPOCHS else 'Within'} {count(most, 'epoch')} "
            yield versus(other, main, when if most == max(other.epochs, EPOCHS) else "")


def versus(first: Setting, second: Setting, when: str) -> str:
    """Which of two is ahead, by how much and at what cost. Without a time that holds for both, each
    is named with its epochs."""

    def name(each: Setting) -> str:
        return each.name if when else f"{each.name} after {count(each.epochs, 'epoch')}"

    if not (gap := lead(first, second)):
        return f"{capital(f'{when}{name(first)}')} and {name(second)} share no split."
    if gap.mean < 0:
        first, second, gap = second, first, lead(second, first)
    high, low = (round(each.mean(seeds=gap.gaps), 2) for each in (first, second))
    points = f"by {gap.shown:.2f} points ({high:.2f} against {low:.2f})"
    n, won = len(gap.gaps), sum(each > 0 for each in gap.gaps.values())
    ahead = f"ahead of {name(second)}"
    if gap.sign():
        text = f"{when}{name(first)} is clearly {ahead}**, {points}"
        text += f" on the {n} splits that both have."
    elif high == low:
        text = f"{when}{name(first)} and {name(second)} are level** ({high:.2f})."
    elif won == n < SEEDS:
        text = (
            f"{when}{name(first)} is {ahead} on {('one split', 'both splits')[n - 1]}**, {points}."
        )
    else:
        splits = (
            f"all {n} splits, but too unequally to be sure" if won == n else f"{won} of {n} splits"
        )
        text = f"{when}it is undecided**: {name(first)} leads {name(second)} {points}, on {splits}."
    cheap, dear = sorted((first, second), key=lambda e: (np.nan_to_num(e.flops()), e.ms()))
    longer = f"trains {rounded(dear.ms() / cheap.ms(), 2)} times as long"
    longer += " as our SVM solver" * (cheap.place == dear.place and cheap.family == "SVM")
    if cheap.place != dear.place:
        longer = f"on {dear.place} {longer} as {cheap.name} on {cheap.place}"
    if not math.isnan(more := dear.flops() / cheap.flops()):
        longer += f", with {rounded(more, 2)} times the FLOPs"
    return f"**{capital(text)} {capital(dear.name)} {longer}."


def capital(text: str) -> str:
    return text[:1].upper() + text[1:]


# --- tables --------------------------------------------------------------------------------------


def resnets(study: Study) -> Iterator[str]:
    """Networks by batch size, optimizer and learning rate, after the most epochs within 5."""
    found = [each for data in study.data for each in study.of(data) if each.epochs]
    most = {each.data: each.epochs for each in sorted(found, key=lambda e: e.epochs)}
    if found := [each for each in found if each.epochs == most[each.data]]:
        yield pivot(
            "Batch|Optimizer|Rate", ("batch_size", "optimizer", "lr"), found,
            lambda e: {(study.data.index(e.data), f"{e.data}, {e.model}"): percent(e)},
        )  # fmt: skip
        epochs = " or ".join(map(show, sorted({*most.values()})))
        yield f"Test accuracy (%) after {epochs} epochs."
    if study.failed:
        yield f"{count(study.failed, 'run')} failed: resnet.csv and svm.csv say why."


def svms(study: Study) -> Iterator[str]:
    """The best setting of each kernel on each data set."""
    found = [e for data in study.data for e in study.first_screen(data) if e.family == "SVM"]
    if found:
        yield listing("Data set|Model|Test accuracy (%)|Training (s)|Testing (s)|Setting", found)


def devices(study: Study) -> Iterator[str]:
    """The same trainings on a CPU and on a GPU, as far as they were measured."""
    data = study.assigned.get(FASHION, [*study.data, ""][-1])
    same = {"batch_size": 16, "lr": 1e-3}.items()
    found = [e for e in study.all if e.data == data and e.epochs <= 3 and same <= e.factors.items()]
    if found := [replace(e) for e in found if e.epochs == max(e.epochs for e in found)]:
        locate(found, found)
        groups = [*enumerate(("Test accuracy (%)", "Training (s)", "FLOPs (10¹²)"))]
        yield pivot(
            "Device|Optimizer", ("device", "optimizer"), found,
            lambda e: {(n, f"{group}, {e.model}"): CELLS[group](e) for n, group in groups},
        )  # fmt: skip
        yield (
            f"{data}, batch 16, rate 0.001, {count(found[0].epochs, 'epoch')}, on {places(found)}."
            " FLOPs are those of a training on 28x28 images, 2 for each multiply-accumulate."
            f" {' '.join(costs(found))}"
        )


def costs(found: list[Setting]) -> Iterator[str]:
    """What ResNet-50 costs on each device, and how much faster a GPU is."""
    for device in dict.fromkeys(each.factors["device"] for each in found):
        on = [each for each in found if each.factors["device"] == device]
        if twins := pairs(on, "arch", ("resnet18", "resnet50")):
            times = span(large.ms() / small.ms() for small, large in twins)
            flops = span(large.flops() / small.flops() for small, large in twins)
            gains = [large.mean() - small.mean() for small, large in twins]
            sign, word = (1, "gains") if max(gains) > 0 else (-1, "loses")
            yield (
                f"On the {show(device)} {LARGE} trains {times} times as long as {SMALL}, with"
                f" {flops} times the FLOPs, and {word} {span(sign * gain for gain in gains)} points"
                " of accuracy."
            )
    twins = pairs(found, *DEVICES)
    for name in sorted({cpu.model for cpu, _ in twins}):
        times = span(cpu.ms() / gpu.ms() for cpu, gpu in twins if cpu.model == name)
        yield f"The GPU trains {name} {times} times as fast as the CPU."
    if not any(each.factors["device"] == "cuda" for each in found):
        yield "No GPU was measured."


def settings(study: Study) -> Iterator[str]:
    """Every setting, the best on validation images first."""
    columns = "Validation (%)|Test accuracy (%)|Training (s)|Testing (s)|FLOPs (10¹²)|Splits"
    for data in dict.fromkeys([*study.data, *sorted(each.data for each in study.all)]):
        for kind, factor in KINDS.items():
            if found := [e for e in study.all if e.data == data and factor in e.factors]:
                title = f"{data}: {count(len(found), 'setting')} of {kind}"
                yield f'<details markdown="1"><summary>{title}</summary>'  # for GitHub Pages, too
                yield listing(f"Model|Setting|{columns}", found)
                yield "</details>"


# --- claims --------------------------------------------------------------------------------------

WORDS = {1: "yes", -1: "no", 0: "not clear"}
NOISE = 2  # times of equal work on machines with the same instructions differed by up to this
LITTLE = 1.1  # a factor of time
CLAIMS = {
    "1a": "ResNet-18 beats ResNet-50 on MNIST", "1b": "ResNet-18 peaks at 99.30 %",
    "2": "ResNet-50 is not worth its cost", "3": "MNIST is easier everywhere",
    "4a": "SVMs train faster", "4a'": "SVMs train faster, with scikit-learn's solver",
    "4b": "SVMs train with fewer FLOPs", "5a": "SVMs are less accurate",
    "5b": "SVMs are less accurate, more so on MNIST", "6": "A GPU halves ResNet-50's time",
    "7": "A GPU does not halve ResNet-18's time", "8": "ResNet-18, Adam, 0.001 is best",
    "9": "pin_memory changes little",
}  # fmt: skip
Judge = Iterator[tuple[str, str, str]]  # a claim, its verdict and the figure behind that


def judge_mnist(study: Study, data: str) -> Judge:
    """Claims 1a and 1b, and, from both data sets, 3 and 5b."""
    lines = common.combinations(batch_size=[16, 32], optimizer=["sgd", "adam"], lr=[1e-3, 1e-4])
    gaps = [lead(*(study.short(data, model, **line) for model in NETWORKS)) for line in lines]
    gaps, runs = [gap for gap in gaps if gap], study.of(data, SMALL)
    if gaps and (seeds := set.intersection(*({*gap.gaps} for gap in gaps))):
        # A seed counts once, by the mean of its gaps over the lines.
        means = {seed: float(np.mean([gap.gaps[seed] for gap in gaps])) for seed in sorted(seeds)}
        overall = average(means, next(iter(runs[0].runs.values())))
        won = sum(gap.mean > 0 for gap in gaps)
        agree = (won > len(gaps) / 2) == (overall.mean > 0) and len(gaps) > len(lines) / 2
        word = overall.verdict(overall.sign() if agree else 0)
        yield "1a", word, f"{won} of {len(gaps)} lines, {overall}"
    if values := [100 * value for each in runs for value in each.values("test_accuracy")]:
        word = WORDS[1 if max(values) >= 99.295 else -1]
        yield "1b", word, f"best of {count(len(values), 'run')} {max(values):.2f}"
    found = [each for each in study.settings if each.epochs <= EPOCHS]
    gaps = [lead(*twins) for twins in pairs(found, "dataset", DATA, but=("limit",))]
    if gaps := [gap for gap in gaps if gap]:
        lower = sum(gap.mean > 0 for gap in gaps)
        yield "3", WORDS[1 if lower == len(gaps) else -1], f"in {lower} of {len(gaps)} settings"
    networks = [best(study.short(each, model) for model in NETWORKS) for each in study.data]
    gaps = [lead(each, each and study.short(each.data, "SVM")) for each in networks]
    if len(gaps) == 2 and all(gaps):
        first, second = gaps
        fewer = min(first.gaps, second.gaps, key=len)
        mean, shown = first.mean - second.mean, first.shown - second.shown
        more = Lead(fewer, mean, math.hypot(first.half, second.half), shown)
        text = f"{first.shown:+.2f} against {second.shown:+.2f}: {more}"
        yield "5b", more.verdict(more.sign()), text


def judge_accuracy(study: Study, data: str) -> Judge:
    """Claims 2, 5a and 8."""
    svm, small, large = (study.short(data, model) for model in ("SVM", *NETWORKS))
    if gap := lead(large, small):
        word = gap.verdict(-1 if gap.sign() > 0 else int(gap.mean + gap.half < 1))
        more = rounded(large.flops() / small.flops())
        yield "2", word, f"gains {gap}<br>for {more} times the FLOPs"
    for network in (small, large):
        if gap := lead(network, svm):
            yield "5a", gap.verdict(gap.sign()), f"{network.name} {gap}"
    adam, found = study.short(data, SMALL, optimizer="adam", lr=1e-3), study.of(data)
    found = [each for each in found if each.order()[0] == found[0].order()[0]]  # enough seeds
    if adam in found and found[1:] and (gap := lead(adam, found[0])):
        rank = 1 + found.index(adam)
        behind = f"<br>{gap} from the best" if rank > 1 else ""
        word = gap.verdict(1 if rank == 1 else min(gap.sign(), 0))
        yield "8", word, f"rank {rank} of {len(found)}{behind}"


def judge_cost(study: Study, data: str) -> Judge:
    """Claims 4a, 4a', 4b, 6, 7 and 9."""
    found = [each for each in study.all if each.data == data]
    solvers = dict(pairs(found, "solver", SOLVERS))
    svm, theirs = study.short(data, "SVM"), solvers.get(best(solvers))
    costs = ("4a", svm, Setting.ms, NOISE), ("4a'", theirs, Setting.ms, NOISE)
    for claim, other, cost, noise in (*costs, ("4b", svm, Setting.flops, 1)):
        for network in (study.short(data, model) for model in NETWORKS):
            if network and other:
                more = cost(network) / cost(other)
                word = WORDS[int(more > noise) - int(more < 1 / noise)]
                yield claim, word, f"{network.name} {rounded(more)} times"
    for claim, model, claimed in (("6", LARGE, 1), ("7", SMALL, -1)):
        twins = pairs((each for each in found if each.model == model), *DEVICES)
        if gains := [cpu.ms() / gpu.ms() for cpu, gpu in twins]:
            sign = int(min(gains) > 2 * LITTLE) - int(max(gains) < 2 / LITTLE)
            yield claim, WORDS[claimed * sign], f"{span(gains)} times as fast"
    runs = {}  # of a training that gives rows at several epochs, the longest counts
    twins = pairs(found, "pin_memory", ("no", "yes"))
    for no, yes in sorted(twins, key=lambda pair: pair[0].epochs):
        for seed in no.runs.keys() & yes.runs.keys():
            runs[str(no.factors | {"epochs": 0}), seed] = no.runs[seed], yes.runs[seed]
    if runs:
        digests = [(no["weights_sha256"], yes["weights_sha256"]) for no, yes in runs.values()]
        equal = sum(no == yes is not None for no, yes in digests)
        text = f"equal weights in {equal} of {count(len(runs), 'pair')}"
        yield "9", WORDS[1 if equal == len(runs) else -1], text
        more = np.median([no["train_time_ms"] / yes["train_time_ms"] for no, yes in runs.values()])
        word = WORDS[1 if 1 / LITTLE < more < LITTLE else -1]
        yield "9", word, f"{more:.2f} times as long without it"


def claims(study: Study) -> Iterator[str]:
    """An earlier report's claims, judged on each data set of the page."""
    found: dict[str, dict] = {claim: {} for claim in CLAIMS}
    for name, data in study.assigned.items():
        own = judge_mnist(study, data) if name == MNIST else ()
        for claim, word, text in (*own, *judge_accuracy(study, data), *judge_cost(study, data)):
            found[claim].setdefault(data, {}).setdefault(f"**{word}**: ", []).append(text)
    lines = []
    for claim in filter(found.get, found):
        cells = [found[claim].get(data, {}) for data in study.assigned.values()]
        cells = ["<br>".join(word + ", ".join(cell[word]) for word in cell) for cell in cells]
        lines.append([f"{claim} {CLAIMS[claim]}", *cells])
    if lines:
        yield table("|".join(["Claim", *study.assigned.values()]), lines)
        used = [each for each in study.all if each.data in study.data]
        if len({each.place for each in used}) > 1:
            where = [(n, [e for e in used if f in e.factors]) for n, f in KINDS.items()]
            yield f"Times are {listed([f'of {name} on {places(on)}' for name, on in where if on])}."
    if missing := [f"{claim} {CLAIMS[claim]}" for claim, cells in found.items() if not cells]:
        yield f"Not measured: {'; '.join(missing)}."


# --- pictures ------------------------------------------------------------------------------------

WIDTH, PLOT, LEFT, RIGHT = 410, 190, 46, 392  # of the picture, height and ends of its axes
# Of M. Okabe and K. Ito: all kinds of colour vision tell them apart. Then the SVM's, and ink.
COLOURS, BLUE, INK = ("#C04F00", "#007A59", "#AA4499"), "#0072B2", "#1f2328"


def ticks(low: float, high: float, least: float) -> np.ndarray:
    """At most seven round numbers (1, 2 or 5 times a power of ten apart) around a range."""
    steps = (digit * 10.0**power for power in range(-2, 9) for digit in (1, 2, 5))
    step = next(step for step in steps if step >= least and high - low <= 5 * step)
    first, last = math.floor(low / step + 1e-6), math.ceil(high / step - 1e-6)
    return np.round(step * np.arange(first, last + 1), 6)


def draw(title: str, lines: list[tuple], levels: np.ndarray) -> str:
    """An SVG in plain attributes, which every program draws, on white. Lines are colour, dashes,
    accuracies by epoch, and an entry of the legend, if any."""
    legend = [line for line in lines if line[3]]
    last, top = max(2, *(len(line[2]) for line in lines)), 52 + 18 * len(legend)
    bottom, height = top + PLOT, top + PLOT + 46
    box = f'x="{LEFT}" y="{top}" width="{WIDTH}" height="{PLOT}"'
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" width="{WIDTH}"'
        f' height="{height}" font-family="Segoe UI, Helvetica, Arial, sans-serif" font-size="14">',
        f'<rect width="{WIDTH}" height="{height}" fill="#ffffff"/>',
        f'<clipPath id="axes"><rect {box}/></clipPath>',
    ]

    def text(x, y, words, anchor="start", colour=INK):
        style = f'text-anchor="{anchor}" fill="{colour}"'
        parts.append(f'<text x="{x:.1f}" y="{y:.1f}" {style}>{html.escape(words)}</text>')

    def path(d, colour, dashes="none", more=""):
        style = f'fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dashes}"'
        parts.append(f'<path d="{d}" {style}{more}/>')

    def at(epoch, value) -> tuple:
        across, up = (epoch - 1) / (last - 1), (value - levels[0]) / (levels[-1] - levels[0])
        return LEFT + 10 + across * (RIGHT - LEFT - 10), bottom - up * PLOT

    text(8, 20, title)
    text(8, 38, "accuracy (%) on validation images, dotted: training")
    text(RIGHT, bottom + 36, "epoch", "end")
    for tick in sorted({1, *ticks(1, last, 1)} & {*range(1, last + 1)}):
        text(at(tick, 0)[0], bottom + 18, f"{tick:g}", "middle")
    digits = max(len(f"{level:g}".partition(".")[2]) for level in levels)
    for level in levels:
        text(LEFT - 6, at(1, level)[1] + 5, f"{level:.{digits}f}", "end")
    path(f"M{LEFT},{top}V{bottom}H{RIGHT + 8}", "#6e7681")
    for colour, dashes, values, _ in lines:
        points = [at(*point) for point in enumerate(values, 1)]
        d = "L".join(f"{x:.1f},{y:.1f}" for x, y in [*points, points[-1]])  # one epoch is a dot
        path(f"M{d}", colour, dashes, ' stroke-linecap="round" clip-path="url(#axes)"')
    for place, (colour, dashes, _, words) in enumerate(legend):
        path(f"M8,{53 + 18 * place}H40", colour, dashes)
        text(48, 58 + 18 * place, words, colour=colour)
    return "\n".join([*parts, "</svg>\n"])


def picture(study: Study, data: str) -> str | None:
    """Learning curves of each network's best longest training, and the best SVM as a line."""
    lines: list[tuple] = []
    for colour, model in zip(cycle(COLOURS), study.networks):
        one = study.longest(data, model) or study.longest(data, model, beyond=0)
        if one and len(found := one.curve()):
            train, val = found.T
            text = f"{model} {val[-1]:.2f} after {count(len(val), 'epoch')}"
            text += f", {count(len(one.runs), 'split')}"
            lines += [(colour, "2 4", train, ""), (colour, "none", val, text)]
    if not lines:
        return None
    if svm := study.short(data, "SVM"):
        level = [svm.mean("val_accuracy")] * max(2, *(len(line[2]) for line in lines))
        text = f"best SVM {level[0]:.2f}, {count(len(svm.runs), 'split')}"
        lines.append((BLUE, "9 5", level, text))
    shown = [line[2] for line in lines if line[3]]
    # Not the first epochs, which are far below.
    low = min(*(each[-1] for each in shown), np.quantile(np.concatenate(shown), 0.15))
    high = max(map(max, shown))
    return draw(data, lines, ticks(low - max(0.02, (high - low) / 20), high, 0.01))


# --- pages ---------------------------------------------------------------------------------------

TABLES = {make.__name__: make for make in (answer, resnets, svms, devices, claims, settings)}
NAME = "|".join(TABLES)
MARKED = re.compile(
    rf"^(<!-- table: ({NAME}) -->)[ \t]*\n.*?^(<!-- end: \2 -->)[ \t]*$", re.MULTILINE | re.DOTALL
)


def render(name: str, study: Study, place: str = "") -> str:
    """A table in markdown; place is the folder of its pictures."""
    text = "\n\n".join(TABLES[name](study)) or "Nothing was measured for this table."
    return text.replace("](./", f"]({place}")


def plain(text: str) -> str:
    """A table with the characters of a keyboard."""
    return text.translate({ord(hard): soft for soft, hard in UNBROKEN.items()})


def fill(readme: Path, study: Study, place: str) -> bytes:
    """A README with a table between each pair of its markers. Exits 2 if they are not in pairs."""
    text = readme.read_text(encoding="utf-8", errors="surrogateescape")
    found = len(MARKED.findall(text))
    if not found or 2 * found != len(re.findall(r"^\s*<!-- (?:table|end): ", text, re.MULTILINE)):
        common.fail(
            f"{readme}: markers must be in pairs, as <!-- table: answer --> and <!-- end: answer"
            f" -->, each on a line of its own, for {', '.join(TABLES)}"
        )
    text = MARKED.sub(lambda part: f"{part[1]}\n{render(part[2], study, place)}\n{part[3]}", text)
    return text.encode(errors="surrogateescape")


def outputs(study: Study, folder: Path, readme: Path | None) -> dict[Path, bytes]:
    """The content of every file; those in the folder follow from its rows, whatever the README."""
    drawn = {folder / study.files[data]: picture(study, data) for data in study.data}
    files = {path: svg.encode() for path, svg in drawn.items() if svg}
    parts = ["# Tables\n\nmake_tables.py writes this page from the rows beside it.\n"]
    for name, make in TABLES.items():
        parts.append(f"## {make.__doc__.rstrip('.')}\n\n{render(name, study)}\n")
    files[folder / "tables.md"] = "\n".join(parts).encode()
    if readme:
        place = Path(os.path.relpath(folder, readme.parent)).as_posix()
        files[readme] = fill(readme, study, quote(f"{place}/"))
    return files


def command(setting: Setting, folder: Path, seeds: Iterable[int], *more: str) -> str:
    """What to run for these splits of a setting."""
    names = {"optimizer": "opt", "batch_size": "bs", "pin_memory": "pin-memory"}
    words = ["python", "train_svm.py" if setting.family == "SVM" else "train_resnet.py"]
    for name, value in setting.factors.items():
        if value is not None and name not in ("amp", "precision"):
            words.append(f"--{names.get(name, name)}={value}")
    words += ["--no-amp"] * (setting.factors.get("amp") == "no")
    words += ["--seed", *map(str, seeds), "--results-dir", str(folder), *more]
    threads = clean([*setting.runs.values()][-1]["threads"])  # others give other bits
    return f"OMP_NUM_THREADS={threads} {shlex.join(words)}"


def advise(study: Study, folder: Path) -> Iterator[str]:
    """Commands for the splits that the first screen lacks, and for saving the best networks."""
    screens = [study.first_screen(data) for data in study.data]
    if few := [each for found in screens for each in found if len(each.runs) < SEEDS]:
        yield "Three splits give an interval. These commands make them:"
        yield from (command(each, folder, range(SEEDS)) for each in few)
    networks = [best(each for each in found if each.epochs) for found in screens]
    if networks := [*filter(None, networks)]:
        yield "These commands save the best networks:"
        for each in networks:
            yield command(each, folder, [*each.runs][:1], "--save-model", "models")


def parse_args(argv: list[str] | None = None):
    parser = common.make_parser(__doc__)
    add = parser.add_argument
    add("--results-dir", type=Path, default=Path("results"), metavar="DIR", help="where rows are")
    add("--readme", type=Path, metavar="FILE", help="fill the markers of a README, too")
    add("--check", action="store_true", help="change nothing, name stale files")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    folder, study = args.results_dir, Study(args.results_dir)
    if not study.all:
        hint = "train something, or use --results-dir results/reference"
        common.fail(f"{folder} holds no finished row: {hint}")
    files = outputs(study, folder, args.readme)
    stale = [p for p, content in files.items() if not p.exists() or p.read_bytes() != content]
    if args.check:
        told = [f"{path} is stale: run make_tables.py without --check" for path in stale]
        common.say("\n".join(told or [f"nothing is stale: {count(len(files), 'file')}"]))
        return 1 if stale else 0
    for path in stale:
        common.write_file(path, files[path])
    common.say(plain(render("answer", study, f"{folder}/")))
    common.say(f"\nAll tables: {folder / 'tables.md'}")
    common.say("\n".join(advise(study, folder)))
    return 0


if __name__ == "__main__":
    common.run_main(main)
