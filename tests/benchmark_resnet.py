"""Time training steps of the plain loop and of ours, in turn, in one run, on this machine's CPU.

    python tests/benchmark_resnet.py --data-dir data
    python tests/benchmark_resnet.py --arch resnet18 --bs 32 --windows 3 --steps 20

The plain loop is what tutorials show: torchvision's network and dataset, DataLoader with two
workers, ToTensor and Normalize, Adam, .item() in each step, float32. Ours is timed in float32 and,
where this CPU has bf16 instructions, with AMP. Prints a markdown table: median and range over
windows of the ms of a step, the ratio of the medians, ours by its parts, and the network's nominal
FLOP/s.
"""

import argparse
import sys
import time
from pathlib import Path
from statistics import median

import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader
from torchvision import transforms
from torchvision.datasets import FashionMNIST

sys.path.insert(0, str(Path(__file__).parents[1]))
import common
import compare_devices
import train_resnet


def plain_loop(arch: str, batch_size: int, data_dir: Path):
    """A function that runs one step of the plain loop."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.286, 0.353)])
    dataset = FashionMNIST(data_dir, transform=transform, download=True)
    loader = DataLoader(dataset, batch_size, shuffle=True, num_workers=2)
    network = train_resnet.build_network(arch, seed=0).train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    batches = iter(loader)

    def step() -> None:
        images, labels = next(batches)
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def our_loop(setting: train_resnet.Setting, split: common.Split):
    """A function that runs one step of ours, and the seconds of its parts, step by step."""
    model, optimizer = train_resnet.build(setting, split.scale)
    model.train()
    generator = torch.Generator().manual_seed(0)
    order = torch.randperm(len(split.train.labels), generator=generator)
    batches = iter(common.batch_indices(order, setting.batch_size))
    parts = {"data": [], "forward": [], "backward": [], "optimizer": []}

    def step() -> None:
        times = [time.perf_counter()]
        images, labels = common.load_batch(
            split.train, next(batches), torch.device("cpu"), pin_memory=False
        )
        times.append(time.perf_counter())
        loss = F.cross_entropy(model(images), labels)
        times.append(time.perf_counter())
        loss.backward()
        times.append(time.perf_counter())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter())
        for name, start, end in zip(parts, times, times[1:], strict=False):
            parts[name].append(end - start)

    return step, parts


def time_in_turn(steps: list, windows: int, count: int) -> list[list[float]]:
    """ms of a step in each window, for each function; the functions take turns."""
    results = [[] for _ in steps]
    for window in range(windows + 1):
        for step, result in zip(steps, results, strict=True):
            start = time.perf_counter()
            for _ in range(count):
                step()
            if window:  # the first one is the warm-up
                result.append(1e3 * (time.perf_counter() - start) / count)
    return results


def matmul_peak() -> float:
    """FLOP/s of a large float32 matrix product, the best of ten."""
    size = 2048
    left, right = torch.randn(2, size, size)
    times = []
    for _ in range(10):
        start = time.perf_counter()
        left @ right
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def spread(values: list[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f} - {max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--bs", nargs="+", type=int, default=[16, 32])
    parser.add_argument("--windows", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    args = parser.parse_args()
    amp, reason = common.pick_precision(torch.device("cpu"), amp=True)
    peak = matmul_peak()
    print(
        f"{common.cpu_name()}, {torch.get_num_threads()} threads, torch {torch.__version__},"
        f" AMP is {amp} ({reason}), float32 matrix product {peak / 1e9:.0f} GFLOP/s,"
        f" {args.windows} windows of {args.steps} steps\n"
    )
    print("| network | batch | loop | step (ms) | plain / this | data | forward | backward |"
          " optimizer | GFLOP/s |\n" + "| --- " * 10 + "|")  # fmt: skip
    split = common.load_split("fashion", args.data_dir, split_seed=0)
    for arch in args.arch:
        for batch_size in args.bs:
            loops = {"plain": (plain_loop(arch, batch_size, args.data_dir), {})}
            for precision in dict.fromkeys([torch.float32, amp]):
                name = str(precision).removeprefix("torch.")
                setting = train_resnet.Setting(
                    dataset="fashion", limit=None, arch=arch, optimizer="adam", lr=1e-3,
                    momentum=None, batch_size=batch_size, pin_memory="n/a", amp=True,
                    precision=name, device="cpu", seed=0, split_seed=0,
                )  # fmt: skip
                loops[f"ours, {name}"] = our_loop(setting, split)
            times = time_in_turn([step for step, _ in loops.values()], args.windows, args.steps)
            flops = compare_devices.costs(arch)["training_flops"] * batch_size
            for (name, (_, parts)), step_ms in zip(loops.items(), times, strict=True):
                split_up = [f"{1e3 * median(part):.1f}" for part in parts.values()] or [""] * 4
                line = [arch, str(batch_size), name, spread(step_ms)]
                line += [f"{median(times[0]) / median(step_ms):.2f}", *split_up]
                print(f"| {' | '.join(line)} | {flops / median(step_ms) / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main()
