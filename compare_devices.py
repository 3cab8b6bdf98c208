"""Train the same ResNets on a GPU and on the CPU: same weights, batches, steps and AMP policy.

    python compare_devices.py
    python compare_devices.py --device cpu --arch resnet50 --epochs 1

Without flags it trains ResNet-18, -34 and -50 on FashionMNIST with SGD and Adam: lr 1e-3, batch
size 16, 3 epochs. Without a GPU it trains them on the CPU alone. Everything else is as in
train_resnet.py, whose rows it shares: those that are finished are skipped.
"""

import common
import train_resnet


def parse_args(argv: list[str] | None = None):
    return train_resnet.parse_args(
        argv, __doc__, dataset=["fashion"], arch=list(train_resnet.ARCHITECTURES), bs=[16],
        opt=list(train_resnet.OPTIMIZERS), epochs=[3], device=["auto", "cpu"],
    )  # fmt: skip


def main(argv: list[str] | None = None) -> int:
    return train_resnet.main(argv, parse_args)


if __name__ == "__main__":
    common.run_main(main)
