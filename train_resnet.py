"""Train ResNets from scratch; every flag with several values makes a grid, and all of it is run.

    python train_resnet.py --arch resnet50 --opt adam --lr 1e-3 --bs 32 --device cuda
    python train_resnet.py --dataset mnist fashion --opt sgd adam --lr 1e-3 1e-4 --epochs 3 5

Without flags it trains ResNet-18 on MNIST: Adam, lr 1e-3, batch size 32, 5 epochs.
Writes one row for each entry of --epochs to results/resnet.csv; finished rows are skipped.
results/README.md explains its columns.
"""

import copy
import hashlib
import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator
from functools import cache, partial
from pathlib import Path

import torch
from torch import Tensor, nn, optim
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode
from torchvision import models

import common
from common import number, say

CODE = hashlib.sha256(Path(__file__).read_bytes() + Path(common.__file__).read_bytes()).hexdigest()
CHECKPOINT_SECONDS = 30  # between two checkpoints, at least
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


# make(parameters, lr=..., and its own factors: momentum or none).
OPTIMIZERS = {"sgd": (sgd, ("momentum",)), "adam": (partial(optim.Adam, fused=True), ())}
# Only these train networks with trimmed kernels: they leave a weight alone whose gradient is zero.
TRIMMING = ("sgd", "adam")


# --- the network ---------------------------------------------------------------------------------
def first_convolution(network: nn.Module) -> tuple[str, nn.Conv2d]:
    """Its name and itself."""
    return next(item for item in network.named_modules() if isinstance(item[1], nn.Conv2d))


def build_network(arch: str, seed: int) -> nn.Module:
    """A network with random weights, one input channel and 10 classes, on the CPU."""
    torch.manual_seed(seed)
    network = ARCHITECTURES[arch](weights=None, num_classes=common.CLASSES)
    name, conv = first_convolution(network)
    shape = conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation
    grey = nn.Conv2d(1, *shape, bias=conv.bias is not None, padding_mode=conv.padding_mode)
    nn.init.kaiming_normal_(grey.weight, mode="fan_out", nonlinearity="relu")
    network.set_submodule(name, grey)
    return network


@cache
def training_flops(arch: str) -> int:
    """FLOPs of training on one 1x28x28 image, 2 for each multiply-accumulate, with all of the
    network's taps: the forward pass, and as much for the gradients of weights and for those of
    inputs, which the first convolution does not need."""
    network = build_network(arch, seed=0).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        network(torch.zeros(1, 1, common.SIZE, common.SIZE))
    name, _ = first_convolution(network)
    first = counter.get_flop_counts()[f"{type(network).__name__}.{name}"]
    return 3 * counter.get_total_flops() - sum(first.values())


class TrimmedConv2d(nn.Module):
    """A plain square convolution without bias, on maps of one size [n, channels, size, size].

    Its taps that only ever meet padding are left out: they add nothing to the output, and their
    gradient is exactly zero, so that SGD and Adam without weight decay never change them. At 28x28
    that is 8 of 9 taps in the last stage of a ResNet, whose maps are 1x1. They stay in
    self.initial, and in the state_dict, which is that of the nn.Conv2d. What is left of a kernel is
    a matrix product where it is 1x1 or as large as the map, and on a CPU on 2x2 maps."""

    def __init__(self, conv: nn.Conv2d, size: int):
        super().__init__()
        (kernel, _), (self.stride, _), (padding, _) = conv.kernel_size, conv.stride, conv.padding
        self.positions = (size + 2 * padding - kernel) // self.stride + 1
        # The taps that meet a pixel at one of these:
        low = max(0, padding - (self.positions - 1) * self.stride)
        high = min(kernel, size + padding)
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
        elif self.positions == 2 and not images.is_cuda:  # a CPU's convolution is slow on 2x2 maps
            rows = F.pad(rows, (0, 0, *[self.padding] * 4))
            ends = [slice(at, at + 1 + self.stride, self.stride) for at in range(self.kernel)]
            rows = torch.cat([rows[:, down, across] for down in ends for across in ends], -1)
        else:
            return F.conv2d(images, self.as_kernel(self.weight), None, self.stride, self.padding)
        # Flat, because linear copies strided rows of four dimensions very slowly in bf16.
        flat = F.linear(rows.flatten(0, 2), self.weight)
        return flat.unflatten(0, rows.shape[:3]).permute(0, 3, 1, 2)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        weight = self.initial.clone()
        weight[self.taps] = self.as_kernel(self.weight.detach())
        destination[prefix + "weight"] = weight

    def _load_from_state_dict(self, state_dict, prefix, *args):
        self.initial.copy_(state_dict[prefix + "weight"])
        state_dict[prefix + "weight"] = self._matrix()
        super()._load_from_state_dict(state_dict, prefix, *args)


