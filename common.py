"""What the scripts share: data and its split, device and precision, the training loop, rows."""

import argparse
import base64
import contextlib
import csv
import fcntl
import hashlib
import io
import json
import math
import os
import platform
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache, partial
from itertools import product
from pathlib import Path

import numpy as np
import sklearn
import torch
import torchvision
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.datasets import MNIST, FashionMNIST
from tqdm import tqdm

CLASSES = 10
SIZE = 28  # of an image's side
EVAL_BATCH = 1000
WARMUP_STEPS = 3


def fail(message: str):
    """Print one line on stderr and exit with code 2: the input was wrong, nothing was changed."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)


# --- data and split ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One part of a split, on the host: images uint8 [n, 28, 28], labels int64 [n]."""

    images: Tensor
    labels: Tensor
    indices: Tensor  # int64 [n]: the places in the whole data set


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
        # The lock keeps a second process from reading files that the first still unpacks.
        lock = locked(raw) if os.access(raw, os.W_OK) else contextlib.nullcontext()
        with lock, contextlib.redirect_stdout(io.StringIO()):
            parts = [dataset_class(data_dir, train=train, download=True) for train in (True, False)]
        images = torch.cat([part.data for part in parts])
        labels = torch.cat([part.targets for part in parts])
        # torchvision checks the archives, not the files that it unpacked from them earlier.
        if sha256(images, labels) != digest:
            raise ValueError("the unpacked files are damaged, delete them")
    except Exception as error:  # torchvision raises anything from AssertionError to zlib.error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        fail(
            f"cannot load {dataset_class.__name__} from {raw}: {reason.rstrip(': ')} (it needs the"
            " network once, or the four *-ubyte.gz files, whole, in that folder, writable;"
            " or use --dataset digits)"
        )
    return images, labels


def read_digits(data_dir: Path) -> tuple[Tensor, Tensor]:
    """scikit-learn's bundled 1,797 digits, 8x8 with values 0..16, enlarged to 28x28."""
    digits = load_digits()
    small = torch.from_numpy(digits.images).unsqueeze(1).float() * (255 / 16)
    large = F.interpolate(small, size=SIZE, mode="bilinear").squeeze(1)
    return large.round().to(torch.uint8), torch.from_numpy(digits.target).long()


@dataclass(frozen=True)
class Dataset:
    """A data set's number of images and how to read them; read(data_dir) -> images, labels."""

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
    train, val, test = (Part(images[part], labels[part], part) for part in indices)
    return Split(train, val, test, pixel_scale(train.images), sha256(images, labels, *indices)[:12])


def split_of(setting, data_dir: Path) -> Split:
    """load_split for anything with the fields dataset, split_seed and limit."""
    return load_split(setting.dataset, data_dir, split_seed=setting.split_seed, limit=setting.limit)


def pixel_scale(images: Tensor) -> tuple[float, float]:
    """Mean and standard deviation of uint8 pixels, from their counts, so exact for any number."""
    counts = torch.bincount(images.flatten(), minlength=256).double()
    values = torch.arange(256, dtype=torch.float64)
    mean = (counts @ values / counts.sum()).item()
    return mean, (counts @ (values - mean).square() / counts.sum()).sqrt().item()


def sha256(*tensors: Tensor) -> str:
    """Hex digest of the tensors' bytes, in order."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


# --- device and precision ------------------------------------------------------------------------


def has_device(name: str) -> bool:
    """Whether cpu, cuda or mps is there."""
    present = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    return name == "cpu" or present[name]()


def pick_device(name: str) -> torch.device:
    """cpu, cuda or mps; auto is cuda, else mps, else cpu. Exits 2 if the device is not there."""
    if name == "auto":
        name = next(filter(has_device, ("cuda", "mps", "cpu")))
    if not has_device(name):
        fail(f"--device {name}: PyTorch sees no such device on this machine; use --device cpu")
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
    if device.type == "cpu":
        if torch.cpu._is_amx_tile_supported():
            return torch.bfloat16, "CPU with AMX"
        if torch.cpu._is_avx512_bf16_supported():
            return torch.bfloat16, "CPU with AVX512_BF16"
        return torch.float32, "CPU without bf16 instructions"
    return torch.float32, f"AMP is not used on {device.type}"


def device_name(device: torch.device) -> str:
    """The GPU's or the processor's model name; empty if the device is not there."""
    if device.type != "cuda":
        return cpu_name()
    return torch.cuda.get_device_name(device) if has_device("cuda") else ""


@cache
def cpu_name() -> str:
    """The processor's model name."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def clock(device: torch.device) -> float:
    """Seconds, read once the device has finished all its work."""
    if device.type != "cpu":
        getattr(torch, device.type).synchronize()
    return time.perf_counter()


