"""Time training steps of the plain loop and of ours, in turn, in one run.

    python tests/benchmark_resnet.py --data-dir data
    python tests/benchmark_resnet.py --arch resnet18 --bs 32 --windows 3 --steps 20
    python tests/benchmark_resnet.py --device cuda --steps 200

The plain loop is what tutorials show: torchvision's network and dataset, DataLoader with two
workers, ToTensor and Normalize, Adam, .item() in each step, float32. Ours is timed in float32 and,
where this CPU has bf16 instructions, with AMP; on a GPU, where it has not been tried yet, with AMP:
eagerly and as a CUDA graph, from pinned and pageable memory, with cuDNN's choices. Prints a
markdown table: median and range over windows of the ms of a step, the ratio of the medians, on a
CPU ours by its parts, and the network's nominal FLOP/s.
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


def plain_loop(arch: str, batch_size: int, data_dir: Path, device: torch.device):
    """A function that runs one step of the plain loop."""
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(0.286, 0.353)])
    dataset = FashionMNIST(data_dir, transform=transform, download=True)
    loader = DataLoader(dataset, batch_size, shuffle=True, num_workers=2)
    network = train_resnet.build_network(arch, seed=0).train().to(device)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    batches = iter(loader)

    def step() -> None:
        images, labels = (part.to(device) for part in next(batches))
        optimizer.zero_grad()
        loss = F.cross_entropy(network(images), labels)
        loss.backward()
        optimizer.step()
        loss.item()

    return step


def host_batches(part: common.Part, batch_size: int, *, pin_memory: bool):
    """Batches of a part in random order, without an end."""
    generator = torch.Generator().manual_seed(0)
    while True:
        order = torch.randperm(len(part.labels), generator=generator)
        order = order[: len(order) // batch_size * batch_size]
        images, labels = part.images[order], part.labels[order]
        if pin_memory:
            images, labels = images.pin_memory(), labels.pin_memory()
        yield from zip(images.split(batch_size), labels.split(batch_size), strict=True)


def our_loop(setting: train_resnet.Setting, split: common.Split):
    """A function that runs one step of ours on a CPU, and the seconds that its parts took."""
    trainer = train_resnet.build(setting, split.scale)
    trainer.warm_up(setting.batch_size)
    batches = host_batches(split.train, setting.batch_size, pin_memory=False)
    parts = {"data": [], "forward": [], "backward": [], "optimizer": []}

    def step() -> None:
        times = [time.perf_counter()]
        images, labels = next(batches)
        times.append(time.perf_counter())
        loss = F.cross_entropy(trainer.model(images), labels)
        times.append(time.perf_counter())
        loss.backward()
        times.append(time.perf_counter())
        trainer.optimizer.step()
        trainer.optimizer.zero_grad(set_to_none=True)
        times.append(time.perf_counter())
        for name, start, end in zip(parts, times, times[1:], strict=False):
            parts[name].append(end - start)

    return step, parts


GPU_LOOPS = {  # train_resnet.py is deterministic
    "eager": {},
    "CUDA graph": {"cuda_graph": True, "deterministic": True},
    "CUDA graph, pageable": {"cuda_graph": True, "deterministic": True, "pin_memory": False},
    "CUDA graph, not deterministic": {"cuda_graph": True},
    "CUDA graph, cuDNN benchmark": {"cuda_graph": True, "benchmark": True},
}


def our_gpu_loop(
    setting: train_resnet.Setting, split: common.Split, *, cuda_graph: bool = False,
    pin_memory: bool = True, deterministic: bool = False, benchmark: bool = False,
):  # fmt: skip
    """A function that runs one step of ours on a GPU, on a stream of its own. A graph keeps the
    algorithms that cuDNN chose when it was recorded."""
    stream = torch.cuda.Stream()
    choice = {"deterministic": deterministic, "benchmark": benchmark}
    with torch.cuda.stream(stream), torch.backends.cudnn.flags(enabled=True, **choice):
        trainer = train_resnet.build(setting, split.scale, cuda_graph=cuda_graph)
        trainer.warm_up(setting.batch_size)
    batches = host_batches(split.train, setting.batch_size, pin_memory=pin_memory)

    def step() -> None:
        with torch.cuda.stream(stream):
            trainer.step(*next(batches))

    return step, {}


def our_loops(setting: train_resnet.Setting, split: common.Split) -> dict[str, tuple]:
    """Each way to run a setting on its device, by its name."""
    name = f"ours, {setting.precision}"
    if setting.device == "cpu":
        return {name: our_loop(setting, split)}
    return {
        f"{name}, {kind}": our_gpu_loop(setting, split, **options)
        for kind, options in GPU_LOOPS.items()
    }


def time_in_turn(steps: list, windows: int, count: int) -> list[list[float]]:
    """ms of a step in each window, for each function; the functions take turns."""
    results = [[] for _ in steps]
    wait = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for window in range(windows + 1):
        for step, result in zip(steps, results, strict=True):
            wait()
            start = time.perf_counter()
            for _ in range(count):
                step()
            wait()
            if window:  # the first one is the warm-up
                result.append(1e3 * (time.perf_counter() - start) / count)
    return results


def matmul_peak(device: torch.device) -> float:
    """FLOP/s of a large float32 matrix product, the best of ten."""
    size = 2048
    left, right = torch.randn(2, size, size, device=device)
    times = []
    for _ in range(10):
        start = common.clock(device)
        left @ right
        times.append(common.clock(device) - start)
    return 2 * size**3 / min(times)


def spread(values: list[float]) -> str:
    return f"{median(values):.1f} ({min(values):.1f} - {max(values):.1f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", nargs="+", default=["resnet18", "resnet50"])
    parser.add_argument("--bs", nargs="+", type=int, default=[16, 32])
    parser.add_argument("--windows", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--data-dir", type=Path, default=Path("data"))
    args = parser.parse_args()
    device = common.pick_device(args.device)
    amp, reason = common.pick_precision(device, amp=True)
    print(
        f"{common.device_name(device)}, {torch.get_num_threads()} threads, torch"
        f" {torch.__version__}, AMP is {amp} ({reason}), float32 matrix product"
        f" {matmul_peak(device) / 1e9:.0f} GFLOP/s, {args.windows} windows of {args.steps} steps\n"
    )
    print("| network | batch | loop | step (ms) | plain / this | data | forward | backward |"
          " optimizer | GFLOP/s |\n" + "| --- " * 10 + "|")  # fmt: skip
    split = common.load_split("fashion", args.data_dir, split_seed=0)
    for arch in args.arch:
        for batch_size in args.bs:
            loops = {"plain": (plain_loop(arch, batch_size, args.data_dir, device), {})}
            for precision in dict.fromkeys([torch.float32, amp] if args.device == "cpu" else [amp]):
                loops |= our_loops(train_resnet.Setting(
                    dataset="fashion", limit=None, arch=arch, optimizer="adam", lr=1e-3,
                    momentum=None, batch_size=batch_size, pin_memory="n/a", amp=True,
                    precision=str(precision).removeprefix("torch."), device=device.type, seed=0,
                    split_seed=0,
                ), split)  # fmt: skip
            times = time_in_turn([step for step, _ in loops.values()], args.windows, args.steps)
            flops = compare_devices.costs(arch)["training_flops"] * batch_size
            for (name, (_, parts)), step_ms in zip(loops.items(), times, strict=True):
                split_up = [f"{1e3 * median(part):.1f}" for part in parts.values()] or [""] * 4
                line = [arch, str(batch_size), name, spread(step_ms)]
                line += [f"{median(times[0]) / median(step_ms):.2f}", *split_up]
                print(f"| {' | '.join(line)} | {flops / median(step_ms) / 1e6:.0f} |", flush=True)


if __name__ == "__main__":
    main()
