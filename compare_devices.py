"""Train the same ResNets on a CPU and on a GPU: same weights, batches, steps and AMP policy.

    python compare_devices.py
    python compare_devices.py --device cpu --arch resnet50 --epochs 1

Without flags it trains all three networks on FashionMNIST, on a CPU and on a GPU: SGD and Adam, lr
1e-3, batch size 16, 3 epochs. Writes a row for each device and setting to results/devices.csv; a
device that is not there gives a row with status skipped. Each is measured twice: --repeats windows
of training steps on random images (step_ms, the clock synchronised at both ends, the first steps
apart as warmup_time_ms), then one full training as in train_resnet.py. FLOPs are of the untouched
torchvision network for one 1x28x28 image, 2 for each multiply-accumulate.
"""

import resource
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import common
import train_resnet
from train_resnet import Setting

STEPS = 20  # in a window
KEY = tuple(name for name in train_resnet.KEY if name not in ("precision", "pin_memory"))
COLUMNS = (
    "status", "reason", *KEY, "pin_memory", "precision", "precision_reason",
    "n_train", "n_val", "n_test", "split_id", "val_accuracy", "test_accuracy",
    "train_time_ms", "predict_time_ms", "warmup_time_ms", "execution",
    "windows", "step_ms", "step_ms_min", "step_ms_max", "images_per_second", "peak_memory_mib",
    "parameters", "live_parameters", "forward_macs", "forward_flops", "training_flops",
    "achieved_flops_per_second", "weights_sha256", *common.ENVIRONMENT,
)  # fmt: skip


def parameters(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@cache
def costs(arch: str) -> dict[str, int]:
    """Parameters of the untouched network, those that ever meet a pixel, and its MACs and FLOPs for
    one 1x28x28 image."""
    with torch.device("meta"):
        network = train_resnet.build_network(arch, seed=0)
        images, labels = torch.empty(2, 1, 28, 28), torch.empty(2, dtype=torch.long)
    with FlopCounterMode(display=False) as forward:
        loss = F.cross_entropy(network(images), labels)
    with FlopCounterMode(display=False) as backward:
        loss.backward()
    flops = forward.get_total_flops() // 2  # of two images: BatchNorm cannot train on one
    return {
        "parameters": parameters(network),
        "live_parameters": parameters(train_resnet.specialise(network)),
        "forward_macs": flops // 2,
        "forward_flops": flops,
        "training_flops": flops + backward.get_total_flops() // 2,
    }


def reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with suppress(OSError):  # Linux only; elsewhere the peak is the process's, since its start
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib(device: torch.device) -> float:
    """Most memory allocated on a GPU, or resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def measure(
    setting: Setting, epochs: int, split: common.Split, *, windows: int, cuda_graph: bool
) -> Iterator[dict]:
    """Time windows of steps, train in full, and yield the row."""
    device = torch.device(setting.device)
    step_ms = train_resnet.time_steps(setting, windows=windows, steps=STEPS, cuda_graph=cuda_graph)
    reset_peak_memory(device)
    (row,) = train_resnet.train(setting, [epochs], split, cuda_graph=cuda_graph)
    images_per_second = 1e3 * row["n_train"] * epochs / row["train_time_ms"]
    flops = costs(setting.arch)
    row |= flops | {
        "windows": windows,
        "step_ms": median(step_ms),
        "step_ms_min": min(step_ms),
        "step_ms_max": max(step_ms),
        "images_per_second": images_per_second,
        "peak_memory_mib": peak_memory_mib(device),
        "achieved_flops_per_second": flops["training_flops"] * images_per_second,
    }
    yield {name: row[name] for name in COLUMNS if name in row}


def parse_args(argv: list[str] | None = None):
    parser = train_resnet.make_parser(__doc__)
    # fmt: off
    parser.add_argument("--device", nargs="+", choices=["cpu", "cuda", "mps"],
                        default=["cpu", "cuda"])
    parser.add_argument("--repeats", type=common.number(int, low=1), default=5, metavar="N",
                        help=f"windows of {STEPS} training steps that are timed")
    # fmt: on
    parser.set_defaults(
        dataset=["fashion"],
        arch=list(train_resnet.ARCHITECTURES),
        epochs=[3],
        bs=[16],
        opt=list(train_resnet.OPTIMIZERS),
    )  # fmt: skip
    return common.parse(parser, argv)


def summary(row: dict) -> str:
    return (
        f"{train_resnet.summary(row)}, {row['step_ms']:.2f} ms a step"
        f" ({row['step_ms_min']:.2f} - {row['step_ms_max']:.2f}),"
        f" {row['images_per_second']:.0f} images/s, {row['achieved_flops_per_second']:.3g} FLOP/s"
    )


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)

    def job(setting: Setting, epochs: int) -> common.Job:
        there = common.has_device(setting.device)
        if not there:
            setting = replace(setting, precision="", pin_memory="n/a")

        def run(rows: list[dict]) -> Iterator[dict]:
            if not there:
                yield rows[0] | {"status": "skipped", "reason": f"no {setting.device} device here"}
                return
            split = common.split_of(setting, args.data_dir)
            graph = args.cuda_graph and setting.device == "cuda"
            rows = measure(setting, epochs, split, windows=args.repeats, cuda_graph=graph)
            yield from common.on_stream(train_resnet.make_streams(args, setting.device), rows)

        row = asdict(setting) | {"epochs": epochs}
        return common.Job(
            name=f"{setting}, epochs={epochs}",
            rows=[{name: row[name] for name in KEY}],
            estimate=lambda _: train_resnet.estimate_seconds(setting, [epochs]) if there else 0.0,
            run=run,
        )

    jobs = [
        job(setting, epochs)
        for epochs in dict.fromkeys(args.epochs)
        for device in dict.fromkeys(args.device)
        for setting in train_resnet.grid(
            args, torch.device(device), ["true" if device == "cuda" else "n/a"]
        )
    ]
    path = args.results_dir / "devices.csv"
    return common.run_jobs(args, jobs, path, columns=COLUMNS, key=KEY, summary=summary, main=main)


if __name__ == "__main__":
    common.run_main(main)
