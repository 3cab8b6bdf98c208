"""run_all.sh beside stand-ins of the scripts: what it starts, and what ends it."""

import json
import os
import signal
import subprocess
import sys
import time
from itertools import product
from pathlib import Path

import pytest
from conftest import ROOT, default_signals, finish

import common
import compare_devices
import train_resnet
import train_svm

SCRIPTS = {f"{each.__name__}.py": each for each in (train_svm, train_resnet, compare_devices)}
STAGES = [*SCRIPTS, "make_tables.py"]
NOTE = """import json, os, sys
open(f"call-{os.getpid()}", "w").write(json.dumps([sys.argv, dict(os.environ)]))
"""
FILES = {
    **dict.fromkeys(STAGES, NOTE),
    "torch.py": """import os
class cuda:
    device_count = lambda: int(os.environ.get("GPUS", 0))
""",
    "common.py": """import os
def gpu_problem():
    gpu = os.environ["CUDA_VISIBLE_DEVICES"]
    gpu != "3" or os._exit(9)
    return {"1": "it is dead"}.get(gpu) if "GPUS" in os.environ else "PyTorch sees no GPU"
""",
    # A machine with two cores, whose Python has the packages, but neither pip nor venv.
    "bin/nproc": "#!/bin/sh\necho ${OMP_NUM_THREADS:-2}\n",
    "bin/python3": f'#!/bin/sh\n[ "$1" != -m ] && exec {sys.executable} "$@"\n',
    **{name: (ROOT / name).read_text() for name in ("run_all.sh", "requirements.txt")},
}


@pytest.fixture
def folder(tmp_path):
    """A project whose scripts note how they are called."""
    folder = tmp_path / "project"
    (folder / "bin/project").mkdir(parents=True)  # see CDPATH
    for name, text in FILES.items():
        (folder / name).write_text(text)
        (folder / name).chmod(0o755)
    return folder


def start(folder: Path, *flags: str, **environment: str) -> subprocess.Popen:
    """As `bash project/run_all.sh`."""
    outer = {name: text for name, text in os.environ.items() if name[:4] not in ("OMP_", "CUDA")}
    outer |= {"PATH": f"{folder}/bin:{outer['PATH']}", "CDPATH": str(folder / "bin")}
    return subprocess.Popen(
        ["bash", "project/run_all.sh", *flags], cwd=folder.parent, env=outer | environment,
        text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, preexec_fn=default_signals,
    )  # fmt: skip


def calls(folder: Path, script: str) -> list[tuple[list[str], dict[str, str]]]:
    """Flags and environment of each process of a script, by its rank."""
    found = [json.loads(path.read_text()) for path in folder.glob("call-*")]
    found.sort(key=lambda call: call[1]["LOCAL_RANK"])
    return [(flags, environment) for (name, *flags), environment in found if name == script]


@pytest.mark.parametrize("flags", ["more", "--limit", "--limit 99 --quick", "--results-dir"])
def test_other_flags_are_refused_in_one_line(folder, flags):
    code, out, error = finish(start(folder, *flags.split()))
    assert (code, out, error.count("\n"), error[:7]) == (2, "", 1, "error: ")


@pytest.mark.parametrize("plan", ["assignment", "quick", "full"])
def test_each_plan_has_flags_that_scripts_take_and_the_full_one_has_all_committed_rows(
    folder, plan
):
    flags = [] if plan == "assignment" else [f"--{plan}"]
    assert finish(start(folder, *flags, "--limit", "500"))[0] == 0
    results = "results/quick" if plan == "quick" else "results"
    own = {"optimizer": "opt", "batch_size": "bs"}
    but = {"limit", "degree", "coef0", "momentum", "pin_memory", "amp", "precision", "device"}
    for kind, scripts in (("svm", STAGES[:1]), ("resnet", STAGES[1:3])):
        names, planned = [name for name in common.KEY[kind] if name not in but], set()
        for script, flags in [
            (each, flags) for each in scripts for flags, _ in calls(folder, each)
        ]:
            args = vars(SCRIPTS[script].parse_args(flags))
            assert (args["limit"], str(args["results_dir"])) == (500, results)
            assert (args["dataset"] == ["digits"]) == args["force"] == (plan == "quick")
            values = [args[own.get(name, name)] for name in names]
            planned |= {*product(*([v] if isinstance(v, str) else v for v in values))}
        rows = common.read_rows(ROOT / f"results/reference/{kind}.csv")
        missing = {tuple(row[name] for name in names) for row in rows} - planned
        assert (not missing) == (plan == "full")
    assert calls(folder, "make_tables.py")[0][0] == ["--results-dir", results]


# fmt: off
ENDS = [
    ("train_svm.py", "", 0), ("train_svm.py", "raise SystemExit(1)", 1),
    ("train_svm.py", "if os.environ['LOCAL_RANK'] == '0': os.kill(os.getpid(), 9)", 1),
    ("train_svm.py", "raise SystemExit(2)", 2), ("train_svm.py", "raise SystemExit(130)", 130),
    ("make_tables.py", "raise SystemExit(2)", 2),
]
# fmt: on


