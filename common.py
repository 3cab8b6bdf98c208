"""What the scripts share: data and split, device and precision, the training loop, rows, grids."""

import argparse
import builtins
import contextlib
import csv
import ctypes
import hashlib
import io
import math
import os
import platform
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import timedelta
from functools import cache, lru_cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import sklearn
import torch
import torchvision
from filelock import FileLock, Timeout
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.datasets import MNIST, FashionMNIST
from tqdm import tqdm

CLASSES = 10
SIZE = 28  # of an image's side
EVAL_BATCH = 1000
# This process's number on its machine under torchrun, srun or run_all.sh. Each takes a GPU of its
# own, and only the first one shows a bar.
LOCAL_RANK = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
LOCAL_RANK = int(LOCAL_RANK) if LOCAL_RANK.isdecimal() else 0

# glibc is told to keep freed memory, for all threads. Else it gives back what is as large as the
# gradients of ResNet-50, whose steps took a tenth longer, some a quarter, to get it again.
with contextlib.suppress(AttributeError, TypeError):  # another C library
    mallopt = ctypes.CDLL(None).mallopt
    mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD
    mallopt(-3, 2**25)  # M_MMAP_THRESHOLD
    mallopt(-8, 1)  # M_ARENA_MAX

say = partial(print, flush=True)  # at once, so that logs can be followed


def fail(message: str):
    """Print one line on stderr and exit with code 2."""
    # Control characters of a broken file must not reach the terminal.
    line = "".join(character if character.isprintable() else " " for character in message[:2000])
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(2)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its name if it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


# --- data and split ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One part of a split, on the host: images uint8 [n, 28, 28], labels int64 [n]."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Split:
    """Disjoint parts, the pixel mean and standard deviation (0..255) of the training part, and a
    row's columns about them."""

    train: Part
    val: Part
    test: Part
    scale: tuple[float, float]
    columns: dict


def read_official(dataset_class, digest: str, data_dir: Path) -> tuple[Tensor, Tensor]:
    """Read (or download) all four files with torchvision: 60,000 training images, then 10,000."""
    folder = Path(data_dir) / dataset_class.__name__
    lock = folder / ".lock"
    socket.setdefaulttimeout(60)  # seconds without an answer; torchvision sets no limit
    try:
        if not list(folder.glob("*/*")):
            say(f"downloading {folder.name} to {folder}")
            folder.mkdir(parents=True, exist_ok=True)
        # The lock keeps a second process from reading files that the first one still unpacks.
        owned = FileLock(lock) if os.access(folder, os.W_OK) else contextlib.nullcontext()
        with owned, contextlib.redirect_stdout(io.StringIO()):
            parts = [dataset_class(data_dir, train=train, download=True) for train in (True, False)]
        images = torch.cat([part.data for part in parts])
        labels = torch.cat([part.targets for part in parts])
        # torchvision checks the archives, not the files that it unpacked from them earlier.
        if sha256(images, labels) != digest:
            raise ValueError("its files are damaged")
        return images, labels
    except Exception as error:  # torchvision raises anything from AssertionError to zlib.error
        with contextlib.suppress(OSError):
            lock.unlink(missing_ok=True)
        fail(
            f"cannot load {folder.name} from {folder}: {first_line(error).rstrip(': ')}; delete"
            " that folder and go online once, or put the four whole *-ubyte.gz files into its"
            " folder raw, or use --dataset digits"
        )


def read_digits(data_dir: Path) -> tuple[Tensor, Tensor]:
    """scikit-learn's bundled 1,797 digits, 8x8 with values 0..16, enlarged to 28x28."""
    digits = load_digits()
    small = torch.from_numpy(digits.images).unsqueeze(1).float() * (255 / 16)
    large = F.interpolate(small, size=SIZE, mode="bilinear").squeeze(1)
    return large.round().to(torch.uint8), torch.from_numpy(digits.target)


