"""What the scripts share: data and split, device and precision, the training loop, rows, grids."""

import argparse
import base64
import contextlib
import csv
import hashlib
import io
import json
import math
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import sklearn
import torch
import torchvision
from filelock import FileLock
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch import distributed as dist
from torch.nn import functional as F
from torchvision.datasets import MNIST, FashionMNIST
from tqdm import tqdm

CLASSES = 10
SIZE = 28  # of an image's side
EVAL_BATCH = 1000
CHECKPOINT_SECONDS = 30  # of training between two checkpoints, at least


def fail(message: str):
    """Print one line on stderr and exit with code 2: the input was wrong, nothing was changed."""
    # Control characters of a broken file must not reach the terminal.
    line = "".join(character if character.isprintable() else " " for character in message[:2000])
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(2)


def first_line(error: BaseException) -> str:
    """The first line of an error's message, or its name if it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


say = partial(print, flush=True)  # at once, so that logs can be followed


def say_once(message: str) -> None:
    """Print a line in torchrun's first process, or in the only one."""
    if not dist.is_torchelastic_launched() or os.environ["RANK"] == "0":
        say(message)


# --- data and split ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One part of a split, on the host: images uint8 [n, 28, 28], labels int64 [n]."""

    images: Tensor
    labels: Tensor


@dataclass(frozen=True)
class Split:
    """Disjoint parts, and the pixel mean and standard deviation (0..255) of the training part."""

    train: Part
    val: Part
    test: Part
    scale: tuple[float, float]
    split_id: str


def read_official(dataset_class, digest: str, data_dir: Path) -> tuple[Tensor, Tensor]:
    """Read (or download) all four files with torchvision: 60,000 training images, then 10,000."""
    raw = Path(data_dir) / dataset_class.__name__ / "raw"
    try:
        raw.mkdir(parents=True, exist_ok=True)
        # The lock keeps a second process from reading files that the first one still unpacks.
        lock = FileLock(raw / ".lock") if os.access(raw, os.W_OK) else contextlib.nullcontext()
        with lock, contextlib.redirect_stdout(io.StringIO()):
            parts = [dataset_class(data_dir, train=train, download=True) for train in (True, False)]
        images = torch.cat([part.data for part in parts])
        labels = torch.cat([part.targets for part in parts])
        # torchvision checks the archives, not the files that it unpacked from them earlier.
        if sha256(images, labels) != digest:
            raise ValueError("the unpacked files are damaged, delete them")
        return images, labels
    except Exception as error:  # torchvision raises anything from AssertionError to zlib.error
        fail(
            f"cannot load {dataset_class.__name__} from {raw}: {first_line(error).rstrip(': ')}"
            " (it needs the network once, or the four *-ubyte.gz files, whole, in that folder,"
            " writable; or use --dataset digits)"
        )


def read_digits(data_dir: Path) -> tuple[Tensor, Tensor]:
    """scikit-learn's bundled 1,797 digits, 8x8 with values 0..16, enlarged to 28x28."""
    digits = load_digits()
    small = torch.from_numpy(digits.images).unsqueeze(1).float() * (255 / 16)
    large = F.interpolate(small, size=SIZE, mode="bilinear").squeeze(1)
    return large.round().to(torch.uint8), torch.from_numpy(digits.target).long()


@dataclass(frozen=True)
class Dataset:
    """A data set's number of images, and read(data_dir) -> images, labels."""

    size: int
    read: Callable[[Path], tuple[Tensor, Tensor]]


MNIST_SHA256 = "b3fe36794a3a345d09632e9d79f122d61ca91a07e5a22f8536973655bacf2a78"
FASHION_SHA256 = "75979490032625d6583ff7101de6f9243d07d0a8d33d3c9b3b7e79b4c59382af"
DATASETS = {
    "mnist": Dataset(70_000, partial(read_official, MNIST, MNIST_SHA256)),
    "fashion": Dataset(70_000, partial(read_official, FashionMNIST, FASHION_SHA256)),
    "digits": Dataset(1_797, read_digits),
}


