"""The scripts as they are used: grids, skipping, bad input, and every command that is shown."""

import base64
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
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from conftest import ROOT, SMALL, assert_refused, python, read
from sklearn.svm import SVC

import common
import compare_devices
import make_tables
import train_resnet
import train_svm

MODULES = (train_resnet, train_svm, compare_devices, make_tables)
SCRIPTS = {f"{module.__name__}.py": module for module in MODULES}
needs_no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


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
        assert (row["status"], row["pin_memory"]) == ("ok", "n/a")
        assert (row["n_train"], row["n_val"], row["n_test"]) == ("70", "10", "20")
        assert int(row["training_flops"]) == 196_836_352 * 70 * int(row["epochs"])
        assert all(row[name] for name in ("precision", "precision_reason", "torch", "commit"))
        epochs = json.loads(row["history"])
        assert len(epochs) == int(row["epochs"])
        assert epochs[-1]["val_accuracy"] == float(row["val_accuracy"])
    capsys.readouterr()
    assert run("train_resnet.py", *grid) == 0
    assert "results/resnet.csv: 0 of 8 rows to run" in capsys.readouterr().out
    assert read(tmp_path / "results/resnet.csv") == rows


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


@pytest.mark.parametrize(
    ("name", "flags", "reason"),
    [
        ("resnet", "--lr 1e20 --opt sgd --epochs 1", "loss is"),
        ("svm", "--kernel poly --C 1 --gamma 100 --degree 100", "kernel values are not finite"),
    ],
)
def test_a_diverged_run_is_a_row_with_its_reason(run, tmp_path, name, flags, reason):
    assert run(f"train_{name}.py", *SMALL, *flags.split()) == 1
    (row,) = read(tmp_path / f"results/{name}.csv")
    assert (row["status"], row["test_accuracy"]) == ("diverged", "")
    assert reason in row["reason"]


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
    models[0].unlink()
    assert run("train_resnet.py", *flags, "--save-model", "models") == 0
    assert models[0].exists()


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
        assert float(row["training_flops"]) > 2 * 784 * 350
    assert max(float(row["test_accuracy"]) for row in rows) > 0.9


@pytest.mark.parametrize("solver", ["gram", "sklearn"])
def test_svm_rows_are_what_scikit_learn_gives(run, tmp_path, solver):
    """On bytes and on pixels, whose 1/255 is in gamma."""
    factors = ["--kernel", "poly", "--C", "2", "--gamma", "scale", "auto", "0.01", "--degree", "2"]
    run("train_svm.py", *SMALL, *factors, "--solver", solver)
    rows = {row["gamma"]: row for row in read(tmp_path / "results/svm.csv")}
    row = rows["scale"]
    split = common.load_split("digits", Path("data"), split_seed=0, limit=100)
    x, y = split.train.images.flatten(1).numpy() / 255, split.train.labels.numpy()
    svm = SVC(kernel="poly", C=2, degree=2, coef0=1).fit(x, y)
    expected = svm.score(split.test.images.flatten(1).numpy() / 255, split.test.labels.numpy())
    assert row["solver"] == solver
    assert float(row["test_accuracy"]) == pytest.approx(expected, abs=1e-12)
    assert int(row["support_vectors"]) == pytest.approx(svm.n_support_.sum(), abs=1)
    found = {gamma: float(row["gamma_value"]) for gamma, row in rows.items()}
    assert found == pytest.approx({"scale": 1 / (784 * x.var()), "auto": 1 / 784, "0.01": 0.01})
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
    assert "cuda is skipped: PyTorch sees no CUDA GPU" in capsys.readouterr().out
    resnet, device = (read(tmp_path / f"results/{name}.csv")[0] for name in ("resnet", "devices"))
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


def test_a_gpu_that_dies_in_its_first_operation_is_not_used(capsys, monkeypatch):
    """As an old card does, which PyTorch lists: auto takes the CPU with one line, cuda is refused;
    each process has chosen its own first."""

    def ones(*_, device=None):
        if str(device) == "cuda":
            raise RuntimeError("CUDA error: no kernel image is available\nmore")
        return torch.zeros(1)

    chosen = []
    monkeypatch.setattr(torch, "ones", ones)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr(common, "device_problem", cache(common.device_problem.__wrapped__))
    monkeypatch.setenv("LOCAL_RANK", "3")
    assert common.pick_device("auto").type == "cpu"
    assert capsys.readouterr().out.count("no kernel image is available") == 1
    assert_refused(capsys, lambda: common.pick_device("cuda"), "no kernel image", "--device cpu")
    assert chosen == [1]


