"""Train the same ResNets on a CPU and on a GPU: same weights, batches, steps and AMP policy.

    python compare_devices.py
    python compare_devices.py --device cpu --arch resnet50 --epochs 1

Without flags it trains all three networks on FashionMNIST, on a CPU and on a GPU: SGD and Adam, lr
1e-3, batch size 16, 3 epochs. A device that is not there is skipped. Writes a row for each device
and setting to results/devices.csv. Each is measured twice: --repeats windows of training steps on
random images (step_ms, the clock synchronised at both ends, after a warm-up), then one full
training as in train_resnet.py.
"""

import contextlib
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from statistics import median

import torch

import common
import train_resnet

STEPS = 20  # in a window


def reset_peak_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    else:
        with contextlib.suppress(OSError):  # Linux only; elsewhere the peak is since the start
            Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib(device: torch.device) -> float | None:
    """Most memory allocated on a GPU, or resident in this process; None on Windows."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**20
    try:
        import resource  # Windows has none
    except ImportError:
        return None
    unit = 1 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20


def measure(rows: list[dict], scratch: Path, *, args) -> Iterator[dict]:
    """Time windows of steps, train in full, and yield each row of a training."""
    device = torch.device(rows[0]["device"])
    times = train_resnet.time_steps(rows[0], windows=args.repeats, steps=STEPS)
    reset_peak_memory(device)
    for row in train_resnet.train(rows, None, args=args):
        row |= {
            "windows": args.repeats,
            "step_ms": median(times),
            "step_ms_min": min(times),
            "step_ms_max": max(times),
            "peak_memory_mib": peak_memory_mib(device),
        }
        yield {name: row[name] for name in common.COLUMNS["devices"] if name in row}


def parse_args(argv: list[str] | None = None):
    parser = train_resnet.make_parser(__doc__)
    # fmt: off
    parser.add_argument("--device", nargs="+", choices=["cpu", "cuda"], default=["cuda", "cpu"],
                        help="the GPU comes first; one that is not there is skipped")
    parser.add_argument("--repeats", type=common.number(int, 1), default=5, metavar="N",
                        help=f"windows of {STEPS} training steps that are timed")
    # fmt: on
    parser.set_defaults(
        dataset=["fashion"],
        arch=list(train_resnet.ARCHITECTURES),
        epochs=[3],
        bs=[16],
        opt=list(train_resnet.OPTIMIZERS),
        save_model=None,
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args, jobs = parse_args(argv), []
    for name in sorted(set(args.device), reverse=True):
        problem = common.gpu_problem() if name == "cuda" else None
        if problem:
            common.say(f"cuda is skipped: {problem}")
        else:
            jobs += train_resnet.grid(args, torch.device(name))
    if not jobs:
        common.fail("--device: the GPU cannot be used; use --device cpu")
    run = partial(measure, args=args)
    return common.run_grid(args, "devices", jobs, run, train_resnet.estimate_seconds)


if __name__ == "__main__":
    common.run_main(main)
