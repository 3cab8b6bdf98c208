"""Turn the rows in results/ into markdown tables, print them, or write them into README.md.

    python make_tables.py                      # to stdout, for pasting
    python make_tables.py --readme README.md   # in place of what is between its markers
    python make_tables.py --check              # exit 1 if README.md is not what the rows give

A choice among runs (epochs, hyperparameters, the best model) is made on validation accuracy alone.
"""

import argparse
import csv
import math
import os
import shutil
import sys
from itertools import product
from pathlib import Path
from statistics import mean, stdev

DATASETS = {"mnist": "MNIST", "fashion": "FashionMNIST", "digits": "digits"}
ARCHITECTURES = {"resnet18": "ResNet-18", "resnet34": "ResNet-34", "resnet50": "ResNet-50"}
OPTIMIZERS = {"sgd": "SGD", "adam": "Adam"}
DEVICES = {"cpu": "CPU", "cuda": "GPU", "mps": "Apple GPU"}
GRID = tuple(product((16.0, 32.0), OPTIMIZERS, (1e-3, 1e-4)))  # the lines of the ResNet tables
SVM = ("kernel", "C", "gamma", "degree", "coef0")
TRAINING = ("batch_size", "optimizer", "lr", "momentum", "epochs", "pin_memory")
# Rows that differ in one of these are never put into one table.
SETUP = (
    "limit", "train_size", "fixed_split", "amp", "device", "device_name", "precision", "solver",
)  # fmt: skip
WORK = ("limit", "batch_size", "lr", "epochs", "amp", "fixed_split")  # of a device table
MISSING = "not measured"
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
NAMES = {"dataset": DATASETS, "arch": ARCHITECTURES, "optimizer": OPTIMIZERS, "device": DEVICES}


