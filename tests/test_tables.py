"""Tables, verdicts and pictures: a function of the rows alone, whatever rows there are."""

import csv
import json
import math
import random
import re
import statistics
from collections import Counter, defaultdict
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import ROOT, finish, start
from scipy import stats

import common
import make_tables
import train_resnet
import train_svm

REFERENCE = ROOT / "results/reference"

# --- made rows -----------------------------------------------------------------------------------

FACTS = {
    "status": "ok", "dataset": "mnist", "seed": 0, "n_train": 49000, "n_val": 7000, "n_test": 14000,
    "predict_time_ms": 1000.0, "device_name": "Some CPU", "cpu_name": "Some CPU", "threads": 2,
    "torch": "2.15.0", "training_flops": 1e13, "finished_utc": "2026-01-01T00:00:00+00:00",
    **dict.fromkeys(("python", "torchvision", "sklearn", "numpy", "commit"), "1"),
}  # fmt: skip
TRAINING = FACTS | {
    "arch": "resnet18", "optimizer": "adam", "lr": 1e-3, "batch_size": 32, "epochs": 5,
    "pin_memory": "no", "amp": "yes", "precision": "float32", "device": "cpu",
    "val_accuracy": 0.98, "test_accuracy": 0.97, "train_time_ms": 60_000.0,
}  # fmt: skip


def save(folder: Path, name: str, row: dict) -> None:
    (folder / ".running").mkdir(parents=True, exist_ok=True)
    split = f"{row['dataset']}{row.get('limit', '')}-{row['seed']}"
    common.save_row(folder / f"{name}.csv", {"split_id": split} | row)


def resnet(folder: Path, **values) -> None:
    save(folder, "resnet", TRAINING | values)


def svm(folder: Path, **values) -> None:
    save(folder, "svm", FACTS | {
        "kernel": "rbf", "C": 1.0, "gamma": "scale", "solver": "gram", "val_accuracy": 0.97,
        "test_accuracy": 0.975, "train_time_ms": 5_000.0, "support_vectors": 9000, "iterations": 7,
        "gamma_value": 0.01, "training_flops": 2e12,
    } | values)  # fmt: skip


Q2 = {"dataset": "fashion", "optimizer": "sgd", "batch_size": 16, "epochs": 3}
GPU = {"device": "cuda", "device_name": "Some GPU", "precision": "float16"}


def seeds(make, folder: Path, *accuracies: float, **values) -> None:
    """A run for each seed with these test accuracies in percent."""
    for seed, accuracy in enumerate(accuracies):
        make(folder, seed=seed, **{"test_accuracy": accuracy / 100, **values})


def history(*accuracies: float) -> str:
    return json.dumps([{"train_accuracy": value, "val_accuracy": value} for value in accuracies])


CURVE = history(*[0.9] * 5)


def text(folder: Path, name: str) -> str:
    """One table, with plain spaces."""
    study = make_tables.Study(folder)
    return make_tables.plain(make_tables.render(name, study))


def claim(folder: Path, number: str) -> list[str]:
    """A claim's cells, none if it was not measured."""
    page = text(folder, "claims")
    found = re.findall(rf"^\| {number} .*", page, re.MULTILINE)
    assert bool(found) != bool(re.search(rf"(measured: |; ){number} ", page))
    return [cell.strip() for line in found for cell in line.split("|")[2:-1]]


def outcome(*flags) -> int:
    """The exit code of make_tables.py."""
    try:
        return make_tables.main([str(flag) for flag in flags])
    except SystemExit as stop:
        return stop.code


# --- the committed rows, computed anew -----------------------------------------------------------


