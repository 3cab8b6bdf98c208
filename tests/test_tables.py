"""Tables, verdicts and pictures: a function of the rows alone, whatever rows there are."""

import csv
import json
import math
import random
import re
import statistics
from collections import defaultdict
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from conftest import ROOT, SMALL, finish, start
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
    "precision_reason": "made up",
}  # fmt: skip


def save(folder: Path, name: str, row: dict) -> None:
    (folder / ".running").mkdir(parents=True, exist_ok=True)
    split = f"{row['dataset']}{row.get('limit', '')}-{row['seed']}"
    row = {"split_seed": row["seed"], "split_id": split} | row
    common.save_row(folder / f"{name}.csv", row)


def resnet(folder: Path, **values) -> None:
    save(folder, "resnet", TRAINING | values)


def svm(folder: Path, **values) -> None:
    save(folder, "svm", FACTS | {
        "kernel": "rbf", "C": 1.0, "gamma": "scale", "solver": "gram", "val_accuracy": 0.98,
        "test_accuracy": 0.975, "fit_time_ms": 5_000.0, "support_vectors": 9000, "iterations": 7,
        "gamma_value": 0.01, "training_flops": 2e12,
    } | values)  # fmt: skip


def device(folder: Path, **values) -> None:
    save(folder, "devices", TRAINING | {
        "dataset": "fashion", "optimizer": "sgd", "batch_size": 16, "test_accuracy": 0.89,
        "train_time_ms": 7_000.0, "step_ms": 2.0, "step_ms_min": 1.5, "step_ms_max": 2.5,
        "windows": 5, "peak_memory_mib": 512.0,
    } | values)  # fmt: skip


GPU = {"device": "cuda", "device_name": "Some GPU"}


def seeds(make, folder: Path, *accuracies: float, **values) -> None:
    """A run for each seed with these test accuracies in percent."""
    for seed, accuracy in enumerate(accuracies):
        make(folder, seed=seed, **{"test_accuracy": accuracy / 100, **values})


def history(*accuracies: float) -> str:
    return json.dumps([{"train_accuracy": value, "val_accuracy": value} for value in accuracies])


CURVE = history(*[0.9] * 5)


def text(folder: Path, name: str) -> str:
    """One table, with plain spaces."""
    study = make_tables.Study(make_tables.load(folder))
    return make_tables.render(name, study).replace(make_tables.HARD, " ")


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
        epochs = {id(rows): int(next(iter(rows.values())).get("epochs", 0)) for rows in found}
        most = max(epochs.values())
        found = [r for r in found if (epochs[id(r)] == most if longest else epochs[id(r)] <= 5)]
        found = [rows for rows in found if len(rows) >= 3] or found
        return max(found, key=lambda rows: round(mean(rows, "val_accuracy"), 9))

    answer, claims = text(REFERENCE, "answer"), text(REFERENCE, "claims")
    for label, models, longest in (
        ("ResNet-18, 5 epochs", ["resnet18"], False), ("ResNet-50, 5 epochs", ["resnet50"], False),
        ("SVM, rbf", ["rbf"], False), ("SVM, poly", ["poly"], False),
        ("ResNet-18, 20 epochs", ["resnet18"], True), ("ResNet-50, 20 epochs", ["resnet50"], True),
    ):  # fmt: skip
        (line,) = re.findall(rf"^\| {label} .*", answer, re.MULTILINE)
        for dataset in ("mnist", "fashion"):
            rows = best(dataset, *models, longest=longest)
            values = [100 * float(row["test_accuracy"]) for row in rows.values()]
            share = [(140 * value + 1) / 14_002 for value in values]  # of 14,000, and two more
            least = 100 * statistics.fmean(p * (1 - p) / 14_002 for p in share) ** 0.5
            spread = f" ± {max(statistics.stdev(values), least):.2f}" if values[1:] else ""
            assert f"{round(statistics.fmean(values), 9):.2f}{spread}" in line
            time = "train_time_ms" if "epoch" in label else "fit_time_ms"
            seconds = min(float(row[time]) for row in rows.values()) / 1000
            assert f"{seconds:,.{max(0, 3 - len(str(int(seconds))))}f}" in line
            flops = statistics.median(float(row["training_flops"]) for row in rows.values())
            assert f" {flops / 1e12:.3g} " in line
    for dataset in ("mnist", "fashion"):
        small, large = best(dataset, "resnet18"), best(dataset, "resnet50")
        machine = best(dataset, "rbf", "poly")
        for first, second in ((large, small), (small, machine), (large, machine)):
            gaps = [
                100 * (float(first[seed]["test_accuracy"]) - float(second[seed]["test_accuracy"]))
                for seed in first.keys() & second.keys()
            ]
            n, middle = len(gaps), statistics.fmean(gaps)
            half = stats.t(n - 1).ppf(0.975) * statistics.stdev(gaps) * (1 / n + 2 / 7) ** 0.5
            assert f"{middle:+.2f} [{middle - half:+.2f}, {middle + half:+.2f}]" in claims