def test_the_scripts_start_without_the_modules_that_windows_lacks(tmp_path):
    code = "import sys; sys.modules['fcntl'] = sys.modules['resource'] = None; import "
    code += ", ".join(module.__name__ for module in MODULES)
    done = python("-c", code, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "command",
    ["train_svm.py --dataset digits --dry-run", "make_tables.py --results-dir . --table answer"],
)
def test_a_full_disk_behind_the_output_is_one_line(tmp_path, command):
    script, *flags = command.split()
    with open("/dev/full", "w") as full:
        done = python(ROOT / script, *flags, cwd=tmp_path, stdout=full)
    assert done.returncode == 2
    assert done.stderr == "error: [Errno 28] No space left on device\n"


@pytest.mark.parametrize("module", [train_resnet, train_svm, compare_devices])
def test_help_names_every_flag_with_its_default(module, capsys):
    with pytest.raises(SystemExit):
        module.parse_args(["--help"])
    text = capsys.readouterr().out
    assert text.count("(default:") == len(re.findall(r"^  --", text, re.MULTILINE)) > 0


# --- bad input -----------------------------------------------------------------------------------


BAD_FLAGS = {  # the last one of each is the one that is refused
    train_resnet: [
        "--arch vgg16", "--opt rmsprop", "--lr 0", "--lr -0.1", "--lr nan", "--lr inf",
        "--lr 1e31", "--lr fast", "--lr", "--bs 1", "--bs 16.5", "--bs 1000000000", "--epochs 0",
        "--epochs 3 -5", "--pin-memory maybe", "--seed -1", "--seed 99999999999",
        "--split-seed one", "--momentum 1.5", "--dataset cifar10", "--limit 99",
        "--dataset digits --limit 1790", "--dataset digits --limit 1797", "--device tpu",
        "--learning-rate 1", "--epoch 3",
    ],
    train_svm: [
        "--C 0", "--C -1 1", "--gamma wide", "--gamma 0", "--gamma 1e31", "--degree 2.5",
        "--degree 0", "--degree 1000", "--degree 100000000000000000000", "--coef0 1e308",
        "--coef0 nan", "--kernel linear", "--solver libsvm",
    ],
    compare_devices: ["--device auto", "--repeats 0"],
    make_tables: ["--format html"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("module", "flags"), [(module, flags) for module in MODULES for flags in BAD_FLAGS[module]]
)
def test_a_bad_flag_is_refused_in_one_line(run, tmp_path, capsys, module, flags):
    refused = re.findall(r"--[\w-]+", flags)[-1]
    assert_refused(capsys, lambda: module.main(flags.split()), refused)
    assert os.listdir(tmp_path) == []


MISSION = "--arch resnet50 --opt adam --lr 1e-3 --bs 32 --device cuda"


@needs_no_gpu
def test_an_absent_device_is_refused_in_one_line(run, capsys):
    flags = MISSION.split()
    assert_refused(capsys, lambda: train_resnet.main(flags), "--device cuda", "--device cpu")


@pytest.fixture
def offline(monkeypatch):
    """No server answers."""

    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def test_missing_data_without_a_network_names_the_way_out(run, capsys, offline):
    assert_refused(
        capsys, lambda: run("train_resnet.py", "--dataset", "mnist"), "data/MNIST/raw", "digits"
    )


DAMAGE = {
    "t10k-images-idx3-ubyte.gz": lambda content: content[: len(content) // 2],
    "t10k-images-idx3-ubyte": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "train-labels-idx1-ubyte": lambda content: content[:6],
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damaged_data_is_refused_in_one_line(run, tmp_path, capsys, offline, real_data, name):
    """Half an archive, or an unpacked file with another pixel, or one that was cut."""
    raw = tmp_path / "data/MNIST/raw"
    raw.mkdir(parents=True)
    for archive in real_data.glob("MNIST/raw/*.gz"):
        content = archive.read_bytes()
        (raw / archive.name).write_bytes(content)
        if not name.endswith(".gz"):
            (raw / archive.stem).write_bytes(gzip.decompress(content))
    (raw / name).write_bytes(DAMAGE[name]((raw / name).read_bytes()))
    assert_refused(
        capsys, lambda: run("train_svm.py", "--dataset", "mnist"), "MNIST", "--dataset digits"
    )
    assert not list((tmp_path / "results").glob("*"))


@pytest.mark.parametrize("flag", ["--data-dir", "--results-dir", "--save-model"])
def test_a_file_where_a_folder_should_be_is_refused(run, tmp_path, capsys, flag):
    (tmp_path / "file").write_text("")
    flags = ["--dataset", "mnist" if flag == "--data-dir" else "digits", "--epochs", "1"]
    assert_refused(capsys, lambda: run("train_resnet.py", *flags, flag, "file"), "file")


@pytest.mark.parametrize("script", ["train_resnet.py", "train_svm.py", "compare_devices.py"])
def test_rows_of_another_version_are_refused_before_any_work(run, tmp_path, capsys, script):
    (tmp_path / "results").mkdir()
    for name in ("resnet", "svm", "devices"):
        (tmp_path / f"results/{name}.csv").write_text("status,old\nok,1\n")
    assert_refused(capsys, lambda: run(script, *SMALL), "other columns", "--results-dir")


# --- run_all.sh ----------------------------------------------------------------------------------


WITH_PYTHON = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def run_all(folder: Path, *flags: str) -> subprocess.CompletedProcess:
    command = ["bash", folder / "run_all.sh", *flags]
    return subprocess.run(command, env=WITH_PYTHON, capture_output=True, text=True, check=False)


OTHER = ["--quick --dry-run", "--quick more", "--processes 0", "--processes", "--results-dir"]


@pytest.mark.parametrize("flags", OTHER)
def test_run_all_refuses_other_flags(flags):
    done = run_all(ROOT, *flags.split())
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


def test_run_all_explains_itself():
    done = run_all(ROOT, "--help")
    assert done.returncode == 0
    assert all(flag in done.stdout for flag in ("--dry-run", "--quick", "--processes"))
    assert "set -euo" not in done.stdout


def copy_with(tmp_path: Path, train_svm: str) -> None:
    """Put run_all.sh into a folder, and stand-ins for the scripts."""
    shutil.copy(ROOT / "run_all.sh", tmp_path)
    for script in SCRIPTS:
        (tmp_path / script).write_text("")
    (tmp_path / "train_svm.py").write_text(train_svm)


@pytest.mark.parametrize("code", [0, 1, 2, 130])
@pytest.mark.parametrize("processes", ["1", "2"])
def test_run_all_passes_on_exit_codes(tmp_path, code, processes):
    """After a failed run, whose code is 1, it goes on to the tables."""
    copy_with(tmp_path, f"raise SystemExit({code})")
    (tmp_path / "make_tables.py").write_text("open('tables', 'w')")
    done = run_all(tmp_path, "--quick", "--processes", processes)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr
    assert (tmp_path / "tables").exists() == (code <= 1)


def test_run_all_ends_with_1_if_a_row_tells_of_a_failed_run(tmp_path):
    copy_with(tmp_path, "")
    (tmp_path / "results").mkdir()
    (tmp_path / "results/svm.csv").write_text("dataset,status,reason\nmnist,diverged,loss\n")
    done = run_all(tmp_path, "--processes", "1")
    assert done.returncode == 1
    assert done.stderr.count("some runs failed") == 1


@pytest.mark.parametrize("processes", ["1", "2"])
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_to_run_all_alone_stops_the_python_processes_too(tmp_path, name, code, processes):
    waiting = "import os, pathlib, time\npathlib.Path(f'pid-{os.getpid()}').touch()\ntime.sleep(60)"
    copy_with(tmp_path, waiting)
    process = subprocess.Popen(
        ["bash", tmp_path / "run_all.sh", "--processes", processes], stderr=subprocess.DEVNULL,
        start_new_session=True, env=WITH_PYTHON,
        # A shell that runs the tests in the background ignores SIGINT, and bash would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
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


LONG_NAMES = "python train_resnet.py --optimizer sgd --batch-size 16"


@pytest.mark.parametrize("command", [*shown_commands(), LONG_NAMES])
def test_every_command_that_is_shown_parses(command):
    _, script, *flags = shlex.split(command)
    SCRIPTS[script].parse_args(flags)


def test_the_commands_of_the_mission_are_shown():
    assert f"python train_resnet.py {MISSION}" in shown_commands()
    readme = (ROOT / "README.md").read_text()
    assert "bash run_all.sh --quick" in readme
    assert "bash tests/run.sh" in readme