def test_the_answer_and_the_six_intervals_are_what_csv_and_statistics_give():
    """Of the committed rows, by the rules in results/README.md and other code."""
    csv.field_size_limit(2**31 - 1)
    runs = defaultdict(dict)
    for name, model, factors in (
        ("resnet", "arch", ("optimizer", "lr", "batch_size", "epochs")),
        ("svm", "kernel", ("C", "gamma", "degree", "coef0")),
    ):
        with (REFERENCE / f"{name}.csv").open(newline="") as file:
            for row in csv.DictReader(file):
                if row.get("solver") != "sklearn":
                    key = row["dataset"], row[model], tuple(row[factor] for factor in factors)
                    runs[key][row["seed"]] = row

    def mean(rows: dict, column: str) -> float:
        return statistics.fmean(float(row[column]) for row in rows.values())

    def best(dataset: str, *models: str, longest: bool = False) -> dict:
        found = [rows for key, rows in runs.items() if key[0] == dataset and key[1] in models]
        epochs = {id(rows): int(next(iter(rows.values())).get("epochs") or 0) for rows in found}
        found = [rows for rows in found if (epochs[id(rows)] > 5) == longest]
        found = [rows for rows in found if len(rows) >= 3] or found
        if longest:
            most = max(epochs[id(rows)] for rows in found)
            found = [rows for rows in found if epochs[id(rows)] == most]
        return max(found, key=lambda rows: round(mean(rows, "val_accuracy"), 9))

    models = ("resnet18", "resnet50", "rbf", "poly", "resnet18", "resnet50")
    screen = {
        dataset: [best(dataset, model, longest=n > 3) for n, model in enumerate(models)]
        for dataset in ("mnist", "fashion")
    }
    lines = [rows.values() for each in screen.values() for rows in each]
    names = Counter(name for rows in lines for name in {row["device_name"] for row in rows})
    answer, claims = text(REFERENCE, "answer"), text(REFERENCE, "claims")
    for dataset, block in zip(screen, answer.split("### ")[1:], strict=True):
        lines = re.findall(r"^\| (?:ResNet|SVM).*", block, re.MULTILINE)
        for line, rows in zip(lines, screen[dataset], strict=True):
            values = [100 * float(row["test_accuracy"]) for row in rows.values()]
            share = [(140 * value + 1) / 14_002 for value in values]  # of 14,000, and two more
            least = 100 * statistics.fmean(p * (1 - p) / 14_002 for p in share) ** 0.5
            spread = f" ± {max(statistics.stdev(values), least):.2f}" if values[1:] else ""
            assert f"| {round(statistics.fmean(values), 9):.2f}{spread} |" in line
            name = max({row["device_name"] for row in rows.values()}, key=names.get)
            times = [r["train_time_ms"] for r in rows.values() if r["device_name"] == name]
            seconds = min(map(float, times)) / 1000
            assert f"| {seconds:,.{max(0, 3 - len(str(int(seconds))))}f} |" in line
            flops = statistics.median(float(row["training_flops"]) for row in rows.values())
            assert f"| {flops / 1e12:.3g} |" in line
        small, large = best(dataset, "resnet18"), best(dataset, "resnet50")
        machine = best(dataset, "rbf", "poly")
        for first, second in ((large, small), (small, machine), (large, machine)):
            both = [
                [100 * float(rows[seed]["test_accuracy"]) for rows in (first, second)]
                for seed in first.keys() & second.keys()
            ]
            gaps = [one - other for one, other in both]
            n, middle = len(gaps), statistics.fmean(gaps)
            one, other = (round(round(statistics.fmean(v), 9), 2) for v in zip(*both, strict=True))
            d = abs(middle) / 100
            spread = max(statistics.stdev(gaps), 100 * math.sqrt(d * (1 - d) / 14_000))
            half = stats.t(n - 1).ppf(0.975) * spread * (1 / n + 2 / 7) ** 0.5
            assert f"{one - other:+.2f} [{middle - half:+.2f}, {middle + half:+.2f}]" in claims


# --- choices and comparisons ---------------------------------------------------------------------


def test_the_best_is_chosen_on_validation_and_of_equal_ones_costs_less(tmp_path):
    resnet(tmp_path, lr=1e-4, val_accuracy=0.97, test_accuracy=0.999)
    resnet(tmp_path, batch_size=64, val_accuracy=0.98, test_accuracy=0.5)
    resnet(tmp_path, val_accuracy=0.98, test_accuracy=0.96, training_flops=9e12)
    assert "| ResNet-18, 5 epochs | 96.00 |" in text(tmp_path, "answer")


def test_the_order_of_rows_decides_nothing(tmp_path):
    for name in ("resnet", "svm"):
        header, *lines = (REFERENCE / f"{name}.csv").read_text().splitlines()
        random.Random(0).shuffle(lines)
        (tmp_path / f"{name}.csv").write_text("\n".join([header, *lines, ""]))
    assert outcome("--results-dir", tmp_path) == 0
    for path in tmp_path.glob("*.*[dg]"):
        assert path.read_bytes() == (REFERENCE / path.name).read_bytes()


def test_settings_of_fewer_than_3_seeds_count_only_where_none_has_3(tmp_path):
    resnet(tmp_path, lr=1e-4, val_accuracy=0.999, test_accuracy=0.9)
    resnet(tmp_path, epochs=30, val_accuracy=0.999, test_accuracy=0.91)
    answer = text(tmp_path, "answer")
    assert "| ResNet-18, 5 epochs | 90.00 |" in answer
    assert "| ResNet-18, 30 epochs | 91.00 |" in answer
    seeds(resnet, tmp_path, 95, 96, 97, val_accuracy=0.5)
    seeds(resnet, tmp_path, 97, 98, 99, val_accuracy=0.5, epochs=20)
    answer = text(tmp_path, "answer")
    assert "| ResNet-18, 5 epochs | 96.00 ± 1.00 |" in answer
    assert "| ResNet-18, 20 epochs | 98.00 ± 1.00 |" in answer


def test_numbers_are_equal_but_for_rounding_and_a_precision_is_told_among_several(tmp_path):
    resnet(tmp_path, test_accuracy=0.9, lr=0.0010000000000000002)
    resnet(tmp_path, test_accuracy=0.94, seed=1)
    assert "| ResNet-18, 5 epochs | Adam, lr 0.001, batch 32 |" in text(tmp_path, "settings")
    resnet(tmp_path, precision="bfloat16", val_accuracy=0.5, test_accuracy=0.5)
    resnet(tmp_path, **GPU, pin_memory="yes")
    settings = text(tmp_path, "settings")
    assert "| Adam, lr 0.001, batch 32, float32 | 98.00 | 92.00 ±" in settings
    assert "| Adam, lr 0.001, batch 32, bfloat16 | 50.00 |" in settings
    assert "| Adam, lr 0.001, batch 32, pinned memory, GPU | 98.00 | 97.00 |" in settings