def part_sizes(total: int) -> tuple[int, int, int]:
    """70 % / 10 % / 20 % of total images."""
    train, val = round(0.7 * total), round(0.1 * total)
    return train, val, total - train - val


def split_indices(labels: np.ndarray, *, split_seed: int, limit: int | None) -> list[np.ndarray]:
    """Stratified, sorted train, validation and test indices; of `limit` images if it is given."""
    indices = np.arange(len(labels))
    choose = partial(train_test_split, random_state=split_seed)
    if limit is not None and limit < len(labels):
        indices, _ = choose(indices, train_size=limit, stratify=labels)
    n_train, n_val, _ = part_sizes(len(indices))
    train, rest = choose(indices, train_size=n_train, stratify=labels[indices])
    val, test = choose(rest, train_size=n_val, stratify=labels[rest])
    return [np.sort(part) for part in (train, val, test)]


@lru_cache(maxsize=1)  # the jobs of a data set come one after another
def load_split(name: str, data_dir: Path, *, split_seed: int, limit: int | None = None) -> Split:
    """Load a data set and split it 70/10/20; depends on nothing but the data, seed and limit."""
    images, labels = DATASETS[name].read(data_dir)
    indices = split_indices(labels.numpy(), split_seed=split_seed, limit=limit)
    indices = [torch.from_numpy(part) for part in indices]
    train, val, test = (Part(images[part], labels[part]) for part in indices)
    # From the counts of the 256 values, which are exact for any number of pixels.
    counts = torch.bincount(train.images.flatten(), minlength=256).double()
    values = torch.arange(256, dtype=torch.float64)
    mean = (counts @ values / counts.sum()).item()
    std = (counts @ (values - mean).square() / counts.sum()).sqrt().item()
    return Split(train, val, test, (mean, std), sha256(images, labels, *indices)[:12])


def sha256(*tensors: Tensor) -> str:
    """Hex digest of the tensors' bytes, in order."""
    content = b"".join(tensor.cpu().numpy().tobytes() for tensor in tensors)
    return hashlib.sha256(content).hexdigest()


# --- device and precision ------------------------------------------------------------------------


@cache
def device_problem(name: str) -> str | None:
    """Why a device (cpu or cuda) cannot be used; None if it can.

    Each of torchrun's processes takes a GPU of its own, before anything else touches CUDA. An old
    card is listed although its first operation dies, so one is run."""
    if name == "cpu":
        return None
    if not torch.cuda.is_available():
        return "PyTorch sees no CUDA GPU"
    try:
        local_rank = int(os.environ.get("LOCAL_RANK", 0))
        torch.cuda.set_device(local_rank % torch.cuda.device_count())
        torch.ones(1, device=name).add(1).item()
    except RuntimeError as error:
        return f"PyTorch cannot use the GPU: {first_line(error)}"


def pick_device(name: str) -> torch.device:
    """The device; auto is a GPU if one can be used, else the CPU. Exits 2 if it is unusable."""
    problem = device_problem("cuda" if name == "auto" else name)
    if name == "auto":
        if problem and torch.cuda.is_available():
            say_once(f"{problem}; the CPU is used")
        name = "cpu" if problem else "cuda"
    elif problem:
        fail(f"--device {name}: {problem}; use --device cpu")
    return torch.device(name)


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
def cpu_name() -> str:
    """The processor's model name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def device_name(device: torch.device) -> str:
    """The GPU's or the CPU's model name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


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


def batch_sizes(total: int, batch_size: int) -> list[int]:
    """The sizes of an epoch's batches. A last batch of one image joins the one before it, because
    BatchNorm cannot train on one value per channel (layer4 works on 1x1 maps)."""
    sizes = [len(batch) for batch in torch.empty(total).split(batch_size)]
    return [*sizes[:-2], sizes[-2] + 1] if len(sizes) > 1 and sizes[-1] == 1 else sizes