@pytest.mark.parametrize(("script", "end", "code"), ENDS)
def test_a_failed_or_killed_process_ends_no_stage_and_bad_input_does(folder, script, end, code):
    (folder / script).write_text(NOTE + end)
    done, _, error = finish(start(folder, "--quick"))
    assert (done, error.count("some runs failed")) == (code, code == 1), error
    for name in {*STAGES} - {script}:
        assert bool(calls(folder, name)) == (code < 2 or script == "make_tables.py")


def test_a_dry_run_adds_up_the_hours_of_all_processes_and_makes_no_tables(folder):
    line = "in all about 3:00:00 h (10800 s) of one process"
    (folder / "train_svm.py").write_text(f"{NOTE}print({line!r})")
    code, out, _ = finish(start(folder, "--dry-run"))
    assert (code, out.splitlines()[-1]) == (0, "about 3 h 0 min"), "two stages, two processes"
    assert not calls(folder, "make_tables.py")
    assert all("--dry-run" in flags for name in SCRIPTS for flags, _ in calls(folder, name))
    (folder / "train_svm.py").write_text("raise SystemExit(2)")
    assert finish(start(folder, "--dry-run"))[0] == 2


@pytest.mark.parametrize(
    ("asked", "threads"), [({}, ["1", "1"]), ({"OMP_NUM_THREADS": "8"}, ["2"])]
)
def test_processes_times_threads_is_at_most_the_cores_and_nothing_is_bound(folder, asked, threads):
    bound = ("OMP_PROC_BIND", "OMP_PLACES", "GOMP_CPU_AFFINITY", "KMP_AFFINITY", "MKL_NUM_THREADS")
    finish(start(folder, "--quick", **dict.fromkeys(bound, "1"), **asked))
    found = [environment for _, environment in calls(folder, "train_resnet.py")]
    assert [environment["OMP_NUM_THREADS"] for environment in found] == threads
    assert not {*bound} & {*found[0]}


GPUS = [
    ({"GPUS": "4"}, "0,2", ["GPU 1 is not used: it is dead", "GPU 3 is not used: it crashed"]),
    ({"GPUS": "2", "CUDA_VISIBLE_DEVICES": "1,GPU-b"}, "GPU-b", ["GPU 1 is not used: it is dead"]),
    ({"GPUS": "2", "CUDA_VISIBLE_DEVICES": ""}, "", []),
    ({}, "", ["GPU 0 is not used: PyTorch sees no GPU"]),
]


@pytest.mark.parametrize(("machine", "used", "said"), GPUS)
def test_networks_train_on_the_usable_gpus_alone(folder, machine, used, said):
    _, out, _ = finish(start(folder, "--quick", **machine))
    assert out.splitlines()[:-1] == said
    trained, compared = (calls(folder, name) for name in STAGES[1:3])
    assert len(trained) == (len(used.split(",")) if used else 2)
    for rank, (flags, environment) in enumerate(trained):
        found = (environment["LOCAL_RANK"], environment["CUDA_VISIBLE_DEVICES"])
        assert found == (str(rank), used)
        assert train_resnet.parse_args(flags).device == ["cuda" if used else "cpu"]
    for flags, environment in compared:
        found = (compare_devices.parse_args(flags).device, environment["OMP_NUM_THREADS"])
        assert found == ((["cuda", "cpu"], "2") if used else (["cpu"], "1"))
    assert len(compared) == (1 if used else 2)


@pytest.mark.parametrize(("version", "code"), [("2.11.0a0+nv", 0), ("10.0", 0), ("2.9.1", 2)])
def test_packages_are_found_without_pip_and_no_venv_is_made_over_another(folder, version, code):
    """As uv makes .venv, and as NVIDIA names versions."""
    (folder / "requirements.txt").write_text("own>=2.11\n")
    (folder / "own-0.dist-info").mkdir()
    (folder / "own-0.dist-info/METADATA").write_text(f"Name: own\nVersion: {version}\n")
    (folder / ".venv").mkdir()
    (folder / ".venv/bin").symlink_to(folder / "bin")
    (folder / "bin/python").symlink_to("python3")
    for flags, said in ((["--dry-run"], "packages are missing"), ([], "mend .venv, or remove it")):
        done, _, error = finish(start(folder, "--quick", *flags))
        assert (done, said in error) == (code, code == 2)


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129)])
def test_a_signal_to_run_all_alone_ends_the_python_processes_too(folder, name, code):
    (folder / "train_svm.py").write_text(f"{NOTE}import time\ntime.sleep(600)")
    process = start(folder)
    while len(list(folder.glob("call-*"))) < 2:
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(getattr(signal, name))
    assert finish(process)[0] == code
    for path in folder.glob("call-*"):
        with pytest.raises(ProcessLookupError):
            os.kill(int(path.name.removeprefix("call-")), 0)