def test_scikit_learns_solver_is_listed_and_timed_and_never_chosen(tmp_path):
    theirs = {"solver": "sklearn", "training_flops": None, "train_time_ms": 60_000.0}
    svm(tmp_path, **theirs, val_accuracy=0.999, test_accuracy=0.91)
    assert text(tmp_path, "answer") == "Nothing was measured for this table."
    listed = "| SVM, rbf | C 1, gamma scale, scikit-learn | 99.90 | 91.00 | 60.0 | 1.00 | unknown |"
    assert listed in text(tmp_path, "settings")
    svm(tmp_path, val_accuracy=0.5, test_accuracy=0.92)
    assert "| 92.00 |" in text(tmp_path, "answer")
    assert "our own solver, fits the SVMs; scikit-learn's SVC takes 12 times as long." in text(
        tmp_path, "answer"
    )


def test_an_interval_has_a_floor_and_needs_three_splits():
    row = {"n_train": 49_000, "n_test": 14_000}
    assert make_tables.average({0: 5.0, 1: 5.1}, row).sign() == 0, "two seeds show nothing"
    equal = make_tables.average(dict.fromkeys(range(3), 0.5), row)
    least = 100 * math.sqrt(0.005 * 0.995 / 14_000)  # 70 images are classified differently
    assert equal.half == pytest.approx(stats.t(2).ppf(0.975) * least * math.sqrt(1 / 3 + 2 / 7))


def sentence(folder: Path) -> str:
    """What is said of the first data set."""
    return text(folder, "answer").splitlines()[1]


def test_sentences_tell_who_is_ahead_by_how_much_on_how_many_splits_and_at_what_cost(tmp_path):
    seeds(resnet, tmp_path, 98, 98.1, 98.2)
    seeds(svm, tmp_path, 97, 97.1, 97.154, train_time_ms=4_000.0)
    seeds(resnet, tmp_path, 99.234, arch="resnet50", epochs=30, training_flops=2e13)
    seeds(resnet, tmp_path, 96, 98, 96, epochs=20, train_time_ms=240_000.0)
    assert sentence(tmp_path) == (
        "**Within 5 epochs ResNet-18 is clearly ahead of the rbf SVM**, by 1.02 points (98.10"
        " against 97.08) on the 3 splits that both have. ResNet-18 trains 15 times as long as"
        " our SVM solver, with 5.0 times the FLOPs. **After 20 epochs it is undecided**: the"
        " rbf SVM leads ResNet-18 by 0.41 points (97.08 against 96.67), on 2 of 3 splits."
        " ResNet-18 trains 60 times as long as our SVM solver, with 5.0 times the FLOPs."
        " **ResNet-50 after 30 epochs is ahead of ResNet-18 after 20 epochs on one split**, by"
        " 3.23 points (99.23 against 96.00). ResNet-50 trains 0.25 times as long, with 2.0"
        " times the FLOPs."
    )


@pytest.mark.parametrize(
    ("accuracies", "said"),
    [
        # The difference is that of the means beside it, not 0.998.
        ((98.004, 98.004), "ResNet-18 is ahead of the rbf SVM on both splits**, by 0.99 points"
         " (98.00 against 97.01)."),
        ((97.006,), "ResNet-18 and the rbf SVM are level** (97.01)."),
        ((97.2, 98, 97.1), "it is undecided**: ResNet-18 leads the rbf SVM by 0.42 points (97.43"
         " against 97.01), on all 3 splits, but too unequally to be sure."),
    ],
)  # fmt: skip
def test_few_splits_and_ties_are_told(tmp_path, accuracies, said):
    seeds(resnet, tmp_path, *accuracies)
    seeds(svm, tmp_path, *[97.006] * len(accuracies))
    assert sentence(tmp_path).startswith(f"**Within 5 epochs {said}")


def test_times_of_different_places_are_compared_and_the_places_named(tmp_path):
    resnet(tmp_path, **GPU, train_time_ms=3_000.0)
    svm(tmp_path, threads=1)
    svm(tmp_path, threads=1, solver="sklearn", train_time_ms=90_000.0)
    gpu, cpu = "a GPU (Some GPU)", "one thread of a CPU (Some CPU)"
    assert (
        f"ResNet-18 on {gpu} trains 0.60 times as long as the rbf SVM on {cpu}, with 5.0 times"
        in sentence(tmp_path)
    )
    assert f"training, on {gpu} and {cpu}, networks in float16." in text(tmp_path, "answer")
    assert claim(tmp_path, "4a") == ["**not clear**: ResNet-18 0.600 times"]
    assert claim(tmp_path, "4a'") == ["**no**: ResNet-18 0.0333 times"]
    assert f"Times are of networks on {gpu} and of SVMs on {cpu}." in text(tmp_path, "claims")


