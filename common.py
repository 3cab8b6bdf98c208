"""What the scripts share: data and its split, device and precision, the training loop, rows."""

import argparse
import base64
import contextlib
import copy
import csv
import fcntl
import hashlib
import io
import json
import math
import os
import platform
import random
import signal
import stat
import subprocess
import sys
import tempfile
import time
import warnings
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import astuple, dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache, partial
from itertools import islice, product
from pathlib import Path

import numpy as np
import sklearn
import torch
import torchvision
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
WARMUP_STEPS = 3
CHECKPOINT_SECONDS = 30  # of training, at most, are lost to an interruption, and an epoch
MAX_FILE_BYTES = 2**30  # a ResNet-50 with Adam's state has 0.24e9


def fail(message: str):
    """Print one line on stderr and exit with code 2: the input was wrong, nothing was changed."""
    # What a broken file holds does not reach the terminal's controls.
    line = "".join(character if character.isprintable() else " " for character in message)
    print(f"error: {line}", file=sys.stderr)
    raise SystemExit(2)


def first_line(error: Exception) -> str:
    """The first line of an error's message, or its name if it has none."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


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
        fail(
            f"cannot load {dataset_class.__name__} from {raw}: {first_line(error).rstrip(': ')}"
            " (it needs the network once, or the four *-ubyte.gz files, whole, in that folder,"
            " writable; or use --dataset digits)"
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
    """Whether a device is there: cpu, cuda or mps."""
    present = {"cuda": torch.cuda.is_available, "mps": torch.backends.mps.is_available}
    return name == "cpu" or present.get(name, bool)()


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
    """Seconds, read once the device has finished all work that was given to it here."""
    if device.type == "cuda":
        torch.cuda.current_stream().synchronize()  # other trainings may run on other streams
    elif device.type == "mps":
        torch.mps.synchronize()
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
        # Weights are cast once in a step: a cache would only outlive the graph that it is in.
        with torch.autocast(
            images.device.type, self.precision, enabled=reduced, cache_enabled=False
        ):
            return self.network(inputs).float()


class Trainer:
    """A model in training: its optimizer, its GradScaler and its step, which is launched operation
    by operation or, after warm_up with cuda_graph, replayed from a CUDA graph.

    sums, float32 [2], adds up loss and hits over images. It stays on the device, because reading it
    in every step would wait for the device."""

    def __init__(self, model: Classifier, optimizer, *, cuda_graph: bool = False):
        self.model, self.optimizer, self.cuda_graph = model, optimizer, cuda_graph
        self.device = next(model.parameters()).device
        half = model.precision == torch.float16  # bf16 needs no scaling
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=half)
        self.sums = torch.zeros(2, device=self.device)
        self.inputs = self.replay = None  # the graph's batch, and a function
        self.warmup_time_ms = 0.0

    @property
    def execution(self) -> str:
        """How steps on full batches run: graph or eager."""
        return "graph" if self.replay else "eager"

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Train on a batch that is in the host's memory, which must not change until a GPU has
        copied it. A batch of another size than the graph's, an epoch's last, is trained eagerly."""
        free = self.device.type == "cuda"  # to go on while it copies
        if self.replay and len(labels) == len(self.inputs[1]):
            for own, new in zip(self.inputs, (images, labels), strict=True):
                own.copy_(new, non_blocking=free)
            self.replay()
        else:
            self.compute(*(part.to(self.device, non_blocking=free) for part in (images, labels)))

    def compute(self, images: Tensor, labels: Tensor) -> None:
        """One optimizer step on a batch that is on the device. What it changes is in tensors that
        stay where they are, so that it can be recorded."""
        logits = self.model(images)
        loss = F.cross_entropy(logits, labels)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        hits = (logits.argmax(1) == labels).float().sum()
        self.sums += torch.stack([loss.detach() * len(labels), hits])

    def warm_up(self, batch_size: int) -> None:
        """Take WARMUP_STEPS steps on random images, record the graph if there is to be one, and put
        everything back in its place, as if no step had been."""
        start = clock(self.device)
        self.model.train()
        batch = [part.to(self.device) for part in random_batch(batch_size)]
        before = copy.deepcopy(self.state())
        with warnings.catch_warnings():
            # Adam's, that what can be recorded should not run before it is.
            warnings.filterwarnings("ignore", "This instance was constructed with capturable")
            for _ in range(WARMUP_STEPS):
                self.compute(*batch)
        if self.cuda_graph:
            try:
                self.replay, self.inputs = record(lambda: self.compute(*batch)), batch
            except RuntimeError as error:
                self.optimizer.zero_grad(set_to_none=True)
                say(f"  no CUDA graph, every operation is launched: {first_line(error)}")
        # A new optimizer has no state yet; in SGD and Adam that is the same as zeros.
        for index, values in self.state()["optimizer"].items():
            zeros = {name: torch.zeros_like(value) for name, value in values.items()}
            before["optimizer"].setdefault(index, zeros)
        self.load_state(before)
        self.sums.zero_()
        self.warmup_time_ms = 1e3 * (clock(self.device) - start)

    def state(self) -> dict[str, dict]:
        """All that the next steps depend on; the tensors are not copied."""
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict()["state"],
            "scaler": self.scaler.state_dict(),
        }

    def load_state(self, state: dict[str, dict]) -> None:
        """Copy what state() gave into the tensors that are there. Raises if it does not fit."""
        self.model.load_state_dict(state["model"])
        self.scaler.load_state_dict(state["scaler"])
        for index, values in self.state()["optimizer"].items():
            for name, value in values.items():
                if state["optimizer"][index][name].shape != value.shape:  # copy_ would stretch it
                    raise ValueError("its optimizer's state does not fit")
                value.copy_(state["optimizer"][index][name])