# --- training loop -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Epoch:
    """What an epoch gave. Losses are means over images, accuracies fractions; train_time_ms
    covers the epoch's training steps and their batches, not its validation."""

    number: int
    train_loss: float
    train_accuracy: float
    val_loss: float
    val_accuracy: float
    train_time_ms: float


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


def device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def make_scaler(model: Classifier) -> torch.amp.GradScaler:
    """A GradScaler, which does nothing unless the precision is fp16: bf16 needs no scaling."""
    return torch.amp.GradScaler(device_of(model).type, enabled=model.precision == torch.float16)


def batch_indices(order: Tensor, batch_size: int) -> list[Tensor]:
    """Cut order into batches. A last batch of one image joins the one before it, because
    BatchNorm cannot train on one value per channel (layer4 works on 1x1 maps)."""
    batches = list(order.split(batch_size))
    if len(batches) > 1 and len(batches[-1]) == 1:
        batches[-2:] = [torch.cat(batches[-2:])]
    return batches


def load_batch(part: Part, indices: Tensor, device: torch.device, *, pin_memory: bool):
    """Gather a batch in the host's memory, pinned or pageable, and copy it to the device."""
    images, labels = part.images[indices], part.labels[indices]
    if pin_memory:
        images, labels = images.pin_memory(), labels.pin_memory()
    return images.to(device, non_blocking=pin_memory), labels.to(device, non_blocking=pin_memory)


def train_step(model, optimizer, scaler, images, labels) -> tuple[Tensor, Tensor]:
    """One optimizer step on one batch; returns mean loss and number of hits, on the device."""
    logits = model(images)
    loss = F.cross_entropy(logits, labels)
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    optimizer.zero_grad(set_to_none=True)
    return loss.detach(), (logits.argmax(1) == labels).sum()


def train_epoch(
    model, optimizer, scaler, part: Part, batches: list[Tensor], *, pin_memory: bool, label: str
) -> tuple[float, float]:
    """Train once on the given batches of indices; returns mean loss and accuracy on the way."""
    model.train()
    device = device_of(model)
    # The sums stay on the device: reading them in every step would wait for it.
    loss_sum, hits = torch.zeros((), device=device), torch.zeros((), device=device)
    progress = tqdm(batches, desc=label, unit="batch", leave=False, disable=None)
    for step, indices in enumerate(progress):
        images, labels = load_batch(part, indices, device, pin_memory=pin_memory)
        loss, batch_hits = train_step(model, optimizer, scaler, images, labels)
        loss_sum += loss * len(indices)
        hits += batch_hits
        if not progress.disable and step % 50 == 0:
            progress.set_postfix(loss=f"{loss.item():.3f}")
    total = sum(map(len, batches))
    return loss_sum.item() / total, hits.item() / total


@torch.no_grad()
def evaluate(model, part: Part) -> tuple[float, Tensor]:
    """Mean loss, and predicted classes int64 [n] on the host, in evaluation mode."""
    model.eval()
    loss_sum, predictions = 0.0, []
    for indices in torch.arange(len(part.labels)).split(EVAL_BATCH):
        images, labels = load_batch(part, indices, device_of(model), pin_memory=False)
        logits = model(images)
        loss_sum += F.cross_entropy(logits, labels, reduction="sum").item()
        predictions.append(logits.argmax(1).cpu())
    return loss_sum / len(part.labels), torch.cat(predictions)


def accuracy(predictions: Tensor, labels: Tensor) -> float:
    """Fraction of equal entries."""
    return (predictions == labels).double().mean().item()


