"""The scripts as they are used: grids, skipping, bad input, and every command that is shown."""

import base64
import csv
import gzip
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT
from sklearn.svm import SVC

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


def test_train_resnet_runs_the_product_of_its_flags_and_skips_finished_runs(run, tmp_path, capsys):
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
        assert int(row["training_flops"]) == 196_836_352 * 70 * int(row["epochs"])
        assert all(row[name] for name in ("precision", "precision_reason", "torch", "commit"))
        epochs = json.loads(row["history"])
        assert len(epochs) == int(row["epochs"])
        assert epochs[-1]["val_accuracy"] == float(row["val_accuracy"])
    before = (tmp_path / "results/resnet.csv").read_bytes()
    capsys.readouterr()
    assert run("train_resnet.py", *grid) == 0
    assert "results/resnet.csv: 0 of 8 rows to run" in capsys.readouterr().out
    assert (tmp_path / "results/resnet.csv").read_bytes() == before


def test_only_missing_epochs_are_run_and_force_runs_again(run, tmp_path):
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


def test_a_dry_run_estimates_every_script_and_changes_nothing(run, tmp_path, capsys):
    for script in ("train_resnet.py", "train_svm.py", "compare_devices.py"):
        flags = ["--arch", "resnet18", "--opt", "sgd"] if script != "train_svm.py" else []
        assert run(script, *SMALL, *flags, "--dry-run", "--results-dir", "new") == 0
        assert re.search(r"in all about [\d.:]+ (s|min) \(\d+ s\)", capsys.readouterr().out)
    assert os.listdir(tmp_path) == []


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
    assert "results/resnet.csv: 1 of 2 rows to run" in capsys.readouterr().out


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


def test_kernel_values_that_overflow_become_a_row(run, tmp_path):
    flags = ["--kernel", "poly", "--C", "1", "--gamma", "100", "--degree", "100"]
    assert run("train_svm.py", *SMALL, *flags) == 1
    (row,) = read(tmp_path / "results/svm.csv")
    assert row["status"] == "diverged"
    assert "kernel values are not finite" in row["reason"]