def record(function: Callable[[], None]) -> Callable[[], None]:
    """Record the GPU work of function() as a CUDA graph, without doing it; returns what does it.

    It is recorded on the current stream, which must not be the default one. Trainings that run at
    once need a stream each, because cuBLAS keeps one workspace for each (PyTorch issue 193402)."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
        function()
    return graph.replay


def on_stream(streams: list, items: Iterator) -> Iterator:
    """The items, made on one of these CUDA streams, which nobody else takes until they end; as they
    come if there are no streams."""
    if not streams:
        yield from items
        return
    stream = streams.pop()
    try:
        while True:
            with torch.cuda.stream(stream):  # not across a yield: the caller has its own
                item = next(items, streams)
            if item is streams:
                return
            yield item
    finally:
        streams.append(stream)


def random_batch(size: int) -> tuple[Tensor, Tensor]:
    """Images and labels of noise, always the same."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (size, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    return images, torch.randint(CLASSES, (size,), generator=generator)


def batch_sizes(total: int, batch_size: int) -> list[int]:
    """The sizes of the batches of an epoch. A last batch of one image joins the one before it,
    because BatchNorm cannot train on one value per channel (layer4 works on 1x1 maps)."""
    sizes = [batch_size] * (total // batch_size)
    rest = total % batch_size
    if rest == 1 and sizes:
        sizes[-1] += 1
    elif rest:
        sizes.append(rest)
    return sizes


def train_epoch(
    trainer: Trainer, part: Part, order: Tensor, batch_size: int, *, pin_memory: bool, label: str,
    pauses: bool,
) -> Iterator[None]:  # fmt: skip
    """Train once on a part, in this order. A generator, which yields after each step if others are
    to take their turns (pauses), and returns mean loss and accuracy on the way."""
    trainer.model.train()
    trainer.sums.zero_()
    # At once, 38 MB: what a GPU copies while the host goes on must not change meanwhile.
    images, labels = part.images[order], part.labels[order]
    if pin_memory:
        images, labels = images.pin_memory(), labels.pin_memory()
    sizes = batch_sizes(len(order), batch_size)
    batches = zip(images.split(sizes), labels.split(sizes), strict=True)
    progress = tqdm(batches, desc=label, unit="batch", total=len(sizes), leave=False,
                    disable=pauses or None)  # fmt: skip
    for batch in progress:
        trainer.step(*batch)
        if pauses:
            yield
    loss, hits = trainer.sums.tolist()
    return loss / len(order), hits / len(order)


@torch.no_grad()
def evaluate(model, part: Part) -> tuple[float, Tensor]:
    """Mean loss, and predicted classes int64 [n] on the host, in evaluation mode."""
    model.eval()
    device = next(model.parameters()).device
    losses, predictions = [], []
    for images, labels in zip(
        part.images.split(EVAL_BATCH), part.labels.split(EVAL_BATCH), strict=True
    ):
        logits = model(images.to(device))
        losses.append(F.cross_entropy(logits, labels.to(device), reduction="sum"))
        predictions.append(logits.argmax(1))
    return sum(torch.stack(losses).tolist()) / len(part.labels), torch.cat(predictions).cpu()


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


@dataclass(frozen=True)
class Checkpoint:
    """The file that holds a training's state after an epoch, and what its bits depend on."""

    path: Path
    identity: dict[str, str]
    first_row: int  # the epoch of the first row that is wanted: a later state cannot give it


def save_checkpoint(checkpoint: Checkpoint, trainer: Trainer, history: list[Epoch]) -> None:
    """Keep all that a training needs to go on; where that fails it goes on without."""
    state = io.BytesIO()
    torch.save(
        trainer.state()
        | {
            "identity": checkpoint.identity,
            "history": [list(astuple(epoch)) for epoch in history],
        },
        state,
    )
    try:
        checkpoint.path.parent.mkdir(parents=True, exist_ok=True)
        with locked(checkpoint.path.parent):
            # torch.load does not notice a flipped bit.
            digest = hashlib.sha256(state.getbuffer()).digest()
            write_file(checkpoint.path, digest + state.getvalue())
    except OSError as error:
        say(f"  no checkpoint: {error}")


def load_checkpoint(checkpoint: Checkpoint, trainer: Trainer) -> list[Epoch]:
    """Put a training, warmed up, back to where its checkpoint was saved; returns the epochs until
    then, none without a checkpoint. Exits 2 if that is damaged, or of anything but this very
    training."""
    try:
        content = read_bytes(checkpoint.path)
        digest, content = content[:32], content[32:]
        if hashlib.sha256(content).digest() != digest:
            raise ValueError("it is damaged")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        for name, value in checkpoint.identity.items():
            if (old := state["identity"].get(name)) != value:
                raise ValueError(
                    f"its {name} was {old!r:.60} and is {value!r} now, go back to that"
                )
        history = [Epoch(int(number), *map(float, rest)) for number, *rest in state["history"]]
        if len(history) >= checkpoint.first_row:
            say(f"  starting anew: {checkpoint.path} is past epoch {checkpoint.first_row}")
            return []
        trainer.load_state(state)
    except FileNotFoundError:
        return []
    except Exception as error:  # torch raises anything
        fail(
            f"cannot go on from {checkpoint.path}: {first_line(error)};"
            " or delete it to start this run anew"
        )
    say(f"  going on after epoch {len(history)}, from {checkpoint.path}")
    return history


def fit(
    trainer: Trainer, train: Part, val: Part, *, epochs: int, batch_size: int, seed: int,
    pin_memory: bool = False, label: str = "", checkpoint: Checkpoint | None = None,
    pauses: bool = False,
) -> Iterator[Epoch | None]:  # fmt: skip
    """Train, and yield an Epoch after each; test images never come here. With pauses it also yields
    None after each step, so that other trainings can take turns.

    The batch order depends on seed alone and the learning rate is constant, so the first epochs of
    a long run are a short run. Epochs that a checkpoint holds are yielded as they were. Raises
    FloatingPointError if the loss is not finite."""
    trainer.warm_up(batch_size)
    history = load_checkpoint(checkpoint, trainer) if checkpoint else []
    yield from history
    generator, unsaved_ms = torch.Generator().manual_seed(seed), 0.0
    for number in range(1, epochs + 1):
        order = torch.randperm(len(train.labels), generator=generator)
        if number <= len(history):  # its order has been drawn: the next is what it would have been
            continue
        start = clock(trainer.device)
        train_loss, train_accuracy = yield from train_epoch(
            trainer, train, order, batch_size, pin_memory=pin_memory,
            label=f"{label} epoch {number}/{epochs}", pauses=pauses,
        )  # fmt: skip
        train_time_ms = 1e3 * (clock(trainer.device) - start)
        val_loss, predictions = evaluate(trainer.model, val)
        if not math.isfinite(train_loss + val_loss):
            raise FloatingPointError(
                f"epoch {number}: training loss is {train_loss}, validation loss {val_loss}"
            )
        val_accuracy = accuracy(predictions, val.labels)
        history.append(
            Epoch(number, train_loss, train_accuracy, val_loss, val_accuracy, train_time_ms)
        )
        yield history[-1]
        # By now its row is safe: a training that goes on from here will not give that again.
        unsaved_ms += train_time_ms
        if checkpoint and number < epochs and unsaved_ms >= 1e3 * CHECKPOINT_SECONDS:
            save_checkpoint(checkpoint, trainer, history)
            unsaved_ms = 0.0
    if checkpoint:
        checkpoint.path.unlink(missing_ok=True)


def time_steps(
    trainer: Trainer, *, batch_size: int, pin_memory: bool, windows: int, steps: int
) -> list[float]:
    """Time training steps on random images, after warm_up: for each window the mean ms of a step.
    Trains the model it is given: pass one to throw away."""
    trainer.warm_up(batch_size)
    images, labels = random_batch(batch_size)
    part = Part(images, labels, torch.arange(batch_size))
    order = part.indices.repeat(steps)

    def run() -> float:
        start = clock(trainer.device)
        for _ in train_epoch(
            trainer, part, order, batch_size, pin_memory=pin_memory, label="", pauses=True
        ):
            pass
        return 1e3 * (clock(trainer.device) - start)

    return [run() / steps for _ in range(windows)]


# --- rows ----------------------------------------------------------------------------------------

FINISHED = ("ok", "collapsed")  # a status of rows that running again would not change
NO_FAILURE = (*FINISHED, "skipped")
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


def read_bytes(path: Path) -> bytes:
    """A file's content. Raises OSError if it is no plain file, or larger than any of ours."""
    status = path.stat()
    if not stat.S_ISREG(status.st_mode) or status.st_size > MAX_FILE_BYTES:
        raise OSError(f"it is not a file of at most {MAX_FILE_BYTES:,} bytes")
    return path.read_bytes()


def write_file(path: Path, content: bytes) -> None:
    """Replace a file in one step: whoever reads it, after a crash too, sees the old or the new.
    The caller holds the folder's lock."""
    temporary = path.with_name(".tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)  # there is no room to waste on a disk that is full
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


def read_rows(path: Path, columns: tuple[str, ...]) -> tuple[list[dict[str, str]], bytes]:
    """The rows of a CSV file, none if it is absent, and what follows its last line end: a line that
    something else tore. Exits 2 if its columns are not these."""
    csv.field_size_limit(2**31 - 1)  # a long training's history is longer than the default
    try:
        whole, end, torn = read_bytes(path).rpartition(b"\n")
        text = io.StringIO((whole + end).decode(), newline="")
        header, *lines = list(csv.reader(text, strict=True)) or [list(columns)]
    except FileNotFoundError:
        return [], b""
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        fail(f"cannot read {path}: {error}; mend it or use another --results-dir")
    if tuple(header) != columns:
        odd = sorted(set(header) ^ set(columns)) or ["their order"]
        fail(
            f"{path} has other columns than this version writes ({', '.join(odd)!r:.200});"
            " move it away or use another --results-dir"
        )
    for number, line in enumerate(lines, 2):
        if len(line) != len(columns):
            fail(f"{path}: row {number} is torn; remove it or use another --results-dir")
    return [dict(zip(columns, line, strict=True)) for line in lines], torn


def load_rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    """All whole rows of a CSV file, as read_rows."""
    return read_rows(path, columns)[0]


def save_row(path: Path, row: dict, columns: tuple[str, ...], key: tuple[str, ...]) -> None:
    """Put a row into the file, in place of one with the same key; a failure replaces no result.

    The file is rewritten under the folder's lock and replaced in one step, so that no row is torn,
    doubled or lost, whatever is killed when."""
    if unknown := set(row) - set(columns):
        raise ValueError(f"no such columns: {unknown}")
    row = dict.fromkeys(columns, "") | {name: to_text(value) for name, value in row.items()}
    with locked(path.parent):
        rows, torn = read_rows(path, columns)
        rows = {row_key(old, key): old for old in rows}
        old = rows.pop(row_key(row, key), None)
        keep = old and old["status"] in FINISHED and row["status"] not in FINISHED
        rows[row_key(row, key)] = old if keep else row
        replace_rows(path, rows.values(), torn, columns)


def replace_rows(path: Path, rows: Iterable[dict], torn: bytes, columns: tuple[str, ...]) -> None:
    """Write a CSV file anew, its torn line into a file beside it. The caller holds the lock."""
    if torn:
        aside = path.with_name(f"{path.name}.torn")
        with aside.open("ab") as file:
            file.write(torn + b"\n")
        say(f"{path}: its last line was torn, and is in {aside} now; all other rows are used")
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_file(path, text.getvalue().encode())


# --- grids ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Job:
    """One piece of work of a grid, which gives one row or, as a training does, several.

    rows holds the key columns of each row; estimate(rows) gives seconds or None; run(rows) yields
    each of them, with what was found, and None where another job may take its turn. Both are called
    with the rows that are not there yet."""

    name: str
    rows: list[dict]
    estimate: Callable[[list[dict]], float | None]
    run: Callable[[list[dict]], Iterator[dict | None]]
    checkpoint: Path | None = None  # what the job leaves while it is not done

    def clean_up(self) -> None:
        if self.checkpoint:
            self.checkpoint.unlink(missing_ok=True)


def rank() -> int:
    """torchrun's number of this process; 0 without torchrun."""
    return int(os.environ["RANK"]) if dist.is_torchelastic_launched() else 0


def join_ranks() -> dist.Store:
    """The store that all ranks of torchrun share; without torchrun one of its own. Each rank takes
    a GPU, a different one as far as there are enough."""
    if not dist.is_torchelastic_launched():
        return dist.HashStore()
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]) % torch.cuda.device_count())
    store, _, _ = next(dist.rendezvous("env://"))
    return store


