"""Time training steps of the plain loop and of ours, in turn, in one run.

    python tests/benchmark_resnet.py --data-dir data
    python tests/benchmark_resnet.py --arch resnet18 --bs 32 --windows 3 --steps 20

The plain loop is that of tutorials: torchvision's network and dataset, DataLoader with two workers,
ToTensor and Normalize, Adam, .item() in each step, float32. Ours is that of train_resnet.py, in
float32 and, where this CPU has bf16 instructions, with AMP. Prints a markdown table: median and
range over windows of the ms of a step, the ratio of the medians, and the network's nominal FLOP/s.
"""

import argparse
import sys
import time
from collections.abc import Callable
from itertools import cycle, product
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import FashionMNIST

sys.path.insert(0, str(Path(__file__).parents[1]))
import common
import train_resnet


def plain_loop(arch: str, batch_size: int, data_dir: Path) -> Callable[[int], None]:
    """A function that runs so many steps of the plain loop."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.286, 0.353)])
    dataset = FashionMNIST(data_dir, transform=transform, download=True)
    batches = iter(DataLoader(dataset, batch_size, shuffle=True, num_workers=2))
    network = train_resnet.build_network(arch, seed=0).train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)

    def run(steps: int) -> None:
        for _ in range(steps):
            images, labels = next(batches)
            optimizer.zero_grad()
            loss = F.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
            loss.item()

    return run


def our_loop(row: dict, split: common.Split) -> Callable[[int], None]:
    """A function that runs so many steps of ours."""
    model, optimizer = train_resnet.build(row, split.scale)
    scaler = torch.amp.GradScaler(row["device"], enabled=False)
    batches = cycle(torch.arange(len(split.train.labels)).split(row["batch_size"])[:-1])

    def run(steps: int) -> None:
        order = torch.cat([next(batches) for _ in range(steps)])
        common.train_epoch(
            model, optimizer, scaler, split.train, order, row["batch_size"], pin_memory=False,
            label="steps",
        )  # fmt: skip

    return run


def time_in_turn(loops: list[Callable], windows: int, steps: int) -> list[list[float]]:
    """ms of a step in each window, for each loop; the loops take turns."""
    times = [[] for _ in loops]
    for window in range(windows + 1):
        for run, own in zip(loops, times, strict=True):
            start = time.perf_counter()
            run(steps)
            if window:  # the first one is the warm-up
                own.append(1e3 * (time.perf_counter() - start) / steps)
    return times


def matmul_flops() -> float:
    """FLOP/s of a large float32 matrix product, the best of ten."""
    left, right = torch.randn(2, 2048, 2048)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return 2 * 2048**3 / min(times)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--arch", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--bs", nargs="+", type=int, default=[16, 32])
    parser.add_argument("--windows", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    args = parser.parse_args()
    amp, reason = common.pick_precision(torch.device("cpu"), amp=True)
    print(
        f"{common.cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__}, AMP is"
        f" {amp} ({reason}), float32 matrix product {matmul_flops() / 1e9:.0f} GFLOP/s,"
        f" {args.windows} windows of {args.steps} steps\n"
    )
    print("| network | batch | loop | step (ms) | plain / this | GFLOP/s |\n" + "| --- " * 6 + "|")
    split = common.load_split("fashion", args.data_dir, split_seed=0)
    for arch, batch_size in product(args.arch, args.bs):
        loops = {"plain": plain_loop(arch, batch_size, args.data_dir)}
        for precision in dict.fromkeys([torch.float32, amp]):
            name = str(precision).removeprefix("torch.")
            loops[f"ours, {name}"] = our_loop({
                "arch": arch, "optimizer": "adam", "lr": 1e-3, "momentum": None, "device": "cpu",
                "batch_size": batch_size, "precision": name, "seed": 0,
            }, split)  # fmt: skip
        times = time_in_turn(list(loops.values()), args.windows, args.steps)
        flops = train_resnet.network_costs(arch)["training_flops"] * batch_size
        for name, own in zip(loops, times, strict=True):
            step = f"{median(own):.1f} ({min(own):.1f} - {max(own):.1f})"
            ratio = median(times[0]) / median(own)
            print(
                f"| {arch} | {batch_size} | {name} | {step} | {ratio:.2f} |"
                f" {flops / median(own) / 1e6:.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