def fail(message: str):
    """Print one line on stderr and exit with code 2."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


# --- rows ----------------------------------------------------------------------------------------


def read_rows(folder: Path, name: str) -> list[dict]:
    """The rows of a file, with numbers as float; none if it is absent. Exits 2 if it is broken."""
    path = folder / f"{name}.csv"
    csv.field_size_limit(2**31 - 1)  # a long training's history is longer than the default
    try:
        with path.open(newline="") as file:
            return [parse_row(row, NUMBERS[name]) for row in csv.DictReader(file, strict=True)]
    except FileNotFoundError:
        return []
    except KeyError as error:
        fail(f"cannot read {path}: it has no column {error}")
    except (OSError, ValueError, csv.Error) as error:
        fail(f"cannot read {path}: {error}; mend it or use another --results-dir")


def parse_row(row: dict[str, str], numbers: tuple[str, ...]) -> dict:
    """Convert numbers, check names, and take from the texts what would break a table."""
    if None in row or None in row.values():
        raise ValueError("a row is torn")
    row = {
        name: " ".join(text.replace("|", "/").replace("<", "&lt;").split())
        for name, text in row.items()
    }
    for name, known in NAMES.items():
        if row.get(name) and row[name] not in known:
            raise ValueError(f"unknown {name} {row[name]!r}")
    for name in numbers:
        if row["status"] == "ok" or row[name]:
            row[name] = float(row[name])
            if not math.isfinite(row[name]):
                raise ValueError(f"{name} is not finite")
    # Seeds that share one split show less than those that each draw their own.
    row["fixed_split"] = row["split_seed"] if row["split_seed"] != row["seed"] else ""
    return row


def finished(rows: list[dict]) -> list[dict]:
    return select(rows, status="ok")


def check_splits(rows: list[dict]) -> None:
    """Exit 2 if rows that should have been trained on the same images were not."""
    splits = {}
    for row in rows:
        split = row["dataset"], row["split_seed"], row["limit"]
        if splits.setdefault(split, row["split_id"]) != row["split_id"]:
            fail(f"rows of {split[0]} with split seed {split[1]} differ in split_id, so in images")


def select(rows: list[dict], **values) -> list[dict]:
    """The rows that have these values."""
    return [row for row in rows if all(row[name] == value for name, value in values.items())]


def groups(rows: list[dict], names: tuple[str, ...]) -> dict[tuple, list[dict]]:
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


def best_group(rows: list[dict], names: tuple[str, ...]) -> list[dict]:
    """The rows of the setting with the best mean validation accuracy over the seeds that all
    settings have (over each one's own if they share none); of equal ones the first."""
    candidates = groups(rows, names).values()
    seeds = [{row["seed"] for row in group} for group in candidates]
    shared = set.intersection(*seeds) if seeds else set()

    def rank(group: list[dict]) -> float:
        return mean(row["val_accuracy"] for row in group if not shared or row["seed"] in shared)

    return max(candidates, key=rank, default=[])


# --- figures -------------------------------------------------------------------------------------


def wilson_interval(p: float, n: float, z: float = 1.959964) -> tuple[float, float]:
    """95 % interval of a proportion p of n trials (E. B. Wilson, JASA 22, 1927, p. 209)."""
    center = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    return center - half, center + half


def percent(rows: list[dict]) -> str:
    """Test accuracy in percent: mean ± standard deviation over seeds, or one run's interval."""
    if not rows:
        return MISSING
    values = [100 * row["test_accuracy"] for row in rows]
    if len(values) > 1:
        return f"{mean(values):.2f} ± {stdev(values):.2f}"
    low, high = wilson_interval(rows[0]["test_accuracy"], rows[0]["n_test"])
    return f"{values[0]:.2f} [{100 * low:.2f}, {100 * high:.2f}]"


def average(rows: list[dict], name: str, unit: float = 1, form: str = ",.0f") -> str:
    """Mean of a column over seeds, in units of unit."""
    return format(mean(row[name] for row in rows) / unit, form) if rows else MISSING


def absent(rows: list[dict]) -> str:
    """What stands where there is no figure: how its run failed, if it did."""
    status = rows[-1]["status"] if rows else "skipped"
    return MISSING if status == "skipped" else status.replace("_", " ")


def plain(value) -> str:
    """A factor's value as one types it: 0.001, 16, scale."""
    return str(value).removesuffix(".0")


def listed(rows: list[dict], name: str) -> list[str]:
    """The values of a column, each once, in the order of the rows."""
    return list(dict.fromkeys(plain(row[name]) for row in rows if row.get(name, "") != ""))


def render(header: list[str], lines: list[list[str]]) -> str:
    """A markdown table."""
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *lines))


def caption(rows: list[dict], script: str, flags: dict[str, str]) -> str:
    """What the figures are, where they were measured, and the command that makes them."""
    if not rows:
        return f"No rows yet: run `python {script}`."
    seeds = listed(rows, "seed")
    if len(seeds) > 1:
        note = f"± is the sample standard deviation over the n = {len(seeds)} seeds"
        note += f" {', '.join(seeds)}, which set split, initial weights and batch order; brackets,"
        note += " where there is one seed only, the 95 % Wilson interval of a single run."
    else:
        note = f"One seed ({seeds[0]}); in brackets the 95 % Wilson interval of a single run."
    for row, *_ in groups(rows, ("n_train", "n_val", "n_test")).values():
        note += f" {row['n_train']:,.0f} / {row['n_val']:,.0f} / {row['n_test']:,.0f} images."
    for row, *_ in groups(rows, ("device", "device_name", "threads", "torch")).values():
        precision = f", {row['precision']}" if row.get("precision") else ""
        note += f" {DEVICES[row['device']]}: {row['device_name']}{precision}, {row['threads']}"
        note += f" threads, torch {row['torch']}, scikit-learn {row['sklearn']}."
    words = [f"python {script}"]
    for flag, name in flags.items():
        values = [value for value in listed(rows, name) if value != "n/a"]
        words += [flag, *values] if values else []
    words += ["--no-amp"] if rows[0].get("amp") == "false" else []
    return f"{note}\n`{' '.join(words)}`"