def test_times_are_of_the_machine_that_ran_most_lines_then_of_the_newest(tmp_path):
    late, other = {"finished_utc": "2026-02-01T00:00:00+00:00"}, {"device_name": "Other CPU"}
    svm(tmp_path, train_time_ms=1_000.0)
    for seed, time in ((1, 3_000.0), (2, 2_000.0)):
        svm(tmp_path, seed=seed, train_time_ms=time, **other, **late)
    assert "| SVM, rbf | 97.50 ± 0.13 | 2.00 |" in text(tmp_path, "answer")
    assert "on 2 threads of a CPU (Other CPU)." in text(tmp_path, "answer")
    resnet(tmp_path)
    assert "| SVM, rbf | 97.50 ± 0.13 | 1.00 |" in text(tmp_path, "answer")
    assert "on 2 threads of a CPU (Some CPU), networks" in text(tmp_path, "answer")


# --- tables --------------------------------------------------------------------------------------


def test_networks_stand_in_lines_after_the_most_epochs_within_5(tmp_path):
    for epochs in (3, 5, 20):
        resnet(tmp_path, epochs=epochs, test_accuracy=0.9 + epochs / 1000)
    resnet(tmp_path, dataset="fashion", optimizer="sgd", momentum=0.9)
    resnet(tmp_path, lr=0.5, status="diverged", reason="loss is nan")
    resnet(tmp_path, arch="resnet34", dataset="fashion")
    assert text(tmp_path, "resnets").splitlines() == [
        "| Batch | Optimizer | Rate | MNIST, ResNet-18 | FashionMNIST, ResNet-18 |",
        "| --- | --- | --- | --- | --- |",
        "| 32 | SGD | 0.001 | not measured | 97.00 |",
        "| 32 | Adam | 0.001 | 90.50 | not measured |",
        "", "Test accuracy (%) after 5 epochs.", "",
        "1 run failed: resnet.csv and svm.csv say why.",
    ]  # fmt: skip


def test_the_best_of_each_kernel_and_every_setting_are_listed(tmp_path):
    svm(tmp_path, C=10, val_accuracy=0.99)
    svm(tmp_path, C=1, val_accuracy=0.98)
    svm(tmp_path, kernel="poly", degree=3, coef0=1.0, val_accuracy=0.995)
    resnet(tmp_path, arch="my own")
    assert text(tmp_path, "svms").splitlines()[2:4] == [
        "| MNIST | SVM, rbf | 97.50 | 5.00 | 1.00 | C 10, gamma scale |",
        "| MNIST | SVM, poly | 97.50 | 5.00 | 1.00 | C 1, gamma scale, degree 3, coef0 1 |",
    ]
    settings = text(tmp_path, "settings")
    assert "<summary>MNIST: 3 settings of SVMs</summary>" in settings
    assert "<summary>MNIST: 1 setting of networks</summary>" in settings
    assert "| SVM, rbf | C 1, gamma scale | 98.00 | 97.50 | 5.00 | 1.00 | 2.00 | 1 |" in settings


def test_devices_stand_in_lines_and_their_costs_in_sentences(tmp_path):
    small, large = {"train_time_ms": 10_000.0}, {"arch": "resnet50", "test_accuracy": 0.95}
    resnet(tmp_path, **Q2, **small)
    resnet(tmp_path, **Q2, **large)
    assert "No GPU was measured." in text(tmp_path, "devices")
    resnet(tmp_path, **Q2 | GPU | large, train_time_ms=3_000.0)
    resnet(tmp_path, **Q2 | GPU | {"optimizer": "adam"}, **small)
    page = text(tmp_path, "devices")
    assert [line.split(" | ")[:6] for line in page.splitlines()[2:5]] == [
        ["| CPU", "SGD", "97.00", "95.00", "10.0", "60.0"],
        ["| GPU", "SGD", "not measured", "95.00", "not measured", "3.00"],
        ["| GPU", "Adam", "97.00", "not measured", "10.0", "not measured"],
    ]
    assert (
        "On the CPU ResNet-50 trains 6.0 times as long as ResNet-18, with 1.0 times the FLOPs, and"
        " loses 2.0 points of accuracy." in page
    )
    assert "The GPU trains ResNet-50 20 times as fast as the CPU." in page
    assert "No GPU" not in page


def test_a_page_is_of_whole_data_sets_or_else_of_the_largest_subsets(tmp_path):
    for limit in (1000, 2000):
        resnet(tmp_path, limit=limit, n_train=1400, val_accuracy=1)
        svm(tmp_path, limit=limit, n_train=1400)
        svm(tmp_path, limit=limit, n_train=1400, dataset="fashion")
    svm(tmp_path, dataset="digits")
    answer = text(tmp_path, "answer")
    assert re.findall("### (.*)", answer) == [
        "MNIST, 2,000 images", "FashionMNIST, 2,000 images",
    ]  # fmt: skip
    assert "official" not in answer
    assert "| Claim | MNIST, 2,000 images | FashionMNIST, 2,000 images |" in text(
        tmp_path, "claims"
    )
    assert claim(tmp_path, "5a") == ["**one split**: ResNet-18 -0.50", ""]
    svm(tmp_path)
    assert re.findall("### (.*)", text(tmp_path, "answer")) == ["MNIST"]
    others = "have all settings, with testing times, and those of FashionMNIST, 1,000 images"
    assert others in text(tmp_path, "answer")


