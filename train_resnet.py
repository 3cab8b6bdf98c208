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
from common import say, say_once

ARCHITECTURES = {name: getattr(models, name) for name in ("resnet18", "resnet34", "resnet50")}


def sgd(parameters, lr: float, momentum: float) -> optim.SGD:
    """Fused SGD whose momentum starts at zero, as its first step would leave it.

    Left alone, that step makes the buffers without a value. In fp16 GradScaler skips it, because
    the first gradients overflow, and the next one reads whatever lay in memory: NaN on a T4."""
    optimizer = optim.SGD(parameters, lr, momentum, fused=True)
    for parameter in optimizer.param_groups[0]["params"] if momentum else ():
        optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


# make(parameters, lr, momentum). With weight decay (AdamW), taps that TrimmedConv2d leaves out
# would shrink in torchvision's network and do not in ours.
OPTIMIZERS = {
    "sgd": sgd,
    "adam": lambda parameters, lr, momentum: optim.Adam(parameters, lr, fused=True),
}


# --- the network ---------------------------------------------------------------------------------


def build_network(arch: str, seed: int) -> nn.Module:
    """torchvision's network with random weights, one input channel and 10 classes, on the CPU."""
    torch.manual_seed(seed)
    network = ARCHITECTURES[arch](weights=None, num_classes=common.CLASSES)
    network.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network


