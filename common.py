"""What the scripts share: data and split, device and precision, the training loop, rows, grids."""

import argparse
import contextlib
import csv
import ctypes
import hashlib
import io
import math
import os
import platform
import re
import socket
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import cache, lru_cache, partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np
import sklearn
import torch
import torchvision
from filelock import FileLock, Timeout
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

CLASSES = 10
SIZE = 28  # of an image's side
EVAL_BATCH = 1000
LOCK_SECONDS = 20  # longer than any process locks a file of rows
# This process's number on its machine, from run_all.sh, torchrun or srun. Each takes a GPU of its
# own, and only the first one shows a bar (and that on a terminal only).
LOCAL_RANK = int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)

# glibc is told to keep freed memory, for all threads. Else it gives back what is as large as the
# gradients of ResNet-50, whose steps took a tenth longer, some a quarter, to get it again.
with contextlib.suppress(AttributeError, TypeError):  # another C library
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    mallopt(-3, 2**25)  # M_MMAP_THRESHOLD
    mallopt(-8, 1)  # M_ARENA_MAX

torch.backends.cudnn.deterministic = True  # the same bits in every run
torch.backends.cudnn.conv.fp32_precision = "ieee"  # float32 is what a row says, not TF32

say = partial(print, flush=True)  # at once, so that logs can be followed


def fail(message: str):
    """Print one line on stderr and exit with code 2."""
    line = "".join(each if each.isprintable() else " " for each in message)  # as of a broken file
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(2)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its name if it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


# --- data and split ------------------------------------------------------------------------------
class Part(NamedTuple):
    """One part of a split, on the host: images uint8 [n, 28, 28], labels int64 [n]."""

    images: Tensor
    labels: Tensor


class Split(NamedTuple):
    """Disjoint parts, the training part's mean and deviation (0..255), and columns of a row."""

    train: Part
    val: Part
    test: Part
    scale: tuple[float, float]
    columns: dict


def read_official(dataset_class, data_dir: Path) -> tuple[Tensor, Tensor]:
    """Read (or download) all four files with torchvision: 60,000 training images, then 10,000."""
    folder = Path(data_dir) / dataset_class.__name__
    socket.setdefaulttimeout(60)  # seconds without an answer; torchvision sets no limit
    try:
        if not list(folder.glob("*/*")):
            say(f"downloading {folder.name} to {folder}")
            folder.mkdir(parents=True, exist_ok=True)
        # The lock keeps a second process from reading files that the first one still unpacks.
        is_ours = os.access(folder, os.W_OK)
        lock = FileLock(folder / ".lock") if is_ours else contextlib.nullcontext()
        with lock:
            parts = [dataset_class(data_dir, train=train, download=True) for train in (True, False)]
        return torch.cat([p.data for p in parts]), torch.cat([p.targets for p in parts])
    except Exception as error:  # torchvision raises anything from AssertionError to zlib.error
        reason = (str(error).splitlines() or [type(error).__name__])[-1]  # of the last mirror
        fail(
            f"cannot load {folder.name} from {folder}: {reason}; delete that folder and go online"
            " once, or put the four whole *-ubyte.gz files into its folder raw, or use --dataset"
            " digits"
        )


def read_digits(data_dir: Path) -> tuple[Tensor, Tensor]:
    """scikit-learn's bundled 1,797 digits, 8x8 with values 0..16, enlarged to 28x28."""
    digits = load_digits()
    small = torch.from_numpy(digits.images).unsqueeze(1).float() * (255 / 16)
    large = F.interpolate(small, size=SIZE, mode="bilinear").squeeze(1)
    return large.round().to(torch.uint8), torch.from_numpy(digits.target)


DATASETS = {  # n, and read(data_dir): images, uint8 [n, 28, 28], and labels, integers 0..9 [n]
    "mnist": (70_000, partial(read_official, torchvision.datasets.MNIST)),
    "fashion": (70_000, partial(read_official, torchvision.datasets.FashionMNIST)),
    "digits": (1_797, read_digits),
}