def train_epoch(
    model, optimizer, scaler, part: Part, order: Tensor, batch_size: int, *, pin_memory, label: str
) -> tuple[float, float]:
    """Train once on a part, in this order; return the mean loss and accuracy on the way."""
    model.train()
    device = next(model.parameters()).device
    data = [part.images[order], part.labels[order]]  # 38 MB: gathered once, copied batch by batch
    data = [values.pin_memory() if pin_memory else values for values in data]
    sizes = batch_sizes(len(order), batch_size)
    batches = list(zip(*(values.split(sizes) for values in data), strict=True))
    sums = torch.zeros(2, device=device)  # loss and hits; .item() in each step would stall a GPU
    # A bar for a single process on a terminal; several would overwrite each other's.
    hidden = True if dist.is_torchelastic_launched() else None
    for images, labels in tqdm(batches, label, leave=False, unit="batch", disable=hidden):
        images, labels = (v.to(device, non_blocking=pin_memory) for v in (images, labels))
        logits = model(images)
        loss = F.cross_entropy(logits, labels)
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)
        sums += torch.stack([loss.detach() * len(labels), (logits.argmax(1) == labels).sum()])
    return tuple((sums / len(order)).tolist())


@torch.no_grad()
def evaluate(model, part: Part) -> tuple[float, Tensor]:
    """Mean loss, and predicted classes int64 [n] on the host, in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    losses, predictions = [], []
    batches = zip(part.images.split(EVAL_BATCH), part.labels.split(EVAL_BATCH), strict=True)
    for images, labels in batches:
        logits = model(images.to(device))
        losses.append(F.cross_entropy(logits, labels.to(device), reduction="sum"))
        predictions.append(logits.argmax(1))
    return sum(torch.stack(losses).tolist()) / len(part.labels), torch.cat(predictions).cpu()


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Fraction of equal entries."""
    return (predictions == labels).double().mean().item()


@dataclass(frozen=True)
class Checkpoint:
    """A file for a training's state; its identity is all that the training's bits depend on."""

    path: Path
    identity: str

    def save(self, parts: dict, history: list[dict]) -> None:
        """Keep the parts' state_dicts and the history. Training goes on where that fails."""
        state = {name: part.state_dict() for name, part in parts.items()}
        file = io.BytesIO()
        torch.save(state | {"identity": self.identity, "history": history}, file)
        digest = hashlib.sha256(file.getbuffer()).digest()  # torch.load overlooks a flipped bit
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_file(self.path, digest + file.getvalue())
        except OSError as error:
            say(f"no checkpoint: {error}")

    def load(self, parts: dict, before: int) -> list[dict]:
        """Bring the parts to the saved state and return its history. Without a file, or if it is
        damaged, of another training or past epoch `before`, change nothing and return []."""
        remove_temporaries(self.path)
        try:
            content = self.path.read_bytes()
            if hashlib.sha256(content[32:]).digest() != content[:32]:
                raise ValueError("it is damaged")
            state = torch.load(io.BytesIO(content[32:]), map_location="cpu", weights_only=True)
            if state["identity"] != self.identity:
                raise ValueError("it is of other code, versions, threads, hardware or data")
            if len(state["history"]) >= before:
                raise ValueError(f"it is past epoch {before}")
        except FileNotFoundError:
            return []
        except Exception as error:  # torch raises anything
            say(f"training starts anew; {self.path} is not used: {first_line(error)}")
            return []
        for name, part in parts.items():
            part.load_state_dict(state[name])
        say(f"training resumes after epoch {len(state['history'])}, from {self.path}")
        return state["history"]


