"""The scripts as they are used: grids, skipping, bad input, and every command that is shown."""

import json
import os
import re
import shlex
from functools import cache

import pytest
import torch
import torchvision
import verify
from conftest import ROOT, SMALL, assert_refused, read
from sklearn.svm import SVC

import common
import compare_devices
import make_tables
import train_resnet
import train_svm

MODULES = (train_resnet, train_svm, compare_devices, make_tables)
SCRIPTS = {f"{module.__name__}.py": module for module in MODULES}
SETTING = ("kernel", "C", "gamma", "degree")
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


# --- what the scripts do -------------------------------------------------------------------------


def test_train_resnet_runs_the_product_of_its_flags_and_skips_finished_runs(run, tmp_path, capsys):
    grid = [*SMALL, "--opt", "sgd", "adam", "--bs", "16", "32", "--epochs", "2", "1", "1"]
    path = tmp_path / "results/resnet.csv"
    assert run(train_resnet, *grid) == 0
    rows = read(path)
    assert len({(row["optimizer"], row["batch_size"], row["epochs"]) for row in rows}) == 8
    for row in rows:
        assert (row["status"], row["amp"], row["pin_memory"]) == ("ok", "yes", "no")
        assert (row["n_train"], row["n_val"], row["n_test"]) == ("70", "10", "20")
        assert int(row["training_flops"]) == 196_836_352 * 70 * int(row["epochs"])
        assert all(row[name] for name in ("precision", "device_name", "torch", "commit"))
        epochs = json.loads(row["history"])
        assert len(epochs) == int(row["epochs"])
        assert epochs[-1]["val_accuracy"] == float(row["val_accuracy"])
    capsys.readouterr()
    assert run(train_resnet, *grid) == 0
    assert f"results/{path.name}: 0 of 8 rows to run" in capsys.readouterr().out
    assert read(path) == rows
    # Of 1 and 2 epochs, trained together above: the same weights, of a training of their own.
    assert run(train_resnet, *SMALL, "--epochs", "2", "--force") == 0
    *others, again = read(path)
    (old,) = (row for row in rows if row not in others)
    assert len(others) == 7
    assert again["weights_sha256"] == old["weights_sha256"]
    assert again["train_time_ms"] != old["train_time_ms"]


def test_a_dry_run_estimates_every_script_and_changes_nothing(run, tmp_path, capsys):
    for module in (train_resnet, train_svm, compare_devices):
        flags = [] if module is train_svm else ["--arch", "resnet18", "--opt", "sgd"]
        assert run(module, *SMALL, *flags, "--dry-run", "--results-dir", "new") == 0
        assert re.search(r"in all about [\d.]+ (s|min|h).* \(\d+ s\)", capsys.readouterr().out)
    assert os.listdir(tmp_path) == []


def test_a_saved_model_is_torchvisions_and_predicts_what_the_row_says(run, tmp_path, small):
    flags = [*SMALL, "--epochs", "1", "2", "--no-amp"]  # bf16 could turn a near tie
    assert run(train_resnet, *flags) == 0
    assert run(train_resnet, *flags, "--save-model", "models") == 0, "saves finished runs"
    models, rows = sorted((tmp_path / "models").iterdir()), read(tmp_path / "results/resnet.csv")
    for path, row in zip(models, sorted(rows, key=lambda row: row["epochs"]), strict=True):
        saved = torch.load(path, weights_only=True)
        assert (saved["mean"], saved["std"]) == small.scale
        network = torchvision.models.resnet18(num_classes=10)
        network.conv1 = torch.nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        network.load_state_dict(saved["weights"], strict=True)
        model = common.Classifier(network, small.scale, torch.float32)
        assert common.evaluate(model, small.test)[1] == float(row["test_accuracy"])
    content = models[0].read_bytes()
    models[0].write_bytes(content[:1000])
    assert run(train_resnet, *flags, "--save-model", "models") == 0
    assert models[0].read_bytes() == content, "a torn file is none"