# --- choices and comparisons ---------------------------------------------------------------------


def test_the_best_is_chosen_on_validation_and_of_equal_ones_costs_less(tmp_path):
    resnet(tmp_path, lr=1e-4, val_accuracy=0.97, test_accuracy=0.999)
    resnet(tmp_path, batch_size=64, val_accuracy=0.98, test_accuracy=0.5)
    resnet(tmp_path, val_accuracy=0.98, test_accuracy=0.96, training_flops=9e12)
    assert "| ResNet-18, 5 epochs | 96.00 |" in text(tmp_path, "answer")


def test_the_order_of_rows_decides_nothing(tmp_path):
    """Of equal settings, of runs that ended in one second, and of all else."""
    resnet(tmp_path, pin_memory="yes", **GPU, status="diverged", reason="loss is nan", lr=9.0)
    for seed in range(3):
        for pin_memory in ("yes", "no"):
            resnet(tmp_path, seed=seed, pin_memory=pin_memory, **GPU, arch="resnet50",
                   test_accuracy=0.9 + (pin_memory == "no") / 20)  # fmt: skip
        for batch_size in (16, 32, 64):
            for optimizer in ("sgd", "adam"):
                resnet(tmp_path, seed=seed, batch_size=batch_size, optimizer=optimizer,
                       test_accuracy=0.9 + batch_size / 1e3, history=CURVE)  # fmt: skip
        for C in (10.0, 1.0):
            svm(tmp_path, seed=seed, C=C, test_accuracy=0.9 + C / 1000)
    pages = []
    for shuffle in range(4):
        for name in ("resnet", "svm"):
            header, *lines = (tmp_path / f"{name}.csv").read_text().splitlines()
            random.Random(shuffle).shuffle(lines)
            (tmp_path / f"{name}.csv").write_text("\n".join([header, *lines, ""]))
        study = make_tables.Study(make_tables.load(tmp_path))
        pages.append([make_tables.render(name, study) for name in make_tables.TABLES])
        pages[-1].append(make_tables.picture(study, "MNIST"))
    assert all(page == pages[0] for page in pages)


def test_settings_of_fewer_than_3_seeds_take_part_only_where_none_has_3(tmp_path):
    resnet(tmp_path, lr=1e-4, val_accuracy=0.999, test_accuracy=0.9)
    assert "| 90.00 |" in text(tmp_path, "answer")
    seeds(resnet, tmp_path, 95, 96, 97, val_accuracy=0.5)
    assert "| 96.00 ± 1.00 |" in text(tmp_path, "answer")


def test_amp_is_a_factor_and_numbers_are_equal_but_for_rounding(tmp_path):
    resnet(tmp_path, test_accuracy=0.9, lr=0.0010000000000000002)
    resnet(tmp_path, amp="no", val_accuracy=0.5, test_accuracy=0.5)
    assert "| 32 | Adam | 0.001 | 90.00 |" in text(tmp_path, "resnets")
    assert "| Adam, lr 0.001, batch 32, 5 epochs, amp no | 50.00 |" in text(tmp_path, "settings")


def test_scikit_learns_solver_is_listed_and_never_chosen(tmp_path):
    svm(tmp_path, solver="sklearn", val_accuracy=0.999, test_accuracy=0.91, training_flops=None)
    assert text(tmp_path, "answer") == "Nothing was measured for this table."
    listed = "| SVM, rbf | C 1, gamma scale, scikit-learn | 99.90 | 91.00 | 5.00 | 1.00 | unknown |"
    assert listed in text(tmp_path, "settings")
    svm(tmp_path, val_accuracy=0.5, test_accuracy=0.92)
    assert "| 92.00 |" in text(tmp_path, "answer")