def fit(
    model: Classifier, optimizer, train: Part, val: Part, *, epochs: list[int], batch_size: int,
    seed: int, pin_memory: bool = False, label: str = "", checkpoint: Checkpoint | None = None,
) -> Iterator[list[dict]]:  # fmt: skip
    """Train to the last of `epochs` and yield the history after each epoch; takes no test images.

    The learning rate is constant and the batch order depends on the seed alone, so epoch 3 of 5 is
    a training of 3 epochs. Losses are means over images, accuracies fractions; train_time_ms covers
    the training steps and their batches. Raises FloatingPointError if a loss is not finite."""
    device = next(model.parameters()).device
    # bf16 needs no scaling: the scaler does nothing then.
    scaler = torch.amp.GradScaler(device.type, enabled=model.precision == torch.float16)
    parts = {"model": model, "optimizer": optimizer, "scaler": scaler}
    history = checkpoint.load(parts, before=min(epochs)) if checkpoint else []
    generator, unsaved = torch.Generator().manual_seed(seed), 0.0
    for number in range(1, max(epochs) + 1):
        order = torch.randperm(len(train.labels), generator=generator)
        if number <= len(history):  # trained before: only its order had to be drawn
            continue
        name, start = f"{label} epoch {number}/{max(epochs)}", synchronized_time(device)
        train_loss, train_accuracy = train_epoch(
            model, optimizer, scaler, train, order, batch_size, pin_memory=pin_memory, label=name
        )
        seconds = synchronized_time(device) - start
        val_loss, predictions = evaluate(model, val)
        if not math.isfinite(train_loss + val_loss):
            raise FloatingPointError(f"epoch {number}: loss is {train_loss}, validation {val_loss}")
        val_accuracy = accuracy(predictions, val.labels)
        history.append({
            "number": number, "train_loss": train_loss, "train_accuracy": train_accuracy,
            "val_loss": val_loss, "val_accuracy": val_accuracy, "train_time_ms": 1e3 * seconds,
        })  # fmt: skip
        say(
            f"{name}: train loss {train_loss:.4f}, accuracy {train_accuracy:.4f}; val loss"
            f" {val_loss:.4f}, accuracy {val_accuracy:.4f}; {format_duration(seconds)}"
        )
        yield history
        # The caller has saved this epoch's row: a resumed training continues with the next one.
        unsaved += seconds
        if checkpoint and number < max(epochs) and unsaved >= CHECKPOINT_SECONDS:
            checkpoint.save(parts, history)
            unsaved = 0.0
    if checkpoint:
        checkpoint.path.unlink(missing_ok=True)


# --- rows ----------------------------------------------------------------------------------------

# fmt: off
ENVIRONMENT = ("device_name", "cpu_name", "threads", "python", "torch", "torchvision", "sklearn",
               "numpy", "commit", "finished_utc")
ACCURACY = ("status", "reason", "n_train", "n_val", "n_test", "val_accuracy", "test_accuracy")
TRAINING = ("dataset", "limit", "arch", "optimizer", "lr", "momentum", "batch_size", "epochs",
            "pin_memory", "amp", "precision", "device", "seed", "split_seed")
# The columns of each file: what was run, then status, then what came out; packed ones come last.
COLUMNS = {
    "resnet": (
        *TRAINING, *ACCURACY, "train_time_ms", "predict_time_ms", "training_flops",
        "precision_reason", "split_id", "weights_sha256", *ENVIRONMENT, "history", "test_classes",
        "test_errors"),
    "svm": (
        "dataset", "limit", "kernel", "C", "gamma", "degree", "coef0", "solver", "seed",
        "split_seed", *ACCURACY, "fit_time_ms", "predict_time_ms", "training_flops",
        "support_vectors", "iterations", "gamma_value", "split_id", *ENVIRONMENT, "test_classes",
        "test_errors"),
    "devices": (
        *TRAINING, *ACCURACY, "train_time_ms", "predict_time_ms", "training_flops", "step_ms",
        "step_ms_min", "step_ms_max", "windows", "peak_memory_mib", "precision_reason", "split_id",
        "weights_sha256", *ENVIRONMENT),
}
# Columns of text; all others hold numbers.
TEXT = {"dataset", "arch", "optimizer", "pin_memory", "amp", "precision", "device", "kernel",
        "solver", "status", "reason", "precision_reason", "split_id", "weights_sha256", "history",
        "test_classes", "test_errors", *ENVIRONMENT} - {"threads"}