def outcome(predictions: Tensor, labels: Tensor) -> dict:
    """What a row keeps of the test part: the accuracy, the images in each class, and all errors as
    packed text. Its bytes, one for an image, are 0 where the prediction is right, else
    1 + 10 * label + prediction."""
    wrong = predictions != labels
    codes = torch.where(wrong, 1 + CLASSES * labels + predictions, 0).to(torch.uint8)
    return {
        "test_accuracy": accuracy(predictions, labels),
        "test_classes": json.dumps(labels.bincount(minlength=CLASSES).tolist()),
        "test_errors": base64.b64encode(zlib.compress(codes.numpy().tobytes(), 9)).decode(),
    }


def fit(
    model, optimizer, train: Part, val: Part, *, epochs: int, batch_size: int, seed: int,
    pin_memory: bool = False, label: str = "",
) -> Iterator[Epoch]:  # fmt: skip
    """Train, and yield an Epoch after each; test images never come here.

    The batch order depends on seed alone and the learning rate is constant, so the first epochs of
    a long run are a short run. Raises FloatingPointError if the loss is not finite."""
    device, scaler = device_of(model), make_scaler(model)
    generator = torch.Generator().manual_seed(seed)
    for number in range(1, epochs + 1):
        batches = batch_indices(torch.randperm(len(train.labels), generator=generator), batch_size)
        start = clock(device)
        train_loss, train_accuracy = train_epoch(
            model, optimizer, scaler, train, batches, pin_memory=pin_memory,
            label=f"{label} epoch {number}/{epochs}",
        )  # fmt: skip
        train_time_ms = 1e3 * (clock(device) - start)
        val_loss, predictions = evaluate(model, val)
        if not math.isfinite(train_loss + val_loss):
            raise FloatingPointError(
                f"epoch {number}: training loss is {train_loss}, validation loss {val_loss}"
            )
        val_accuracy = accuracy(predictions, val.labels)
        yield Epoch(number, train_loss, train_accuracy, val_loss, val_accuracy, train_time_ms)


def time_steps(
    model, optimizer, *, batch_size: int, pin_memory: bool, windows: int, steps: int
) -> tuple[float, list[float]]:
    """Time training steps on random images: ms of WARMUP_STEPS first steps, then for each window
    the mean ms of a step. Trains the model it is given: pass one to throw away."""
    device, scaler = device_of(model), make_scaler(model)
    part = Part(
        torch.randint(256, (batch_size, SIZE, SIZE), dtype=torch.uint8),
        torch.randint(CLASSES, (batch_size,)),
        torch.arange(batch_size),
    )
    model.train()

    def run(count: int) -> float:
        start = clock(device)
        for _ in range(count):
            batch = load_batch(part, part.indices, device, pin_memory=pin_memory)
            train_step(model, optimizer, scaler, *batch)
        return 1e3 * (clock(device) - start)

    return run(WARMUP_STEPS), [run(steps) / steps for _ in range(windows)]


# --- rows ----------------------------------------------------------------------------------------

ENVIRONMENT = (
    "device_name", "cpu_name", "threads", "python", "torch", "torchvision", "sklearn", "numpy",
    "commit", "finished_utc",
)  # fmt: skip


