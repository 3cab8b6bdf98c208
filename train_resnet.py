"""Train ResNets from scratch; every flag with several values makes a grid, and all of it is run.

    python train_resnet.py --arch resnet50 --opt adam --lr 1e-3 --bs 32 --device cuda
    python train_resnet.py --dataset mnist fashion --opt sgd adam --lr 1e-3 1e-4 --epochs 3 5

Without flags it trains ResNet-18 on MNIST: Adam, lr 1e-3, batch size 32, 5 epochs.
Writes one row for each entry of --epochs to results/resnet.csv; what is there is not run again.
train_time_ms covers the training steps and the making of their batches, summed over the epochs;
not loading, warm-up and a CUDA graph's recording (warmup_time_ms), validation, or the test set
(predict_time_ms). --cuda-graph and --concurrent have not been tried on a GPU yet.
"""

import copy
import hashlib
import io
import json
from argparse import BooleanOptionalAction
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from functools import cache
from pathlib import Path
from statistics import median

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision import models

import common
from common import DATASETS, Classifier, Trainer, say, say_once

ARCHITECTURES = {
    "resnet18": models.resnet18,
    "resnet34": models.resnet34,
    "resnet50": models.resnet50,
}
OPTIMIZERS = {
    "sgd": lambda parameters, lr, momentum: torch.optim.SGD(
        parameters, lr, momentum=momentum, fused=True
    ),
    "adam": lambda parameters, lr, momentum: torch.optim.Adam(parameters, lr, fused=True),
}


@dataclass(frozen=True)
class Setting:
    """One training, but for its number of epochs. Its fields are the row's key columns."""

    dataset: str
    limit: int | None
    arch: str
    optimizer: str
    lr: float
    momentum: float | None  # None: the optimizer has none
    batch_size: int
    pin_memory: str  # true, false, or n/a where the device has no use for it
    amp: bool
    precision: str
    device: str
    seed: int
    split_seed: int

    def __str__(self) -> str:
        return (
            f"{self.dataset} {self.arch} {self.optimizer} lr={self.lr} bs={self.batch_size}"
            f" pin_memory={self.pin_memory} seed={self.seed} on {self.device}"
        )


KEY = (*(field.name for field in fields(Setting)), "epochs")
COLUMNS = (
    "status", "reason", *KEY, "n_train", "n_val", "n_test", "split_id",
    "val_accuracy", "test_accuracy", "train_time_ms", "predict_time_ms",
    "warmup_time_ms", "execution", "concurrent", "weights_sha256", "precision_reason", "history",
    "test_classes", "test_errors", *common.ENVIRONMENT,
)  # fmt: skip


def build_network(arch: str, seed: int) -> nn.Module:
    """torchvision's network with random weights, one input channel and 10 classes, on the CPU."""
    torch.manual_seed(seed)
    network = ARCHITECTURES[arch](weights=None, num_classes=common.CLASSES)
    stem = network.conv1
    network.conv1 = nn.Conv2d(
        1, stem.out_channels, stem.kernel_size, stem.stride, stem.padding, bias=False
    )
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    return network


def live_taps(size: int, kernel: int, stride: int, padding: int) -> tuple[int, int]:
    """The range of a kernel's taps that meet a pixel, on a map of this size, at some place."""
    places = (size + 2 * padding - kernel) // stride + 1
    return max(0, padding - (places - 1) * stride), min(kernel, size + padding)