def test_a_network_of_one_data_set_stands_only_among_all_settings(tmp_path):
    for dataset in ("mnist", "fashion"):
        resnet(tmp_path, dataset=dataset)
    resnet(tmp_path, dataset="fashion", arch="resnet34", val_accuracy=0.999)
    assert "ResNet-34" not in text(tmp_path, "answer") + text(tmp_path, "resnets")
    assert "ResNet-34" in text(tmp_path, "settings")


OTHER = {"dataset": "kuzushiji 49"}
LONG = {"epochs": 20, "history": history(*[0.5] * 20)}
KINDS = {  # what is said of few rows
    "The rbf SVM has 97.50 % (C 1, gamma scale).": [(svm, {})],
    "ResNet-18 has 97.00 % (Adam, lr 0.001, batch 32).": [(resnet, {"history": CURVE})],
    "resnet101, 5 epochs": [
        (resnet, OTHER | {"arch": "resnet101"}),
        (svm, OTHER | {"kernel": "x"}),
    ],
    "ResNet-18, 20 epochs": [(resnet, LONG)],
    "Within 5 epochs ResNet-18 and the rbf SVM share no split.": [(resnet, {}), (svm, {"seed": 1})],
}


@pytest.mark.parametrize("words", KINDS)
def test_any_folder_gives_a_page_of_what_is_there(tmp_path, capsys, words):
    for make, values in KINDS[words]:
        make(tmp_path, **values)
    assert outcome("--results-dir", tmp_path) == 0
    has_networks = resnet in dict(KINDS[words])
    assert ("save the best networks" in capsys.readouterr().out) == has_networks
    page = make_tables.plain((tmp_path / "tables.md").read_text())
    assert not re.search(r"\bnan\b|None|\binf\b", page)
    assert words in page
    assert outcome("--results-dir", tmp_path, "--check") == 0


def test_without_a_finished_row_nothing_is_touched(tmp_path, capsys):
    readme = tmp_path / "README.md"
    readme.write_text(MARKERS)
    for folder in (tmp_path / "none", tmp_path / "failed"):
        flags = ("--results-dir", folder, "--readme", readme)
        assert outcome(*flags) == 2
        assert "holds no finished row" in capsys.readouterr().err
        resnet(tmp_path / "failed", status="diverged", reason="loss is nan", val_accuracy=None)
    assert readme.read_text() == MARKERS
    assert not list(tmp_path.rglob("tables.md"))


def test_commands_for_three_splits_and_for_saved_models_are_those_of_the_first_screen(
    tmp_path, capsys
):
    own = {"limit": 2000, "threads": 1}
    resnet(tmp_path, **GPU, **own, pin_memory="no", optimizer="sgd", momentum=0.9)
    resnet(tmp_path, **own, lr=1e-4, val_accuracy=0.5)
    seeds(svm, tmp_path, 97, 98, 99, **own)
    svm(tmp_path, kernel="poly", degree=3, coef0=1.0, gamma=0.1, **own)
    assert outcome("--results-dir", tmp_path) == 0
    told = [line for line in capsys.readouterr().out.splitlines() if line.startswith("OMP")]
    network = (
        "OMP_NUM_THREADS=1 python train_resnet.py --dataset=mnist --limit=2000 --arch=resnet18"
        " --opt=sgd --lr=0.001 --momentum=0.9 --bs=32 --epochs=5 --pin-memory=no --device=cuda"
    )
    assert told == [
        f"{network} --seed 0 1 2 --results-dir {tmp_path}",
        "OMP_NUM_THREADS=1 python train_svm.py --dataset=mnist --limit=2000 --kernel=poly --C=1"
        " --gamma=0.1 --degree=3 --coef0=1 --solver=gram --seed 0 1 2 --results-dir"
        f" {tmp_path}",
        f"{network} --seed 0 --results-dir {tmp_path} --save-model models",
    ]
    for script, line in zip((train_resnet, train_svm, train_resnet), told, strict=True):
        script.parse_args(line.split()[3:])


# --- claims --------------------------------------------------------------------------------------


GRID = common.combinations(batch_size=[16, 32], optimizer=["sgd", "adam"], lr=[1e-3, 1e-4])