def test_a_model_that_cannot_be_written_costs_no_row_and_is_named(run, tmp_path):
    flags = [*SMALL, "--epochs", "1", "--save-model", "models"]
    run(train_resnet, *flags)
    (path,) = (tmp_path / "models").iterdir()
    path.unlink()
    path.mkdir()
    (tmp_path / "results/resnet.csv").unlink()
    with pytest.raises(OSError, match=f"cannot write .*{path.name}: Is a directory"):
        run(train_resnet, *flags)
    assert [row["status"] for row in read(tmp_path / "results/resnet.csv")] == ["ok"]


def test_train_svm_runs_24_settings_which_give_what_scikit_learn_gives(run, tmp_path, small):
    setting = ["--kernel", "poly", "--C", "1", "--gamma", "scale", "--degree", "2"]
    assert run(train_svm, *SMALL) == 0
    assert run(train_svm, *SMALL, *setting, "--solver", "sklearn") == 0
    *rows, theirs = read(tmp_path / "results/svm.csv")
    assert len(rows) == 24
    assert sum(row["kernel"] == "poly" for row in rows) == 16
    assert {row["degree"] for row in rows if row["kernel"] == "rbf"} == {""}
    assert {row["split_id"] for row in rows} == {small.columns["split_id"]}, "as ResNets'"
    assert all(float(row["training_flops"]) > 2 * 784 * 70 for row in rows)
    (ours,) = (row for row in rows if all(row[name] == theirs[name] for name in SETTING))
    x, y = train_svm.inputs(small.train), small.train.labels.numpy()
    svm = SVC(kernel="poly", degree=2, coef0=1).fit(x, y)
    score = svm.score(train_svm.inputs(small.test), small.test.labels.numpy())
    for row in (ours, theirs):
        assert float(row["test_accuracy"]) == pytest.approx(score)
        assert int(row["support_vectors"]) == pytest.approx(svm.n_support_.sum(), abs=1)
        assert float(row["gamma_value"]) == pytest.approx(1 / (784 * x.var()))


@needs_no_gpu
def test_compare_devices_shares_the_rows_of_train_resnet_and_skips_an_absent_gpu(
    run, tmp_path, capsys
):
    flags = [*SMALL, "--arch", "resnet18", "--bs", "16", "--epochs", "1"]
    assert run(train_resnet, *flags, "--opt", "sgd") == 0
    assert compare_devices.main(flags) == 0
    out = capsys.readouterr().out
    assert "sees no CUDA GPU" in out
    assert "results/resnet.csv: 1 of 2 rows to run" in out
    assert {row["optimizer"] for row in read(tmp_path / "results/resnet.csv")} == {"sgd", "adam"}


def test_real_images_are_learnt(run, tmp_path, real_data):
    """1,000 images and two epochs: far above chance, for both models and both data sets."""
    flags = ["--dataset", "mnist", "fashion", "--limit", "1000", "--data-dir", real_data]
    assert run(train_resnet, *flags, "--epochs", "2", "--bs", "16") == 0
    assert run(train_svm, *flags, "--kernel", "rbf", "--C", "1", "--gamma", "scale") == 0
    for name in ("resnet", "svm"):
        for row in read(tmp_path / f"results/{name}.csv"):
            assert float(row["test_accuracy"]) > 0.4


@pytest.mark.parametrize("name", ["resnet", "svm"])
def test_verify_asks_for_the_same_results_here_and_for_the_same_split_elsewhere(
    run, tmp_path, capsys, name
):
    flags = "--opt sgd adam --momentum 0.5 --no-amp --epochs 2 --seed 1"
    flags = flags if name == "resnet" else "--C 1 --gamma scale --degree 2"
    run(verify.SCRIPTS[name], *SMALL, *flags.split())
    path, other = tmp_path / f"results/{name}.csv", {"cpu_name": "another"}
    row, _ = common.read_rows(path)
    near = {"test_accuracy": row["test_accuracy"] - 0.009, "val_accuracy": 0.5}
    for changes, code, words in (
        ({}, 0, "2 of 2 rows confirmed"), (near, 1, "differs in val_accuracy, test_accuracy"),
        (near | other, 0, "+0.90 points"), ({"test_accuracy": 0} | other, 1, "1 of 2 rows"),
        ({"split_id": "other"} | other, 1, "differs in split_id"),
    ):  # fmt: skip
        common.save_row(path, row | changes)
        assert verify.main([name, "3", "--results-dir", "results"]) == code
        assert words in capsys.readouterr().out


