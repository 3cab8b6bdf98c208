"""Fixtures: the real data where it is at hand, and small parts of a split."""

import os
from pathlib import Path

import pytest

import common

ROOT = Path(__file__).parents[1]
FOLDERS = (ROOT.parent / "shared" / "data", ROOT / "data")


@pytest.fixture(scope="session")
def real_data(tmp_path_factory) -> Path:
    """A writable folder with links to the archives of MNIST and FashionMNIST."""
    source = next((folder for folder in FOLDERS if list(folder.glob("*MNIST/raw/*.gz"))), None)
    if source is None:
        pytest.skip(f"no MNIST archives in {' or '.join(map(str, FOLDERS))}")
    target = tmp_path_factory.mktemp("data")
    for archive in source.glob("*MNIST/raw/*.gz"):
        link = target / archive.relative_to(source)
        link.parent.mkdir(parents=True, exist_ok=True)
        os.symlink(archive.resolve(), link)
    return target


@pytest.fixture(scope="session")
def digits() -> common.Split:
    return common.load_split("digits", Path("data"), split_seed=0)


@pytest.fixture(scope="session")
def small() -> common.Split:
    """100 digits: 70 / 10 / 20."""
    return common.load_split("digits", Path("data"), split_seed=0, limit=100)