def test_claims_about_accuracy_follow_their_rules(tmp_path):
    for dataset, gap in (("mnist", 1.0), ("fashion", -1.0)):
        for line in GRID:
            near = {"dataset": dataset, **line}
            seeds(resnet, tmp_path, 95 + gap, 96 + gap, 97 + gap, **near)
            seeds(resnet, tmp_path, 94.8 + gap, 95.79 + gap, 96.8 + gap, arch="resnet50",
                  training_flops=3e13, **near)  # fmt: skip
        seeds(svm, tmp_path, 95, 96.01, 97.02, dataset=dataset)
    assert claim(tmp_path, "1a")[0].startswith("**yes**: 8 of 8 lines, +0.20 [")
    assert claim(tmp_path, "1b") == ["**no**: best of 24 runs 98.00", ""]
    assert claim(tmp_path, "2")[0].startswith("**yes**: gains -0.20 [")
    assert claim(tmp_path, "2")[0].endswith("]<br>for 3.00 times the FLOPs")
    assert claim(tmp_path, "3") == ["**no**: in 16 of 17 settings", ""]
    mnist, fashion = claim(tmp_path, "5a")
    assert mnist.startswith("**yes**: ResNet-18 +0.99 [")
    assert fashion.startswith("**no**: ResNet-18 -1.01 [")
    assert claim(tmp_path, "5b")[0].startswith("**yes**: +0.99 against -1.01: +2.00 [+1.")
    assert claim(tmp_path, "4a")[0] == "**yes**: ResNet-18 12.0 times, ResNet-50 12.0 times"
    assert claim(tmp_path, "4a'") == []
    assert claim(tmp_path, "4b")[0] == "**yes**: ResNet-18 5.00 times, ResNet-50 15.0 times"
    resnet(tmp_path, seed=7, lr=0.3, test_accuracy=0.99296)
    assert claim(tmp_path, "1b")[0] == "**yes**: best of 25 runs 99.30"


def test_a_network_is_worth_its_cost_if_it_may_gain_a_point_or_is_clearly_ahead(tmp_path):
    seeds(resnet, tmp_path, 95, 96, 97)
    for gains, word in (
        ((-1, -0.99, -0.98), "yes"), ((0.1, -0.3, 0.2), "yes"), ((0.3, -0.9, 0.9), "not clear"),
        ((0.5, 0.51, 0.49), "no"), ((3.0, 3.01, 2.99), "no"),
    ):  # fmt: skip
        large = [95 + seed + gain for seed, gain in enumerate(gains)]
        seeds(resnet, tmp_path, *large, arch="resnet50", training_flops=3e13)
        assert claim(tmp_path, "2")[0].startswith(f"**{word}**: gains "), gains
        assert claim(tmp_path, "2")[0].endswith("<br>for 3.00 times the FLOPs")


def test_few_splits_are_told_in_place_of_a_verdict(tmp_path):
    for seed, word in ((0, "one split"), (1, "two splits")):
        for dataset in ("mnist", "fashion"):
            for arch, accuracy in (("resnet18", 0.98), ("resnet50", 0.99)):
                resnet(tmp_path, seed=seed, arch=arch, dataset=dataset, test_accuracy=accuracy)
            svm(tmp_path, seed=seed, dataset=dataset, test_accuracy=0.97)
        assert claim(tmp_path, "2")[0].startswith(f"**{word}**: gains +1.00<br>")
        assert claim(tmp_path, "5a")[0] == f"**{word}**: ResNet-18 +1.00, ResNet-50 +2.00"
        assert claim(tmp_path, "5b")[0] == f"**{word}**: +1.00 against +1.00: +0.00"
        assert claim(tmp_path, "8")[0] == f"**{word}**: rank 1 of 3"


def test_a_time_within_a_factor_of_two_is_not_clear(tmp_path):
    resnet(tmp_path, train_time_ms=9_000.0)
    svm(tmp_path)
    assert claim(tmp_path, "4a")[0] == "**not clear**: ResNet-18 1.80 times"
    assert claim(tmp_path, "4a'") == []
    theirs = {"solver": "sklearn", "train_time_ms": 30_000.0, "training_flops": None}
    svm(tmp_path, C=9.0, val_accuracy=0.5)
    svm(tmp_path, **theirs, C=9.0)
    assert claim(tmp_path, "4a'")[0] == "**no**: ResNet-18 0.300 times", (
        "of a setting with both solvers"
    )


def test_adam_is_ranked_on_validation_and_judged_on_test_images(tmp_path):
    seeds(resnet, tmp_path, 95, 96, 97, val_accuracy=0.97)
    assert claim(tmp_path, "8") == []
    svm(tmp_path, C=9.0, val_accuracy=0.99)
    seeds(svm, tmp_path, 95.5, 96.4, 97.45, val_accuracy=0.96)
    assert claim(tmp_path, "8")[0] == "**yes**: rank 1 of 2", "one seed does not take part"
    seeds(svm, tmp_path, 95.5, 96.4, 97.45, val_accuracy=0.98)
    assert claim(tmp_path, "8")[0].startswith("**no**: rank 2 of 2<br>-0.45 [")
    seeds(svm, tmp_path, 94.5, 96.4, 97.45, val_accuracy=0.98)
    assert claim(tmp_path, "8")[0].startswith("**not clear**: rank 2 of 2<br>-0.12 [")


@pytest.mark.parametrize(
    ("slow", "six", "seven"),
    [(60_000.0, "yes", "no"), (15_000.0, "not clear", "not clear"), (8_000.0, "no", "yes")],
)
def test_a_gpus_gain_is_above_or_below_two_by_a_tenth(tmp_path, slow, six, seven):
    for arch in ("resnet18", "resnet50"):
        resnet(tmp_path, **Q2, arch=arch, train_time_ms=slow)
        resnet(tmp_path, **Q2 | GPU, arch=arch, pin_memory="yes", train_time_ms=7_000.0)
        resnet(tmp_path, **Q2 | GPU | {"epochs": 5}, arch=arch, train_time_ms=1.0)
    assert claim(tmp_path, "6") == [f"**{six}**: {slow / 7_000:.2g} times as fast"]
    assert claim(tmp_path, "7") == [f"**{seven}**: {slow / 7_000:.2g} times as fast"]