def meet(store: dist.Store, name: str) -> None:
    """Wait until all ranks have come here."""
    ranks = int(os.environ["WORLD_SIZE"]) if dist.is_torchelastic_launched() else 1
    store.set(f"{name}/{rank()}", "")
    while not store.check([f"{name}/{other}" for other in range(ranks)]):
        time.sleep(0.2)  # store.wait would not listen to Ctrl-C


def recall(store: dist.Store, name: str) -> str:
    """What is stored under a name; nothing if there is no such name."""
    return store.get(name).decode() if store.check([name]) else ""


def row_name(row: dict, key: tuple[str, ...]) -> str:
    """Where the store keeps a row's status."""
    return f"row/{row_key(row, key)}"


def finished_rows(path: Path, columns: tuple[str, ...], key: tuple[str, ...]) -> dict[str, str]:
    """The statuses of a file's finished rows, by their names."""
    rows = load_rows(path, columns)
    return {row_name(row, key): row["status"] for row in rows if row["status"] in FINISHED}


def take_jobs(
    store: dist.Store, jobs: list[Job], *, owner: str, fail_fast: bool
) -> Iterator[tuple[int, Job]]:
    """The jobs that no other rank has taken, with their numbers, each when this one is free. Those
    that it took before torchrun started it anew are still its own."""
    for number, job in enumerate(jobs, 1):
        if fail_fast and recall(store, "failed"):
            return
        if store.compare_set(f"taken/{job.rows[0]}", "", owner).decode() == owner:
            yield number, job