MNIST_SHA256 = "b3fe36794a3a345d09632e9d79f122d61ca91a07e5a22f8536973655bacf2a78"
FASHION_SHA256 = "75979490032625d6583ff7101de6f9243d07d0a8d33d3c9b3b7e79b4c59382af"
DATASETS = {  # n, and read(data_dir): images, uint8 [n, 28, 28], and labels, integers 0..9 [n]
    "mnist": (70_000, partial(read_official, MNIST, MNIST_SHA256)),
    "fashion": (70_000, partial(read_official, FashionMNIST, FASHION_SHA256)),
    "digits": (1_797, read_digits),
}


def part_sizes(total: int) -> tuple[int, int, int]:
    """70 % / 10 % / 20 % of total images."""
    train, val = round(0.7 * total), round(0.1 * total)
    return train, val, total - train - val


def split_indices(labels: np.ndarray, *, split_seed: int, limit: int | None) -> list[np.ndarray]:
    """Stratified, sorted train, validation and test indices; of `limit` images if it is given."""
    indices = np.arange(len(labels))
    choose = partial(train_test_split, random_state=split_seed)
    try:
        if limit is not None and limit < len(labels):
            indices, _ = choose(indices, train_size=limit, stratify=labels)
        n_train, n_val, _ = part_sizes(len(indices))
        train, rest = choose(indices, train_size=n_train, stratify=labels[indices])
        val, test = choose(rest, train_size=n_val, stratify=labels[rest])
    except ValueError as error:
        fail(f"the data cannot be split, --limit {limit}: {first_line(error)}")
    return [np.sort(part) for part in (train, val, test)]


@lru_cache(maxsize=1)  # the jobs of a data set come one after another
def load_split(name: str, data_dir: Path, *, split_seed: int, limit: int | None = None) -> Split:
    """Load a data set and split it 70/10/20; depends on nothing but the data, seed and limit."""
    n, read = DATASETS[name]
    images, labels = map(torch.as_tensor, read(data_dir))
    if images.dtype != torch.uint8 or images.shape != (n, SIZE, SIZE):
        fail(f"{name}: images are {images.dtype} {[*images.shape]}, not uint8 [{n}, 28, 28]")
    if labels.shape != (n,) or not set(labels.tolist()) <= set(range(CLASSES)):
        fail(f"{name}: labels are not {n} integers from 0 to 9")
    labels = labels.long()
    indices = split_indices(labels.numpy(), split_seed=split_seed, limit=limit)
    indices = [torch.from_numpy(part) for part in indices]
    parts = [Part(images[part], labels[part]) for part in indices]
    # From the counts of the 256 values, which are exact for any number of pixels.
    counts = torch.bincount(parts[0].images.flatten(), minlength=256).double()
    values = torch.arange(256, dtype=torch.float64)
    mean = (counts @ values / counts.sum()).item()
    std = (counts @ (values - mean).square() / counts.sum()).sqrt().item()
    sizes = zip(("n_train", "n_val", "n_test"), map(len, indices), strict=True)
    return Split(
        *parts, (mean, std), {**dict(sizes), "split_id": sha256(images, labels, *indices)[:12]}
    )