def environment(device: str) -> dict:
    """Where and with what a row was made: the columns of ENVIRONMENT."""
    return {
        "device_name": device_name(torch.device(device)),
        "cpu_name": cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": torchvision.__version__,
        "sklearn": sklearn.__version__,
        "numpy": np.__version__,
        "commit": code_commit(),
        "finished_utc": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@cache
def code_commit() -> str:
    """The commit of this code, with -dirty if a script was changed since; unknown without git."""
    git = ["git", "-C", str(Path(__file__).parent)]
    run = partial(subprocess.run, capture_output=True, text=True, check=True)
    try:
        commit = run([*git, "rev-parse", "--short=10", "HEAD"]).stdout.strip()
        changed = run([*git, "status", "--porcelain", "--", "*.py"]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return f"{commit}-dirty" if changed else commit


@contextlib.contextmanager
def locked(folder: Path):
    """Hold a folder's lock, which is on its file .lock: NFS cannot lock a folder."""
    with (folder / ".lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def write_file(path: Path, content: bytes) -> None:
    """Replace a file in one step: whoever reads it, after a crash too, sees the old or the new.
    The caller holds the folder's lock."""
    temporary = path.with_name(f".{path.name}.tmp")
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    os.replace(temporary, path)
    folder = os.open(path.parent, os.O_RDONLY)
    os.fsync(folder)
    os.close(folder)


def to_text(value) -> str:
    """A value as the CSV files hold it."""
    if isinstance(value, bool):
        return str(value).lower()
    return "" if value is None else str(value)


def row_key(row: dict, key: tuple[str, ...]) -> tuple[str, ...]:
    """The texts of a row's key columns, which tell it from all others."""
    return tuple(to_text(row[name]) for name in key)


def load_rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """All rows of a CSV file, none if it is absent. Exits 2 if its columns are not these."""
    csv.field_size_limit(2**31 - 1)  # a long training's history is longer than the default
    try:
        with path.open(newline="") as file:
            header, *lines = list(csv.reader(file, strict=True)) or [list(columns)]
    except FileNotFoundError:
        return []
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        fail(f"cannot read {path}: {error}; mend it or use another --results-dir")
    if tuple(header) != columns:
        odd = sorted(set(header) ^ set(columns)) or ["their order"]
        fail(
            f"{path} has other columns than this version writes ({', '.join(odd)});"
            " move it away or use another --results-dir"
        )
    for number, line in enumerate(lines, 2):
        if len(line) != len(columns):
            fail(f"{path}: row {number} is torn; remove it or use another --results-dir")
    return [dict(zip(columns, line, strict=True)) for line in lines]


def save_row(path: Path, row: dict, columns: tuple[str, ...], key: tuple[str, ...]) -> None:
    """Put a row into the file, in place of one with the same key; a failure never replaces ok.

    The file is rewritten under the folder's lock and replaced in one step, so that no row is torn,
    doubled or lost, whatever is killed when."""
    if unknown := set(row) - set(columns):
        raise ValueError(f"no such columns: {unknown}")
    row = dict.fromkeys(columns, "") | {name: to_text(value) for name, value in row.items()}
    with locked(path.parent):
        rows = {row_key(old, key): old for old in load_rows(path, columns)}
        old = rows.pop(row_key(row, key), None)
        rows[row_key(row, key)] = old if old and old["status"] == "ok" != row["status"] else row
        text = io.StringIO()
        writer = csv.DictWriter(text, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())
        write_file(path, text.getvalue().encode())


# --- grids ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One piece of work of a grid, which gives one row or, as a training does, several.

    rows holds the key columns of each row; estimate(rows) gives seconds or None; run(rows) yields
    each of them, with what was found. Both are called with the rows that are not there yet."""

    name: str
    rows: list[dict]
    estimate: Callable[[list[dict]], float | None]
    run: Callable[[list[dict]], Iterator[dict]]


def run_jobs(
    args, jobs: list[Job], path: Path, *, columns: tuple[str, ...], key: tuple[str, ...],
    summary: Callable[[dict], str], again: Callable[[dict], bool] = lambda row: False,
) -> int:  # fmt: skip
    """Run what is not in the file yet (or list it, with --dry-run); returns the exit code.

    again(row) tells that a row is to be run although it is there."""

    def rows_left(job: Job) -> list[dict]:
        done = {row_key(row, key) for row in load_rows(path, columns) if row["status"] == "ok"}
        return [
            row for row in job.rows if args.force or again(row) or row_key(row, key) not in done
        ]

    work = [(job, rows_left(job)) for job in jobs]
    total, n_left = sum(len(job.rows) for job in jobs), sum(len(left) for _, left in work)
    say(f"{total} rows asked for, {total - n_left} are in {path}, {n_left} to run")
    if args.dry_run:
        list_jobs(work)
        return 0
    check_writable(path.parent, "--results-dir")
    code_commit()  # now, before anyone edits the code that runs
    torch.backends.cudnn.deterministic = True  # the same bits in every run
    failed, todo = 0, [(job, left) for job, left in work if left]
    for number, (job, _) in enumerate(todo, 1):
        say(f"[{number}/{len(todo)}] {job.name}")
        for row in run_job(job, rows_left(job), key):  # another process may have run some
            save_row(path, row, columns, key)
            failed += row["status"] not in ("ok", "skipped")
            say(summary(row) if row["status"] == "ok" else f"{row['status']}: {row['reason']}")
    if failed:
        say(f"{failed} rows failed; run the same command again to retry them")
    return 1 if failed else 0


def run_job(job: Job, left: list[dict], key: tuple[str, ...]) -> Iterator[dict]:
    """Yield the rows that are left, completed; what fails becomes rows with status and reason."""
    left = {row_key(row, key): row for row in left}
    if not left:
        return
    failure = {}
    try:
        for row in job.run(list(left.values())):
            del left[row_key(row, key)]
            yield {"status": "ok"} | row | environment(row["device"])
    except FloatingPointError as error:
        failure = {"status": "diverged", "reason": str(error)}
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error):  # on a CPU PyTorch has no class of its own for it
            raise
        failure = {"status": "out_of_memory", "reason": str(error).splitlines()[0]}
    for row in left.values():
        yield row | failure | environment(row["device"])


def list_jobs(work: list[tuple[Job, list[dict]]]) -> None:
    """Print every job with about how long its rows that are left will take."""
    seconds, unknown = 0.0, 0
    for job, left in work:
        estimate = job.estimate(left) if left else 0.0
        state = "time unknown" if estimate is None else f"about {format_time(estimate)}"
        say(f"{job.name}: {state if left else 'done'}")
        seconds += estimate or 0.0
        unknown += estimate is None
    say(f"about {format_time(seconds)} in all" + (f", and {unknown} unknown" if unknown else ""))


def check_writable(folder: Path, flag: str) -> None:
    """Make a folder; exits 2, before any work, if nothing could be written to it."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        fail(f"{flag} {folder}: {error.strerror}; use a folder that can be written to")


# --- command line --------------------------------------------------------------------------------


def number(kind: type, *, low: float, high: float = math.inf, above: bool = False) -> Callable:
    """An argparse type: an int or a finite float in [low, high], or above low."""

    def parse(text: str):
        value = kind(text)
        if not (low < value if above else low <= value) or value > high or math.isinf(value):
            raise ValueError
        return value

    parse.__name__ = f"{kind.__name__} {'>' if above else '>='} {low}" + (
        f" and <= {high:g}" if high < math.inf else ""
    )
    return parse


def make_parser(doc: str) -> argparse.ArgumentParser:
    """A parser with the flags of every script; a wrong flag gives one line and exit code 2."""
    parser = argparse.ArgumentParser(
        description=doc, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.error = lambda message: fail(f"{message} (see {parser.prog} --help)")
    seed = number(int, low=0, high=2**32 - 1)
    # fmt: off
    group = parser.add_argument_group("data and results")
    group.add_argument("--dataset", nargs="+", choices=DATASETS, default=["mnist"])
    group.add_argument("--seed", nargs="+", type=seed, default=[0], metavar="SEED",
                       help="of the split, and of the initial weights and the order of batches")
    group.add_argument("--split-seed", type=seed, metavar="SEED",
                       help="one split for all runs, instead of each seed's own")
    group.add_argument("--limit", type=number(int, low=10 * CLASSES), metavar="N",
                       help="a stratified subset of N images, split 70/10/20, for trials")
    group.add_argument("--data-dir", type=Path, default=Path("data"), metavar="DIR")
    group.add_argument("--results-dir", type=Path, default=Path("results"), metavar="DIR")
    group.add_argument("--dry-run", action="store_true",
                       help="list the runs, which are done, and an estimate of the time")
    group.add_argument("--force", action="store_true", help="run again what is already there")
    # fmt: on
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


def format_time(seconds: float) -> str:
    """1:02:03 h, 2:03 min or 3.4 s."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes}:{seconds:02} min"
    return f"{minutes // 60}:{minutes % 60:02}:{seconds:02} h"


def say(message: str) -> None:
    """Print a line at once, so that logs can be followed."""
    print(message, flush=True)


def run_main(main: Callable[[], int]) -> None:
    """Run a script; Ctrl-C, a full disk and the like end it with one line."""
    try:
        raise SystemExit(main())
    except KeyboardInterrupt:
        print("interrupted: finished rows are kept; run it again to go on", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        os._exit(1)
    except OSError as error:
        fail(f"{error}; finished rows are kept")
