"""Time training steps of the plain loop and of ours, in turn, in one run.

    python tests/benchmark_resnet.py --data-dir data
    python tests/benchmark_resnet.py --arch resnet18 --bs 32 --windows 3 --steps 20

The plain loop is that of tutorials: torchvision's network and dataset, DataLoader with two workers,
ToTensor and Normalize, Adam, .item() in each step, float32. Ours is that of train_resnet.py, on
random images in memory, in float32 and, where this CPU has bf16 instructions, with AMP. Prints a
markdown table: median and range over windows of the ms of a step, the ratio of the medians, and the
network's nominal FLOP/s.
"""

import argparse
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path
from statistics import median
from timeit import repeat

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import FashionMNIST

sys.path.insert(0, str(Path(__file__).parents[1]))
import common
import train_resnet


def plain_loop(arch: str, batch_size: int, data_dir: Path) -> Callable[[int], list[float]]:
    """A function that runs a window of so many steps of the plain loop: the mean ms of a step."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.286, 0.353)])
    dataset = FashionMNIST(data_dir, transform=transform, download=True)
    batches = iter(DataLoader(dataset, batch_size, shuffle=True, num_workers=2))
    network = train_resnet.build_network(arch, seed=0).train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)

    def run(steps: int) -> list[float]:
        start = time.perf_counter()
        for _ in range(steps):
            images, labels = next(batches)
            optimizer.zero_grad()
            loss = F.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
            loss.item()
        return [1e3 * (time.perf_counter() - start) / steps]

    return run


def matmul_flops() -> float:
    """FLOP/s of a large float32 matrix product, the best of ten."""
    left, right = torch.randn(2, 2048, 2048)
    return 2 * 2048**3 / min(repeat(lambda: left @ right, number=1, repeat=10))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=common.HelpFormatter)
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
    for arch, batch_size in product(args.arch, args.bs):
        loops = {"plain": plain_loop(arch, batch_size, args.data_dir)}
        for precision in dict.fromkeys([torch.float32, amp]):
            name = str(precision).removeprefix("torch.")
            row = {
                "arch": arch, "optimizer": "adam", "lr": 1e-3, "momentum": None, "device": "cpu",
                "batch_size": batch_size, "precision": name, "seed": 0, "pin_memory": "n/a",
            }  # fmt: skip
            loops[f"ours, {name}"] = partial(train_resnet.time_steps, row, windows=1)
        loops["plain"](steps=args.steps)  # to warm up, as ours does each time
        times = {name: [] for name in loops}
        for _, (name, run) in product(range(args.windows), loops.items()):  # they take turns
            times[name] += run(steps=args.steps)
        flops = train_resnet.network_costs(arch)["training_flops"] * batch_size
        for name, own in times.items():
            step = f"{median(own):.1f} ({min(own):.1f} - {max(own):.1f})"
            ratio, speed = median(times["plain"]) / median(own), flops / median(own) / 1e6
            line = f"| {arch} | {batch_size} | {name} | {step} | {ratio:.2f} | {speed:.0f} |"
            print(line, flush=True)


if __name__ == "__main__":
    main()