# --- devices and machines ------------------------------------------------------------------------


def test_a_gpu_that_dies_in_its_first_operation_is_not_used(capsys, monkeypatch):
    """As an old card does: auto takes the CPU with one line, cuda is refused. A process of a higher
    number than there are GPUs shares one."""

    def ones(*_, device):
        raise RuntimeError("CUDA error: no kernel image is available\nmore")

    chosen = []
    monkeypatch.setattr(torch, "ones", ones)
    for name, value in (("is_available", lambda: True), ("device_count", lambda: 2)):
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(common, "gpu_problem", cache(common.gpu_problem.__wrapped__))
    monkeypatch.setattr(common, "LOCAL_RANK", 3)
    assert common.pick_device("auto").type == "cpu"
    assert capsys.readouterr().out.count("no kernel image is available") == 1
    assert_refused(capsys, lambda: common.pick_device("cuda"), "no kernel image", "--device cpu")
    assert chosen == [1]


@needs_no_gpu
def test_an_absent_gpu_is_refused_in_one_line(capsys):
    refused = ("--device cuda", "sees no CUDA GPU", "pytorch.org", "--device cpu")
    assert_refused(capsys, lambda: train_resnet.main(["--device", "cuda"]), *refused)


def test_a_gpu_is_set_against_the_cpu(monkeypatch):
    """The same trainings, the GPU's first."""
    monkeypatch.setattr(common, "gpu_problem", lambda: None)
    monkeypatch.setattr(common, "device_name", str)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    rows = train_resnet.grid(compare_devices.parse_args([]))
    assert [row["device"] for row in rows] == ["cuda"] * 6 + ["cpu"] * 6
    same = [{"device": 0, "precision": 0, "pin_memory": 0}] * 6
    assert [a | c for a, c in zip(rows[:6], same, strict=True)] == [
        b | c for b, c in zip(rows[6:], same, strict=True)
    ]


def test_pin_memory_takes_the_words_of_the_assignment():
    assert train_resnet.parse_args(["--pin-memory", "True", "False"]).pin_memory == ["yes", "no"]


# --- bad input -----------------------------------------------------------------------------------

BAD_FLAGS = {  # the last one of each is the one that is refused
    train_resnet: [
        "--arch vgg16", "--lr 0", "--lr nan", "--lr", "--bs 1", "--epochs 3 -5", "--seed -1",
        "--pin-memory maybe", "--limit 99", "--epoch 3",
    ],
    train_svm: ["--C 0", "--gamma wide", "--degree 2.5", "--coef0 nan"],
    compare_devices: ["--device gpu"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("module", "flags"), [(module, line) for module, lines in BAD_FLAGS.items() for line in lines]
)
def test_a_bad_flag_is_refused_in_one_line(run, tmp_path, capsys, module, flags):
    refused = re.findall(r"--[\w-]+", flags)[-1]
    assert_refused(capsys, lambda: module.main(flags.split()), refused)
    assert os.listdir(tmp_path) == []


# --- commands that are shown ---------------------------------------------------------------------


def shown_commands() -> list[str]:
    """Every python command in the pages and the docstrings."""
    text = "".join((ROOT / name).read_text() for name in ("README.md", "results/README.md"))
    text += "\n".join(module.__doc__ for module in MODULES)
    found = re.findall(r"(?:^ *|`)(python \w+\.py[^`\n#|]*)", text, re.MULTILINE)
    return sorted({line.strip() for line in found})


MISSION = "python train_resnet.py --arch resnet50 --opt adam --lr 1e-3 --bs 32 --device cuda"
LONG_NAMES = "python train_resnet.py --optimizer sgd --batch-size 16"


@pytest.mark.parametrize("command", [*shown_commands(), LONG_NAMES])
def test_every_command_that_is_shown_parses(command):
    _, script, *flags = shlex.split(command)
    SCRIPTS[script].parse_args(flags)
    assert MISSION in shown_commands()