def test_a_saved_model_is_torchvisions_and_predicts_what_the_row_says(run, tmp_path, capsys):
    flags = [*SMALL, "--epochs", "1", "2", "--no-amp"]  # bf16 could turn a near tie
    assert run("train_resnet.py", *flags) == 0
    assert run("train_resnet.py", *flags, "--save-model", "models") == 0, "saves finished runs"
    models, rows = sorted((tmp_path / "models").glob("*.pt")), read(tmp_path / "results/resnet.csv")
    assert len(models) == capsys.readouterr().out.count("saved models/") == 2
    split = common.load_split("digits", Path("data"), split_seed=0, limit=100)
    for path, row in zip(models, sorted(rows, key=lambda row: row["epochs"]), strict=True):
        saved = torch.load(path, weights_only=True)
        assert (saved["mean"], saved["std"]) == split.scale
        network = torchvision.models.resnet18(num_classes=10)
        network.conv1 = torch.nn.Conv2d(1, 64, 7, stride=2, padding=3, bias=False)
        network.load_state_dict(saved["weights"], strict=True)
        model = common.Classifier(network, split.scale, torch.float32)
        _, predictions = common.evaluate(model, split.test)
        assert common.accuracy(predictions, split.test.labels) == float(row["test_accuracy"])
        codes = np.frombuffer(zlib.decompress(base64.b64decode(row["test_errors"])), np.uint8)
        wrong, labels = codes > 0, split.test.labels.numpy()
        assert ((codes[wrong] - 1) // 10 == labels[wrong]).all()
        assert (np.where(wrong, (codes - 1) % 10, labels) == predictions.numpy()).all()
        assert json.loads(row["test_classes"]) == np.bincount(labels, minlength=10).tolist()
    models[0].write_bytes(b"")
    assert run("train_resnet.py", *flags, "--save-model", "models") == 0
    assert models[0].stat().st_size > 0, "an empty file is no saved model"


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
        assert float(row["training_flops"]) > 2 * 784 * 350
    assert max(float(row["test_accuracy"]) for row in rows) > 0.9


@pytest.mark.parametrize("solver", ["gram", "sklearn"])
def test_svm_rows_are_what_scikit_learn_gives(run, tmp_path, solver):
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
    assert (row["training_flops"] == "") == (solver == "sklearn")


def test_seed_sets_the_split_unless_split_seed_does(run, tmp_path):
    flags = [*SMALL, "--epochs", "1", "--seed", "0", "1"]
    run("train_resnet.py", *flags)
    run("train_resnet.py", *flags, "--split-seed", "0")
    rows = {(row["seed"], row["split_seed"]): row for row in read(tmp_path / "results/resnet.csv")}
    assert set(rows) == {("0", "0"), ("1", "1"), ("1", "0")}
    assert rows["0", "0"]["split_id"] == rows["1", "0"]["split_id"] != rows["1", "1"]["split_id"]


@needs_no_gpu
def test_compare_devices_trains_as_train_resnet_and_skips_an_absent_device(run, tmp_path, capsys):
    flags = [*SMALL, "--arch", "resnet18", "--opt", "sgd", "--bs", "16", "--epochs", "1"]
    run("train_resnet.py", *flags)
    assert run("compare_devices.py", *flags, "--repeats", "2", "--device", "cpu", "cuda") == 0
    assert "cuda is skipped: PyTorch sees no cuda device" in capsys.readouterr().out
    (resnet,), (device,) = (
        read(tmp_path / f"results/{name}.csv") for name in ("resnet", "devices")
    )
    for name in ("weights_sha256", "test_accuracy", "split_id", "precision", "training_flops"):
        assert resnet[name] == device[name]
    assert float(device["step_ms_min"]) <= float(device["step_ms"])
    assert float(device["step_ms"]) <= float(device["step_ms_max"])
    assert float(device["peak_memory_mib"]) > 100


def test_real_images_are_learnt(run, tmp_path, real_data):
    """2,000 images and two epochs: far above chance, for both models and both data sets."""
    flags = ["--dataset", "mnist", "fashion", "--limit", "2000", "--data-dir", real_data]
    assert run("train_resnet.py", *flags, "--epochs", "2", "--bs", "16") == 0
    assert run("train_svm.py", *flags, "--kernel", "rbf", "--C", "1", "--gamma", "scale") == 0
    for name in ("resnet", "svm"):
        for row in read(tmp_path / f"results/{name}.csv"):
            assert float(row["test_accuracy"]) > {"mnist": 0.6, "fashion": 0.5}[row["dataset"]]


# --- devices and machines ------------------------------------------------------------------------


@pytest.fixture
def dead_gpu(monkeypatch):
    """A GPU that PyTorch lists and that dies in its first operation, as an old card does."""

    def ones(*_, device=None):
        if str(device) == "cuda":
            raise RuntimeError("CUDA error: no kernel image is available\nmore")
        return torch.zeros(1)

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch, "ones", ones)
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    common.device_problem.cache_clear()
    yield chosen
    common.device_problem.cache_clear()


def test_a_gpu_that_cannot_be_used_is_not_used(dead_gpu, capsys, monkeypatch):
    """auto takes the CPU with one line, cuda is refused; each process has chosen its own first."""
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert common.pick_device("auto").type == "cpu"
    assert capsys.readouterr().out.count("no kernel image is available") == 1
    assert_refused(lambda: common.pick_device("cuda"), capsys, "no kernel image", "--device cpu")
    assert dead_gpu == [1]