def take_turns(iterators: Iterator[Iterator], at_once: int) -> Iterator:
    """The items of several iterators, of which so many at once give one each in turn."""
    active = deque(islice(iterators, at_once))
    while active:
        iterator = active.popleft()
        for item in iterator:
            active.append(iterator)
            yield item
            break
        else:
            active.extend(islice(iterators, 1))


def run_jobs(
    args, jobs: list[Job], path: Path, *, columns: tuple[str, ...], key: tuple[str, ...],
    summary: Callable[[dict], str], main: Callable[[list[str]], int],
    again: Callable[[dict], bool] = lambda row: False, at_once: int = 1,
) -> int:  # fmt: skip
    """Run what is not in the file yet (or list it, with --dry-run); returns the exit code.

    again(row) tells that a row is to be run although it is there. As many jobs as at_once take
    turns. The ranks of torchrun share the
    work, and each knows which rows the others have, also where nodes have a file each."""
    if args.verify:
        return verify(args, path, columns=columns, key=key, main=main)

    def is_done(row: dict) -> bool:  # the file is read anew: another process may have run it
        name = row_name(row, key)
        # A failure is retried by the next command, not by a restart of this one.
        return name in finished_rows(path, columns, key) or recall(store, name) != ""

    def rows_left(job: Job) -> list[dict]:
        return [row for row in job.rows if args.force or again(row) or not is_done(row)]

    store = dist.HashStore() if args.dry_run else start(path, columns, key)
    work = [(job, rows_left(job)) for job in jobs]
    total, n_left = sum(len(job.rows) for job in jobs), sum(len(left) for _, left in work)
    say_once(f"{total} rows asked for, {total - n_left} are in {path}, {n_left} to run")
    if args.dry_run:
        return list_jobs(work) if rank() == 0 else 0
    todo = [job for job, left in work if left or job.clean_up()]

    def rows_of(number: int, job: Job) -> Iterator[dict | None]:
        say(f"[{number}/{len(todo)}] {job.name}")
        if args.force:
            job.clean_up()
        yield from run_job(job, rows_left(job), key)

    taken = take_jobs(store, todo, owner=str(rank()), fail_fast=args.fail_fast)
    for row in filter(None, take_turns((rows_of(*job) for job in taken), at_once)):
        save_row(path, row, columns, key)
        store.set(row_name(row, key), row["status"])
        if row["status"] not in NO_FAILURE:
            store.set("failed", "yes")
        lines = [summary(row)] if row["status"] in FINISHED else []
        lines += [f"  {row['status']}: {row['reason']}"] if "reason" in row else []
        say("\n".join(lines))
    meet(store, "end")  # torchrun would end the others if one failed before
    return report([recall(store, row_name(row, key)) for job in jobs for row in job.rows])