def sha256(*tensors: Tensor) -> str:
    """Hex digest of the tensors' bytes, in order."""
    content = b"".join(tensor.cpu().numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(content).hexdigest()


# --- device and precision ------------------------------------------------------------------------


@cache
def gpu_problem() -> str | None:
    """Why no GPU can be used; None if one can.

    Each process takes a GPU of its own before anything else touches CUDA. An old card is listed
    although its first operation dies, so one is run."""
    if not torch.cuda.is_available():
        if torch.version.cuda is None:
            return "this PyTorch is built without CUDA; pytorch.org/get-started/locally has others"
        return "PyTorch sees no CUDA GPU"
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


def pick_precision(device: torch.device, amp: bool) -> tuple[torch.dtype, str]:
    """The type that autocast computes in, and why."""
    if not amp:
        return torch.float32, "--no-amp"
    if device.type == "cuda":
        # Without including_emulation=False a T4 says True, and is slow.
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return torch.bfloat16, "GPU with native bf16"
        return torch.float16, "GPU without native bf16: fp16 with GradScaler"
    if torch.cpu._is_amx_tile_supported():
        return torch.bfloat16, "CPU with AMX"
    if torch.cpu._is_avx512_bf16_supported():
        return torch.bfloat16, "CPU with AVX512_BF16"
    return torch.float32, "CPU without bf16 instructions"


@cache
def device_name(device: torch.device) -> str:
    """The GPU's or the CPU's model name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip() or "unknown"
    return platform.processor() or platform.machine() or "unknown"


def synchronized_time(device: torch.device) -> float:
    """Seconds, read once the device has finished all work that was given to it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


# --- training loop -------------------------------------------------------------------------------


class Classifier(nn.Module):
    """A network with its input's standardisation and its precision: uint8 images [n, 28, 28] to
    float32 logits [n, classes]. scale is the pixel mean and standard deviation, 0..255."""

    def __init__(self, network: nn.Module, scale: tuple[float, float], precision: torch.dtype):
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
    hidden = True if LOCAL_RANK else None  # None: shown on a terminal only
    for images, labels in tqdm(batches, label, leave=False, unit="batch", disable=hidden):
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
    device, sums = next(model.parameters()).device, []
    batches = zip(part.images.split(EVAL_BATCH), part.labels.split(EVAL_BATCH), strict=True)
    for images, labels in batches:
        logits, labels = model(images.to(device)), labels.to(device)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        sums.append(torch.stack([loss, (logits.argmax(1) == labels).sum()]))
    losses, hits = zip(*torch.stack(sums).tolist(), strict=True)
    return sum(losses) / len(part.labels), sum(hits) / len(part.labels)


def fit(
    model: Classifier, optimizer, scaler, train: Part, val: Part, *, epochs: int, batch_size: int,
    seed: int, pin_memory: bool = False, label: str = "", history: list[dict] | None = None,
) -> Iterator[list[dict]]:  # fmt: skip
    """Train and yield the history after each epoch; takes no test images.

    The learning rate is constant and the batch order depends on the seed alone, so epoch 3 of 5 is
    a training of 3 epochs. A stopped training goes on from its history. Losses are means over
    images, accuracies fractions; train_time_ms covers the training steps and their batches. Raises
    FloatingPointError if a loss is not finite."""
    device = next(model.parameters()).device
    history, generator = history or [], torch.Generator().manual_seed(seed)
    for number in range(1, epochs + 1):
        order = torch.randperm(len(train.labels), generator=generator)
        if number <= len(history):  # trained before: only its order had to be drawn
            continue
        torch.manual_seed(seed * 10_001 + number)  # of dropout, the same after a resume
        name, start = f"{label} epoch {number}/{epochs}", synchronized_time(device)
        train_loss, train_accuracy = train_epoch(
            model, optimizer, scaler, train, order, batch_size, pin_memory=pin_memory, label=name
        )
        seconds = synchronized_time(device) - start
        val_loss, val_accuracy = evaluate(model, val)
        if not math.isfinite(train_loss + val_loss):
            raise FloatingPointError(f"epoch {number}: loss is {train_loss}, validation {val_loss}")
        history.append({
            "number": number, "train_loss": train_loss, "train_accuracy": train_accuracy,
            "val_loss": val_loss, "val_accuracy": val_accuracy, "train_time_ms": 1e3 * seconds,
        })  # fmt: skip
        say(
            f"{name}: train loss {train_loss:.4f}, accuracy {train_accuracy:.4f}; val loss"
            f" {val_loss:.4f}, accuracy {val_accuracy:.4f}; {duration(seconds)}"
        )
        yield history


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
STATUSES = ("ok", "diverged", "failed")
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
    """Replace a file in one step: whoever reads it, after a crash too, sees the old or the new.
    Links and permissions stay. Not more than one process may write a file."""
    path = path.resolve()
    temporary = path.with_name(f"{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(OSError):  # there is no old file, or no such thing as a mode
            shutil.copymode(path, temporary)
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


def read_rows(path: Path) -> list[dict]:
    """The rows of a results file, none if it is absent: numbers as numbers, empty cells as None.

    Columns may stand in any order, with others beside them. What other software rewrites without
    loss (70.0, 1E-02, CR line ends, blank lines) is accepted; else this exits 2 and names the line
    and the column."""
    columns, rows, lines = COLUMNS[path.stem], [], None
    csv.field_size_limit(2**31 - 1)  # a long training's history is longer than the default
    try:
        if path.exists() and not path.is_file():
            raise OSError("it is not a file")
        text = path.read_text(encoding="utf-8-sig") if path.exists() else ""
        lines = csv.DictReader(io.StringIO(text), strict=True)
        for cells in lines:
            if None in cells or None in cells.values():  # DictReader's sign of a cell too many
                raise ValueError("there are more or fewer cells than columns")
            found = {name: parse_cell(name, cell) for name, cell in cells.items()}
            row = dict.fromkeys(columns) | found
            if row["status"] not in STATUSES:
                raise ValueError(f"status is {row['status']!r:.80}, not {', '.join(STATUSES)}")
            needed = columns if row["status"] == "ok" else KEY[path.stem]
            if lacking := [name for name in needed if row[name] is None and name not in OPTIONAL]:
                raise ValueError(f"the row has no {lacking[0]}")
            rows.append(row)
    except (OSError, ValueError, csv.Error) as error:
        where = f"{path}, line {lines.line_num}" if lines else path
        fail(f"{where}: {error}; mend or remove it, or use another --results-dir")
    return rows


def running(path: Path, name: str) -> Path:
    """A file for a lock or a checkpoint, beside a results file."""
    return path.parent / ".running" / f"{path.stem}{name}"


def save_row(path: Path, row: dict) -> None:
    """Put a row into its file, in place of those with its key; a failed row replaces no finished
    one. The file is replaced in one step under a lock, so that no row is torn, doubled or lost."""
    with FileLock(running(path, ".lock")):
        rows = read_rows(path)
        same = [old for old in rows if key_of(path, old) == key_of(path, row)]
        if row["status"] != "ok" and any(old["status"] == "ok" for old in same):
            return
        text = io.StringIO()
        rows = [*(old for old in rows if old not in same), row]
        columns = dict.fromkeys([*COLUMNS[path.stem], *rows[0]])  # somebody's own ones, too
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_file(path, text.getvalue().encode())


# --- grids ---------------------------------------------------------------------------------------


def unfinished(
    path: Path, jobs: list[list[dict]], before: set, again: Callable
) -> list[list[dict]]:
    """Jobs without finished rows, unless again(row), and without rows that were made since
    `before`, a set of (key, time)."""
    rows = {(key_of(path, row), row["finished_utc"]): row["status"] for row in read_rows(path)}
    new = {key for key, _ in rows.keys() - before}
    finished = {key for (key, _), status in rows.items() if status == "ok"}

    def is_left(row: dict) -> bool:
        key = key_of(path, row)
        return key not in new and (key not in finished or again(row))

    return [rows for job in jobs if (rows := list(filter(is_left, job)))]


def run_grid(
    args, name: str, jobs: list[list[dict]], run: Callable, seconds: Callable,
    again: Callable[[dict], bool] = lambda row: False,
) -> int:  # fmt: skip
    """Run the jobs whose rows are not in results/<name>.csv yet; return the exit code.

    A job is a list of rows with the columns before `status` filled in. run(rows, scratch) yields
    them completed; scratch is a path of its own for a checkpoint. seconds(rows) estimates the time,
    and again(row) says that a row must be made although it is there. Several processes may do this
    at the same time, on several machines too: a job belongs to the one that holds its lock."""
    for dataset in args.dataset:
        if args.limit is not None and args.limit > DATASETS[dataset][0] - CLASSES:
            fail(f"--limit {args.limit}: {dataset} has {DATASETS[dataset][0]} images; leave it out")
    path = args.results_dir / f"{name}.csv"
    before = {(key_of(path, row), row["finished_utc"]) for row in read_rows(path)}
    remaining = partial(unfinished, path, before=before, again=lambda row: args.force or again(row))
    todo, failures, elsewhere = remaining(jobs), 0, []
    say(f"{path}: {sum(map(len, todo))} of {sum(map(len, jobs))} rows to run")
    if args.dry_run:
        return list_times(todo, seconds)
    # A process that is killed after its last row leaves its checkpoint.
    stale = [job for job in jobs if job not in todo and checkpoint_file(path, job).exists()]
    if todo:
        begin(path)
    for place, job in enumerate(todo + stale, 1):
        scratch = checkpoint_file(path, job)
        try:
            with FileLock(scratch.with_suffix(".lock"), timeout=0):
                for rows in remaining([job]):  # unless another process has been here meanwhile
                    say(f"[{place}/{len(todo)}] {label(rows[0])}")
                    failures += run_job(path, rows, run(rows, scratch))
                remove_checkpoint(scratch)
        except Timeout:
            elsewhere.append(job)
    if left := sum(map(len, remaining(elsewhere))):
        say(f"rows that are left to other processes: {left}")
    # torchrun ends all processes as soon as one exits with 1: there only the rows tell of failures.
    return 1 if failures and "TORCHELASTIC_RUN_ID" not in os.environ else 0


def checkpoint_file(path: Path, job: list[dict]) -> Path:
    """A job's own file for a checkpoint; beside it is its lock."""
    digest = hashlib.sha256(str(key_of(path, job[-1])).encode()).hexdigest()
    return running(path, f"-{digest[:16]}.pt")


def remove_checkpoint(path: Path) -> None:
    """Remove a checkpoint, and what a killed process left of the next one."""
    for each in (path, path.with_name(f"{path.name}.tmp")):
        with contextlib.suppress(OSError):
            each.unlink(missing_ok=True)


def list_times(jobs: list[list[dict]], seconds: Callable) -> int:
    """Print about how long each job takes, and the sum."""
    total = 0.0
    for job in jobs:
        total += (one := seconds(job))
        say(f"  {label(job[0])}: about {duration(one)}")
    if jobs:
        say(f"  in all about {duration(total)} ({total:.0f} s) of one process")
    return 0


def begin(path: Path) -> None:
    """Get ready to write a results file; exits 2 if its rows could not be saved later."""
    own = running(path, f"-{os.getpid()}-{time.time_ns()}.lock")
    try:
        own.parent.mkdir(parents=True, exist_ok=True)
        if not os.access(path.resolve().parent, os.W_OK):
            raise PermissionError(f"{path.resolve().parent} cannot be written to")
        with FileLock(own, timeout=0), FileLock(running(path, ".lock")):
            pass  # Timeout, too, means that locks are refused: nobody else knows the first one
        own.unlink(missing_ok=True)
    except (OSError, NotImplementedError) as error:
        fail(f"--results-dir: {first_line(error)}; use one where files can be locked and written")
    torch.backends.cudnn.deterministic = True  # the same bits in every run
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # float32 is what a row says, not TF32
    code_commit()  # now, before anyone edits the code that runs


def run_job(path: Path, job: list[dict], results: Iterator[dict]) -> int:
    """Save the rows of a job as they come out, and one for each that failed. Returns the number of
    failures."""
    device, done = torch.device(job[0].get("device", "cpu")), 0

    def save(row: dict) -> None:
        row |= environment(device)
        try:
            save_row(path, row)
        except BaseException:
            say(f"not saved: {row}")
            raise
        result = row.get("reason") or (
            f"validation {row['val_accuracy']:.2%}, test {row['test_accuracy']:.2%}, trained in"
            f" {duration((row.get('train_time_ms') or row['fit_time_ms']) / 1e3)}"
        )
        say(f"{label(row)}: {row['status']}, {result}")

    try:
        for row in results:
            save(row | {"status": "ok"})
            done += 1
        return 0
    except (FloatingPointError, MemoryError, torch.OutOfMemoryError) as error:
        status = "diverged" if isinstance(error, FloatingPointError) else "out_of_memory"
        failure = {"status": status, "reason": first_line(error)}
    for row in job[done:]:
        save(row | failure)
    return len(job) - done


def label(row: dict) -> str:
    """A run's name in logs."""
    plain = [row.get(name) for name in ("dataset", "device", "arch", "kernel", "optimizer")]
    named = ("lr", "batch_size", "pin_memory", "C", "gamma", "degree", "coef0", "seed")
    others = [f"{name}={row[name]}" for name in named if row.get(name) is not None]
    return " ".join([*filter(None, plain), *others])


def duration(seconds: float) -> str:
    """3.4 s or 1:02:03 h."""
    return f"{seconds:.1f} s" if seconds < 60 else f"{timedelta(seconds=round(seconds))} h"


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


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The docstring as it is, and the default of every flag."""


def make_parser(doc: str) -> argparse.ArgumentParser:
    """A parser whose wrong flags give one line and exit code 2."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.error = lambda message: fail(f"{message} (see {parser.prog} --help)")
    return parser


def make_grid_parser(doc: str) -> argparse.ArgumentParser:
    """A parser with the flags of every script that makes rows."""
    parser, seed = make_parser(doc), number(int, 0, 2**32 - 1)
    add = parser.add_argument_group("data and results").add_argument
    # fmt: off
    add("--dataset", nargs="+", choices=DATASETS, default=["mnist"], help="a factor")
    add("--seed", nargs="+", type=seed, default=[0], metavar="SEED",
        help="a factor: the seed of split, initial weights and batch order")
    add("--split-seed", type=seed, metavar="SEED",
        help="one split for all runs, instead of each seed's own")
    add("--limit", type=number(int, 10 * CLASSES), metavar="N",
        help="a stratified subset of N images, split 70/10/20, for trials")
    add("--data-dir", type=Path, default=Path("data"), metavar="DIR",
        help="where data are read from, or downloaded to")
    add("--results-dir", type=Path, default=Path("results"), metavar="DIR",
        help="where rows are written to")
    add("--dry-run", action="store_true",
        help="list the runs that are left and estimate their time")
    # fmt: on
    add(
        "--force",
        action="store_true",
        help="repeat finished runs; a process that starts late repeats others' work",
    )
    return parser


def combinations(**factors: list) -> list[dict]:
    """Every combination of the factors' values, repeated values once, the last factor fastest."""
    values = [list(dict.fromkeys(factor)) for factor in factors.values()]
    return [dict(zip(factors, combination, strict=True)) for combination in product(*values)]


def run_main(main: Callable[[], int]) -> None:
    """Run a script. Ctrl-C, a full disk and the like end it with one line, and with SystemExit,
    which leaves a notebook's kernel alive."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal may not know ±
    plain = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if plain and not hasattr(builtins, "__IPYTHON__"):
        signal.signal(signal.SIGINT, interrupt)
    try:
        code, line = main(), ""
    except KeyboardInterrupt:
        code, line = 130, "interrupted: finished rows are kept; the same command goes on"
    except OSError as error:
        code, line = 2, f"error: {first_line(error)}"
    try:
        sys.stdout.flush()
    except OSError as error:
        code, line = 2, line or f"error: {first_line(error)}"
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else it fails once more
    if line:
        print(line, file=sys.stderr)
    raise SystemExit(code)


def interrupt(*_) -> None:
    """Handle Ctrl-C: a second one would be a traceback."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise KeyboardInterrupt