def test_pinning_is_judged_on_gpu_trainings_each_once_at_its_longest(tmp_path):
    for seed in (0, 1):
        for pin, time in (("yes", 10_000.0), ("no", 10_500.0)):
            same = {**GPU, "seed": seed, "pin_memory": pin}
            resnet(tmp_path, **same, weights_sha256="a", train_time_ms=time, threads=seed + 1)
            resnet(tmp_path, **same, weights_sha256=pin, epochs=3)
    equal = "equal weights in 2 of 2 pairs"
    assert claim(tmp_path, "9") == [f"**yes**: {equal}, 1.05 times as long without it"]
    for seed in (0, 1):
        resnet(tmp_path, **GPU, seed=seed, weights_sha256="a", train_time_ms=13_000.0)
    assert claim(tmp_path, "9") == [f"**yes**: {equal}<br>**no**: 1.30 times as long without it"]


def test_every_claim_has_its_rule_in_words():
    page = (ROOT / "results/README.md").read_text().split("## Claims")[1]
    numbers = {name.split()[0] for name in make_tables.CLAIMS}
    assert set(re.findall(r"(?<![\w.])(\d[ab]?'?): ", page)) == numbers


# --- hostile rows --------------------------------------------------------------------------------


def test_no_text_of_a_row_breaks_a_page_or_becomes_code(tmp_path):
    evil = 'x"]\n```\n| <!-- end: answer --></script>`\u202e{{{ site }}{% raw %}[a](b)![c](./d)'
    names = dict.fromkeys(("device_name", "torch", "precision", "arch", "optimizer"), evil)
    resnet(tmp_path, **names, dataset=evil, split_id="x", history=history(*[0.6] * 5))
    svm(tmp_path, device_name=evil, kernel=evil)
    svm(tmp_path, C=2, status="diverged", reason=evil)
    assert outcome("--results-dir", tmp_path) == 0
    page = (tmp_path / "tables.md").read_text()
    for part in ("</script>", "{{", "{%", "\u202e", "`"):
        assert part not in page, part
    links = {*re.findall(r"\]\((.*?)\)", page)} - {"tables.md"}
    assert all(re.fullmatch("[a-z0-9_]+.svg", link) for link in links)
    for picture in tmp_path.glob("*.svg"):
        assert "<script" not in picture.read_text()


def test_a_damaged_history_is_refused_in_one_line(tmp_path, capsys):
    resnet(tmp_path, history="[{")
    assert outcome("--results-dir", tmp_path) == 2
    assert re.fullmatch("error: .*resnet.csv.*\n", capsys.readouterr().err)
    assert not list(tmp_path.glob("*.md"))


def test_rows_of_one_seed_that_saw_other_images_are_refused(tmp_path, capsys):
    resnet(tmp_path)
    resnet(tmp_path, split_id="other", lr=1.0)
    assert outcome("--results-dir", tmp_path) == 2
    assert re.fullmatch("error: .*resnet.csv.*split_id.*\n", capsys.readouterr().err)


# --- pictures ------------------------------------------------------------------------------------


def test_a_picture_draws_curves_of_validation_and_training_and_the_best_svm(tmp_path):
    for seed in range(2):
        curve = history(*np.linspace(0.8, 0.95 + seed / 100, 20))
        resnet(tmp_path, seed=seed, epochs=20, history=curve)
        resnet(tmp_path, seed=seed, arch="resnet50", history=history(0.5, 0.8, 0.9, 0.9, 0.93))
        svm(tmp_path, seed=seed, val_accuracy=0.91)
    assert outcome("--results-dir", tmp_path) == 0
    root = ElementTree.fromstring((tmp_path / "mnist.svg").read_text())
    width, height = (float(root.get(name)) for name in ("width", "height"))
    assert width <= 420, "text stays large on a phone"
    for each in root.findall("{*}text"):
        assert 0 <= float(each.get("x")) <= width
        assert 0 <= float(each.get("y")) <= height
    words = [each.text for each in root.findall("{*}text")]
    assert words[:2] == ["MNIST", "accuracy (%) on validation images, dotted: training"]
    assert [word for word in words if word in "1 5 10 15 20"] == ["1", "5", "10", "15", "20"]
    assert {"90", "95"} <= {*words}
    assert words[-3:] == [
        "ResNet-18 95.50 after 20 epochs, 2 splits", "ResNet-50 93.00 after 5 epochs, 2 splits",
        "best SVM 91.00, 2 splits",
    ]  # fmt: skip
    curves = [each for each in root.findall("{*}path") if each.get("clip-path")]
    assert [each.get("d").count(",") for each in curves] == [21, 21, 6, 6, 21]
    assert not re.search("style|class|var", ElementTree.tostring(root).decode()), "plain attributes"


# --- pages ---------------------------------------------------------------------------------------

MARKERS = "text\n<!-- table: svms --> \nformer\n<!-- end: svms -->\nmore\n"