def part_sizes(total: int) -> tuple[int, int, int]:
    """70 % / 10 % / 20 % of total images."""
    train, val = round(0.7 * total), round(0.1 * total)
    return train, val, total - train - val


def split_indices(labels: np.ndarray, *, seed: int, limit: int | None) -> list[np.ndarray]:
    """Stratified, sorted train, validation and test indices; of `limit` images if it is given."""
    indices = np.arange(len(labels), dtype=np.int64)
    choose = partial(train_test_split, random_state=seed)
    try:
        if limit and limit != len(labels):
            indices, _ = choose(indices, train_size=limit, stratify=labels)
        n_train, n_val, _ = part_sizes(len(indices))
        train, rest = choose(indices, train_size=n_train, stratify=labels[indices])
        val, test = choose(rest, train_size=n_val, stratify=labels[rest])
    except ValueError as error:
        fail(f"--limit {limit} of {len(labels)} images: {first_line(error)}")
    return [np.sort(part) for part in (train, val, test)]


@lru_cache(maxsize=1)  # the jobs of a data set come one after another
def load_split(name: str, data_dir: Path, *, seed: int, limit: int | None = None) -> Split:
    """Load a data set and split it 70/10/20; depends on nothing but the data, seed and limit."""
    n, read = DATASETS[name]
    images, labels = map(torch.as_tensor, read(data_dir))
    if images.dtype != torch.uint8 or images.shape != (n, SIZE, SIZE):
        fail(f"{name}: images are {images.dtype} {[*images.shape]}, not uint8 [{n}, 28, 28]")
    if labels.shape != (n,) or not set(labels.tolist()) <= set(range(CLASSES)):
        fail(f"{name}: labels are not {n} integers from 0 to 9")
    labels = labels.long()
    indices = split_indices(labels.numpy(), seed=seed, limit=limit)
    train, val, test = indices = [torch.from_numpy(part) for part in indices]
    # From the counts of the 256 values, which are exact for any number of pixels.
    counts = torch.bincount(images[train].flatten(), minlength=256).double()
    values = torch.arange(256, dtype=torch.float64)
    mean = (counts @ values / counts.sum()).item()
    std = (counts @ (values - mean).square() / counts.sum()).sqrt().item()
    columns = {"n_train": len(train), "n_val": len(val), "n_test": len(test)}
    columns["split_id"] = sha256(images, labels, *indices)[:12]
    return Split(*(Part(images[part], labels[part]) for part in indices), (mean, std), columns)