def trim_dead_taps(network: nn.Module, size: int = common.SIZE) -> nn.Module:
    """Put TrimmedConv2d in place of a ResNet's convolutions that it can compute, for images [n, 1,
    size, size]: the same function and the same training with less work."""
    maps, probe = {}, copy.deepcopy(network).eval()
    for name, module in probe.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda _, inputs, name=name: maps.update({name: inputs[0].shape[2:]})
            )
    with torch.no_grad():
        probe(next(network.parameters()).new_zeros(1, 1, size, size))
    for name, shape in maps.items():
        conv = network.get_submodule(name)
        pairs = (shape, conv.kernel_size, conv.stride, conv.padding)  # padding="same" is no pair
        plain = type(conv) is nn.Conv2d and conv.bias is None and conv.padding_mode == "zeros"
        plain &= conv.groups == 1 and conv.dilation == (1, 1)
        if plain and all(len(set(pair)) == 1 for pair in pairs):
            network.set_submodule(name, TrimmedConv2d(conv, shape[0]))
    return network


# --- training ------------------------------------------------------------------------------------
def build(row: dict, scale: tuple[float, float]):
    """The model of a row on its device, its optimizer, and its GradScaler, which works in fp16."""
    network = build_network(row["arch"], row["seed"])
    if row["optimizer"] in TRIMMING and type(network) is models.ResNet:
        network = trim_dead_taps(network)
    network = network.to(memory_format=torch.channels_last)
    model = common.Classifier(network, scale, getattr(torch, row["precision"])).to(row["device"])
    make, own = OPTIMIZERS[row["optimizer"]]
    optimizer = make(model.parameters(), lr=row["lr"], **{name: row[name] for name in own})
    scaler = torch.amp.GradScaler(row["device"], enabled=model.precision == torch.float16)
    return model, optimizer, scaler


def train(rows: list[dict], scratch: Path, *, data_dir: Path, save_model=None) -> Iterator[dict]:
    """Train once, to the epochs of each row in turn, in which alone they differ; yield each
    completed. Checkpoints are kept in scratch. save_model is a folder for weights, or None."""
    first, last, saved = rows[0], rows[-1]["epochs"], time.monotonic()
    split = common.load_split(first["dataset"], data_dir, seed=first["seed"], limit=first["limit"])
    state = identity(first, split)
    parts, history = resume(scratch, state, first["epochs"], partial(build, first, split.scale))
    model, optimizer, scaler = parts
    # What a network of one's own may fail in is tried before the training.
    training_flops(first["arch"]), weights_sha256(model)

    def keep(history: list[dict]) -> None:
        nonlocal saved
        if time.monotonic() - saved >= CHECKPOINT_SECONDS and len(history) < last:
            save_checkpoint(scratch, state, parts, history)
            saved = time.monotonic()

    for row in rows:
        history = common.fit(
            model, optimizer, split.train, split.val, epochs=row["epochs"],
            batch_size=row["batch_size"], seed=row["seed"], scaler=scaler,
            pin_memory=row["pin_memory"] == "yes", label=common.describe(row), history=history,
            after_epoch=keep,
        )  # fmt: skip
        row |= split.columns
        yield row | results(row, history, model, split.test)
        if save_model:  # the row is saved: now nothing that fails can lose it
            write_model(file_of(save_model, row), model)


def results(row: dict, history: list[dict], model: common.Classifier, test: common.Part) -> dict:
    """The columns of what came out of a training, with the one evaluation on test images."""
    start = common.synchronized_time()
    _, test_accuracy = common.evaluate(model, test)
    return {
        "val_accuracy": history[-1]["val_accuracy"],
        "test_accuracy": test_accuracy,
        "train_time_ms": sum(epoch["train_time_ms"] for epoch in history),
        "predict_time_ms": 1e3 * (common.synchronized_time() - start),
        "training_flops": len(history) * row["n_train"] * training_flops(row["arch"]),
        "weights_sha256": weights_sha256(model),
        "history": json.dumps(history),
    }


def weights_sha256(model: common.Classifier) -> str:
    return common.sha256(*model.network.state_dict().values())


def identity(row: dict, split: common.Split) -> str:
    """What must be equal for a checkpoint to be used."""
    where = common.environment(torch.device(row["device"]))
    where = [where[name] for name in ("device_name", "cpu_name", "threads", "torch")]
    return str([row | {"epochs": 0}, split.columns, where, CODE])


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


def resume(path: Path, own: str, most: int, make: Callable) -> tuple:
    """The parts that make() gives and their history: as a checkpoint has them, or new and [] if
    there is none that fits."""
    if path.is_file():
        try:
            state, parts = torch.load(path, map_location="cpu", weights_only=True), make()
            history = state["history"]
            if state["identity"] != own or len(history) > most:
                raise ValueError(f"it is of another training or machine, or past epoch {most}")
            for part, saved in zip(parts, state["parts"], strict=True):
                part.load_state_dict(saved)
            say(f"training resumes after epoch {len(history)}, from {path}")
            return parts, history
        except Exception as error:  # torch raises anything
            say(f"training starts anew; {path} is not used: {common.first_line(error)}")
    return make(), []