def test_a_readme_is_filled_between_its_markers_and_tables_md_follows_from_rows(tmp_path, capsys):
    readme, folder = tmp_path / "README.md", tmp_path / "my results"
    readme.write_text(MARKERS)
    link = tmp_path / "link.md"
    link.symlink_to(readme)
    resnet(folder, history=CURVE)
    svm(folder)
    flags = ["--results-dir", folder, "--readme", link]
    assert outcome(*flags, "--check") == 1
    assert "former" in readme.read_text()
    assert "link.md is stale" in capsys.readouterr().out
    assert outcome(*flags) == outcome(*flags, "--check") == 0
    assert link.is_symlink()
    page = make_tables.plain(readme.read_text())
    assert page.startswith("text\n<!-- table: svms -->\n| Data set |")
    assert page.endswith("<!-- end: svms -->\nmore\n")
    assert "](mnist.svg)" in (folder / "tables.md").read_text()
    before = [path.stat().st_mtime_ns for path in sorted(folder.glob("*.*"))]
    readme.write_text(MARKERS.replace("svms", "answer"))
    assert outcome(*flags) == 0
    assert "](my%20results/mnist.svg)" in readme.read_text()
    assert [path.stat().st_mtime_ns for path in sorted(folder.glob("*.*"))] == before


NESTED = MARKERS.replace("former", "<!-- table: claims -->\n<!-- end: claims -->")


@pytest.mark.parametrize(
    "content",
    [
        "no markers", "\xff\xfe", MARKERS.replace("<!-- end: svms -->", ""), MARKERS + NESTED,
        MARKERS.replace("<!-- end: svms -->", "") + MARKERS, MARKERS.replace("svms", "wishes"),
        MARKERS.replace("table:", "end:"), "  " + MARKERS.removeprefix("text\n"),
    ],
)  # fmt: skip
def test_a_readme_that_cannot_be_filled_is_refused_and_nothing_is_written(
    tmp_path, capsys, content
):
    (tmp_path / "README.md").write_bytes(content.encode("latin-1"))
    svm(tmp_path)
    assert outcome("--results-dir", tmp_path, "--readme", tmp_path / "README.md") == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "README.md").read_bytes() == content.encode("latin-1")
    assert not (tmp_path / "tables.md").exists()


def test_own_rows_take_the_place_of_the_committed_tables(tmp_path, monkeypatch):
    """In a user's clone."""
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text((ROOT / "README.md").read_text())
    resnet(Path("results"), dataset="digits", limit=100, history=CURVE)
    assert outcome("--readme", "README.md") == 0
    page = make_tables.plain(Path("README.md").read_text())
    assert "### digits, 100 images" in page
    assert "](results/digits-100.svg)" in page
    assert not {"99.04", "AMD EPYC"} & {*re.findall("99.04|AMD EPYC", page)}


# --- the committed pages -------------------------------------------------------------------------


def test_the_committed_pages_and_pictures_are_what_rows_give():
    """README is of somebody's own rows, or of the reference."""
    flags = ["--results-dir", ROOT / "results/reference", "--check"]
    assert outcome(*flags) == 0
    own = ["--results-dir", ROOT / "results", "--check"]
    assert 0 in [outcome(*each, "--readme", ROOT / "README.md") for each in (flags, own)]


def test_every_column_is_explained():
    page = (ROOT / "results/README.md").read_text().split("## Columns")[1].split("## ")[0]
    cells = re.findall(r"^\| ([a-zC][^|]*) \|", page, re.MULTILINE)
    names = [name for cell in cells if cell != "column" for name in cell.split(", ")]
    assert sorted(names) == sorted({name for each in common.COLUMNS.values() for name in each})


def test_the_links_of_the_pages_lead_somewhere():
    for path in (ROOT / "README.md", ROOT / "results/README.md", REFERENCE / "tables.md"):
        for link in re.findall(r"\]\(([^)]+)\)", path.read_text()):
            file, _, anchor = link.partition("#")
            if not file.startswith("http"):
                target = path.parent / file if file else path
                assert target.exists(), link
                heads = re.findall(r"^#+ (.*)", target.read_text(), re.MULTILINE) if anchor else []
                heads = [re.sub(r"[^\w -]", "", head.lower()).replace(" ", "-") for head in heads]
                assert not anchor or anchor in heads, link


def test_the_examples_in_python_run(tmp_path):
    """That of a saved model, too, after the command that saves it."""
    flags = ["--dataset", "digits", "--epochs", "1", "--device", "cpu", "--bs", "100"]
    flags += ["--save-model", tmp_path / "models", "--results-dir", tmp_path / "rows"]
    assert train_resnet.main(list(map(str, flags))) == 0
    pages = [(ROOT / name).read_text() for name in ("README.md", "results/README.md")]
    examples = re.findall(r"```python\n(.*?)```", "".join(pages), re.DOTALL)
    outs = []
    for example in examples:
        code, out, error = finish(start("-c", example, cwd=tmp_path))
        assert code == 0, error
        outs.append(out.splitlines()[-1])
    assert min(map(float, outs[0].split())) > 0.9, "accuracies of a network and of an SVM"
    assert outs[1].startswith("tensor([")
