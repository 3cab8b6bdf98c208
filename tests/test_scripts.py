"""The scripts as they are used: grids, skipping, bad input, and every command that is shown."""

import builtins
import io
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from functools import cache
from pathlib import Path

import pytest
import torch
import torchvision
import verify
from conftest import ROOT, SMALL, assert_refused, finish, read, start
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
        assert all(row[name] for name in ("precision", "precision_reason", "torch", "commit"))
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
        assert re.search(r"in all about [\d.:]+ (s|h) \(\d+ s\)", capsys.readouterr().out)
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
    models[0].write_bytes(b"")
    assert run(train_resnet, *flags, "--save-model", "models") == 0
    assert models[0].read_bytes() == content, "an empty file is none"


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
def test_compare_devices_trains_as_train_resnet_and_skips_an_absent_device(run, tmp_path, capsys):
    flags = [*SMALL, "--arch", "resnet18", "--opt", "sgd", "--bs", "16", "--epochs", "1"]
    run(train_resnet, *flags)
    assert run(compare_devices, *flags, "--repeats", "2", "--device", "cpu", "cuda") == 0
    assert "cuda is skipped: PyTorch sees no CUDA GPU" in capsys.readouterr().out
    resnet, device = (read(tmp_path / f"results/{name}.csv")[0] for name in ("resnet", "devices"))
    for name in ("weights_sha256", "test_accuracy", "split_id", "precision", "training_flops"):
        assert resnet[name] == device[name]
    assert float(device["step_ms_min"]) <= float(device["step_ms"])
    assert float(device["step_ms"]) <= float(device["step_ms_max"])
    assert float(device["peak_memory_mib"]) > 100


def test_real_images_are_learnt(run, tmp_path, real_data):
    """1,000 images and two epochs: far above chance, for both models and both data sets."""
    flags = ["--dataset", "mnist", "fashion", "--limit", "1000", "--data-dir", real_data]
    assert run(train_resnet, *flags, "--epochs", "2", "--bs", "16") == 0
    assert run(train_svm, *flags, "--kernel", "rbf", "--C", "1", "--gamma", "scale") == 0
    for name in ("resnet", "svm"):
        for row in read(tmp_path / f"results/{name}.csv"):
            assert float(row["test_accuracy"]) > 0.4


@pytest.mark.parametrize("name", ["resnet", "svm"])
def test_verify_finds_the_row_that_differs(run, tmp_path, capsys, name):
    flags = "--opt sgd adam --momentum 0.5 --no-amp --epochs 2 --seed 1 --split-seed 3"
    flags = flags if name == "resnet" else "--C 1 --gamma scale --degree 2"
    run(verify.SCRIPTS[name], *SMALL, *flags.split())
    path = tmp_path / f"results/{name}.csv"
    first, second = common.read_rows(path)
    common.save_row(path, first | {"split_id": "other"})
    if name == "resnet":
        common.save_row(path, second | {"precision": "float16"})  # no CPU has it
        common.save_row(path, second)
    assert verify.main([name, "3", "--results-dir", "results"]) == 1
    out = capsys.readouterr().out
    assert out.count(": differs in split_id\n") == 1
    assert out.endswith("1 of 2 rows came out the same\n")


# --- devices and machines ------------------------------------------------------------------------


def test_a_gpu_that_dies_in_its_first_operation_is_not_used(capsys, monkeypatch):
    """As an old card does: auto takes the CPU with one line, cuda is refused; each process has
    chosen its own first."""

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
def test_an_absent_gpu_is_refused_and_a_pytorch_without_cuda_says_where_to_get_one(
    capsys, monkeypatch
):
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(common, "gpu_problem", common.gpu_problem.__wrapped__)
    refused = ("--device cuda", "without CUDA", "pytorch.org", "--device cpu")
    assert_refused(capsys, lambda: train_resnet.main(["--device", "cuda"]), *refused)


def test_the_gpu_is_measured_before_the_cpu(monkeypatch):
    asked = []
    monkeypatch.setattr(common, "gpu_problem", lambda: None)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda **_: True)
    monkeypatch.setattr(common, "run_grid", lambda args, name, jobs, *_: asked.extend(jobs))
    compare_devices.main([])
    assert [job[0]["device"] for job in asked] == ["cuda"] * 6 + ["cpu"] * 6


def test_the_scripts_start_without_the_modules_that_windows_lacks(tmp_path):
    code = "import sys; sys.modules['fcntl'] = sys.modules['resource'] = None; import "
    code += ", ".join(module.__name__ for module in MODULES)
    code, _, error = finish(start("-c", code, cwd=tmp_path))
    assert code == 0, error


def test_a_notebook_keeps_its_kernel_and_its_handlers(monkeypatch, capsys):
    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(builtins, "__IPYTHON__", True, raising=False)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(SystemExit, match="130"):
        common.run_main(interrupt)
    assert signal.getsignal(signal.SIGINT) is before
    assert capsys.readouterr().err.startswith("interrupted: ")