def test_a_lead_is_students_interval_for_overlapping_splits():
    gaps = [0.3, 0.5, 0.1, 0.4]
    lead = make_tables.Lead(dict(enumerate(gaps)), overlap=2 / 7)
    error = np.std(gaps, ddof=1) * math.sqrt(1 / 4 + 2 / 7)
    assert lead.interval() == pytest.approx(stats.t.interval(0.95, 3, np.mean(gaps), error))
    assert (lead.sign(), lead.sign(bound=1)) == (0, -1)
    assert make_tables.Lead({0: 5.0, 1: 5.1}, 2 / 7).sign() == 0, "two seeds show nothing"


def test_equal_models_are_rarely_called_clear():
    """Ten seeds, splits that share 2/9 of their test images' luck: at most one in twenty."""
    generator = np.random.default_rng(0)
    own, shared = generator.normal(size=(2000, 10)), generator.normal(size=(2000, 1))
    gaps = own * math.sqrt(7 / 9) + shared * math.sqrt(2 / 9)
    clear = [make_tables.Lead(dict(enumerate(each)), 2 / 7).sign() for each in gaps]
    assert np.mean(np.abs(clear)) < 0.05


def test_sentences_tell_who_is_ahead_by_how_much_on_how_many_splits_and_at_what_cost(tmp_path):
    seeds(resnet, tmp_path, 98, 98.1, 98.2)
    seeds(svm, tmp_path, 97, 97.1, 97.15, fit_time_ms=4_000.0)
    seeds(resnet, tmp_path, 99, 99.1, 99.2, arch="resnet50", val_accuracy=0.97)
    seeds(resnet, tmp_path, 96, 98, 96, epochs=20, train_time_ms=240_000.0)
    (line,) = re.findall(r"^- .*", text(tmp_path, "answer"), re.MULTILINE)
    assert line == (
        "- MNIST: **Within 5 epochs ResNet-18 is clearly ahead of the SVM**, by 1.02 points, on 3"
        " of 3 common splits. ResNet-18 trains 15 times as long, with 5.0 times the FLOPs. **After"
        " 20 epochs the SVM is ahead of ResNet-18, but not clearly**, by 0.42 points, on 2 of 3"
        " common splits. ResNet-18 trains 60 times as long, with 5.0 times the FLOPs."
    )


def test_times_of_different_hardware_are_told_and_not_compared(tmp_path):
    resnet(tmp_path, **GPU, precision="float16", train_time_ms=3_000.0)
    svm(tmp_path)
    answer = text(tmp_path, "answer")
    assert (
        "ResNet-18 trains in 3.00 (GPU) s and the SVM trains in 5.00 s, on different hardware."
        in answer
    )
    assert "for 2 threads of a CPU (Some CPU) and Some GPU, networks in float16." in answer
    assert "No GPU was measured" not in answer
    assert claim(tmp_path, "4a") == []


def test_of_a_setting_and_seed_the_newest_run_counts_and_the_others_are_counted(tmp_path):
    resnet(tmp_path, **GPU, test_accuracy=0.91)
    resnet(tmp_path, test_accuracy=0.95, finished_utc="2025-01-01T00:00:00+00:00")
    resnet(tmp_path, seed=1, split_seed=0, split_id="mnist-0")
    assert "| 91.00 | 60.0 (GPU) |" in text(tmp_path, "answer")
    left = "2 finished rows in no table: made with --split-seed, or not the newest of their setting"
    assert left in text(tmp_path, "failures")


# --- tables --------------------------------------------------------------------------------------


def test_resnets_stand_in_lines_at_their_best_epochs(tmp_path):
    for epochs, accuracy in ((3, 0.99), (5, 0.98), (20, 0.999)):
        resnet(tmp_path, epochs=epochs, val_accuracy=accuracy)
        resnet(tmp_path, epochs=epochs, dataset="fashion", val_accuracy=1 - accuracy)
    resnet(tmp_path, lr=0.01, optimizer="sgd", momentum=0.5)
    resnet(tmp_path, lr=0.5, status="diverged", reason="loss is nan")
    lines = text(tmp_path, "resnets").splitlines()
    assert lines[0] == "| Batch | Optimizer | Rate | MNIST, ResNet-18 | FashionMNIST, ResNet-18 |"
    assert lines[2:5] == [
        "| 32 | SGD, momentum 0.5 | 0.01 | 97.00 | not measured |",
        "| 32 | Adam | 0.5 | diverged | not measured |",
        "| 32 | Adam | 0.001 | 97.00 (3) | 97.00 |",
    ]
    assert "| ResNet-18, 3 epochs / 5 epochs |" in text(tmp_path, "answer")