# fmt: on
# Numbers that a finished row may lack: scikit-learn does not count FLOPs, Windows tells no peak.
OPTIONAL = ("training_flops", "peak_memory_mib")


def key_columns(name: str) -> tuple[str, ...]:
    """The columns of a file that tell a row from all others."""
    return COLUMNS[name][: COLUMNS[name].index("status")]


def key_of(path: Path, row: dict) -> tuple:
    """A row's values in the key columns of its file; 1e-2 and 0.01 are equal."""
    return tuple(row.get(name) for name in key_columns(path.stem))


def environment(device: torch.device) -> dict:
    """Where and with what a row was made: the columns of ENVIRONMENT."""
    return {
        "device_name": device_name(device),
        "cpu_name": cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        **{module.__name__: module.__version__ for module in (torch, torchvision, sklearn, np)},
        "commit": code_commit(),
        "finished_utc": time.strftime("%Y-%m-%dT%H:%M:%S+00:00", time.gmtime()),
    }


@cache
def code_commit() -> str:
    """The commit of this code, with -dirty if a script was changed since; unknown without git."""
    folder = Path(__file__).parent  # named outright: GIT_DIR or a folder above may be another's
    git = ["git", f"--git-dir={folder / '.git'}", f"--work-tree={folder}"]
    run = partial(subprocess.run, cwd=folder, capture_output=True, text=True, check=True)
    try:
        commit = run([*git, "rev-parse", "--short=10", "HEAD"]).stdout.strip()
        changed = run([*git, "status", "--porcelain", "--", "*.py"]).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


@cache
def code_digest() -> str:
    """Digest of the scripts that a training's bits depend on."""
    scripts = [Path(__file__).with_name(name) for name in ("common.py", "train_resnet.py")]
    return hashlib.sha256(b"".join(path.read_bytes() for path in scripts)).hexdigest()[:12]


def test_columns(split: Split, predictions: Tensor) -> dict:
    """A row's columns about the split and its test part. test_errors is packed: a byte for each
    image, 0 where the prediction is right, else 1 + 10 label + prediction."""
    labels = split.test.labels
    codes = torch.where(predictions == labels, 0, 1 + CLASSES * labels + predictions)
    packed = zlib.compress(codes.to(torch.uint8).numpy().tobytes(), 9)
    return {
        "n_train": len(split.train.labels),
        "n_val": len(split.val.labels),
        "n_test": len(labels),
        "split_id": split.split_id,
        "test_accuracy": accuracy(predictions, labels),
        "test_classes": json.dumps(labels.bincount(minlength=CLASSES).tolist()),
        "test_errors": base64.b64encode(packed).decode(),
    }


def remove_temporaries(path: Path) -> None:
    """Remove what killed processes left of a file that they were writing."""
    for temporary in path.parent.glob(f"{path.name}.*.tmp"):
        temporary.unlink(missing_ok=True)


def write_file(path: Path, content: bytes) -> None:
    """Replace a file in one step: whoever reads it, after a crash too, sees the old or the new."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}-{time.time_ns()}.tmp")
    try:
        with temporary.open("xb") as file:  # x: a new file, so that no link is followed
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    if os.name == "posix":  # Windows cannot open a folder
        folder = os.open(path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)


def parse_cell(name: str, text: str, required: bool):
    """A cell's value: a text, a number, or None if it is empty. Raises ValueError."""
    if name in TEXT or not (text or required) or (name == "gamma" and text in ("scale", "auto")):
        return text or None
    low = 1e-30 if name.endswith(("_ms", "_flops")) or name.startswith("n_") else 0
    high = 1 if name.endswith("accuracy") else 1e30
    with contextlib.suppress(ValueError):
        value = int(text) if text.isdecimal() else float(text)
        if low <= value <= high:  # nan is not
            return value
    raise ValueError(f"{name} is {text!r:.80}")