def test_a_terminal_without_a_character_shows_another(monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    with pytest.raises(SystemExit):
        common.run_main(lambda: print("99 ± 1"))
    assert stream.buffer.getvalue() == b"99 ? 1\n"


# --- bad input -----------------------------------------------------------------------------------

BAD_FLAGS = {  # the last one of each is the one that is refused
    train_resnet: [
        "--arch vgg16", "--opt rmsprop", "--lr 0", "--lr nan", "--lr inf", "--lr fast", "--lr",
        "--bs 1", "--bs 16.5", "--epochs 3 -5", "--pin-memory maybe", "--seed -1",
        "--seed 99999999999", "--split-seed one", "--momentum 1.5", "--dataset cifar10",
        "--limit 99", "--dataset digits --limit 1797", "--device tpu", "--epoch 3",
    ],
    train_svm: [
        "--C 0", "--gamma wide", "--gamma 0", "--degree 2.5", "--degree 1000", "--coef0 nan",
        "--kernel linear", "--solver libsvm",
    ],
    compare_devices: ["--device auto", "--repeats 0"],
}  # fmt: skip


@pytest.mark.parametrize(
    ("module", "flags"), [(module, line) for module, lines in BAD_FLAGS.items() for line in lines]
)
def test_a_bad_flag_is_refused_in_one_line(run, tmp_path, capsys, module, flags):
    refused = re.findall(r"--[\w-]+", flags)[-1]
    assert_refused(capsys, lambda: module.main(flags.split()), refused)
    assert os.listdir(tmp_path) == []


# --- run_all.sh ----------------------------------------------------------------------------------

WITH_PYTHON = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def run_all(*flags: str, folder=ROOT, **environment) -> subprocess.CompletedProcess:
    """From the folder above, as `bash project/run_all.sh`."""
    return subprocess.run(
        ["bash", f"{folder.name}/run_all.sh", *flags], cwd=folder.parent, check=False,
        env=WITH_PYTHON | environment, capture_output=True, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("flags", ["--quick --full", "more", "--processes 0", "--results-dir"])
def test_run_all_refuses_other_flags(flags):
    done = run_all(*flags.split())
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1


@pytest.fixture
def project(tmp_path):
    """project(code) -> a folder with run_all.sh and stand-ins, of which train_svm.py is this."""

    def make(train_svm: str, gpu_problem: str = "none is there") -> Path:
        folder = tmp_path / "project"
        folder.mkdir()
        for name in ("run_all.sh", "requirements.txt"):
            shutil.copy(ROOT / name, folder)
        for name, text in {
            "train_resnet": "", "compare_devices": "", "make_tables": "open('tables', 'w')",
            "train_svm": train_svm, "common": f"def gpu_problem(): return {gpu_problem!r}",
            "torch": "class cuda:\n    device_count = lambda: 4",
        }.items():  # fmt: skip
            (folder / f"{name}.py").write_text(text)
        return folder

    return make


A_ROW = "open('results/quick/svm.csv', 'w').write('digits,diverged,loss\\n')"
ENDS = [("", 0), ("raise SystemExit(1)", 1), (A_ROW, 1), ("raise SystemExit(2)", 2)]


@pytest.mark.parametrize(("script", "code"), [*ENDS, ("raise SystemExit(130)", 130)])
def test_run_all_passes_on_exit_codes_and_tells_of_failed_runs(project, script, code):
    """After a failed run, whose code is 1, it goes on to the tables."""
    folder = project(script)
    (folder / "results/quick").mkdir(parents=True)
    done = run_all("--quick", "--processes", "2", folder=folder)
    assert done.returncode == code, done.stderr
    assert done.stderr.count("some runs failed") == (code == 1)
    assert done.stdout.startswith("2 processes, 0 GPUs; --processes N changes it")
    assert (folder / "tables").exists() == (code <= 1)


def test_run_all_counts_gpus_that_can_be_used_and_ignores_cdpath(project, tmp_path):
    folder = project("raise SystemExit(9)", gpu_problem="")
    (tmp_path / "other/project").mkdir(parents=True)
    done = run_all("--processes", "3", folder=folder, CDPATH=str(tmp_path / "other"))
    assert done.returncode == 9, done.stderr
    assert done.stdout.startswith("3 processes, 4 GPUs; ")


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_to_run_all_alone_stops_the_python_processes_too(project, name, code):
    waiting = "import os, pathlib, time\npathlib.Path(f'pid-{os.getpid()}').touch()\ntime.sleep(60)"
    folder = project(waiting)
    process = subprocess.Popen(
        ["bash", folder / "run_all.sh", "--processes", "2"], stderr=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL, start_new_session=True, env=WITH_PYTHON,
        # A shell that runs the tests in the background ignores SIGINT, and bash would inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    while len(list(folder.glob("pid-*"))) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(getattr(signal, name))
    assert process.wait(timeout=30) == code
    for path in folder.glob("pid-*"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name.removeprefix("pid-")), 0)


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
