"""Made rows for the tests of tables, statistics and pictures."""

import base64
import json
import zlib
from pathlib import Path

import common
import make_tables

FACTS = {
    "status": "ok", "dataset": "mnist", "seed": 0, "split_id": "abc", "n_train": 49000,
    "n_val": 7000, "n_test": 14000, "predict_time_ms": 1000.0, "device_name": "Some CPU",
    "cpu_name": "Some CPU", "threads": 2, "torch": "2.15.0", "training_flops": 1e13,
}  # fmt: skip
TRAINING = FACTS | {
    "arch": "resnet18", "optimizer": "adam", "lr": 1e-3, "batch_size": 32, "epochs": 3,
    "pin_memory": "n/a", "amp": "true", "precision": "float32", "device": "cpu",
    "val_accuracy": 0.98, "test_accuracy": 0.97, "train_time_ms": 60_000.0,
}  # fmt: skip


def save(folder: Path, name: str, row: dict) -> None:
    folder.mkdir(exist_ok=True)
    common.save_row(folder / f"{name}.csv", {"split_seed": row["seed"]} | row)


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
        "dataset": "fashion", "optimizer": "sgd", "batch_size": 16, "val_accuracy": 0.9,
        "test_accuracy": 0.89, "train_time_ms": 7_000.0, "step_ms": 2.0, "step_ms_min": 1.5,
        "step_ms_max": 2.5, "windows": 5, "peak_memory_mib": 512.0,
    } | values)  # fmt: skip


def seeded(seed: int, **values) -> dict:
    """The columns of a run whose seed draws its own split."""
    dataset = values.get("dataset", "mnist")
    return {"seed": seed, "split_seed": seed, "split_id": f"{dataset}{seed}", **values}


def errors(*places: int, total: int = 1000) -> dict:
    """What a row keeps of total test images, image i of class i % 10, with these ones wrong."""
    codes = bytearray(total)
    for place in places:
        codes[place] = 1 + 10 * (place % 10) + (place + 1) % 10
    return {
        "n_test": total,
        "test_accuracy": 1 - len(places) / total,
        "test_classes": json.dumps([total // 10] * 10),
        "test_errors": base64.b64encode(zlib.compress(bytes(codes))).decode(),
    }


def history(*accuracies: float) -> str:
    return json.dumps([{"train_accuracy": value, "val_accuracy": value} for value in accuracies])


def study(folder: Path) -> make_tables.Study:
    return make_tables.Study(*make_tables.load([folder]))


def text(folder: Path, name: str) -> str:
    """One table, as --table prints it."""
    return make_tables.render(name, study(folder))


def outcome(*flags) -> int:
    """The exit code of make_tables.py."""
    try:
        return make_tables.main([str(flag) for flag in flags])
    except SystemExit as stop:
        return stop.code