def read_rows(path: Path) -> list[dict]:
    """The rows of a results file, none if it is absent: numbers as numbers, empty cells as None.

    What a spreadsheet rewrites without loss (70.0, 1E-02, CR line ends, blank lines) is accepted;
    else this exits 2 and names file, line, column and value."""
    columns, rows = COLUMNS[path.stem], []
    csv.field_size_limit(2**31 - 1)  # a long training's history is longer than the default
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError) as error:
        fail(f"cannot read {path}: {error}; mend it or use another --results-dir")
    lines = csv.DictReader(io.StringIO(text), strict=True)
    try:
        names = tuple(lines.fieldnames or columns)
        if names != columns:
            odd = ", ".join(sorted(set(names) ^ set(columns))) or "their order"
            raise ValueError(f"other columns than this version writes ({odd:.200})")
        for cells in lines:
            if None in cells or None in cells.values():
                raise ValueError(f"there are not {len(columns)} cells")
            row = {}
            for name, text in cells.items():
                # A finished row has all columns after its status.
                required = row.get("status") == "ok" and name not in OPTIONAL
                row[name] = parse_cell(name, text, required)
            rows.append(row)
    except (ValueError, csv.Error) as error:
        where = f"{path}, line {lines.reader.line_num}"
        fail(f"{where}: {error}; mend or remove it, or use another --results-dir")
    return rows


def save_row(path: Path, row: dict) -> None:
    """Put a row into its file, in place of those with its key; a failed row replaces no finished
    one. The file is replaced in one step under a lock, so that no row is torn, doubled or lost."""
    with FileLock(path.parent / ".lock", poll_interval=0.01):
        remove_temporaries(path)
        rows = read_rows(path)
        same = [old for old in rows if key_of(path, old) == key_of(path, row)]
        if row["status"] != "ok" and any(old["status"] == "ok" for old in same):
            return
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS[path.stem], lineterminator="\n")
        writer.writeheader()
        writer.writerows([*(old for old in rows if old not in same), row])
        write_file(path, text.getvalue().encode())


# --- grids ---------------------------------------------------------------------------------------


def run_grid(
    args, name: str, jobs: list[list[dict]], run: Callable, seconds: Callable,
    again: Callable[[dict], bool] = lambda row: False,
) -> int:  # fmt: skip
    """Run the jobs whose rows are not in results/<name>.csv yet; return the exit code.

    A job is a list of rows with the columns before `status` filled in; run(rows) yields them
    completed, and seconds(rows) estimates the time. again(row) says that a row must be made
    although it is there. Under torchrun all processes draw jobs from one counter."""
    path = args.results_dir / f"{name}.csv"
    key, finished = partial(key_of, path), finished_keys(path)

    def left(job: list[dict]) -> list[dict]:
        return [row for row in job if args.force or again(row) or key(row) not in finished]

    rows = [row for job in jobs for row in job]
    say_once(f"{path}: {len(left(rows))} of {len(rows)} {'rows' if rows[1:] else 'row'} to run")
    if args.dry_run:
        list_jobs(filter(None, map(left, jobs)), seconds)
    if args.dry_run or not left(rows):
        return 0
    store, counter = begin(path.parent)
    for row in rows:
        if not left([row]):  # nodes that do not share this folder learn of it
            store.set(str(key(row)), "ok")
    failures = 0
    while (number := store.add(counter, 1)) <= len(jobs):
        if args.fail_fast and store.add("failures", 0):
            break
        if job := left(jobs[number - 1]):
            finished |= finished_keys(path)  # another command may have finished it meanwhile
            # A restart by torchrun repeats neither what is done nor a failure; a new command does.
            job = [row for row in left(job) if not store.check([str(key(row))])]
        if job:
            say(f"[{number}/{len(jobs)}] {label(job[0])}")
            failures += run_job(path, job, run(job), store)
    if failures:
        say(f"{failures} {'run' if failures == 1 else 'runs'} failed; the same command retries")
    # torchrun ends all processes as soon as one exits with 1: there the rows tell of failures.
    return 1 if failures and not dist.is_torchelastic_launched() else 0


