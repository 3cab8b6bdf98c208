"""The scripts as they are used: grids, skipping, bad input, and every command that is shown."""

import base64
import csv
import gzip
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.error
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT

import common
import compare_devices
import make_tables
import train_resnet
import train_svm

SCRIPTS = {
    "train_resnet.py": train_resnet,
    "train_svm.py": train_svm,
    "compare_devices.py": compare_devices,
    "make_tables.py": make_tables,
}
SMALL = ["--dataset", "digits", "--limit", "100"]
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


def read(path: Path) -> list[dict]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run("train_svm.py", flags...) -> exit code, in a folder of its own, on the CPU."""
    monkeypatch.chdir(tmp_path)

    def call(script: str, *flags: str) -> int:
        device = ["--device", "cpu"] if script in ("train_resnet.py", "compare_devices.py") else []
        return SCRIPTS[script].main([*device, *map(str, flags)])

    return call


# --- what the scripts do -------------------------------------------------------------------------


def test_train_resnet_runs_the_product_of_its_flags_and_skips_what_is_there(run, tmp_path, capsys):
    grid = [*SMALL, "--opt", "sgd", "adam", "--bs", "16", "32", "--epochs", "2", "1", "1"]
    assert run("train_resnet.py", *grid) == 0
    rows = read(tmp_path / "results/resnet.csv")
    assert len(rows) == 8
    assert len({(row["optimizer"], row["batch_size"], row["epochs"]) for row in rows}) == 8
    for row in rows:
        assert row["status"] == "ok"
        assert row["pin_memory"] == "n/a"
        assert (row["n_train"], row["n_val"], row["n_test"]) == ("70", "10", "20")
        assert 0 <= float(row["test_accuracy"]) <= 1
        assert float(row["train_time_ms"]) > 0
        assert all(row[name] for name in ("precision", "precision_reason", "torch", "commit"))
        epochs = json.loads(row["history"])
        assert len(epochs) == int(row["epochs"])
        assert epochs[-1]["val_accuracy"] == float(row["val_accuracy"])
    before = (tmp_path / "results/resnet.csv").read_bytes()
    capsys.readouterr()
    assert run("train_resnet.py", *grid) == 0
    assert "8 are in results/resnet.csv, 0 to run" in capsys.readouterr().out
    assert (tmp_path / "results/resnet.csv").read_bytes() == before


def test_only_missing_epochs_are_run_and_force_runs_again(run, tmp_path, capsys):
    assert run("train_resnet.py", *SMALL, "--epochs", "1") == 0
    first = read(tmp_path / "results/resnet.csv")[0]
    assert run("train_resnet.py", *SMALL, "--epochs", "1", "2") == 0
    rows = read(tmp_path / "results/resnet.csv")
    assert [row["epochs"] for row in rows] == ["1", "2"]
    assert rows[0] == first
    assert run("train_resnet.py", *SMALL, "--epochs", "1", "--force") == 0
    rows = read(tmp_path / "results/resnet.csv")
    assert [row["epochs"] for row in rows] == ["2", "1"]
    assert rows[1]["weights_sha256"] == first["weights_sha256"]
    assert rows[1]["train_time_ms"] != first["train_time_ms"]


def test_dry_run_lists_with_times_and_changes_nothing(run, tmp_path, capsys):
    run("train_resnet.py", *SMALL, "--epochs", "1")
    before = (tmp_path / "results/resnet.csv").read_bytes()
    capsys.readouterr()
    assert run("train_resnet.py", *SMALL, "--epochs", "1", "--opt", "adam", "sgd", "--dry-run") == 0
    out = capsys.readouterr().out
    assert re.search(r"digits resnet18 adam .*: done\n", out)
    assert re.search(r"digits resnet18 sgd .*: about [\d.]+ s\n", out)
    assert (tmp_path / "results/resnet.csv").read_bytes() == before
    assert run("train_resnet.py", *SMALL, "--dry-run", "--results-dir", "new") == 0
    assert run("train_svm.py", *SMALL, "--dry-run", "--results-dir", "new") == 0
    assert not (tmp_path / "new").exists()


def test_a_diverged_run_is_a_row_and_is_tried_again(run, tmp_path, capsys):
    flags = [*SMALL, "--lr", "1e20", "1e-3", "--opt", "sgd", "--epochs", "1"]
    for _ in range(2):
        assert run("train_resnet.py", *flags) == 1
        rows = {row["lr"]: row for row in read(tmp_path / "results/resnet.csv")}
        assert len(rows) == 2
        assert rows["0.001"]["status"] == "ok"
        assert rows["1e+20"]["status"] == "diverged"
        assert "loss is" in rows["1e+20"]["reason"]
        assert rows["1e+20"]["test_accuracy"] == ""
    assert "1 are in results/resnet.csv, 1 to run" in capsys.readouterr().out


def test_out_of_memory_becomes_rows_for_what_is_left(run, tmp_path, monkeypatch):
    def fit(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore")
        yield

    monkeypatch.setattr(common, "fit", fit)
    assert run("train_resnet.py", *SMALL, "--epochs", "1", "2") == 1
    rows = read(tmp_path / "results/resnet.csv")
    assert [(row["status"], row["epochs"]) for row in rows] == [
        ("out_of_memory", "1"),
        ("out_of_memory", "2"),
    ]
    assert rows[0]["reason"] == "CUDA out of memory. Tried to allocate 2 GiB"


def test_a_saved_model_is_plain_torchvision_and_predicts_what_the_row_says(run, tmp_path):
    flags = [*SMALL, "--epochs", "1", "2", "--no-amp"]  # bf16 could turn a near tie
    assert run("train_resnet.py", *flags) == 0
    assert run("train_resnet.py", *flags, "--save-model", "models") == 0, (
        "saves rows that are there"
    )
    models, rows = sorted((tmp_path / "models").glob("*.pt")), read(tmp_path / "results/resnet.csv")
    assert len(models) == 2
    split = common.load_split("digits", Path("data"), split_seed=0, limit=100)
    for path, row in zip(models, sorted(rows, key=lambda row: row["epochs"]), strict=True):
        network = torchvision.models.resnet18(num_classes=10)
        network.conv1 = torch.nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        network.load_state_dict(torch.load(path, weights_only=True), strict=True)
        model = common.Classifier(network, split.scale, torch.float32)
        _, predictions = common.evaluate(model, split.test)
        assert common.accuracy(predictions, split.test.labels) == float(row["test_accuracy"])
        codes = np.frombuffer(zlib.decompress(base64.b64decode(row["test_errors"])), np.uint8)
        wrong = codes > 0
        labels = split.test.labels.numpy()
        assert ((codes[wrong] - 1) // 10 == labels[wrong]).all()
        assert (np.where(wrong, (codes - 1) % 10, labels) == predictions.numpy()).all()
        assert json.loads(row["test_classes"]) == np.bincount(labels, minlength=10).tolist()


def test_the_loading_example_of_the_readme_runs(run, tmp_path, capsys):
    run("train_resnet.py", "--dataset", "digits", "--epochs", "2", "--save-model", "models")
    (example,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    capsys.readouterr()
    exec(compile(example, "README.md", "exec"), {})
    assert re.fullmatch(r"tensor\(\[.*\]\) tensor\(\[.*\]\)\n", capsys.readouterr().out)


def test_train_svm_runs_the_24_settings_on_the_split_of_the_resnets(run, tmp_path):
    flags = ["--dataset", "digits", "--limit", "500"]
    assert run("train_svm.py", *flags) == 0
    assert run("train_resnet.py", *flags, "--epochs", "1") == 0
    rows = read(tmp_path / "results/svm.csv")
    assert len(rows) == 24
    assert sum(row["kernel"] == "poly" for row in rows) == 16
    assert {row["degree"] for row in rows if row["kernel"] == "rbf"} == {""}
    split_id = read(tmp_path / "results/resnet.csv")[0]["split_id"]
    for row in rows:
        assert row["split_id"] == split_id
        assert row["n_train"] == "350"
        assert int(row["support_vectors"]) <= 350
        assert float(row["fit_time_ms"]) > 0
        assert float(row["predict_time_ms"]) > 0
    assert max(float(row["test_accuracy"]) for row in rows) > 0.9


@pytest.mark.parametrize("solver", train_svm.SOLVERS)
def test_svm_rows_are_what_scikit_learn_gives(run, tmp_path, solver):
    from sklearn.svm import SVC

    factors = ["--kernel", "poly", "--C", "2", "--gamma", "scale", "--degree", "2"]
    run("train_svm.py", *SMALL, *factors, "--solver", solver)
    (row,) = read(tmp_path / "results/svm.csv")
    split = common.load_split("digits", Path("data"), split_seed=0, limit=100)
    x, y = split.train.images.flatten(1).numpy() / 255, split.train.labels.numpy()
    svm = SVC(kernel="poly", C=2, degree=2, coef0=1).fit(x, y)
    expected = svm.score(split.test.images.flatten(1).numpy() / 255, split.test.labels.numpy())
    assert row["solver"] == solver
    assert float(row["test_accuracy"]) == pytest.approx(expected, abs=1e-12)
    assert int(row["support_vectors"]) == pytest.approx(svm.n_support_.sum(), abs=1)
    assert float(row["gamma_value"]) == pytest.approx(1 / (784 * x.var()))
    assert (float(row["shared_time_ms"]) > 0) == (solver == "gram")


def test_products_are_computed_once_for_all_settings_and_never_beyond_the_memory_limit(
    run, tmp_path, capsys, monkeypatch
):
    """Nor for a few settings, where bytes are multiplied fast."""
    assert run("train_svm.py", *SMALL, "--kernel", "rbf") == 0
    rows = read(tmp_path / "results/svm.csv")
    assert len({row["shared_time_ms"] for row in rows}) == 1
    assert capsys.readouterr().out.count("GiB, stored") == 1
    flags = [*SMALL, "--kernel", "rbf", "--memory-limit", "0", "--results-dir", "small"]
    assert run("train_svm.py", *flags) == 0
    assert "computed where they are needed" in capsys.readouterr().out
    for row, other in zip(rows, read(tmp_path / "small/svm.csv"), strict=True):
        assert row["test_errors"] == other["test_errors"]
    few = [*SMALL, "--kernel", "rbf", "--C", "1", "--gamma", "scale", "--force"]
    for fast, state in ((True, "computed where they are needed"), (False, "stored")):
        monkeypatch.setattr(train_svm, "multiplies_bytes", lambda device, fast=fast: fast)
        assert run("train_svm.py", *few, "--results-dir", state) == 0
        assert f"GiB, {state}" in capsys.readouterr().out


def test_train_size_is_recorded_and_is_a_setting_of_its_own(run, tmp_path):
    flags = [*SMALL, "--kernel", "rbf", "--C", "1", "--gamma", "0.01"]
    run("train_svm.py", *flags)
    run("train_svm.py", *flags, "--train-size", "40")
    rows = read(tmp_path / "results/svm.csv")
    assert [(row["train_size"], row["n_train"]) for row in rows] == [("", "70"), ("40", "40")]
    assert rows[0]["split_id"] == rows[1]["split_id"]


def test_seed_sets_the_split_unless_split_seed_does(run, tmp_path):
    flags = [*SMALL, "--epochs", "1", "--seed", "0", "1"]
    run("train_resnet.py", *flags)
    run("train_resnet.py", *flags, "--split-seed", "0")
    rows = {(row["seed"], row["split_seed"]): row for row in read(tmp_path / "results/resnet.csv")}
    assert set(rows) == {("0", "0"), ("1", "1"), ("1", "0")}
    assert rows["0", "0"]["split_id"] == rows["1", "0"]["split_id"] != rows["1", "1"]["split_id"]


@needs_no_gpu
def test_compare_devices_measures_what_is_there_and_skips_what_is_not(run, tmp_path, capsys):
    flags = [*SMALL, "--arch", "resnet18", "--opt", "sgd", "--repeats", "2", "--epochs", "1"]
    assert run("compare_devices.py", "--device", "cpu", "cuda", *flags) == 0
    measured, skipped = read(tmp_path / "results/devices.csv")
    assert measured["status"] == "ok"
    assert (skipped["device"], skipped["status"]) == ("cuda", "skipped")
    assert skipped["reason"] == "no cuda device here"
    assert skipped["test_accuracy"] == skipped["train_time_ms"] == skipped["training_flops"] == ""
    assert float(measured["step_ms_min"]) <= float(measured["step_ms"])
    assert float(measured["step_ms"]) <= float(measured["step_ms_max"])
    assert float(measured["peak_memory_mib"]) > 100
    assert int(measured["forward_flops"]) == 2 * int(measured["forward_macs"])


def test_compare_devices_trains_exactly_as_train_resnet(run, tmp_path):
    flags = [*SMALL, "--arch", "resnet18", "--opt", "sgd", "--bs", "16", "--epochs", "1"]
    run("train_resnet.py", *flags)
    run("compare_devices.py", *flags, "--repeats", "1")
    (resnet,), (device,) = (
        read(tmp_path / f"results/{name}.csv") for name in ("resnet", "devices")
    )
    for name in ("weights_sha256", "test_accuracy", "split_id", "precision"):
        assert resnet[name] == device[name]


@pytest.mark.parametrize(
    ("arch", "forward_flops", "training_flops"),
    [("resnet18", 66.0e6, 196.8e6), ("resnet50", 155.9e6, 466.5e6)],
)
def test_flops_are_the_published_ones(arch, forward_flops, training_flops):
    costs = compare_devices.costs(arch)
    assert costs["forward_flops"] == pytest.approx(forward_flops, rel=1e-3)
    assert costs["training_flops"] == pytest.approx(training_flops, rel=1e-3)


def test_the_tables_take_the_rows_of_the_scripts(run, tmp_path, capsys):
    run("train_resnet.py", *SMALL, "--arch", "resnet18", "resnet50", "--epochs", "1")
    run("train_svm.py", *SMALL, "--kernel", "rbf")
    run("compare_devices.py", *SMALL, "--arch", "resnet18", "--repeats", "1", "--epochs", "1")
    capsys.readouterr()
    assert run("make_tables.py") == 0
    text = capsys.readouterr().out
    row = next(row for row in read(tmp_path / "results/resnet.csv") if row["arch"] == "resnet18")
    assert f"| 32 | Adam | 0.001 | {100 * float(row['test_accuracy']):.2f} [" in text
    assert text.count("**digits, ") == 4


def test_real_images_are_learnt(run, tmp_path, real_data):
    """2,000 images and one epoch: far above chance, for both models and both data sets."""
    flags = ["--dataset", "mnist", "fashion", "--limit", "2000", "--data-dir", real_data]
    assert run("train_resnet.py", *flags, "--epochs", "2", "--bs", "16") == 0
    assert run("train_svm.py", *flags, "--kernel", "rbf", "--C", "1", "--gamma", "scale") == 0
    for name in ("resnet", "svm"):
        for row in read(tmp_path / f"results/{name}.csv"):
            assert float(row["test_accuracy"]) > {"mnist": 0.6, "fashion": 0.5}[row["dataset"]]


# --- bad input -----------------------------------------------------------------------------------


def assert_refused(call, capsys, *words: str) -> None:
    """One line on stderr that holds the words, and exit code 2."""
    with pytest.raises(SystemExit) as stop:
        call()
    error = capsys.readouterr().err
    assert stop.value.code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1, error
    assert all(word in error for word in words), error


BAD_FLAGS = [
    ("train_resnet.py", "--arch vgg16", "--arch"),
    ("train_resnet.py", "--opt rmsprop", "--opt"),
    ("train_resnet.py", "--lr 0", "--lr"),
    ("train_resnet.py", "--lr -0.1", "--lr"),
    ("train_resnet.py", "--lr nan", "--lr"),
    ("train_resnet.py", "--lr inf", "--lr"),
    ("train_resnet.py", "--lr fast", "--lr"),
    ("train_resnet.py", "--lr", "--lr"),
    ("train_resnet.py", "--bs 1", "--bs"),
    ("train_resnet.py", "--bs 16.5", "--bs"),
    ("train_resnet.py", "--bs 1000000000", "--bs"),
    ("train_resnet.py", "--dataset digits --limit 1790", "--limit"),
    ("train_resnet.py", "--epochs 0", "--epochs"),
    ("train_resnet.py", "--epochs 3 -5", "--epochs"),
    ("train_resnet.py", "--pin-memory maybe", "--pin-memory"),
    ("train_resnet.py", "--seed -1", "--seed"),
    ("train_resnet.py", "--seed 99999999999", "--seed"),
    ("train_resnet.py", "--split-seed one", "--split-seed"),
    ("train_resnet.py", "--momentum 1.5", "--momentum"),
    ("train_resnet.py", "--dataset cifar10", "--dataset"),
    ("train_resnet.py", "--limit 99", "--limit"),
    ("train_resnet.py", "--dataset digits --limit 1797", "--limit"),
    ("train_resnet.py", "--device tpu", "--device"),
    ("train_resnet.py", "--learning-rate 1", "--learning-rate"),
    ("train_resnet.py", "--epoch 3", "--epoch"),
    ("train_svm.py", "--C 0", "--C"),
    ("train_svm.py", "--C -1 1", "--C"),
    ("train_svm.py", "--gamma wide", "--gamma"),
    ("train_svm.py", "--gamma 0", "--gamma"),
    ("train_svm.py", "--degree 2.5", "--degree"),
    ("train_svm.py", "--degree 0", "--degree"),
    ("train_svm.py", "--coef0 nan", "--coef0"),
    ("train_svm.py", "--kernel linear", "--kernel"),
    ("train_svm.py", "--train-size 5", "--train-size"),
    ("train_svm.py", "--dataset digits --train-size 1258", "--train-size"),
    ("train_svm.py", "--solver libsvm", "--solver"),
    ("train_svm.py", "--memory-limit -1", "--memory-limit"),
    ("train_svm.py", "--solver sklearn --device cuda", "--solver"),
    ("compare_devices.py", "--device auto", "--device"),
    ("compare_devices.py", "--repeats 0", "--repeats"),
    ("make_tables.py", "--format html", "--format"),
]


@pytest.mark.parametrize(("script", "flags", "word"), BAD_FLAGS)
def test_a_bad_flag_is_refused_in_one_line(run, tmp_path, capsys, script, flags, word):
    assert_refused(lambda: SCRIPTS[script].main(flags.split()), capsys, word)
    assert os.listdir(tmp_path) == []


@needs_no_gpu
def test_an_absent_device_is_refused_in_one_line(run, capsys):
    flags = shlex.split("--arch resnet50 --opt adam --lr 1e-3 --bs 32 --device cuda")
    assert_refused(lambda: train_resnet.main(flags), capsys, "--device cuda", "--device cpu")


@pytest.fixture
def offline(monkeypatch):
    """No server answers."""

    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def test_missing_data_without_a_network_names_the_way_out(run, capsys, offline):
    assert_refused(
        lambda: run("train_resnet.py", "--dataset", "mnist"), capsys, "data/MNIST/raw", "digits"
    )


def damage_archive(raw: Path) -> None:
    archive = raw / "t10k-images-idx3-ubyte.gz"
    content = archive.read_bytes()
    archive.unlink()
    archive.write_bytes(content[: len(content) // 2])


def damage_unpacked(raw: Path) -> None:
    content = bytearray(gzip.decompress((raw / "t10k-images-idx3-ubyte.gz").read_bytes()))
    content[5000] ^= 1
    unpack(raw)
    (raw / "t10k-images-idx3-ubyte").write_bytes(content)


def truncate_unpacked(raw: Path) -> None:
    unpack(raw)
    (raw / "train-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01\0\0")


def unpack(raw: Path) -> None:
    for archive in raw.glob("*.gz"):
        archive.with_suffix("").write_bytes(gzip.decompress(archive.read_bytes()))


@pytest.mark.parametrize("damage", [damage_archive, damage_unpacked, truncate_unpacked])
def test_damaged_data_is_refused_in_one_line(run, tmp_path, capsys, offline, real_data, damage):
    raw = tmp_path / "data/MNIST/raw"
    shutil.copytree(real_data / "MNIST/raw", raw, ignore=lambda _, names: {
        name for name in names if not name.endswith(".gz")
    })  # fmt: skip
    damage(raw)
    assert_refused(
        lambda: run("train_svm.py", "--dataset", "mnist"), capsys, "MNIST", "--dataset digits"
    )
    assert not list((tmp_path / "results").glob("*.csv"))


@pytest.mark.parametrize("flag", ["--data-dir", "--results-dir", "--save-model"])
def test_a_file_where_a_folder_should_be_is_refused(run, tmp_path, capsys, flag):
    (tmp_path / "file").write_text("")
    dataset = "mnist" if flag == "--data-dir" else "digits"
    assert_refused(
        lambda: run("train_resnet.py", "--dataset", dataset, flag, "file", "--epochs", "1"),
        capsys, "file",
    )  # fmt: skip


@pytest.mark.parametrize("script", ["train_resnet.py", "train_svm.py", "compare_devices.py"])
def test_rows_of_another_version_are_refused_before_any_work(run, tmp_path, capsys, script):
    (tmp_path / "results").mkdir()
    for name in ("resnet", "svm", "devices"):
        (tmp_path / f"results/{name}.csv").write_text("status,old\nok,1\n")
    assert_refused(lambda: run(script, *SMALL), capsys, "other columns", "--results-dir")


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("val_accuracy", "high"),
        ("test_accuracy", "nan"),
        ("n_test", ""),
        ("arch", "resnet9000"),
        ("optimizer", "lion"),
        ("split_id", "other"),
        ("train_time_ms", None),
    ],
)
def test_broken_rows_are_refused_by_the_tables(run, tmp_path, capsys, name, change):
    run("train_resnet.py", *SMALL, "--epochs", "1")
    path = tmp_path / "results/resnet.csv"
    (row,) = read(path)
    broken = {key: value for key, value in row.items() if key != name or change is not None}
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, broken.keys())
        writer.writeheader()
        writer.writerow(row if change is not None else broken)
        if change is not None:
            writer.writerow(broken | {name: change})
    capsys.readouterr()
    assert_refused(lambda: run("make_tables.py"), capsys)


def test_a_missing_readme_is_refused(run, capsys):
    assert_refused(lambda: run("make_tables.py", "--readme", "absent.md"), capsys, "absent.md")


def test_errors_reach_the_shell_without_a_traceback(tmp_path):
    for script in SCRIPTS:
        command = [sys.executable, str(ROOT / script), "--nonsense"]
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 2
        assert done.stderr.startswith("error: ")
        assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("flags", [["--fast"], ["--quick", "--dry-run"], ["--quick", "more"]])
def test_run_all_refuses_other_flags(flags):
    command = ["bash", str(ROOT / "run_all.sh"), *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


# --- commands that are shown ---------------------------------------------------------------------


def shown_commands() -> list[str]:
    """Every python command in README, the docstrings and run_all.sh."""
    found = []
    for name in ("README.md", "run_all.sh", *SCRIPTS):
        text = (ROOT / name).read_text().replace("\\\n", " ").replace("run ", "python ")
        found += re.findall(
            r"^[ `]*(?:OMP_NUM_THREADS=1 )?(python \w+\.py[^`\n#|]*)", text, re.MULTILINE
        )
    return sorted({re.sub(r'"\$\{flags\[@\]\}"|\[.*', "", line).strip() for line in found})


@pytest.mark.parametrize("command", shown_commands())
def test_every_command_that_is_shown_parses(command):
    _, script, *flags = shlex.split(command.replace('"$results"', "results"))
    SCRIPTS[script].parse_args(flags)


def test_the_commands_of_the_mission_are_shown():
    assert "python train_resnet.py --arch resnet50 --opt adam --lr 1e-3 --bs 32 --device cuda" in (
        shown_commands()
    )
    readme = (ROOT / "README.md").read_text()
    assert "bash run_all.sh --quick" in readme
    assert "bash tests/run.sh" in readme