def test_the_other_tables_hold_what_was_measured(tmp_path):
    svm(tmp_path, C=10, val_accuracy=0.99)
    svm(tmp_path, kernel="poly", degree=3, coef0=1.0)
    device(tmp_path)
    device(tmp_path, **GPU, train_time_ms=1_000.0, optimizer="adam")
    resnet(tmp_path, arch="resnet50", status="out_of_memory", reason="CUDA out of memory")
    assert text(tmp_path, "svms").splitlines()[2:] == [
        "| MNIST | SVM, rbf | 97.50 | 5.00 | 1.00 | C 10, gamma scale |",
        "| MNIST | SVM, poly | 97.50 | 5.00 | 1.00 | C 1, gamma scale, degree 3, coef0 1 |",
    ]
    devices = text(tmp_path, "devices")
    assert (
        "| CPU | ResNet-18 | SGD, lr 0.001, batch 16, 5 epochs | 89.00 | 7.00 | 40.82 |" in devices
    )
    assert (
        "| GPU | ResNet-18 | Adam, lr 0.001, batch 16, 5 epochs | 89.00 | 1.00 (GPU) |" in devices
    )
    assert "No GPU" not in devices + text(tmp_path, "answer")
    failed = "| resnet | MNIST | ResNet-50 | 0 | out_of_memory | CUDA out of memory |"
    assert failed in text(tmp_path, "failures")
    settings = text(tmp_path, "settings")
    assert "<summary>MNIST: 2 settings of SVMs</summary>" in settings
    assert "| SVM, rbf | C 10, gamma scale | 99.00 | 97.50 | 5.00 | 1.00 | 2.00 | 1 |" in settings


def test_hours_count_a_training_once(tmp_path):
    for epochs in (3, 5, 20):
        resnet(tmp_path, epochs=epochs, train_time_ms=epochs * 3.6e6 - 1000)
    svm(tmp_path, seed=1, fit_time_ms=1.8e6 - 1000)
    assert "The assignment takes 5.0 hours (ResNet-18 5.0), for one process" in text(
        tmp_path, "hours"
    )
    assert "Everything here took 20.5 hours (ResNet-18 20.0, SVMs 0.5)." in text(tmp_path, "hours")


def test_subsets_are_data_sets_of_their_own_and_named_where_they_do_not_stand(tmp_path):
    resnet(tmp_path, limit=2000, n_train=1400, val_accuracy=1)
    svm(tmp_path, limit=2000, n_train=1400)
    assert "| Model | MNIST, 2,000 images (%) |" in text(tmp_path, "answer")
    assert "Published" not in text(tmp_path, "answer")
    assert claim(tmp_path, "5a") == []
    svm(tmp_path)
    assert "| Model | MNIST (%) |" in text(tmp_path, "answer")
    assert "Only tables.md has the rows of MNIST, 2,000 images." in text(tmp_path, "answer")


def some_rows(folder: Path, kind: str) -> None:
    """Rows of one kind, each of which must give a page that says what is there."""
    (folder / ".running").mkdir()
    if kind in ("svms", "all"):
        svm(folder)
    if kind in ("one network", "all"):
        seeds(resnet, folder, 97, 98, 97.5, history=CURVE)
    if kind == "other names":
        resnet(folder, dataset="kuzushiji 49", arch="resnet101", optimizer="lion", lr=3e-5)
        svm(folder, dataset="kuzushiji 49", kernel="laplacian")
    if kind == "only long trainings":
        resnet(folder, epochs=20, history=history(*[0.5] * 20))
    if kind == "devices":
        device(folder, arch="resnet101")
    if kind == "failures":
        resnet(folder, status="diverged", reason="loss is nan", val_accuracy=None)
        svm(folder, status="out_of_memory", reason="too large")
    if kind == "no shared seed":
        resnet(folder)
        svm(folder, seed=1)


