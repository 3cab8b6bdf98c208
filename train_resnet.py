"""Train ResNets from scratch; every flag with several values makes a grid, and all of it is run.

    python train_resnet.py --arch resnet50 --opt adam --lr 1e-3 --bs 32 --device cuda
    python train_resnet.py --dataset mnist fashion --opt sgd adam --lr 1e-3 1e-4 --epochs 3 5

Without flags it trains ResNet-18 on MNIST: Adam, lr 1e-3, batch size 32, 5 epochs.
Writes one row for each entry of --epochs to results/resnet.csv; finished rows are skipped.
train_time_ms covers the training steps and the making of their batches, summed over the epochs. It
covers no loading, no validation and no test; predict_time_ms covers the prediction of all test
images. training_flops is epochs x images x FLOPs of a forward and a backward pass.
"""

import copy
import io
import json
import os
from argparse import BooleanOptionalAction
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

import common
from common import number, say

CHECKPOINT_SECONDS = 30  # of training between two checkpoints, at least
# make(weights=None, num_classes=10) gives a network, whose first convolution gets one channel.
ARCHITECTURES = {name: getattr(models, name) for name in ("resnet18", "resnet34", "resnet50")}


def sgd(parameters, lr: float, momentum: float) -> optim.SGD:
    """Fused SGD whose momentum starts at zero: the first step leaves the gradient there, as it does
    in a new buffer.

    Left alone, that step makes the buffers without a value. In fp16 GradScaler skips it, because
    the first gradients overflow, and the next one reads whatever lay in memory: NaN on a T4."""
    optimizer = optim.SGD(parameters, lr, momentum, fused=True)
    for parameter in optimizer.param_groups[0]["params"] if momentum else ():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


# make(parameters, lr=..., and its own factors: momentum or none). With weight decay (AdamW), taps
# that TrimmedConv2d leaves out would shrink in torchvision's network and do not in ours.
OPTIMIZERS = {"sgd": (sgd, ("momentum",)), "adam": (partial(optim.Adam, fused=True), ())}


# --- the network ---------------------------------------------------------------------------------


def build_network(arch: str, seed: int) -> nn.Module:
    """A network with random weights, one input channel and 10 classes, on the CPU."""
    torch.manual_seed(seed)
    network = ARCHITECTURES[arch](weights=None, num_classes=common.CLASSES)
    name, conv = next(item for item in network.named_modules() if isinstance(item[1], nn.Conv2d))
    shape = conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation
    grey = nn.Conv2d(1, *shape, bias=conv.bias is not None, padding_mode=conv.padding_mode)
    nn.init.kaiming_normal_(grey.weight, mode="fan_out", nonlinearity="relu")
    network.set_submodule(name, grey)
    return network