def test_the_scripts_start_without_the_modules_that_windows_lacks():
    code = (
        "import sys; sys.modules['fcntl'] = sys.modules['resource'] = None\n"
        f"import {', '.join(module.__name__ for module in SCRIPTS.values())}"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
def test_a_full_disk_behind_the_output_is_one_line(tmp_path):
    command = f"{sys.executable} {ROOT / 'train_svm.py'} --dataset digits --dry-run > /dev/full"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "error: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_names_every_flag_with_its_default(script, capsys):
    with pytest.raises(SystemExit) as stop:
        SCRIPTS[script].parse_args(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    if script != "make_tables.py":
        assert text.count("(default:") == len(re.findall(r"^  --", text, re.MULTILINE))


def test_the_flags_names_in_full_are_understood():
    args = train_resnet.parse_args(["--optimizer", "sgd", "--batch-size", "16"])
    assert (args.opt, args.bs) == (["sgd"], [16])


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
    ("train_resnet.py", "--lr 1e31", "--lr"),
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
    ("train_svm.py", "--gamma 1e31", "--gamma"),
    ("train_svm.py", "--degree 2.5", "--degree"),
    ("train_svm.py", "--degree 0", "--degree"),
    ("train_svm.py", "--degree 1000", "--degree"),
    ("train_svm.py", "--degree 100000000000000000000", "--degree"),
    ("train_svm.py", "--coef0 1e308", "--coef0"),
    ("train_svm.py", "--coef0 nan", "--coef0"),
    ("train_svm.py", "--kernel linear", "--kernel"),
    ("train_svm.py", "--solver libsvm", "--solver"),
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
    assert not list((tmp_path / "results").glob("*"))


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


def test_errors_reach_the_shell_without_a_traceback(tmp_path):
    command = [sys.executable, str(ROOT / "train_svm.py"), "--nonsense"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


# --- run_all.sh ----------------------------------------------------------------------------------


def run_all(*flags: str, **options) -> subprocess.CompletedProcess:
    command = ["bash", str(ROOT / "run_all.sh"), *flags]
    return subprocess.run(command, capture_output=True, text=True, check=False, **options)


@pytest.mark.parametrize(
    "flags",
    [
        "--fast",
        "--quick --dry-run",
        "--quick more",
        "--processes 0",
        "--processes",
        "--results-dir",
    ],
)
def test_run_all_refuses_other_flags(flags):
    done = run_all(*flags.split())
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_run_all_explains_itself():
    done = run_all("--help")
    assert done.returncode == 0
    assert all(flag in done.stdout for flag in ("--dry-run", "--quick", "--processes"))
    assert "set -euo" not in done.stdout


def copy_with(tmp_path: Path, train_svm: str) -> dict:
    """A folder with run_all.sh and stand-ins for the scripts; the options to run it there."""
    shutil.copy(ROOT / "run_all.sh", tmp_path)
    for script in SCRIPTS:
        (tmp_path / script).write_text("")
    (tmp_path / "train_svm.py").write_text(train_svm)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    return {"cwd": tmp_path, "env": os.environ | {"PATH": path}}


@pytest.mark.parametrize(("code", "expected"), [(0, 0), (1, 1), (2, 2), (130, 130)])
@pytest.mark.parametrize("processes", ["1", "2"])
def test_run_all_goes_on_after_a_failed_run_and_passes_on_other_exit_codes(
    tmp_path, code, expected, processes
):
    options = copy_with(tmp_path, f"raise SystemExit({code})")
    command = ["bash", "run_all.sh", "--processes", processes]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == expected, done.stderr
    assert "Traceback" not in done.stderr


def test_run_all_ends_with_1_if_a_row_tells_of_a_failed_run(tmp_path):
    options = copy_with(tmp_path, "")
    (tmp_path / "results").mkdir()
    (tmp_path / "results/svm.csv").write_text("dataset,status,reason\nmnist,diverged,loss\n")
    command = ["bash", "run_all.sh", "--processes", "1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, **options)
    assert done.returncode == 1
    assert done.stderr.count("some runs failed") == 1


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_to_run_all_alone_stops_the_python_processes_too(tmp_path, name, code, processes):
    waiting = "import os, pathlib, time\npathlib.Path(f'pid-{os.getpid()}').touch()\ntime.sleep(60)"
    options = copy_with(tmp_path, waiting)
    process = subprocess.Popen(
        ["bash", "run_all.sh", "--processes", processes], stderr=subprocess.DEVNULL,
        start_new_session=True, **options,
    )  # fmt: skip
    while len(list(tmp_path.glob("pid-*"))) < int(processes):
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(getattr(signal, name))
    assert process.wait(timeout=30) == code
    for path in tmp_path.glob("pid-*"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name.removeprefix("pid-")), 0)


# --- commands that are shown ---------------------------------------------------------------------


def shown_commands() -> list[str]:
    """Every python command in the pages and the docstrings."""
    found = []
    for name in ("README.md", "results/README.md", *SCRIPTS):
        text = (ROOT / name).read_text().replace("\\\n", " ")
        found += re.findall(
            r"^[ `]*(?:OMP_NUM_THREADS=1 )?(python \w+\.py[^`\n#|]*)", text, re.MULTILINE
        )
    return sorted({line.strip() for line in found})


@pytest.mark.parametrize("command", shown_commands())
def test_every_command_that_is_shown_parses(command):
    _, script, *flags = shlex.split(command)
    SCRIPTS[script].parse_args(flags)


def test_the_commands_of_the_mission_are_shown():
    assert "python train_resnet.py --arch resnet50 --opt adam --lr 1e-3 --bs 32 --device cuda" in (
        shown_commands()
    )
    readme = (ROOT / "README.md").read_text()
    assert "bash run_all.sh --quick" in readme
    assert "bash tests/run.sh" in readme