KINDS = ("nothing", "svms", "one network", "all", "other names", "only long trainings", "devices",
         "failures", "no shared seed")  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_any_folder_gives_a_page_of_what_is_there(tmp_path, capsys, kind):
    some_rows(tmp_path, kind)
    readme = tmp_path / "page.md"
    readme.write_text("<!-- table: answer -->\n<!-- end: answer -->\n")
    assert outcome("--results-dir", tmp_path, "--readme", readme) == 0
    page = readme.read_text() + (tmp_path / "tables.md").read_text()
    page = page.replace(make_tables.HARD, " ")
    assert "nan" not in page.replace("loss is nan", "")
    assert "None" not in page
    words = {
        "nothing": "Nothing was measured", "svms": "MNIST: the SVM has 97.50 % (C 1, gamma scale).",
        "all": "SVM is ahead of ResNet-18",
        "one network": "ResNet-18 has 97.50 ± 0.50 %", "other names": "resnet101, 5 epochs",
        "only long trainings": "ResNet-18, 20 epochs", "devices": "No GPU was measured",
        "failures": "loss is nan",
        "no shared seed": "- MNIST: Within 5 epochs ResNet-18 and the SVM share no split.",
    }  # fmt: skip
    assert words[kind] in page
    assert outcome("--results-dir", tmp_path, "--readme", readme, "--check") == 0


# --- claims --------------------------------------------------------------------------------------


def test_claims_about_accuracy_follow_their_rules(tmp_path):
    for dataset, gap in (("mnist", 1.0), ("fashion", -1.0)):
        for line in make_tables.GRID:
            near = {"dataset": dataset, **line}
            seeds(resnet, tmp_path, 95 + gap, 96 + gap, 97 + gap, **near)
            seeds(resnet, tmp_path, 94.8 + gap, 95.79 + gap, 96.8 + gap, arch="resnet50",
                  training_flops=3e13, **near)  # fmt: skip
        seeds(svm, tmp_path, 95, 96.01, 97.02, dataset=dataset)
    assert claim(tmp_path, "1a")[0].startswith("**yes**: 8 of 8 lines, +0.20 [")
    assert claim(tmp_path, "1b") == ["**no**: best of 24 runs 98.00", ""]
    assert claim(tmp_path, "2")[0].startswith("**yes**: gains -0.20 [")
    assert claim(tmp_path, "2")[0].endswith("]<br>for 3.00 times the FLOPs")
    assert claim(tmp_path, "3") == ["", "**no**: in 16 of 17 settings"]
    mnist, fashion = claim(tmp_path, "5a")
    assert mnist.startswith("**yes**: ResNet-18 +0.99 [")
    assert fashion.startswith("**no**: ResNet-18 -1.01 [")
    assert claim(tmp_path, "5b") == ["**yes**: +0.99 against -1.01", ""]
    assert claim(tmp_path, "4a")[0] == "**yes**: ResNet-18 12.0, ResNet-50 12.0"
    assert claim(tmp_path, "4a'") == []
    assert claim(tmp_path, "4b")[0] == "**yes**: ResNet-18 5.00, ResNet-50 15.0"
    resnet(tmp_path, seed=7, lr=0.3, test_accuracy=0.99296)
    assert claim(tmp_path, "1b")[0] == "**yes**: best of 25 runs 99.30"


def test_a_network_that_is_clearly_worse_is_not_worth_any_cost(tmp_path):
    seeds(resnet, tmp_path, 95, 96, 97)
    seeds(resnet, tmp_path, 94, 95.01, 96.02, arch="resnet50", training_flops=None)
    assert claim(tmp_path, "2")[0].startswith("**yes**: gains -0.99 [")
    seeds(resnet, tmp_path, 98, 99.01, 99.02, arch="resnet50", training_flops=1e13)
    assert claim(tmp_path, "2")[0].startswith("**no**: gains +2.68 [")


def test_a_time_within_a_factor_of_two_is_not_clear(tmp_path):
    resnet(tmp_path, train_time_ms=9_000.0)
    svm(tmp_path)
    svm(tmp_path, solver="sklearn", fit_time_ms=30_000.0, training_flops=None)
    assert claim(tmp_path, "4a")[0] == "**not clear**: ResNet-18 1.80"
    assert claim(tmp_path, "4a'")[0] == "**no**: ResNet-18 0.300"


def test_adam_is_ranked_on_validation_and_judged_on_test_images(tmp_path):
    seeds(resnet, tmp_path, 95, 96, 97, val_accuracy=0.97)
    assert claim(tmp_path, "8") == []
    seeds(svm, tmp_path, 95.5, 96.4, 97.45, val_accuracy=0.96)
    assert claim(tmp_path, "8")[0] == "**yes**: rank 1 of 2"
    seeds(svm, tmp_path, 95.5, 96.4, 97.45, val_accuracy=0.98)
    assert claim(tmp_path, "8")[0].startswith("**no**: rank 2 of 2<br>-0.45 [")