class LiveConv2d(nn.Module):
    """A square convolution, without bias, on square maps of one size [n, channels, size, size].

    Its taps that only ever meet padding are left out: they add nothing to the output, and their
    gradient is exactly zero, so that SGD and Adam (without weight decay) never change them. They
    stay in self.initial, and in the state_dict, which is that of the nn.Conv2d. What is left of a
    kernel is a matrix product where it is 1x1 or as large as the map."""

    def __init__(self, conv: nn.Conv2d, size: int):
        super().__init__()
        (kernel, _), (self.stride, _), (padding, _) = conv.kernel_size, conv.stride, conv.padding
        low, high = live_taps(size, kernel, self.stride, padding)
        self.size, self.kernel, self.padding = size, high - low, padding - low
        self.live = (..., slice(low, high), slice(low, high))
        self.register_buffer("initial", conv.weight.detach().clone(), persistent=False)
        weight = self.initial[self.live].clone(memory_format=torch.channels_last)
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
        weight[self.live] = self.weight.detach()
        destination[prefix + "weight"] = weight

    def _load_from_state_dict(self, state_dict, prefix, *args):
        state_dict[prefix + "weight"] = state_dict[prefix + "weight"][self.live]
        super()._load_from_state_dict(state_dict, prefix, *args)


def specialise(network: nn.Module, size: int = common.SIZE) -> nn.Module:
    """Put LiveConv2d in place of each convolution, for images [n, 1, size, size]: the same function
    and the same training with less work."""
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
        live = LiveConv2d(network.get_submodule(name), map_size)
        setattr(network.get_submodule(parent), child, live)
    return network.to(memory_format=torch.channels_last)


def build(setting: Setting, scale: tuple[float, float], *, cuda_graph: bool = False) -> Trainer:
    """The model on its device, with its optimizer."""
    network = specialise(build_network(setting.arch, setting.seed))
    precision = getattr(torch, setting.precision)
    model = Classifier(network, scale, precision).to(setting.device)
    make_optimizer = OPTIMIZERS[setting.optimizer]
    optimizer = make_optimizer(model.parameters(), setting.lr, setting.momentum)
    for group in optimizer.param_groups:
        group["capturable"] = cuda_graph  # without, Adam does not let itself be recorded
    return Trainer(model, optimizer, cuda_graph=cuda_graph)


def time_steps(
    setting: Setting, *, windows: int, steps: int, cuda_graph: bool = False
) -> list[float]:
    """common.time_steps with a model of this setting, which is then thrown away."""
    return common.time_steps(
        build(setting, (0.0, 255.0), cuda_graph=cuda_graph), batch_size=setting.batch_size,
        pin_memory=setting.pin_memory == "true", windows=windows, steps=steps,
    )  # fmt: skip


def train(
    setting: Setting, epochs: list[int], split: common.Split, *, save_dir: Path | None = None,
    checkpoint: Path | None = None, cuda_graph: bool = False, concurrent: int = 1,
) -> Iterator[dict | None]:  # fmt: skip
    """Train once, to the largest of epochs, and yield a row at each; go on from a checkpoint. Of
    several concurrent trainings each yields None after each step, for the others to take turns."""
    device = torch.device(setting.device)
    trainer = build(setting, split.scale, cuda_graph=cuda_graph)
    if checkpoint is not None:
        checkpoint = common.Checkpoint(
            checkpoint, identity(setting, split, cuda_graph), min(epochs)
        )
    history = []
    for epoch in common.fit(
        trainer, split.train, split.val, epochs=max(epochs), seed=setting.seed,
        batch_size=setting.batch_size, pin_memory=setting.pin_memory == "true", label=setting.arch,
        checkpoint=checkpoint, pauses=concurrent > 1,
    ):  # fmt: skip
        if epoch is None:
            yield None
            continue
        history.append(epoch)
        say(("" if concurrent == 1 else str(setting)) + describe(epoch, of=max(epochs)))
        if epoch.number not in epochs:
            continue
        start = common.clock(device)
        _, predictions = common.evaluate(trainer.model, split.test)
        predict_time_ms = 1e3 * (common.clock(device) - start)
        network = trainer.model.network
        row = asdict(setting) | {"epochs": epoch.number}
        if save_dir is not None:
            save_model(model_path(save_dir, row), network)
        yield row | {
            "n_train": len(split.train.labels),
            "n_val": len(split.val.labels),
            "n_test": len(split.test.labels),
            "split_id": split.split_id,
            "val_accuracy": epoch.val_accuracy,
            **common.outcome(predictions, split.test.labels),
            "train_time_ms": sum(past.train_time_ms for past in history),
            "predict_time_ms": predict_time_ms,
            "warmup_time_ms": trainer.warmup_time_ms,
            "execution": trainer.execution,
            "concurrent": concurrent,
            "history": json.dumps([asdict(past) for past in history]),
            "weights_sha256": common.sha256(*network.state_dict().values()),
            "precision_reason": common.pick_precision(device, setting.amp)[1],
        }