def start(path: Path, columns: tuple[str, ...], key: tuple[str, ...]) -> dist.Store:
    """Get ready for work; returns the ranks' store, which holds the status of all finished rows."""
    check_writable(path.parent, "--results-dir")
    with locked(path.parent):
        rows, torn = read_rows(path, columns)
        if torn:
            replace_rows(path, rows, torn, columns)
    code_commit()  # now, before anyone edits the code that runs
    torch.backends.cudnn.deterministic = True  # the same bits in every run
    torch.backends.cudnn.conv.fp32_precision = "ieee"  # not TF32: float32 is what a row says
    store = join_ranks()
    for name, status in finished_rows(path, columns, key).items():
        store.set(name, status)
    meet(store, "start")
    return store


def report(statuses: list[str]) -> int:
    """Say, once, what of all rows is no plain result; returns the exit code."""
    collapsed = statuses.count("collapsed")
    failed = sum(status not in NO_FAILURE for status in filter(None, statuses))
    if collapsed:
        say_once(f"{collapsed} rows collapsed: that is their result, they are not run again")
    if failed:
        say_once(f"{failed} rows failed; run the same command again to retry them")
    return 1 if failed and rank() == 0 else 0


def run_job(job: Job, left: list[dict], key: tuple[str, ...]) -> Iterator[dict | None]:
    """Yield what job.run yields, its rows completed; what fails becomes rows with a reason."""
    left = {row_key(row, key): row for row in left}
    if not left:
        return
    failure = {}
    try:
        for row in job.run(list(left.values())):
            if row is None:
                yield None
                continue
            del left[row_key(row, key)]
            yield judge(row) | row | environment(row["device"])
    except FloatingPointError as error:
        failure = {"status": "diverged", "reason": str(error)}
    except (RuntimeError, MemoryError) as error:
        if "memory" not in str(error):  # on a CPU PyTorch has no class of its own for it
            raise
        failure = {"status": "out_of_memory", "reason": str(error).splitlines()[0]}
    for row in left.values():
        yield row | failure | environment(row["device"])