@pytest.mark.parametrize(
    ("slow", "six", "seven"),
    [(60_000.0, "yes", "no"), (15_000.0, "not clear", "not clear"), (8_000.0, "no", "yes")],
)
def test_a_gpus_gain_is_judged_over_the_range_of_the_windows(tmp_path, slow, six, seven):
    ratio = slow / 7_000.0
    for arch in ("resnet18", "resnet50"):
        steps = {"step_ms_min": 1.9 * ratio, "step_ms_max": 2.1 * ratio}
        device(tmp_path, arch=arch, train_time_ms=slow, **steps)
        device(tmp_path, arch=arch, **GPU, step_ms_min=1.9, step_ms_max=2.1)
    assert claim(tmp_path, "6")[1].startswith(f"**{six}**: SGD {ratio:.2f} times")
    assert claim(tmp_path, "7")[1].startswith(f"**{seven}**: ")
    device(tmp_path, **GPU, arch="resnet50", cpu_name="Another CPU")
    assert claim(tmp_path, "6") == [], "a GPU beside another CPU"
    device(tmp_path, **GPU, arch="resnet18", batch_size=32, train_time_ms=1.0)
    assert claim(tmp_path, "7")[1].startswith(f"**{seven}**: "), "another training"


def test_pinning_is_judged_on_pairs_of_gpu_trainings(tmp_path):
    for pin, time in (("yes", 10_000.0), ("no", 10_500.0)):
        resnet(tmp_path, **GPU, pin_memory=pin, weights_sha256="a", train_time_ms=time)
    equal = "1 of 1 pairs of equal weights"
    assert claim(tmp_path, "9")[0] == f"**yes**: {equal}, 1.05 times as long without"
    resnet(tmp_path, **GPU, pin_memory="no", weights_sha256="a", train_time_ms=13_000.0)
    assert claim(tmp_path, "9")[0] == f"**yes**: {equal}<br>**no**: 1.30 times as long without"


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
    assert all(re.fullmatch("[a-z0-9-]+.svg", link) for link in re.findall(r"\]\((.*?)\)", page))
    for picture in tmp_path.glob("*.svg"):
        assert "<script" not in picture.read_text()


HOSTILE = {
    "words": '[{"train_accuracy": "low", "val_accuracy": 1}]', "no list": "7", "torn": "[{",
    "endless": history(0.5, float("inf")), "deep": "[" * 100_000, "huge": history(10**400),
}  # fmt: skip


@pytest.mark.parametrize("content", HOSTILE.values(), ids=HOSTILE)
def test_a_damaged_history_is_refused_in_one_line(tmp_path, capsys, content):
    resnet(tmp_path, history=content)
    assert outcome("--results-dir", tmp_path) == 2
    assert re.fullmatch("error: .*resnet.csv.*\n", capsys.readouterr().err)
    assert not list(tmp_path.glob("*.md"))


@pytest.mark.parametrize(
    "values",
    [{"arch": None}, {"epochs": None}, {"epochs": 0}, {"n_test": None}, {"device_name": None},
     {"train_time_ms": None}, {"finished_utc": None}, {"split_id": "other", "lr": 1.0}],
)  # fmt: skip
def test_rows_that_lack_a_cell_or_saw_other_images_are_refused(tmp_path, capsys, values):
    resnet(tmp_path)
    resnet(tmp_path, **values)
    assert outcome("--results-dir", tmp_path) == 2
    assert re.fullmatch("error: .*resnet.csv.*\n", capsys.readouterr().err)


@pytest.mark.parametrize("value", [1e-29, 1e29])
def test_extreme_numbers_break_nothing(tmp_path, value):
    facts = dict.fromkeys(("n_train", "n_val", "train_time_ms", "predict_time_ms"), value)
    for seed in range(2):
        resnet(tmp_path, seed=seed, **facts, lr=value, training_flops=value)
        svm(tmp_path, seed=seed, C=value, support_vectors=value, fit_time_ms=value)
    assert outcome("--results-dir", tmp_path) == 0


# --- pictures ------------------------------------------------------------------------------------


