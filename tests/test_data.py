"""Data and split: every model sees the same images, and none twice."""

import numpy as np
import pytest
import torch

import common


@pytest.mark.parametrize("seed", [0, 1, 12345])
@pytest.mark.parametrize("limit", [None, 100, 777])
def test_split_is_disjoint_complete_stratified_and_of_the_stated_sizes(seed, limit):
    _, labels = common.read_digits(None)
    parts = common.split_indices(labels.numpy(), split_seed=seed, limit=limit)
    total = limit or len(labels)
    together = np.concatenate(parts)
    assert tuple(map(len, parts)) == common.part_sizes(total)
    assert len(set(together)) == total
    assert together.max() < len(labels)
    counts = np.stack([np.bincount(labels[part], minlength=10) / len(part) for part in parts])
    assert np.abs(counts - counts[0]).max() < 1.5 / len(parts[1])
    assert all((np.diff(part) > 0).all() for part in parts)


def test_parts_hold_the_images_and_labels_of_their_indices(digits):
    images, labels = common.read_digits(None)
    indices = common.split_indices(labels.numpy(), split_seed=0, limit=None)
    for part, own in zip((digits.train, digits.val, digits.test), indices, strict=True):
        assert part.images.equal(images[own])
        assert part.labels.equal(labels[own])


def test_digits_are_28x28_bytes_whose_scale_is_that_of_the_training_pixels(digits):
    pixels = digits.train.images
    assert pixels.shape == (1258, 28, 28)
    assert (pixels.dtype, pixels.min(), pixels.max()) == (torch.uint8, 0, 255)
    std, mean = torch.std_mean(pixels.double(), correction=0)
    assert digits.scale == pytest.approx((mean.item(), std.item()), abs=1e-9)


@pytest.mark.parametrize(
    ("name", "split_id", "per_class"),
    [
        ("digits", "9eed80707a99", [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]),
        ("mnist", "bae88778306a", [6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958]),
        ("fashion", "1b922480349f", [7000] * 10),
    ],
)
def test_data_are_whole_and_split_alike_everywhere(request, name, split_id, per_class):
    folder = None if name == "digits" else request.getfixturevalue("real_data")
    split = common.load_split(name, folder, split_seed=0)
    counts = [part.labels.bincount() for part in (split.train, split.val, split.test)]
    assert sum(counts).tolist() == per_class
    for count, share in zip(counts, (0.7, 0.1, 0.2), strict=True):
        assert (count - share * sum(counts)).abs().max() <= 1
    assert split.split_id == split_id, "the digest of all images and labels, in order, and parts"