def finished_keys(path: Path) -> set[tuple]:
    """The keys of a file's finished rows."""
    return {key_of(path, row) for row in read_rows(path) if row["status"] == "ok"}


def list_jobs(jobs: Iterable[list[dict]], seconds: Callable) -> None:
    """Print about how long each job takes, and the sum."""
    total = 0.0
    for job in jobs:
        try:
            estimate = seconds(job)
        except (MemoryError, RuntimeError) as error:
            say_once(f"  {label(job[0])}: {describe(out_of_memory(error))}")
            continue
        total += estimate
        say_once(f"  {label(job[0])}: about {format_duration(estimate)}")
    if total:
        say_once(f"  in all about {format_duration(total)} ({total:.0f} s) of one process")


def begin(folder: Path) -> tuple[dist.Store, str]:
    """Get ready for work. Returns the store that torchrun's processes share (without torchrun, one
    of this process's own) and the name of their counter, a new one whenever they start anew."""
    check_writable(folder, "--results-dir")
    torch.backends.cudnn.deterministic = True  # the same bits in every run
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # float32 is what a row says, not TF32
    code_commit(), code_digest()  # now, before anyone edits the code that runs
    if not dist.is_torchelastic_launched():
        return dist.HashStore(), "next"
    store, _, _ = next(dist.rendezvous("env://"))
    start = store.add(f"starts/{os.environ['RANK']}", 1)  # torchrun starts all of them together
    return store, f"next/{start}/{os.environ['WORLD_SIZE']}"


def check_writable(folder: Path, flag: str) -> None:
    """Make a folder; exits 2, before any work, if nothing could be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        fail(f"{flag} {folder}: {error.strerror}; use a folder that can be written to")


ALLOCATION = re.compile(
    "allocate|ALLOC(ATION)?_FAILED|out of memory|not enough memory|could not create a primitive"
)


def out_of_memory(error: Exception) -> dict:
    """Status and reason of a run that this error ended; raises an error of another kind."""
    # On a CPU, PyTorch has no class for this; any other RuntimeError is a mistake to be seen.
    known = isinstance(error, (MemoryError, torch.OutOfMemoryError))
    if not (known or ALLOCATION.search(str(error))):
        raise error
    return {"status": "out_of_memory", "reason": first_line(error)}


def run_job(path: Path, job: list[dict], results: Iterator[dict], store: dist.Store) -> int:
    """Save the rows of a job as they come out, and one for each that failed; tell the other
    processes. Returns the number of failures."""
    device, done = torch.device(job[0].get("device", "cpu")), 0

    def save(row: dict) -> None:
        row |= environment(device)
        save_row(path, row)
        store.set(str(key_of(path, row)), row["status"])
        say(f"{label(row)}: {describe(row)}")

    try:
        for row in results:
            save(row | {"status": "ok"})
            done += 1
        return 0
    except FloatingPointError as error:
        failure = {"status": "diverged", "reason": first_line(error)}
    except (MemoryError, RuntimeError) as error:
        failure = out_of_memory(error)
    store.add("failures", len(job) - done)
    for row in job[done:]:
        save(row | failure)
    return len(job) - done


def describe(row: dict) -> str:
    """How a run ended."""
    if row["status"] != "ok":
        return f"{row['status']}: {row['reason']}"
    epochs = f"after epoch {row['epochs']}, " if "epochs" in row else ""
    accuracies = f"validation {row['val_accuracy']:.2%}, test {row['test_accuracy']:.2%}"
    milliseconds = row.get("train_time_ms") or row["fit_time_ms"]
    return f"{epochs}{accuracies}, trained in {format_duration(milliseconds / 1e3)}"


# The factors of a run that its name in logs tells; the others are the same all over a grid.
SHOWN = ("dataset", "arch", "kernel", "optimizer", "lr", "batch_size", "pin_memory", "C", "gamma",
         "degree", "coef0", "seed")  # fmt: skip


def label(row: dict) -> str:
    """A run's name in logs."""
    values = {name: row[name] for name in SHOWN if row.get(name) not in (None, "n/a")}
    return " ".join(str(v) if name in TEXT else f"{name}={v}" for name, v in values.items())


