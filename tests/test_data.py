"""Data and split: every model sees the same images, and none twice."""

import os
import shutil
import urllib.error

import numpy as np
import pytest
import torch
from conftest import assert_refused, read

import common
import train_resnet
import train_svm


@pytest.mark.parametrize("seed", [0, 12345])
@pytest.mark.parametrize("limit", [None, 100, 777])
def test_split_is_disjoint_complete_stratified_and_of_the_stated_sizes(seed, limit):
    _, labels = common.read_digits(None)
    parts = common.split_indices(labels.numpy(), seed=seed, limit=limit)
    total, together = limit or len(labels), np.concatenate(parts)
    assert tuple(map(len, parts)) == common.part_sizes(total)
    assert len(set(together)) == total
    assert together.max() < len(labels)
    counts = np.stack([np.bincount(labels[part], minlength=10) / len(part) for part in parts])
    assert np.abs(counts - counts[0]).max() < 1.5 / len(parts[1])
    assert all((np.diff(part) > 0).all() for part in parts)


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
    split = common.load_split(name, folder, seed=0)
    counts = [part.labels.bincount() for part in (split.train, split.val, split.test)]
    assert sum(counts).tolist() == per_class
    for count, share in zip(counts, (0.7, 0.1, 0.2), strict=True):
        assert (count - share * sum(counts)).abs().max() <= 1
    assert split.columns["split_id"] == split_id, "the digest of all images, labels and parts"
    std, mean = torch.std_mean(split.train.images.double(), correction=0)
    assert split.scale == pytest.approx((mean.item(), std.item()), abs=1e-9)


OWN = {  # what a data set of one's own may do to the images and labels of the digits
    "labels 0 to 14": lambda images, labels: (images, labels.where(images[:, 9, 9] > 99, 14)),
    "fractions as labels": lambda images, labels: (images, labels / 2),
    "colour": lambda images, labels: (images[..., None].repeat(1, 1, 1, 3), labels),
    "floats": lambda images, labels: (images / 255, labels),
    "one label less": lambda images, labels: (images, labels[1:]),
}


def register(monkeypatch, change) -> list[str]:
    """Add a data set; returns the flags that ask for it."""
    monkeypatch.setitem(common.DATASETS, "own", (1797, lambda _: change(*common.read_digits(_))))
    common.load_split.cache_clear()
    return ["--dataset", "own", "--limit", "100"]


@pytest.mark.parametrize("kind", OWN)
def test_a_data_set_that_breaks_the_contract_is_refused_before_any_row(
    run, tmp_path, capsys, monkeypatch, kind
):
    flags = register(monkeypatch, OWN[kind])
    assert_refused(capsys, lambda: run(train_svm, *flags), "own: ", "labels" * ("label" in kind))
    assert not (tmp_path / "results/svm.csv").exists()


@pytest.mark.parametrize("change", [lambda x, y: (x, y.int()), lambda x, y: (x, (y % 2).byte())])
def test_any_integers_and_fewer_classes_will_do(run, tmp_path, monkeypatch, change):
    flags = register(monkeypatch, change)
    assert run(train_svm, *flags, "--kernel", "rbf", "--C", "1", "--gamma", "scale") == 0
    assert run(train_resnet, *flags, "--epochs", "1") == 0
    (row,) = read(tmp_path / "results/svm.csv")
    assert float(row["test_accuracy"]) > 0.7


@pytest.fixture
def offline(monkeypatch):
    """No server answers."""

    def refuse(*_, **__):
        raise urllib.error.URLError("no network")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def test_missing_data_without_a_network_are_one_line_with_the_reason(run, capsys, offline):
    with pytest.raises(SystemExit):
        run(train_svm, "--dataset", "mnist")
    out, error = capsys.readouterr()
    assert out.count("downloading MNIST to data/MNIST\n") == 1
    assert error.startswith("error: cannot load MNIST from data/MNIST: ")
    assert error.count("\n") == 1
    assert "no network" in error
    assert "--dataset digits" in error


def test_a_torn_archive_is_refused_with_the_folder_to_delete(
    run, tmp_path, capsys, offline, real_data
):
    raw = tmp_path / "data/MNIST/raw"
    shutil.copytree(real_data / "MNIST/raw", raw, ignore=shutil.ignore_patterns("*-ubyte"))
    os.truncate(raw / "t10k-images-idx3-ubyte.gz", 1000)
    refused = ("cannot load MNIST from data/MNIST: ", "delete that folder", "--dataset digits")
    assert_refused(capsys, lambda: run(train_svm, "--limit", "100"), *refused)
    assert not (tmp_path / "results/svm.csv").exists()


@pytest.mark.parametrize("limit", ["1790", "5000"])
def test_a_limit_that_a_data_set_cannot_serve_is_refused(run, tmp_path, capsys, limit):
    """A row must not be of fewer images than it says."""
    flags = ["--dataset", "digits", "--limit", limit]
    assert_refused(capsys, lambda: run(train_svm, *flags), f"--limit {limit} of 1797 images")
    assert not list(tmp_path.rglob("*.csv"))