@cache
def code_digest() -> str:
    """Of the code that a training runs."""
    code = b"".join(Path(name).read_bytes() for name in (common.__file__, __file__))
    return hashlib.sha256(code).hexdigest()[:12]


def identity(setting: Setting, split: common.Split, cuda_graph: bool) -> dict[str, str]:
    """All that a training's bits depend on, but for the number of epochs."""
    where = common.environment(setting.device)
    names = ("device_name", "cpu_name", "threads", "torch")
    values = asdict(setting) | {"cuda_graph": cuda_graph}
    values |= {"split_id": split.split_id, "code": code_digest()}
    values |= {name: where[name] for name in names}
    return {name: common.to_text(value) for name, value in values.items()}


def describe(epoch: common.Epoch, of: int) -> str:
    """One line of a log."""
    return (
        f"  epoch {epoch.number}/{of}:"
        f" train loss {epoch.train_loss:.4f}, accuracy {epoch.train_accuracy:.4f};"
        f" val loss {epoch.val_loss:.4f}, accuracy {epoch.val_accuracy:.4f};"
        f" {common.format_time(epoch.train_time_ms / 1e3)}"
    )


def model_path(folder: Path, row: dict) -> Path:
    """Where --save-model puts a row's weights; without epochs, where a training's state goes."""
    texts = common.row_key(row, [name for name in KEY if name in row])
    return folder / ("-".join(filter(None, texts)).replace("/", "_") + ".pt")


def save_model(path: Path, network: nn.Module) -> None:
    """Write weights that a plain torchvision network loads."""
    weights = io.BytesIO()
    torch.save(
        {name: value.cpu().contiguous() for name, value in network.state_dict().items()}, weights
    )
    with common.locked(path.parent):
        common.write_file(path, weights.getvalue())


def grid(args, device: torch.device, pin_memory: list[str]) -> list[Setting]:
    """All trainings that the flags ask for on a device."""
    factors = common.combinations(
        dataset=args.dataset, seed=args.seed, arch=args.arch, batch_size=args.bs,
        optimizer=args.opt, lr=args.lr, pin_memory=pin_memory,
    )  # fmt: skip
    precision, _ = common.pick_precision(device, args.amp)
    return [
        Setting(
            **values,
            limit=args.limit,
            momentum=args.momentum if values["optimizer"] == "sgd" else None,
            amp=args.amp,
            precision=str(precision).removeprefix("torch."),
            device=device.type,
            split_seed=values["seed"] if args.split_seed is None else args.split_seed,
        )
        for values in factors
    ]


@cache
def step_seconds(setting: Setting) -> float:
    """Measured time of a training step, the median of three windows."""
    return median(time_steps(setting, windows=3, steps=3)) / 1e3


def estimate_seconds(setting: Setting, epochs: list[int]) -> float:
    """About how long a training takes, from a few steps on this machine; evaluating an image is
    taken as a third of training on it."""
    n_train, n_val, n_test = common.part_sizes(setting.limit or DATASETS[setting.dataset].size)
    images = max(epochs) * (n_train + n_val / 3) + len(epochs) * n_test / 3
    alike = replace(setting, dataset="", limit=None, lr=1e-3, seed=0, split_seed=0)
    return step_seconds(alike) * images / setting.batch_size