def format_duration(seconds: float) -> str:
    """1:02:03 h, 2:03 min or 3.4 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{seconds:02} min"
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02} h"


# --- command line --------------------------------------------------------------------------------


def number(kind: type, *, low: float, high: float = math.inf, above: bool = False) -> Callable:
    """An argparse type: an int or a finite float in [low, high], or above low."""

    def parse(text: str):
        value = kind(text)
        if not low <= value <= high or value == math.inf or (above and value == low):
            raise ValueError
        return value

    upper = f" and <= {high:g}" if high < math.inf else ""
    parse.__name__ = f"{kind.__name__} {'>' if above else '>='} {low}{upper}"  # in its message
    return parse


class HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The docstring as it is, and the default of every flag."""


def make_parser(doc: str) -> argparse.ArgumentParser:
    """A parser with the flags of every script; a wrong flag gives one line and exit code 2."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=HelpFormatter, allow_abbrev=False
    )
    parser.error = lambda message: fail(f"{message} (see {parser.prog} --help)")
    seed = number(int, low=0, high=2**32 - 1)
    add = parser.add_argument_group("data and results").add_argument
    # fmt: off
    add("--dataset", nargs="+", choices=DATASETS, default=["mnist"], help="a factor")
    add("--seed", nargs="+", type=seed, default=[0], metavar="SEED",
        help="a factor: the seed of split, initial weights and batch order")
    add("--split-seed", type=seed, metavar="SEED",
        help="one split for all runs, instead of each seed's own")
    add("--limit", type=number(int, low=10 * CLASSES), metavar="N",
        help="a stratified subset of N images, split 70/10/20, for trials")
    add("--data-dir", type=Path, default=Path("data"), metavar="DIR",
        help="where data are read from, or downloaded to")
    add("--results-dir", type=Path, default=Path("results"), metavar="DIR",
        help="where rows are written to")
    add("--dry-run", action="store_true",
        help="list the runs that are left and estimate their time")
    # fmt: on
    add("--force", action="store_true", help="repeat finished runs")
    add("--fail-fast", action="store_true", help="stop at the first failed run")
    return parser


def parse(parser: argparse.ArgumentParser, argv: list[str] | None) -> argparse.Namespace:
    """Parse the flags, and refuse a --limit that a data set does not have."""
    args = parser.parse_args(argv)
    for name in args.dataset:
        if args.limit is not None and args.limit > DATASETS[name].size - CLASSES:
            fail(f"--limit {args.limit}: {name} has {DATASETS[name].size} images; leave it out")
    return args


def combinations(**factors: list) -> list[dict]:
    """Every combination of the factors' values, repeated values once, the last factor fastest."""
    values = [list(dict.fromkeys(factor)) for factor in factors.values()]
    return [dict(zip(factors, combination, strict=True)) for combination in product(*values)]


def stop(number: int, _) -> None:
    """Handle a signal: end as Python does at Ctrl-C."""
    raise KeyboardInterrupt(number)


def run_main(main: Callable[[], int]) -> None:
    """Run a script; Ctrl-C, a full disk and the like end it with one line."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        raise SystemExit(main())
    except KeyboardInterrupt as interrupt:
        code = 128 + next(iter(interrupt.args), signal.SIGINT)
        message = "interrupted: finished rows are kept; run the same command again to go on"
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        os._exit(1)
    except (OSError, NotImplementedError, dist.DistError) as error:
        # NotImplementedError: the file system has no locks (filelock).
        code, message = 2, f"error: {first_line(error)}"
    print(message, file=sys.stderr, flush=True)
    os._exit(code)  # Python would fail once more while it flushes what could not be written