@cache
def training_flops(arch: str) -> int:
    """FLOPs of training on one 1x28x28 image, forward and backward, 2 for each multiply-accumulate,
    with all of the network's taps."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        images, labels = torch.empty(2, 1, common.SIZE, common.SIZE), torch.zeros(2).long()
        F.cross_entropy(build_network(arch, seed=0)(images), labels).backward()
    return counter.get_total_flops() // 2  # there are two, because BatchNorm cannot train on one


class TrimmedConv2d(nn.Module):
    """A plain square convolution without bias, on maps of one size [n, channels, size, size].

    Its taps that only ever meet padding are left out: they add nothing to the output, and their
    gradient is exactly zero, so that SGD and Adam without weight decay never change them. At 28x28
    that is 8 of 9 taps in the last stage of a ResNet, whose maps are 1x1. They stay in
    self.initial, and in the state_dict, which is that of the nn.Conv2d. What is left of a kernel is
    a matrix product where it is 1x1 or as large as the map."""

    def __init__(self, conv: nn.Conv2d, size: int):
        super().__init__()
        (kernel, _), (self.stride, _), (padding, _) = conv.kernel_size, conv.stride, conv.padding
        positions = (size + 2 * padding - kernel) // self.stride + 1
        # The taps that meet a pixel at one of these:
        low, high = max(0, padding - (positions - 1) * self.stride), min(kernel, size + padding)
        self.size, self.kernel, self.padding = size, high - low, padding - low
        self.taps = (..., slice(low, high), slice(low, high))
        self.register_buffer("initial", conv.weight.detach().clone(), persistent=False)
        self.weight = nn.Parameter(self._matrix())

    def _matrix(self) -> Tensor:
        """The initial weight of the taps, [out, taps * in]. Fused optimizers copy each weight that
        is not contiguous."""
        matrix = self.initial[self.taps].permute(0, 2, 3, 1).flatten(1)
        return matrix.clone(memory_format=torch.contiguous_format)

    def as_kernel(self, weight: Tensor) -> Tensor:
        """A weight as F.conv2d takes it, [out, in, kernel, kernel], channels_last, not copied."""
        return weight.unflatten(1, (self.kernel, self.kernel, -1)).permute(0, 3, 1, 2)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.permute(0, 2, 3, 1)  # no copy, if images are in the channels_last format
        if self.padding == 0 and self.kernel == self.size:
            return F.linear(rows.flatten(1), self.weight)[:, :, None, None]
        if self.padding == 0 and self.kernel == 1:
            rows = rows[:, :: self.stride, :: self.stride]
            # Flat, because linear copies strided rows of four dimensions very slowly in bf16.
            flat = F.linear(rows.flatten(0, 2), self.weight)
            return flat.unflatten(0, rows.shape[:3]).permute(0, 3, 1, 2)
        return F.conv2d(images, self.as_kernel(self.weight), None, self.stride, self.padding)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        weight = self.initial.clone()
        weight[self.taps] = self.as_kernel(self.weight.detach())
        destination[prefix + "weight"] = weight

    def _load_from_state_dict(self, state_dict, prefix, *args):
        self.initial.copy_(state_dict[prefix + "weight"])
        state_dict[prefix + "weight"] = self._matrix()
        super()._load_from_state_dict(state_dict, prefix, *args)


def can_be_trimmed(conv: nn.Conv2d, maps: list[tuple]) -> bool:
    """Whether TrimmedConv2d computes a convolution that meets maps of these (height, width)."""
    plain = type(conv) is nn.Conv2d and conv.bias is None and conv.padding_mode == "zeros"
    plain &= conv.weight.requires_grad and not conv._forward_pre_hooks
    pairs = (*maps, conv.kernel_size, conv.stride, conv.padding)  # padding="same" is no pair
    square = all(len(set(pair)) == 1 for pair in pairs)
    return plain and square and len(maps) == 1 and conv.groups == 1 and conv.dilation == (1, 1)


def trim_dead_taps(network: nn.Module, size: int = common.SIZE) -> nn.Module:
    """Put TrimmedConv2d in place of each convolution that it can compute, for images [n, 1, size,
    size]: the same function and the same training with less work."""
    maps, probe = {}, copy.deepcopy(network).eval()
    for name, module in probe.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda _, inputs, name=name: maps.setdefault(name, []).append(inputs[0].shape[2:])
            )
    with torch.no_grad():
        probe(next(network.parameters()).new_zeros(1, 1, size, size))
    for name, met in maps.items():
        if can_be_trimmed(network.get_submodule(name), met):
            trimmed = TrimmedConv2d(network.get_submodule(name), met[0][0])
            network.set_submodule(name, trimmed)
    return network.to(memory_format=torch.channels_last)


# --- training ------------------------------------------------------------------------------------


def build(row: dict, scale: tuple[float, float]):
    """The model of a row on its device, its optimizer, and its GradScaler, which works in fp16."""
    network = trim_dead_taps(build_network(row["arch"], row["seed"]))
    model = common.Classifier(network, scale, getattr(torch, row["precision"])).to(row["device"])
    make, own = OPTIMIZERS[row["optimizer"]]
    optimizer = make(model.parameters(), lr=row["lr"], **{name: row[name] for name in own})
    scaler = torch.amp.GradScaler(row["device"], enabled=model.precision == torch.float16)
    return model, optimizer, scaler


def train(rows: list[dict], scratch: Path | None, *, args) -> Iterator[dict]:
    """Train once, to the largest epochs of rows that differ in nothing else; yield each completed.
    With a scratch path, keep checkpoints there and go on from one."""
    by_epochs, first = {row["epochs"]: row for row in rows}, rows[0]
    split = common.load_split(
        first["dataset"], args.data_dir, split_seed=first["split_seed"], limit=first["limit"]
    )
    parts, state, done, unsaved = build(first, split.scale), identity(first, split), [], 0.0
    if scratch:
        done = load_checkpoint(scratch, state, parts, before=min(by_epochs))
    for history in common.fit(
        *parts, split.train, split.val, epochs=max(by_epochs), batch_size=first["batch_size"],
        seed=first["seed"], pin_memory=first["pin_memory"] == "yes", label=common.label(first),
        history=done,
    ):  # fmt: skip
        if row := by_epochs.get(len(history)):
            yield complete(row, history, parts[0], split)
            # The caller has saved the row: now nothing that fails can lose it.
            if args.save_model:
                save_model(file_of(args.save_model, row), parts[0])
        unsaved += history[-1]["train_time_ms"] / 1e3
        if scratch and unsaved >= CHECKPOINT_SECONDS and len(history) < max(by_epochs):
            save_checkpoint(scratch, state, parts, history)
            unsaved = 0.0


def complete(row: dict, history: list[dict], model: common.Classifier, split) -> dict:
    """A row with all that came out of its training."""
    device = torch.device(row["device"])
    start = common.synchronized_time(device)
    _, test_accuracy = common.evaluate(model, split.test)
    predict_time_ms = 1e3 * (common.synchronized_time(device) - start)
    images = len(history) * len(split.train.labels)
    return row | split.columns | {
        "val_accuracy": history[-1]["val_accuracy"],
        "test_accuracy": test_accuracy,
        "train_time_ms": sum(epoch["train_time_ms"] for epoch in history),
        "predict_time_ms": predict_time_ms,
        "training_flops": images * training_flops(row["arch"]),
        "precision_reason": common.pick_precision(device, row["amp"] == "yes")[1],
        "weights_sha256": common.sha256(*model.network.state_dict().values()),
        "history": json.dumps(history),
    }  # fmt: skip


def identity(row: dict, split: common.Split) -> str:
    """What must be equal for a checkpoint to be used."""
    where = common.environment(torch.device(row["device"]))
    where = [where[name] for name in ("device_name", "cpu_name", "threads", "torch", "commit")]
    return str([row | {"epochs": 0}, split.columns, where])


def write_tensors(path: Path, content: dict) -> None:
    """Replace a file in one step."""
    file = io.BytesIO()  # straight into a file, torch.save turns Ctrl-C into a RuntimeError
    torch.save(content, file)
    common.write_file(path, file.getvalue())


def save_checkpoint(path: Path, own: str, parts, history: list[dict]) -> None:
    """Keep a training's identity, its parts' state and its history. Training goes on where that
    fails."""
    state = {"identity": own, "parts": [part.state_dict() for part in parts], "history": history}
    try:
        write_tensors(path, state)
    except OSError as error:
        say(f"no checkpoint: {error}")


def load_checkpoint(path: Path, own: str, parts, before: int) -> list[dict]:
    """Bring the parts to the saved state and return its history. Without a file, or if it is
    damaged, of another training or past epoch `before`, change nothing and return []."""
    if not path.is_file():
        return []
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        if state["identity"] != own:
            raise ValueError("it is of other code, versions, threads, hardware or data")
        if len(state["history"]) >= before:
            raise ValueError(f"it is past epoch {before}")
    except Exception as error:  # torch raises anything
        say(f"training starts anew; {path} is not used: {common.first_line(error)}")
        return []
    for part, saved in zip(parts, state["parts"], strict=True):
        part.load_state_dict(saved)
    say(f"training resumes after epoch {len(state['history'])}, from {path}")
    return state["history"]


def file_of(folder: Path, row: dict) -> Path:
    """The file of a row's model, named by the row's key."""
    values = [str(row[name]) for name in common.KEY["resnet"] if row[name] is not None]
    return folder / ("-".join(values).replace("/", "_") + ".pt")


def save_model(path: Path, model: common.Classifier) -> None:
    """Write the weights, which torchvision's network loads, and the pixels' mean and deviation."""
    weights = {name: v.cpu().contiguous() for name, v in model.network.state_dict().items()}
    mean, std = model.scale
    write_tensors(path, {"weights": weights, "mean": mean, "std": std})
    say(f"saved {path}")


def time_steps(row: dict, *, windows: int, steps: int) -> list[float]:
    """Train a model to throw away on random images: for each window the mean ms of a step. The
    first window, a warm-up of 3 steps, is left out."""
    device, size, times = torch.device(row["device"]), row["batch_size"], []
    parts = build(row, (0.0, 255.0))
    images = torch.randint(256, (size, common.SIZE, common.SIZE), dtype=torch.uint8)
    part = common.Part(images, torch.arange(size) % common.CLASSES)
    for count in (3, *[steps] * windows):
        start = common.synchronized_time(device)
        common.train_epoch(
            *parts, part, torch.arange(size).repeat(count), size,
            pin_memory=row["pin_memory"] == "yes", label="steps",
        )  # fmt: skip
        times.append(1e3 * (common.synchronized_time(device) - start) / count)
    return times[1:]


@cache
def step_seconds(**row) -> float:
    """Measured time of a training step, the median of three windows."""
    rest = {"pin_memory": "no", "lr": 1e-3, "momentum": 0.9, "seed": 0}
    return median(time_steps(row | rest, windows=3, steps=3)) / 1e3


def estimate_seconds(rows: list[dict]) -> float:
    """About how long a training takes, from a few steps on this machine; evaluating an image is
    taken as a third of training on it."""
    row, epochs = rows[0], max(row["epochs"] for row in rows)
    total = row["limit"] or common.DATASETS[row["dataset"]][0]
    n_train, n_val, n_test = common.part_sizes(total)
    images = epochs * (n_train + n_val / 3) + len(rows) * n_test / 3
    names = ("arch", "optimizer", "batch_size", "precision", "device")
    return step_seconds(**{name: row[name] for name in names}) * images / row["batch_size"]


# --- command line --------------------------------------------------------------------------------


def grid(args, device: torch.device) -> list[list[dict]]:
    """The rows of all trainings that the flags ask for on a device, a list for each training."""
    precision, _ = common.pick_precision(device, args.amp)
    constant = {
        "limit": args.limit, "device": device.type, "amp": "yes" if args.amp else "no",
        "precision": str(precision).removeprefix("torch."),
    }  # fmt: skip
    jobs = []
    for values in common.combinations(
        dataset=args.dataset, seed=args.seed, arch=args.arch, batch_size=args.bs,
        optimizer=args.opt, lr=args.lr,
        # Without a GPU there is nothing to copy from page-locked memory.
        pin_memory=args.pin_memory if device.type == "cuda" else ["no"],
    ):  # fmt: skip
        _, own = OPTIMIZERS[values["optimizer"]]
        values |= constant | {"momentum": args.momentum if "momentum" in own else None}
        values["split_seed"] = values["seed"] if args.split_seed is None else args.split_seed
        jobs.append([values | {"epochs": epochs} for epochs in sorted(set(args.epochs))])
    return jobs


def make_parser(doc: str):
    """A parser with the flags of every script that trains ResNets."""
    parser = common.make_grid_parser(doc)
    add = parser.add_argument_group("factors, each with one or more values").add_argument
    # fmt: off
    add("--arch", nargs="+", choices=ARCHITECTURES, default=["resnet18"], help="network")
    add("--opt", "--optimizer", nargs="+", choices=OPTIMIZERS, default=["adam"], help="optimizer")
    add("--lr", nargs="+", type=number(float, 1e-30), default=[1e-3], metavar="LR",
        help="learning rate")
    add("--bs", "--batch-size", nargs="+", type=number(int, 2, 10_000), default=[32], metavar="N",
        help="batch size")
    add("--epochs", nargs="+", type=number(int, 1, 10_000), default=[5], metavar="N",
        help="3 5 is one training and two rows")
    add("--pin-memory", nargs="+", choices=["yes", "no"], default=["yes"],
        help="copy batches to a GPU from page-locked memory")
    parser.add_argument("--amp", action=BooleanOptionalAction, default=True,
                        help="bf16 or fp16 where the device is made for it")
    parser.add_argument("--momentum", type=number(float, 0, 1), default=0.9, metavar="M",
                        help="of optimizers that have one")
    # fmt: on
    return parser


def parse_args(argv: list[str] | None = None):
    parser = make_parser(__doc__)
    # fmt: off
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto",
                        help="auto is a GPU if one can be used, else the CPU")
    parser.add_argument("--save-model", type=Path, metavar="DIR",
                        help="write the weights of each row")
    # fmt: on
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    device = common.pick_device(args.device)
    precision, reason = common.pick_precision(device, args.amp)
    say(f"{device} ({common.device_name(device)}), precision {precision} ({reason})")
    if args.save_model and not args.dry_run:
        args.save_model.mkdir(parents=True, exist_ok=True)
        if not os.access(args.save_model, os.W_OK):
            common.fail(f"--save-model {args.save_model}: the folder cannot be written to")

    def lacks_model(row: dict) -> bool:
        path = args.save_model and file_of(args.save_model, row)
        return bool(path and not (path.is_file() and path.stat().st_size))

    run = partial(train, args=args)
    return common.run_grid(
        args, "resnet", grid(args, device), run, estimate_seconds, again=lacks_model
    )


if __name__ == "__main__":
    common.run_main(main)