def left_out(rows: list[dict], shown: list[dict]) -> str:
    """A line on the finished rows that a table does not use."""
    count = len(finished(rows)) - len(finished(shown))
    line = f"\n{count} rows of other setups (device, precision, size ...) are not shown."
    return line if count else ""


RESNET_FLAGS = {
    "--dataset": "dataset", "--arch": "arch", "--opt": "optimizer", "--lr": "lr",
    "--bs": "batch_size", "--epochs": "epochs", "--pin-memory": "pin_memory",
    "--momentum": "momentum", "--device": "device", "--seed": "seed",
    "--split-seed": "fixed_split", "--limit": "limit",
}  # fmt: skip
SVM_FLAGS = {
    "--dataset": "dataset", "--kernel": "kernel", "--C": "C", "--gamma": "gamma",
    "--degree": "degree", "--coef0": "coef0", "--seed": "seed", "--limit": "limit",
    "--train-size": "train_size",
}  # fmt: skip


# --- tables --------------------------------------------------------------------------------------


def datasets_of(rows: list[dict]) -> list[str]:
    """The data sets that there are rows of; without any, mnist and fashion."""
    found = {row["dataset"] for row in rows}
    return [name for name in DATASETS if name in found] or ["mnist", "fashion"]


def resnet_tables(results: dict[str, list[dict]]) -> str:
    """For each data set a line for each batch size, optimizer and learning rate."""
    parts = []
    for dataset in datasets_of(results["resnet"]):
        every = select(results["resnet"], dataset=dataset)
        tried = one_setup(every)
        rows = finished(tried)
        archs = [arch for arch in ARCHITECTURES if arch != "resnet34" or select(rows, arch=arch)]
        extra = set(groups(rows, TRAINING[:3])) - set(GRID)
        lines = []
        for batch_size, optimizer, lr in [*GRID, *sorted(extra)]:
            line = [plain(batch_size), OPTIMIZERS[optimizer], plain(lr)]
            for arch in archs:
                factors = {"arch": arch, "batch_size": batch_size, "optimizer": optimizer, "lr": lr}
                best = best_group(select(rows, **factors), TRAINING)
                figure = f"{percent(best)} ({plain(best[0]['epochs'])})" if best else ""
                line.append(figure or absent(select(tried, **factors)))
            lines.append(line)
        header = ["Batch size", "Optimizer", "Learning rate"]
        header += [f"{ARCHITECTURES[arch]} accuracy (%)" for arch in archs]
        parts += [
            f"**{DATASETS[dataset]}, ResNets: test accuracy, in parentheses the number of epochs,"
            " chosen on validation**",
            render(header, lines),
            caption(rows, "train_resnet.py", RESNET_FLAGS) + left_out(every, tried),
        ]
    return "\n\n".join(parts)


def setting_order(setting: tuple) -> list:
    """Sort settings with their numbers before their words."""
    return [(isinstance(value, str), value) for value in setting]


def svm_tables(results: dict[str, list[dict]]) -> str:
    """For each data set all SVMs, then a line for each data set's best."""
    parts, best_lines = [], []
    for dataset in datasets_of(results["svm"]):
        every = select(results["svm"], dataset=dataset)
        rows = finished(one_setup(every))
        by_setting = groups(rows, SVM)
        lines = [
            [*map(plain, setting), *svm_figures(by_setting[setting])]
            for setting in sorted(by_setting, key=setting_order)
        ]
        header = ["Kernel", "C", "gamma", "degree", "coef0"]
        header += ["Accuracy (%)", "Training time (ms)", "Testing time (ms)", "Support vectors"]
        parts += [
            f"**{DATASETS[dataset]}, SVMs: test accuracy and times**",
            render(header, lines or [[MISSING] * len(header)]),
            caption(rows, "train_svm.py", SVM_FLAGS) + left_out(every, rows),
        ]
        best = best_group(rows, SVM)
        cells = [describe_svm(best), *svm_figures(best)[:3]] if best else [MISSING] * 4
        best_lines.append([DATASETS[dataset], *cells])
    header = ["Data set", "Best SVM", "Accuracy (%)", "Training time (ms)", "Testing time (ms)"]
    return "\n\n".join(
        [*parts, "**The best SVM, chosen on validation**", render(header, best_lines)]
    )