@cache
def network_costs(arch: str) -> dict[str, int]:
    """FLOPs of torchvision's network for one 1x28x28 image, 2 for each multiply-accumulate: of the
    forward pass, and of training, forward and backward."""
    with torch.device("meta"):
        network = build_network(arch, seed=0)
        images, labels = torch.empty(2, 1, 28, 28), torch.empty(2, dtype=torch.long)
    with FlopCounterMode(display=False) as forward:
        loss = F.cross_entropy(network(images), labels)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    # Half of it, because there are two images: BatchNorm cannot train on one.
    flops = [count.get_total_flops() // 2 for count in (forward, backward)]
    return {"forward_flops": flops[0], "training_flops": sum(flops)}


class TrimmedConv2d(nn.Module):
    """A square convolution, without bias, on square maps of one size [n, channels, size, size].

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
        weight = self.initial[self.taps].clone(memory_format=torch.channels_last)
        self.weight = nn.Parameter(weight)

    def forward(self, images: Tensor) -> Tensor:
        rows = images.permute(0, 2, 3, 1)  # no copy, if images are in the channels_last format
        matrix = self.weight.permute(0, 2, 3, 1).flatten(1)  # no copy
        if self.padding == 0 and self.kernel == self.size:
            return F.linear(rows.flatten(1), matrix)[:, :, None, None]
        if self.padding == 0 and self.kernel == 1:
            rows = rows[:, :: self.stride, :: self.stride]
            # Flat, because linear copies strided rows of four dimensions very slowly in bf16.
            flat = F.linear(rows.flatten(0, 2), matrix)
            return flat.unflatten(0, rows.shape[:3]).permute(0, 3, 1, 2)
        return F.conv2d(images, self.weight, None, self.stride, self.padding)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        weight = self.initial.clone()
        weight[self.taps] = self.weight.detach()
        destination[prefix + "weight"] = weight

    def _load_from_state_dict(self, state_dict, prefix, *args):
        self.initial.copy_(state_dict[prefix + "weight"])
        state_dict[prefix + "weight"] = self.initial[self.taps]
        super()._load_from_state_dict(state_dict, prefix, *args)


def trim_dead_taps(network: nn.Module, size: int = common.SIZE) -> nn.Module:
    """Put TrimmedConv2d in place of each convolution, for images [n, 1, size, size]: the same
    function and the same training with less work."""
    sizes = {}
    probe = copy.deepcopy(network).eval()
    for name, module in probe.named_modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_pre_hook(
                lambda _, inputs, name=name: sizes.update({name: inputs[0].shape[-1]})
            )
    with torch.no_grad():
        probe(network.conv1.weight.new_zeros(1, 1, size, size))
    for name, map_size in sizes.items():
        parent, _, child = name.rpartition(".")
        trimmed = TrimmedConv2d(network.get_submodule(name), map_size)
        setattr(network.get_submodule(parent), child, trimmed)
    return network.to(memory_format=torch.channels_last)


# --- training ------------------------------------------------------------------------------------


def build(row: dict, scale: tuple[float, float]):
    """The model of a row on its device, and its optimizer."""
    network = trim_dead_taps(build_network(row["arch"], row["seed"]))
    model = common.Classifier(network, scale, getattr(torch, row["precision"])).to(row["device"])
    return model, OPTIMIZERS[row["optimizer"]](model.parameters(), row["lr"], row["momentum"])


def train(rows: list[dict], args, *, resumable: bool = True) -> Iterator[dict]:
    """Train once, to the largest epochs of rows that differ in nothing else; yield each completed.
    With resumable, keep checkpoints and go on from one."""
    by_epochs = {row["epochs"]: row for row in rows}
    first, device, last = rows[0], torch.device(rows[0]["device"]), max(by_epochs)
    split = common.load_split(
        first["dataset"], args.data_dir, split_seed=first["split_seed"], limit=first["limit"]
    )
    model, optimizer = build(first, split.scale)
    path = file_of(args.results_dir / ".checkpoints", first | {"epochs": last})
    for history in common.fit(
        model, optimizer, split.train, split.val, epochs=list(by_epochs), seed=first["seed"],
        batch_size=first["batch_size"], pin_memory=first["pin_memory"] == "true",
        label=common.label(first),
        checkpoint=common.Checkpoint(path, identity(first, split)) if resumable else None,
    ):  # fmt: skip
        if row := by_epochs.get(len(history)):
            start = common.synchronized_time(device)
            _, predictions = common.evaluate(model, split.test)
            predict_time_ms = 1e3 * (common.synchronized_time(device) - start)
            if args.save_model is not None:
                save_model(file_of(args.save_model, row), model)
            yield row | common.test_columns(split, predictions) | {
                "val_accuracy": history[-1]["val_accuracy"],
                "train_time_ms": sum(epoch["train_time_ms"] for epoch in history),
                "predict_time_ms": predict_time_ms,
                "training_flops": len(history) * len(split.train.labels)
                * network_costs(row["arch"])["training_flops"],
                "precision_reason": common.pick_precision(device, row["amp"] == "true")[1],
                "weights_sha256": common.sha256(*model.network.state_dict().values()),
                "history": json.dumps(history),
            }  # fmt: skip


def identity(row: dict, split: common.Split) -> str:
    """All that a training's bits depend on, but for the number of epochs."""
    where = common.environment(torch.device(row["device"]))
    where = {name: where[name] for name in ("device_name", "cpu_name", "threads", "torch")}
    code = {"split": split.split_id, "code": common.code_digest()}
    return str(row | {"epochs": 0} | where | code)


def file_of(folder: Path, row: dict) -> Path:
    """The file of a row's model or checkpoint, named by the row's key."""
    values = [row[name] for name in common.key_columns("resnet") if row[name] is not None]
    return folder / ("-".join(map(str, values)).replace("/", "_") + ".pt")


def save_model(path: Path, model: common.Classifier) -> None:
    """Write the weights, which torchvision's network loads, and the pixels' mean and deviation."""
    weights = {name: v.cpu().contiguous() for name, v in model.network.state_dict().items()}
    mean, std = model.scale
    file = io.BytesIO()
    torch.save({"weights": weights, "mean": mean, "std": std}, file)
    common.write_file(path, file.getvalue())
    say(f"saved {path}")


def time_steps(row: dict, *, windows: int, steps: int) -> list[float]:
    """Train a model to throw away on random images: for each window the mean ms of a step. The
    first window, a warm-up of 3 steps, is left out."""
    device, size, times = torch.device(row["device"]), row["batch_size"], []
    model, optimizer = build(row, (0.0, 255.0))
    scaler = torch.amp.GradScaler(device.type, enabled=model.precision == torch.float16)
    images = torch.randint(256, (size, common.SIZE, common.SIZE), dtype=torch.uint8)
    part = common.Part(images, torch.arange(size) % common.CLASSES)
    for count in (3, *[steps] * windows):
        start = common.synchronized_time(device)
        common.train_epoch(
            model, optimizer, scaler, part, torch.arange(size).repeat(count), size,
            pin_memory=row["pin_memory"] == "true", label="steps",
        )  # fmt: skip
        times.append(1e3 * (common.synchronized_time(device) - start) / count)
    return times[1:]


@cache
def step_seconds(arch: str, optimizer: str, batch_size: int, precision: str, device: str) -> float:
    """Measured time of a training step, the median of three windows."""
    row = {"arch": arch, "optimizer": optimizer, "batch_size": batch_size, "precision": precision}
    row |= {"device": device, "pin_memory": "n/a", "lr": 1e-3, "momentum": 0.9, "seed": 0}
    return median(time_steps(row, windows=3, steps=3)) / 1e3


def estimate_seconds(rows: list[dict]) -> float:
    """About how long a training takes, from a few steps on this machine; evaluating an image is
    taken as a third of training on it."""
    row, epochs = rows[0], max(row["epochs"] for row in rows)
    total = row["limit"] or common.DATASETS[row["dataset"]].size
    n_train, n_val, n_test = common.part_sizes(total)
    images = epochs * (n_train + n_val / 3) + len(rows) * n_test / 3
    names = ("arch", "optimizer", "batch_size", "precision", "device")
    return step_seconds(*(row[name] for name in names)) * images / row["batch_size"]


# --- command line --------------------------------------------------------------------------------


def grid(args, device: torch.device) -> list[list[dict]]:
    """The rows of all trainings that the flags ask for on a device, a list for each training."""
    precision, _ = common.pick_precision(device, args.amp)
    constant = {
        "limit": args.limit, "device": device.type, "amp": str(args.amp).lower(),
        "precision": str(precision).removeprefix("torch."),
    }  # fmt: skip
    jobs = []
    for values in common.combinations(
        dataset=args.dataset, seed=args.seed, arch=args.arch, batch_size=args.bs,
        optimizer=args.opt, lr=args.lr,
        # Without a GPU there is nothing to copy from page-locked memory.
        pin_memory=args.pin_memory if device.type == "cuda" else ["n/a"],
    ):  # fmt: skip
        values |= constant
        values["momentum"] = args.momentum if values["optimizer"] == "sgd" else None
        values["split_seed"] = values["seed"] if args.split_seed is None else args.split_seed
        jobs.append([values | {"epochs": epochs} for epochs in sorted(set(args.epochs))])
    return jobs


def make_parser(doc: str):
    """A parser with the flags of every script that trains ResNets."""
    parser, number = common.make_parser(doc), common.number
    add = parser.add_argument_group("factors, each with one or more values").add_argument
    # fmt: off
    add("--arch", nargs="+", choices=ARCHITECTURES, default=["resnet18"], help="network")
    add("--opt", "--optimizer", nargs="+", choices=OPTIMIZERS, default=["adam"], help="optimizer")
    add("--lr", nargs="+", type=number(float, low=0, high=1e30, above=True), default=[1e-3],
        metavar="LR", help="learning rate")
    add("--bs", "--batch-size", nargs="+", type=number(int, low=2, high=10_000), default=[32],
        metavar="N", help="batch size")
    add("--epochs", nargs="+", type=number(int, low=1), default=[5], metavar="N",
        help="3 5 is one training and two rows")
    parser.add_argument("--amp", action=BooleanOptionalAction, default=True,
                        help="bf16 or fp16 where the device is made for it")
    parser.add_argument("--momentum", type=number(float, low=0, high=1), default=0.9, metavar="M",
                        help="of SGD")
    # fmt: on
    return parser


def parse_args(argv: list[str] | None = None):
    parser = make_parser(__doc__)
    # fmt: off
    parser.add_argument("--pin-memory", nargs="+", choices=["true", "false"], default=["true"],
                        help="a factor: copy batches to a GPU from page-locked memory")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto",
                        help="auto is a GPU if one can be used, else the CPU")
    parser.add_argument("--save-model", type=Path, metavar="DIR",
                        help="write the weights of each row")
    # fmt: on
    return common.parse(parser, argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    device = common.pick_device(args.device)
    precision, reason = common.pick_precision(device, args.amp)
    say_once(f"{device} ({common.device_name(device)}), precision {precision} ({reason})")
    if args.save_model is not None and not args.dry_run:
        common.check_writable(args.save_model, "--save-model")
    return common.run_grid(
        args, "resnet", grid(args, device), partial(train, args=args), estimate_seconds,
        again=lambda row: args.save_model and not file_of(args.save_model, row).exists(),
    )  # fmt: skip


if __name__ == "__main__":
    common.run_main(main)
