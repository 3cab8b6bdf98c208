"""Time training steps of the plain loop and of ours, in turn, in one run.

    python tests/benchmark_resnet.py --arch resnet18 resnet50 --bs 16 32 --data-dir data

The plain loop is that of tutorials: torchvision's network and data set, DataLoader with 2 workers,
ToTensor and Normalize, Adam, .item() in each step, float32. Ours is that of train_resnet.py on
random images, in float32 and with AMP. Prints a markdown table: median and range over windows of
the ms of a step, and the ratio of the medians.
"""

import sys
import time
from functools import partial
from itertools import product
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

WINDOWS, STEPS = 7, 20


def plain_loop(arch: str, batch_size: int, data_dir: Path):
    """A function that runs a window of the plain loop and returns the mean seconds of a step."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.286, 0.353)])
    dataset = FashionMNIST(data_dir, transform=transform, download=True)
    batches = iter(DataLoader(dataset, batch_size, shuffle=True, num_workers=2))
    network = train_resnet.build_network(arch, seed=0).train()
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)

    def run() -> float:
        start = time.perf_counter()
        for _ in range(STEPS):
            images, labels = next(batches)
            optimizer.zero_grad()
            loss = F.cross_entropy(network(images), labels)
            loss.backward()
            optimizer.step()
            loss.item()
        return (time.perf_counter() - start) / STEPS

    return run


def main() -> None:
    parser = common.make_parser(__doc__)
    parser.add_argument("--arch", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--bs", nargs="+", type=int, default=[16, 32])
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    args = parser.parse_args()
    cpu = torch.device("cpu")
    amp = common.pick_precision(cpu, amp=True)
    print(f"{common.device_name(cpu)}, {torch.get_num_threads()} threads, AMP is {amp}\n")
    print("| network | batch | loop | step (ms) | plain / this |\n" + "| --- " * 5 + "|")
    for arch, batch_size in product(args.arch, args.bs):
        loops = {"plain": plain_loop(arch, batch_size, args.data_dir)}
        for precision in dict.fromkeys(["float32", str(amp).removeprefix("torch.")]):
            row = {
                "arch": arch, "optimizer": "adam", "lr": 1e-3, "device": "cpu", "seed": 0,
                "batch_size": batch_size, "precision": precision,
            }  # fmt: skip
            step = partial(train_resnet.step_seconds.__wrapped__, STEPS, **row)
            loops[f"ours, {precision}"] = step
        loops["plain"]()  # to warm up, as ours does each time
        times = {name: [] for name in loops}
        for _, (name, run) in product(range(WINDOWS), loops.items()):  # they take turns
            times[name].append(1e3 * run())
        for name, own in times.items():
            step = f"{median(own):.1f} ({min(own):.1f} - {max(own):.1f})"
            ratio = median(times["plain"]) / median(own)
            print(f"| {arch} | {batch_size} | {name} | {step} | {ratio:.2f} |", flush=True)


if __name__ == "__main__":
    main()