def sha256(*tensors: Tensor) -> str:
    """Hex digest of the tensors' bytes, in order."""
    content = b"".join(tensor.cpu().numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(content).hexdigest()


# --- device and precision ------------------------------------------------------------------------
@cache
def gpu_problem() -> str | None:
    """Why this process cannot use a GPU; None if it can, which it has taken then. An old card is
    listed although its first operation dies, so one is run."""
    if not torch.cuda.is_available():
        return f"PyTorch {torch.__version__} sees no CUDA GPU (pytorch.org/get-started/locally)"
    try:
        torch.cuda.set_device(LOCAL_RANK % torch.cuda.device_count())
        torch.ones(1, device="cuda").add(1).item()
    except RuntimeError as error:
        return f"PyTorch cannot use the GPU: {first_line(error)}"


def pick_device(name: str) -> torch.device:
    """cpu or cuda; auto is a GPU if one can be used. Exits 2 if the device cannot be used."""
    if name == "cuda" and gpu_problem():
        fail(f"--device cuda: {gpu_problem()}; else use --device cpu")
    if name == "auto" and gpu_problem():
        say(f"{gpu_problem()}; the CPU is used")
    return torch.device("cpu" if name == "cpu" or gpu_problem() else "cuda")


def pick_precision(device: torch.device, amp: bool) -> torch.dtype:
    """The type that autocast computes in: bfloat16 where the hardware multiplies it, else float16
    on a GPU and float32 on a CPU."""
    if device.type == "cuda":  # without including_emulation=False a T4 says True, and is slow
        is_native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        is_native = torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()
    if amp and is_native:
        return torch.bfloat16
    return torch.float16 if amp and device.type == "cuda" else torch.float32


@cache
def device_name(device: torch.device) -> str:
    """The GPU's model name, or the CPU's with its family and model: CPUs of one name may differ
    threefold."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError, KeyError):
        text = Path("/proc/cpuinfo").read_text()
        found = dict(re.findall(r"^(model name|cpu family|model)\s*: (.+)$", text, re.MULTILINE))
        return "{model name}, family {cpu family}, model {model}".format(**found)
    return platform.processor() or platform.machine() or "unknown"


def synchronized_time() -> float:
    """Seconds, read once a GPU has finished all work that was given to it."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return time.perf_counter()


# --- training loop -------------------------------------------------------------------------------
class Classifier(nn.Module):
    """A network with its input's standardisation and its precision: uint8 images [n, 28, 28] to
    float32 logits [n, classes]. scale is the pixel mean and standard deviation, 0..255."""

    def __init__(self, network: nn.Module, scale: tuple[float, float], precision=torch.float32):
        super().__init__()
        self.network, self.scale, self.precision = network, scale, precision

    def forward(self, images: Tensor) -> Tensor:
        mean, std = self.scale
        inputs = ((images.float() - mean) / std).unsqueeze(1)
        reduced = self.precision != torch.float32
        with torch.autocast(images.device.type, self.precision, enabled=reduced):
            return self.network(inputs).float()


def train_epoch(
    model, optimizer, scaler, part: Part, order: Tensor, batch_size: int, *, pin_memory, label: str
) -> tuple[float, float]:
    """Train once on a part, in this order; return the mean loss and accuracy on the way."""
    model.train()
    device = next(model.parameters()).device
    if len(order) % batch_size == 1:
        order = order[:-1]  # BatchNorm cannot train on one image: layer4 works on 1x1 maps
    data = [part.images[order], part.labels[order]]  # 38 MB: gathered once, copied batch by batch
    data = [values.pin_memory() if pin_memory else values for values in data]
    batches = list(zip(*(values.split(batch_size) for values in data), strict=True))
    sums = torch.zeros(2, device=device)  # loss and hits; .item() in each step would stall a GPU
    for images, labels in tqdm(batches, label, leave=False, disable=LOCAL_RANK > 0 or None):
        images, labels = (values.to(device, non_blocking=True) for values in (images, labels))
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        sums += torch.stack([loss.detach() * len(labels), (logits.argmax(1) == labels).sum()])
    return tuple((sums / len(order)).tolist())


@torch.no_grad()
def evaluate(model, part: Part) -> tuple[float, float]:
    """Mean loss and accuracy in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    sums = torch.zeros(2, dtype=torch.float64, device=device)
    for images, labels in zip(*(values.split(EVAL_BATCH) for values in part), strict=True):
        logits, labels = model(images.to(device)), labels.to(device)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums += torch.stack([loss, (logits.argmax(1) == labels).sum()])
    return tuple((sums / len(part.labels)).tolist())


def fit(
    model: Classifier, optimizer, train: Part, val: Part, *, epochs: int, batch_size: int,
    seed: int, scaler=None, pin_memory: bool = False, label: str = "",
    history: list[dict] | None = None, after_epoch: Callable = lambda history: None,
) -> list[dict]:  # fmt: skip
    """Train to this number of epochs and return the history, an entry for each: losses are means
    over images, accuracies fractions. Takes no test images.

    The learning rate is constant and the batch order depends on the seed alone, so epoch 3 of 5 is
    a training of 3 epochs. A stopped training goes on from its history, which after_epoch gets.
    float16 needs a GradScaler. Raises FloatingPointError if a loss is not finite."""
    scaler = scaler or torch.amp.GradScaler(enabled=False)
    history, generator = [*(history or [])], torch.Generator().manual_seed(seed)
    for number in range(1, epochs + 1):
        order = torch.randperm(len(train.labels), generator=generator)
        if number <= len(history):  # trained before: only its order had to be drawn
            continue
        torch.manual_seed(seed * 10_001 + number)  # of dropout, the same after a resume
        name, start = f"{label} epoch {number}/{epochs}", synchronized_time()
        train_loss, train_accuracy = train_epoch(
            model, optimizer, scaler, train, order, batch_size, pin_memory=pin_memory, label=name
        )
        seconds = synchronized_time() - start
        val_loss, val_accuracy = evaluate(model, val)
        if not math.isfinite(train_loss + val_loss):
            raise FloatingPointError(f"epoch {number}: loss is {train_loss}, validation {val_loss}")
        history.append({
            "number": number, "train_loss": train_loss, "train_accuracy": train_accuracy,
            "val_loss": val_loss, "val_accuracy": val_accuracy, "train_time_ms": 1e3 * seconds,
        })  # fmt: skip
        say(
            f"{name}: train loss {train_loss:.4f}, accuracy {train_accuracy:.4f}; validation loss"
            f" {val_loss:.4f}, accuracy {val_accuracy:.4f}; {duration(seconds)}"
        )
        after_epoch(history)
    return history


# --- rows ----------------------------------------------------------------------------------------

# fmt: off
ENVIRONMENT = ("device_name", "cpu_name", "threads", "python", "torch", "torchvision", "sklearn",
               "numpy", "commit", "finished_utc")
RESULTS = ("status", "reason", "n_train", "n_val", "n_test", "val_accuracy", "test_accuracy",
           "train_time_ms", "predict_time_ms", "training_flops")
# The columns of each file: what was run, then status, then what came out; the longest comes last.
COLUMNS = {
    "resnet": ("dataset", "limit", "arch", "optimizer", "lr", "momentum", "batch_size", "epochs",
               "pin_memory", "amp", "precision", "device", "seed", *RESULTS, "split_id",
               "weights_sha256", *ENVIRONMENT, "history"),
    "svm": ("dataset", "limit", "kernel", "C", "gamma", "degree", "coef0", "solver", "seed",
            *RESULTS, "support_vectors", "iterations", "gamma_value", "split_id", *ENVIRONMENT),
}
NUMBERS = {"limit", "lr", "momentum", "batch_size", "epochs", "seed", "C", "gamma", "degree",
           "coef0", *RESULTS[2:], "support_vectors", "iterations", "gamma_value", "threads"}
KEY = {name: columns[: columns.index("status")] for name, columns in COLUMNS.items()}
# Cells that a finished row may lack; a failed one may lack all but its key.
OPTIONAL = {"limit", "momentum", "degree", "coef0", "reason", "training_flops", "history",
            "weights_sha256"}
# fmt: on


def key_of(path: Path, row: dict) -> tuple:
    """A row's values in the key columns of its file; numbers to 12 digits, as other software may
    write 0.001 as 1e-3 or 0.0010000000000000002."""
    values = [row.get(name) for name in KEY[path.stem]]
    return tuple(v if v is None or isinstance(v, str) else f"{v:.12g}" for v in values)


def environment(device: torch.device) -> dict:
    """Where and with what a row was made: the columns of ENVIRONMENT."""
    return {
        "device_name": device_name(device), "cpu_name": device_name(torch.device("cpu")),
        "threads": torch.get_num_threads(), "python": platform.python_version(),
        **{module.__name__: module.__version__ for module in (torch, torchvision, sklearn, np)},
        "commit": code_commit(),
        "finished_utc": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
    }  # fmt: skip


@cache
def code_commit() -> str:
    """The commit of this code, with -dirty if a script was changed since; unknown without git."""
    folder = Path(__file__).parent  # not one above, which may be another project's
    git = ["git", f"--git-dir={folder / '.git'}", f"--work-tree={folder}"]
    run = partial(subprocess.run, cwd=folder, capture_output=True, text=True)
    try:
        commit = run([*git, "rev-parse", "--short=10", "HEAD"], check=True).stdout.strip()
        changed = run([*git, "diff", "--quiet", "HEAD", "--", ":(top,glob)*.py"]).returncode
        return f"{commit}-dirty" if changed else commit
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def write_file(path: Path, content: bytes) -> None:
    """Replace a file in one step: whoever reads it, after a crash too, sees the old or the new. A
    link stays one. Not more than one process may write a file."""
    path = Path(os.path.realpath(path))  # of a link to itself: that link
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        for pause in (0.1, 0.4, 1.5, 3):  # on Windows a program that has it open is in the way
            with contextlib.suppress(PermissionError):
                return os.replace(temporary, path)
            time.sleep(pause)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise OSError(f"cannot write {path}: {error.strerror}") from error


def parse_cell(name: str, text: str):
    """A cell's value: a text, a number, or None if it is empty. Raises ValueError."""
    text = text.strip()
    if not text or name not in NUMBERS or (name == "gamma" and text in ("scale", "auto")):
        return text or None
    with contextlib.suppress(ValueError):
        if math.isfinite(value := int(text) if text.isdecimal() else float(text)):
            return value
    raise ValueError(f"{name} is {text!r:.80}, which is no number")


def parse_row(kind: str, cells: dict) -> dict:
    """A line of a results file with numbers as numbers, empty cells as None. Raises ValueError."""
    if None in cells or None in cells.values():  # csv's signs of too many and too few
        raise ValueError("there are more or fewer cells than columns")
    row = dict.fromkeys(COLUMNS[kind]) | {n: parse_cell(n, text) for n, text in cells.items()}
    if row["status"] not in ("ok", "diverged", "failed"):
        raise ValueError(f"status is {row['status']!r:.80}, not ok, diverged or failed")
    needed = COLUMNS[kind] if row["status"] == "ok" else KEY[kind]
    if lacking := [name for name in needed if row[name] is None and name not in OPTIONAL]:
        raise ValueError(f"the row has no {lacking[0]}")
    return row


def read_rows(path: Path) -> list[dict]:
    """The rows of a results file, none if it is absent. Columns may stand in any order, with others
    beside them. Exits 2 with line and column where a cell is no value."""
    lines = csv.DictReader(())
    csv.field_size_limit(2**31 - 1)  # a long training's history is longer than the default
    try:
        text = path.read_text(encoding="utf-8-sig") if path.exists() else ""
        lines = csv.DictReader(io.StringIO(text), strict=True)
        return [parse_row(path.stem, cells) for cells in lines]
    except (OSError, ValueError, csv.Error) as error:
        where = f"{path}, line {lines.line_num}" if lines.line_num else path
        fail(f"{where}: {error}; mend or remove it, or use another --results-dir")


def lock_of(path: Path, row: dict | None = None) -> Path:
    """The lock of a results file, or of the job that ends with a row."""
    job = f"-{hashlib.sha256(str(key_of(path, row)).encode()).hexdigest()[:16]}" if row else ""
    return path.parent / ".running" / f"{path.stem}{job}.lock"


def save_row(path: Path, row: dict) -> None:
    """Put a row into its file, in place of those with its key; a failed row replaces no finished
    one. The file is replaced in one step under a lock, so that no row is torn, doubled or lost."""
    with FileLock(lock_of(path)):
        rows = read_rows(path)
        same = [old for old in rows if key_of(path, old) == key_of(path, row)]
        if row["status"] != "ok" and any(old["status"] == "ok" for old in same):
            return
        names = dict.fromkeys([*COLUMNS[path.stem], *(rows or [{}])[0]])  # somebody's own, too
        rows, text = [*(old for old in rows if old not in same), row], io.StringIO()
        writer = csv.DictWriter(text, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_file(path, text.getvalue().encode())


# --- grids ---------------------------------------------------------------------------------------
def run_grid(
    path: Path, rows: list[dict], train: Callable, seconds: Callable, *, dry_run: bool,
    again: Callable[[dict], bool],
) -> int:  # fmt: skip
    """Make the rows that are not finished in a results file yet; return the exit code.

    A row holds the columns of its key. Rows that differ in epochs alone are one job: train(rows,
    scratch) yields them completed, in turn; scratch is a path for a checkpoint. seconds(rows)
    estimates a job's time; again(row) says that a finished row is made once more. Several processes
    and machines may do this at the same time: a job belongs to the one that holds its lock."""
    before = {key_of(path, row): row["finished_utc"] for row in read_rows(path)}
    left = partial(unfinished, path, before=before, again=again)
    todo, jobs, failures, elsewhere = left(rows), {}, 0, []
    say(f"{path}: {len(todo)} of {len(rows)} rows to run")
    for row in sorted(todo, key=lambda row: row.get("epochs", 0)):
        jobs.setdefault(key_of(path, row | {"epochs": None}), []).append(row)
    if dry_run:
        total = 0.0
        for job in jobs.values():
            total += (one := seconds(job))
            say(f"  {describe(job[0])}: about {duration(one)}")
        say(f"  in all about {duration(total)} ({total:.0f} s) of one process")
        return 0
    if jobs:
        begin(path)
    for place, job in enumerate(jobs.values(), 1):
        lock = lock_of(path, job[-1])
        scratch = lock.with_suffix(".pt")
        try:
            with FileLock(lock, timeout=0):
                if todo := left(job):  # unless another process has been here meanwhile
                    say(f"[{place}/{len(jobs)}] {describe(todo[0])}")
                    failures += run_job(path, todo, train(todo, scratch))
                scratch.unlink(missing_ok=True)
        except Timeout:
            elsewhere += job
    if others := len(left(elsewhere)):
        say(f"{others} {'row is' if others == 1 else 'rows are'} being made by another process")
    return 1 if failures else 0


def unfinished(path: Path, rows: list[dict], *, before: dict, again: Callable) -> list[dict]:
    """Rows that are not finished in their file, unless again(row), and that nobody has made since
    `before`, the times of the rows by their keys."""
    found = {key_of(path, row): row for row in read_rows(path)}

    def is_left(row: dict) -> bool:
        key = key_of(path, row)
        if key not in found:
            return True
        is_old = found[key]["finished_utc"] == before.get(key)
        return is_old and (found[key]["status"] != "ok" or again(row))

    return list(filter(is_left, rows))


def begin(path: Path) -> None:
    """Get ready to write a results file; exits 2 if its rows could not be saved later."""
    lock = lock_of(path)
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        lock.touch()  # without flock, filelock would create it, and a crash would leave it behind
        with FileLock(lock, timeout=LOCK_SECONDS):
            pass
    except (OSError, NotImplementedError) as error:
        fail(f"--results-dir: {first_line(error)}; use one where files can be locked and written")
    code_commit()  # now, before anyone edits the code that runs


def run_job(path: Path, rows: list[dict], results: Iterator[dict]) -> int:
    """Save the rows of a job as they come out, and one for each that failed, whatever the reason;
    returns their number. An OSError is the disk's or a lock's, and ends the command."""
    device, left = torch.device(rows[0].get("device", "cpu")), [*rows]
    try:
        for row in results:
            save_result(path, row | {"status": "ok"}, device)
            left.pop(0)
    except OSError:
        raise
    except Exception as error:
        status = "diverged" if isinstance(error, FloatingPointError) else "failed"
        if status == "failed":
            traceback.print_exc()
        reason = f"{type(error).__name__}: {first_line(error)}"
        for row in left:
            save_result(path, row | {"status": status, "reason": reason}, device)
        if device.type == "cuda":  # an error of CUDA stays: then this fails, too, and the process
            torch.ones(1, device=device).add(1).item()  # ends before it fails all other rows
    return len(left)


def save_result(path: Path, row: dict, device: torch.device) -> None:
    """Save a row with its environment, and print what it says."""
    row |= environment(device)
    try:
        save_row(path, row)
    except BaseException:
        say(f"not saved: {row}")
        raise
    result = row.get("reason") or (
        f"validation {row['val_accuracy']:.2%}, test {row['test_accuracy']:.2%}, trained in"
        f" {duration(row['train_time_ms'] / 1e3)}"
    )
    say(f"{describe(row)}: {row['status']}, {result}")


def describe(row: dict) -> str:
    """A run's name in logs."""
    plain = [row.get(name) for name in ("dataset", "device", "arch", "kernel", "optimizer")]
    named = ("lr", "batch_size", "epochs", "pin_memory", "C", "gamma", "degree", "coef0", "seed")
    others = [f"{name}={row[name]}" for name in named if row.get(name) is not None]
    return " ".join([*filter(None, plain), *others])


def duration(seconds: float) -> str:
    """3.4 s, 1 min 42 s or 2 h 5 min."""
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


# --- command line --------------------------------------------------------------------------------
def number(kind: type, low: float, high: float = 1e30) -> Callable:
    """An argparse type: an int or a float from low to high."""

    def parse(text: str):
        value = kind(text)
        if not low <= value <= high:  # nan is not
            raise ValueError
        return value

    parse.__name__ = f"{kind.__name__} from {low:g} to {high:g}"  # in argparse's message
    return parse


class HelpFormatter(argparse.RawDescriptionHelpFormatter):
    """The docstring as it is, and each flag's default, if it has one."""

    def _get_help_string(self, action):
        values = action.default if isinstance(action.default, list) else [action.default]
        if values[0] in (None, True, False, argparse.SUPPRESS):
            return action.help
        return f"{action.help} (default: {' '.join(map(str, values))})"


def make_parser(doc: str) -> argparse.ArgumentParser:
    """A parser whose wrong flags give one line and exit code 2."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.error = lambda message: fail(f"{message} (see {parser.prog} --help)")
    return parser


def make_grid_parser(doc: str) -> argparse.ArgumentParser:
    """A parser with the flags of every script that makes rows."""
    parser = make_parser(doc)
    add = parser.add_argument_group("data and results").add_argument
    # fmt: off
    add("--dataset", nargs="+", choices=DATASETS, default=["mnist"], help="one or more data sets")
    add("--seed", nargs="+", type=number(int, 0, 2**32 - 1), default=[0], metavar="SEED",
        help="one or more seeds, each of a split, initial weights and batch order")
    add("--limit", type=number(int, 10 * CLASSES), metavar="N",
        help="use N images of each data set, split 70/10/20; they count as another data set")
    add("--data-dir", type=Path, default=Path("data"), metavar="DIR",
        help="where data are read from, or downloaded to")
    add("--results-dir", type=Path, default=Path("results"), metavar="DIR",
        help="where rows are written to")
    add("--dry-run", action="store_true",
        help="list the runs that are left, and about how long they take")
    add("--force", action="store_true", help="run finished rows again, in place of the old ones")
    # fmt: on
    return parser


def combinations(**factors: list) -> list[dict]:
    """Every combination of the factors' values, repeated values once, the last factor fastest."""
    values = [list(dict.fromkeys(factor)) for factor in factors.values()]
    return [dict(zip(factors, combination, strict=True)) for combination in product(*values)]


def run_main(main: Callable[[], int]) -> None:
    """Run a script. Ctrl-C, a full disk and the like end it with one line."""
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        print("interrupted: finished rows are kept; the same command goes on", file=sys.stderr)
        raise SystemExit(130) from None
    except OSError as error:
        fail(first_line(error))