def test_a_picture_is_whole_and_carries_its_own_style(tmp_path):
    for seed in range(2):
        curve = history(*np.linspace(0.8, 0.95 + seed / 100, 20))
        resnet(tmp_path, seed=seed, epochs=20, history=curve)
        resnet(tmp_path, seed=seed, arch="resnet50", history=history(0.5, 0.8, 0.9, 0.9, 0.93))
        for C in (0.1, 1, 10):
            svm(tmp_path, seed=seed, C=C, val_accuracy=0.9 + C / 1000)
    assert outcome("--results-dir", tmp_path) == 0
    root = ElementTree.fromstring((tmp_path / "mnist.svg").read_text())
    width, height = (float(root.get(name)) for name in ("width", "height"))
    assert width <= 420, "text stays large on a phone"
    assert "prefers-color-scheme: dark" in root.find("{*}style").text
    for each in (*root.findall("{*}text"), *root.findall("{*}circle")):
        x, y = (float(each.get(name) or each.get(f"c{name}")) for name in "xy")
        assert 0 <= x <= width
        assert 0 <= y <= height
    dots = [each.get("class") for each in root.findall("{*}circle")]
    assert [dots.count(css) for css in ("m0 faint", "m0", "m1", "m2")] == [3, 1, 20, 5]
    words = [each.text for each in root.findall("{*}text")]
    assert "ResNet-18 95.50 after 20 epochs, 2 splits" in words
    assert "ResNet-50 93.00 after 5 epochs, 2 splits" in words
    assert "best SVM 91.00" in words
    assert [words.count(epoch) for epoch in ("1", "5", "20")] >= [2, 2, 1]


# --- pages ---------------------------------------------------------------------------------------

MARKERS = "text\n<!-- table: svms --> \nformer\n<!-- end: svms -->\nmore\n"


def test_a_readme_is_filled_between_its_markers_and_tables_md_holds_the_rest(tmp_path, capsys):
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
    page = readme.read_text().replace(make_tables.HARD, " ")
    assert page.startswith("text\n<!-- table: svms -->\n\n| Data set |")
    assert page.endswith("<!-- end: svms -->\nmore\n")
    tables = (folder / "tables.md").read_text()
    assert "## The best setting of each kernel" not in tables
    assert "](mnist.svg)" in tables
    readme.write_text(MARKERS.replace("svms", "answer"))
    assert outcome(*flags) == 0
    assert "](my%20results/mnist.svg)" in readme.read_text()


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


def test_pages_and_pictures_go_stale(tmp_path, capsys):
    svm(tmp_path)
    assert outcome("--results-dir", tmp_path) == 0
    for name in ("tables.md", "mnist.svg"):
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[:-2] + b"?" + content[-1:])
        assert outcome("--results-dir", tmp_path, "--check") == 1
        assert f"{name} is stale" in capsys.readouterr().out
        assert outcome("--results-dir", tmp_path) == 0
    assert outcome("--results-dir", tmp_path / "no\x1bde") == 2
    assert "no de: there is no such folder" in capsys.readouterr().err


def test_a_limited_run_takes_the_place_of_the_committed_tables(tmp_path, monkeypatch):
    """In a user's clone."""
    monkeypatch.chdir(tmp_path)
    Path("README.md").write_text((ROOT / "README.md").read_text())
    assert train_svm.main([*SMALL, "--kernel", "rbf", "--C", "1"]) == 0
    assert outcome("--readme", "README.md") == 0
    page = Path("README.md").read_text().replace(make_tables.HARD, " ")
    assert "| Model | digits, 100 images (%) |" in page
    assert "results/digits-100-images.svg" in page
    assert "99.04" not in page


# --- the committed pages -------------------------------------------------------------------------


def test_the_committed_pages_and_pictures_are_what_the_rows_give():
    flags = ["--results-dir", "results/reference", "--readme", "README.md", "--check"]
    assert finish(start("make_tables.py", *flags, cwd=ROOT)) == (0, "", "")


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


def test_the_readmes_example_in_python_runs(tmp_path):
    """After the command above it has saved a model."""
    flags = ["--dataset", "digits", "--epochs", "1", "--device", "cpu", "--bs", "100"]
    flags += ["--save-model", tmp_path / "models", "--results-dir", tmp_path / "rows"]
    assert train_resnet.main(list(map(str, flags))) == 0
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    code, out, error = finish(start("-c", example, cwd=tmp_path))
    assert code == 0, error
    assert out.startswith("tensor([")