def file_of(folder: Path, row: dict) -> Path:
    """The file of a row's model, named by the row's key."""
    values = [str(row[name]) for name in common.KEY["resnet"] if row[name] is not None]
    return folder / ("-".join(values).replace("/", "_") + ".pt")


def write_model(path: Path, model: common.Classifier) -> None:
    """Write the weights, which torchvision's network loads, and the pixels' mean and deviation."""
    weights = {name: v.cpu().contiguous() for name, v in model.network.state_dict().items()}
    mean, std = model.scale
    write_tensors(path, {"weights": weights, "mean": mean, "std": std})
    say(f"saved {path}")


# --- estimates -----------------------------------------------------------------------------------
@cache
def step_seconds(steps: int = 9, **row) -> float:
    """Mean time of a training step on random images, after a warm-up of three."""
    size, parts = row["batch_size"], build({"lr": 1e-3, "seed": 0, **row}, (0.0, 255.0))
    images = torch.randint(256, (size, common.SIZE, common.SIZE), dtype=torch.uint8)
    part = common.Part(images, torch.arange(size) % common.CLASSES)
    for count in (3, steps):
        order, start = torch.arange(size).repeat(count), common.synchronized_time()
        common.train_epoch(*parts, part, order, size, pin_memory=False, label="steps")
    return (common.synchronized_time() - start) / steps


def estimate_seconds(rows: list[dict]) -> float:
    """About how long a training takes, from a few steps on this machine; evaluating an image is
    taken as a third of training on it."""
    row, epochs = rows[0], rows[-1]["epochs"]
    total = row["limit"] or common.DATASETS[row["dataset"]][0]
    n_train, n_val, n_test = common.part_sizes(total)
    images = epochs * (n_train + n_val / 3) + len(rows) * n_test / 3
    names = ("arch", "optimizer", "momentum", "batch_size", "precision", "device")
    return step_seconds(**{name: row[name] for name in names}) * images / row["batch_size"]


# --- command line --------------------------------------------------------------------------------
def grid(args) -> list[dict]:
    """The rows of all trainings that the flags ask for."""
    rows = []
    for device in dict.fromkeys(map(common.pick_device, args.device)):
        precision = str(common.pick_precision(device, args.amp)).removeprefix("torch.")
        say(f"{device.type}: {common.device_name(device)}, {precision}")
        for row in common.combinations(
            dataset=args.dataset, seed=args.seed, arch=args.arch, batch_size=args.bs,
            optimizer=args.opt, lr=args.lr,
            # Without a GPU there is nothing to copy from page-locked memory.
            pin_memory=args.pin_memory if device.type == "cuda" else ["no"], epochs=args.epochs,
        ):  # fmt: skip
            _, own = OPTIMIZERS[row["optimizer"]]
            rows.append(row | {
                "limit": args.limit, "device": device.type, "amp": "yes" if args.amp else "no",
                "precision": precision, "momentum": args.momentum if "momentum" in own else None,
            })  # fmt: skip
    return rows


def parse_args(argv: list[str] | None = None, doc: str = __doc__, **defaults):
    parser = common.make_grid_parser(doc)
    add = parser.add_argument_group("what is trained, each with one or more values").add_argument
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
        type=lambda text: {"True": "yes", "False": "no"}.get(text, text),
        help="whether batches are copied to a GPU from page-locked memory")
    add("--device", nargs="+", choices=["auto", "cpu", "cuda"], default=["auto"],
        help="auto is a GPU if one can be used, else the CPU")
    parser.add_argument("--no-amp", dest="amp", action="store_false",
                        help="compute in float32, also where the device is made for bf16 or fp16")
    parser.add_argument("--momentum", type=number(float, 0, 1), default=0.9, metavar="M",
                        help="of optimizers that have one")
    parser.add_argument("--save-model", type=Path, metavar="DIR",
                        help="write the weights of each row, of finished ones, too")
    # fmt: on
    parser.set_defaults(**defaults)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, parse: Callable = parse_args) -> int:
    args = parse(argv)
    rows, folder = grid(args), args.save_model
    if folder and not args.dry_run:
        folder.mkdir(parents=True, exist_ok=True)
    return common.run_grid(
        args.results_dir / "resnet.csv", rows,
        partial(train, data_dir=args.data_dir, save_model=folder), estimate_seconds,
        dry_run=args.dry_run,
        again=lambda row: args.force or (folder and not zipfile.is_zipfile(file_of(folder, row))),
    )  # fmt: skip


if __name__ == "__main__":
    common.run_main(main)