def svm_figures(rows: list[dict]) -> list[str]:
    names = ("fit_time_ms", "predict_time_ms", "support_vectors")
    return [percent(rows), *(average(rows, name) for name in names)]


def describe_svm(rows: list[dict]) -> str:
    row = rows[0]
    values = [f"{name} {plain(row[name])}" for name in SVM[1:] if row[name] != ""]
    return f"{row['kernel']}, {', '.join(values)}"


def describe_resnet(rows: list[dict]) -> str:
    row = rows[0]
    return (
        f"{OPTIMIZERS[row['optimizer']]}, lr {plain(row['lr'])}, batch"
        f" {plain(row['batch_size'])}, epochs {plain(row['epochs'])}"
    )


def best_table(results: dict[str, list[dict]]) -> str:
    """The best SVM beside the best ResNets."""
    datasets = datasets_of(results["resnet"] + results["svm"])
    archs = ["resnet18", "resnet50"]
    lines = [["SVM"], *([ARCHITECTURES[arch]] for arch in archs)]
    header, notes = ["Model"], []
    for dataset in datasets:
        name = DATASETS[dataset]
        header += [f"{name}: setting", "accuracy (%)", "training time (ms)"]
        svms = finished(one_setup(select(results["svm"], dataset=dataset)))
        resnets = finished(one_setup(select(results["resnet"], dataset=dataset)))
        found = [(best_group(svms, SVM), describe_svm, "fit_time_ms")] + [
            (best_group(select(resnets, arch=arch), TRAINING), describe_resnet, "train_time_ms")
            for arch in archs
        ]
        for line, (rows, describe, time) in zip(lines, found, strict=True):
            cells = [describe(rows), percent(rows), average(rows, time)] if rows else [MISSING] * 3
            line += cells
        sizes = {row["n_train"] for rows, *_ in found for row in rows}
        if len(sizes) > 1:
            notes.append(f"{name}: the models were trained on different numbers of images.")
    title = "**The best SVM beside the best ResNets, each chosen on validation**"
    notes += ["Times are of the machines named at the tables above."]
    return "\n\n".join([title, render(header, lines), " ".join(notes)])


def device_tables(results: dict[str, list[dict]]) -> str:
    """For each data set CPU against GPU: accuracy, time and FLOPs, then the details."""
    every = results["devices"]
    datasets = datasets_of(every) if every else ["fashion"]
    return "\n\n".join(device_table(select(every, dataset=name), name) for name in datasets)