def judge(row: dict) -> dict:
    """A result's status: ok, or collapsed if its validation accuracy is, by three standard errors,
    less than twice that of guessing. A collapsed run has failed at nothing but learning."""
    twice = 2 / CLASSES
    error = math.sqrt(twice * (1 - twice) / row.get("n_val", math.inf))
    if row.get("val_accuracy", 1.0) >= twice - 3 * error:
        return {"status": "ok"}
    reason = f"validation accuracy {row['val_accuracy']:.2%}, about that of guessing"
    return {"status": "collapsed", "reason": reason}


RESULTS = (
    "status", "split_id", "val_accuracy", "test_accuracy", "test_errors", "weights_sha256",
    "support_vectors", "iterations",
)  # fmt: skip


def verify(args, path: Path, *, columns: tuple[str, ...], key: tuple[str, ...], main) -> int:
    """Run some recorded rows again, in another folder and with their number of threads, on which
    bits depend, and compare; returns 1 if a result differs. Exits 2 if there is none that this
    machine can run."""
    if dist.is_torchelastic_launched():
        fail("--verify: it runs in one process, without torchrun")
    rows = [
        row for row in load_rows(path, columns)
        if row["status"] in FINISHED and has_device(row["device"])
    ]  # fmt: skip
    if not rows:
        fail(f"--verify: {path} has no finished row that could be run on this machine's devices")
    chosen, n_same = random.Random(args.seed[0]).sample(rows, min(args.verify, len(rows))), 0
    for place, row in enumerate(chosen, 1):
        try:
            torch.set_num_threads(number(int, low=1, high=1024)(row["threads"]))
        except ValueError:
            fail(f"--verify: {path} has a row whose threads are {row['threads']!r:.60}")
        with tempfile.TemporaryDirectory() as folder:
            main([*flags_of(row, key, args), f"--results-dir={folder}"])
            (now,) = load_rows(Path(folder) / path.name, columns)
        # Of an older row, a column may be empty.
        results = [name for name in RESULTS if name in columns and row[name] not in ("", now[name])]
        where = [name for name in (*key, *ENVIRONMENT[:-1]) if row[name] != now[name]]
        n_same += not results
        say(f"{place}/{len(chosen)}: {'differs in ' + ', '.join(results) if results else 'same'}")
        say("  environment: " + ("the same" if not where else ", ".join(
            f"{name} was {row[name]!r:.60}, is {now[name]!r}" for name in where
        )))  # fmt: skip
    say(f"{n_same} of {len(chosen)} rows came out the same")
    return 0 if n_same == len(chosen) else 1