def make_parser(doc: str):
    """A parser with the flags of every script that trains ResNets."""
    parser = common.make_parser(doc)
    # fmt: off
    group = parser.add_argument_group("factors, each with one or more values")
    group.add_argument("--arch", nargs="+", choices=ARCHITECTURES, default=["resnet18"])
    group.add_argument("--opt", nargs="+", choices=OPTIMIZERS, default=["adam"])
    group.add_argument("--lr", nargs="+", default=[1e-3], metavar="LR",
                       type=common.number(float, low=0, above=True), help="learning rate")
    group.add_argument("--bs", nargs="+", type=common.number(int, low=2, high=10_000),
                       default=[32], metavar="N", help="batch size")
    group.add_argument("--epochs", nargs="+", type=common.number(int, low=1), default=[5],
                       metavar="N", help="3 5 is one training and two rows")
    parser.add_argument("--amp", action=BooleanOptionalAction, default=True,
                        help="bf16 or fp16 where the device is made for it")
    parser.add_argument("--momentum", type=common.number(float, low=0, high=1), default=0.9,
                        metavar="M", help="of SGD")
    parser.add_argument("--cuda-graph", action="store_true",
                        help="on a GPU, record a training step once and replay it; not tried yet")
    # fmt: on
    return parser


def make_streams(args, device: str, count: int = 1) -> list:
    """CUDA streams for trainings that need one of their own."""
    if device != "cuda" or not (args.cuda_graph or count > 1):
        return []
    return [torch.cuda.Stream() for _ in range(count)]


def parse_args(argv: list[str] | None = None):
    parser = make_parser(__doc__)
    # fmt: off
    parser.add_argument("--pin-memory", nargs="+", choices=["true", "false"], default=["true"],
                        help="a factor too: copy batches to a GPU from page-locked memory")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda", "mps"], default="auto")
    parser.add_argument("--concurrent", type=common.number(int, low=1, high=32), default=1,
                        metavar="K", help="trainings that take turns, each on a stream of its own, "
                        "to share a GPU; tables leave their times out; not tried yet")
    parser.add_argument("--save-model", type=Path, metavar="DIR",
                        help="write the weights of each row")
    # fmt: on
    return common.parse(parser, argv)


def summary(row: dict) -> str:
    return (
        f"  after epoch {row['epochs']}: validation {row['val_accuracy']:.2%}, test"
        f" {row['test_accuracy']:.2%}, trained in {common.format_time(row['train_time_ms'] / 1e3)}"
    )


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    device = common.pick_device(args.device)
    precision, reason = common.pick_precision(device, args.amp)
    say_once(f"{device} ({common.device_name(device)}), precision {precision} ({reason})")
    if device.type != "cuda":
        args.pin_memory = ["n/a"]
        say_once(f"pin_memory has nothing to do on {device}: its rows say n/a")
        if args.cuda_graph:
            common.fail(f"--cuda-graph: {device} has no CUDA graphs; leave it out")
    if args.save_model is not None and not args.dry_run:
        common.check_writable(args.save_model, "--save-model")

    streams = make_streams(args, device.type, args.concurrent)

    def job(setting: Setting) -> common.Job:
        checkpoint = model_path(args.results_dir / ".checkpoints", asdict(setting))

        def run(rows: list[dict]) -> Iterator[dict]:
            epochs, split = [row["epochs"] for row in rows], common.split_of(setting, args.data_dir)
            return common.on_stream(streams, train(
                setting, epochs, split, save_dir=args.save_model, checkpoint=checkpoint,
                cuda_graph=args.cuda_graph, concurrent=args.concurrent,
            ))  # fmt: skip

        return common.Job(
            name=str(setting),
            rows=[asdict(setting) | {"epochs": epochs} for epochs in sorted(set(args.epochs))],
            estimate=lambda rows: estimate_seconds(setting, [row["epochs"] for row in rows]),
            run=run,
            checkpoint=checkpoint,
        )

    def unsaved(row: dict) -> bool:
        return args.save_model is not None and not model_path(args.save_model, row).exists()

    jobs = [job(setting) for setting in grid(args, device, args.pin_memory)]
    path = args.results_dir / "resnet.csv"
    return common.run_jobs(
        args, jobs, path, columns=COLUMNS, key=KEY, summary=summary, main=main, again=unsaved,
        at_once=args.concurrent,
    )  # fmt: skip


if __name__ == "__main__":
    common.run_main(main)