def device_table(every: list[dict], dataset: str) -> str:
    """The work (size, batch size, learning rate, epochs) that most rows have done, by device."""
    by_work = groups(every, WORK)
    tried = max(by_work.values(), key=lambda rows: (not rows[0]["limit"], len(rows)), default=[])
    rows = finished(tried)
    devices = [device for device in DEVICES if device != "mps" or select(rows, device=device)]
    header, lines, details = ["Device", "Optimizer"], [], []
    for name in ARCHITECTURES.values():
        header += [f"{name} accuracy (%)", "training time (ms)", "FLOPs"]
    for device, optimizer in product(devices, OPTIMIZERS):
        line = [DEVICES[device], OPTIMIZERS[optimizer]]
        for arch in ARCHITECTURES:
            factors = {"device": device, "optimizer": optimizer, "arch": arch}
            cell = best_group(select(rows, **factors), ("device_name", "precision", "momentum"))
            if cell:
                flops = average(cell, "training_flops", 1e6, ",.1f")
                line += [percent(cell), average(cell, "train_time_ms"), f"{flops} M"]
                details.append(device_details(cell))
            else:
                line += [absent(select(tried, **factors))] * 3
        lines.append(line)
    title = f"**{DATASETS[dataset]}, CPU and GPU"
    if rows:
        title += f": batch size {plain(rows[0]['batch_size'])}, lr {plain(rows[0]['lr'])}"
        title += f", epochs {plain(rows[0]['epochs'])}"
    note = (
        "FLOPs are those of training on one 1x28x28 image, forward and backward, 2 for each"
        " multiply-accumulate, counted on torchvision's network."
    )
    for device in devices:
        reasons = {row["reason"] for row in select(tried, device=device, status="skipped")}
        note += "".join(f" {DEVICES[device]} not measured: {reason}." for reason in reasons)
    flags = {flag: name for flag, name in RESNET_FLAGS.items() if flag != "--pin-memory"}
    note += "\n\n" + caption(rows, "compare_devices.py", flags) + left_out(every, tried)
    parts = [f"{title}**", render(header, lines), note]
    return "\n\n".join([*parts, render(DETAILS, details)] if details else parts)


DETAILS = [
    "Device", "Network", "Optimizer", "Step (ms), median", "min - max", "Images/s",
    "Achieved GFLOP/s", "Peak memory (MiB)", "Parameters", "live at 28x28",
    "Forward MACs (M)", "Forward FLOPs (M)",
]  # fmt: skip


def device_details(rows: list[dict]) -> list[str]:
    """A line of DETAILS; over seeds the mean, and the whole range of the windows."""
    row = rows[0]
    low, high = min(row["step_ms_min"] for row in rows), max(row["step_ms_max"] for row in rows)
    return [
        DEVICES[row["device"]],
        ARCHITECTURES[row["arch"]],
        OPTIMIZERS[row["optimizer"]],
        average(rows, "step_ms", 1, ".2f"),
        f"{low:.2f} - {high:.2f}",
        average(rows, "images_per_second"),
        average(rows, "achieved_flops_per_second", 1e9, ",.1f"),
        average(rows, "peak_memory_mib"),
        average(rows, "parameters"),
        f"{row['live_parameters'] / row['parameters']:.0%}",
        average(rows, "forward_macs", 1e6, ",.1f"),
        average(rows, "forward_flops", 1e6, ",.1f"),
    ]


TABLES = {
    "resnet": resnet_tables,
    "svm": svm_tables,
    "best": best_table,
    "devices": device_tables,
}


# --- README --------------------------------------------------------------------------------------


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


def replace_file(path: Path, text: str) -> None:
    """Write beside the file, then put it in its place."""
    temporary = path.with_name(f".{path.name}.tmp")
    temporary.write_text(text)
    shutil.copymode(path, temporary)
    os.replace(temporary, path)


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.error = lambda message: fail(f"{message} (see {parser.prog} --help)")
    parser.add_argument("--results-dir", type=Path, default=Path("results"), metavar="DIR")
    parser.add_argument("--readme", type=Path, metavar="FILE", help="write the tables into it")
    parser.add_argument("--check", action="store_true", help="compare with it, change nothing")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    results = {name: read_rows(args.results_dir, name) for name in NUMBERS}
    try:
        check_splits([row for rows in results.values() for row in finished(rows)])
        blocks = {name: make(results) for name, make in TABLES.items()}
    except KeyError as error:
        fail(f"the rows in {args.results_dir} have no column {error}")
    if not (args.readme or args.check):
        print("\n\n".join(blocks.values()), flush=True)
        return 0
    readme = args.readme or Path("README.md")
    try:
        old = readme.read_text()
        new = fill(old, blocks)
        if args.check and new != old:
            print(f"{readme} is out of date: run python make_tables.py --readme {readme}")
            return 1
        if new != old:
            replace_file(readme, new)
    except (OSError, UnicodeDecodeError) as error:
        fail(f"{readme}: {error}")
    return 0


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        os._exit(1)