def flags_of(row: dict[str, str], key: tuple[str, ...], args) -> list[str]:
    """The command line that makes a recorded row; what is no value of a flag is refused there."""
    flags = [f"--data-dir={args.data_dir}"]
    for name in key:
        flag = {"optimizer": "opt", "batch_size": "bs"}.get(name, name)
        if flag not in args or row[name] in ("", "n/a"):
            continue
        if isinstance(getattr(args, flag), bool):
            flags.append(f"--{'' if row[name] == 'true' else 'no-'}{flag}")
        else:
            flags.append(f"--{flag.replace('_', '-')}={row[name]}")
    return flags


def list_jobs(work: list[tuple[Job, list[dict]]]) -> int:
    """Print every job with about how long its rows that are left will take."""
    seconds, unknown = 0.0, 0
    for job, left in work:
        estimate = job.estimate(left) if left else 0.0
        state = "time unknown" if estimate is None else f"about {format_time(estimate)}"
        say(f"{job.name}: {state if left else 'done'}")
        seconds += estimate or 0.0
        unknown += estimate is None
    say(f"about {format_time(seconds)} in all" + (f", and {unknown} unknown" if unknown else ""))
    return 0


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
    group.add_argument("--fail-fast", action="store_true", help="stop at the first failed run")
    group.add_argument("--verify", type=number(int, low=1), metavar="N",
                       help="run N rows of the file again, chosen by --seed, and compare")
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


def say_once(message: str) -> None:
    """Print a line on one rank only."""
    if rank() == 0:
        say(message)


def stop(number: int, _) -> None:
    """Handle SIGINT and SIGTERM; a second one ends the process at once, which loses nothing."""
    for other in (signal.SIGINT, signal.SIGTERM):
        signal.signal(other, signal.SIG_DFL)
    raise KeyboardInterrupt(number)


def run_main(main: Callable[[], int]) -> None:
    """Run a script; Ctrl-C, a full disk and the like end it with one line."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, stop)
    try:
        raise SystemExit(main())
    except KeyboardInterrupt as interrupt:
        print(
            "interrupted: finished rows are kept, and the last checkpoint; run it again to go on",
            file=sys.stderr,
        )
        raise SystemExit(128 + next(iter(interrupt.args), signal.SIGINT)) from None
    except BrokenPipeError:  # the reader of our output, such as head, has gone
        os._exit(1)
    except (OSError, dist.DistError) as error:
        fail(f"{first_line(error)}; finished rows are kept")
