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


def test_split_depends_on_its_seed_and_on_nothing_else():
    _, labels = common.read_digits(None)
    first = common.split_indices(labels.numpy(), split_seed=3, limit=None)
    torch.manual_seed(99)
    np.random.seed(99)
    again = common.split_indices(labels.numpy(), split_seed=3, limit=None)
    other = common.split_indices(labels.numpy(), split_seed=4, limit=None)
    assert all(map(np.array_equal, first, again))
    assert not np.array_equal(first[0], other[0])


def test_split_id_is_the_same_everywhere(digits, small):
    assert digits.split_id == "9eed80707a99"
    assert small.split_id != digits.split_id


def test_digits_are_28x28_bytes_that_use_the_whole_range(digits):
    images = digits.train.images
    assert images.shape == (1258, 28, 28)
    assert images.dtype == torch.uint8
    assert images.min() == 0
    assert images.max() == 255


def test_scale_is_that_of_the_training_pixels_alone(digits):
    pixels = digits.train.images.double()
    mean, std = digits.scale
    assert mean == pytest.approx(pixels.mean().item(), abs=1e-9)
    assert std == pytest.approx(pixels.std(correction=0).item(), abs=1e-9)


@pytest.mark.parametrize(
    ("name", "split_id", "per_class"),
    [
        ("mnist", "bae88778306a", [6903, 7877, 6990, 7141, 6824, 6313, 6876, 7293, 6825, 6958]),
        ("fashion", "1b922480349f", [7000] * 10),
    ],
)
def test_real_data_is_whole_and_split_49000_7000_14000(real_data, name, split_id, per_class):
    split = common.load_split(name, real_data, split_seed=0)
    parts = split.train, split.val, split.test
    assert [len(part.labels) for part in parts] == [49_000, 7_000, 14_000]
    assert torch.cat([part.labels for part in parts]).bincount().tolist() == per_class
    for part, share in zip(parts, (0.7, 0.1, 0.2), strict=True):
        expected = share * torch.tensor(per_class)
        assert (part.labels.bincount() - expected).abs().max() <= 1
    assert torch.cat([part.indices for part in parts]).sort().values.equal(torch.arange(70_000))
    assert split.split_id == split_id


def test_official_files_are_joined_in_their_order(real_data):
    """The first labels of train-labels-idx1-ubyte are 5 0 4 1 9, of t10k-labels 7 2 1 0 4."""
    _, labels = common.DATASETS["mnist"].read(real_data)
    assert labels[:5].tolist() == [5, 0, 4, 1, 9]
    assert labels[60_000:60_005].tolist() == [7, 2, 1, 0, 4]
