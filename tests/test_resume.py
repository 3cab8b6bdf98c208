"""An interrupted training resumes to the same bits; what does not fit starts it anew."""

import hashlib
import os
from pathlib import Path

import drill
import pytest
import torch
from conftest import ROOT, SMALL
from torch import nn

import common
import train_resnet


def rows(folder: str) -> dict[str, dict]:
    """The rows of a folder by their keys, without their times."""
    return drill.read(Path(folder) / "resnet.csv")


def checkpoints(folder: str) -> list[Path]:
    return sorted(Path(folder).glob(".running/*.pt"))


@pytest.fixture
def train(run, monkeypatch):
    """train(folder, flags, stop=n) is broken off in the n-th epoch that it trains; returns the
    number of epochs that were trained to their end."""
    monkeypatch.setattr(train_resnet, "CHECKPOINT_SECONDS", 0)
    train_epoch = common.train_epoch

    def call(folder: str, flags: str, stop: int | None = None) -> int:
        trained = 0

        def counted(*args, **options):
            nonlocal trained
            if trained + 1 == stop:
                raise KeyboardInterrupt
            trained += 1
            return train_epoch(*args, **options)

        monkeypatch.setattr(common, "train_epoch", counted)
        try:
            run(train_resnet, *SMALL, "--results-dir", folder, *flags.split())
        except KeyboardInterrupt:
            assert stop
        return trained

    return call


@pytest.mark.parametrize(
    ("flags", "stops"),
    [("--opt sgd", [2]), ("--opt sgd", [3]), ("--opt adam", [1]), ("--opt adam --no-amp", [2, 2])],
)
def test_a_resumed_training_gives_the_rows_of_an_undisturbed_one(train, flags, stops):
    """Also one that is interrupted in every epoch but its first."""
    flags += " --epochs 2 3"
    assert train("whole", flags) == 3
    trained = 0
    for stop in stops:
        trained += train("broken", flags, stop=stop)
        assert len(checkpoints("broken")) == (stop > 1)
    assert trained + train("broken", flags) == 3, "no epoch is trained twice"
    assert rows("broken") == rows("whole")
    assert checkpoints("broken") == []
    assert train("broken", flags + " --force", stop=3) == 2
    assert train("broken", flags + " --force") == 1, "it goes on from epoch 2"


def test_dropout_is_the_same_after_a_resume_and_with_other_epochs_beside(train, monkeypatch):
    def make(weights, num_classes: int) -> nn.Module:
        layers = nn.Conv2d(3, 4, 3, padding=1), nn.Flatten(), nn.Dropout()
        return nn.Sequential(*layers, nn.Linear(4 * 784, num_classes))

    monkeypatch.setitem(train_resnet.ARCHITECTURES, "dropout", make)
    train("whole", "--arch dropout --epochs 3")
    train("broken", "--arch dropout --epochs 1 3", stop=3)
    (path,) = checkpoints("broken")
    content = path.read_bytes()
    train("broken", "--arch dropout --epochs 1 3")
    assert rows("whole").items() <= rows("broken").items()
    path.write_bytes(content)  # after epoch 2
    assert train("broken", "--arch dropout --epochs 1 3 --force") == 3, "epoch 1 is tested, too"


def test_the_state_of_fp16s_scaler_comes_back(tmp_path):
    former, scaler = torch.amp.GradScaler("cpu"), torch.amp.GradScaler("cpu")
    former.scale(torch.ones(1))  # its scale is a number from the first use on
    former.update(12345.0)
    train_resnet.save_checkpoint(tmp_path / "x.pt", "this", [former], [{"number": 1}])
    _, found = train_resnet.resume(tmp_path / "x.pt", "this", 1, lambda: [scaler])
    assert (found, scaler.get_scale()) == ([{"number": 1}], 12345.0)


def test_a_checkpoint_that_cannot_be_written_does_not_end_the_training(train, capsys):
    train("results", "--epochs 2", stop=2)
    (path,) = checkpoints("results")
    path.unlink()
    path.with_name(f"{path.name}.tmp").mkdir()
    assert train("results", "--epochs 2") == 2
    assert "no checkpoint: cannot write " in capsys.readouterr().out
    assert len(rows("results")) == 1


def change(path: Path, **values) -> None:
    torch.save(torch.load(path) | values, path)


DAMAGE = {
    "cut": lambda path: os.truncate(path, path.stat().st_size - 1),
    "another training": lambda path: change(path, identity="torch 2.0"),
    "another shape": lambda path: change(path, parts=[{"weight": torch.ones(1)}] * 3),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_checkpoint_that_does_not_fit_is_one_line_and_a_start_from_epoch_1(train, capsys, name):
    train("broken", "--epochs 2", stop=2)
    (path,) = checkpoints("broken")
    DAMAGE[name](path)
    assert train("broken", "--epochs 2") == 2
    assert capsys.readouterr().out.count("training starts anew") == 1
    assert checkpoints("broken") == []


def test_other_factors_code_versions_or_threads_make_another_training(small, monkeypatch):
    """An optimizer that was edited, and not committed, too."""
    row = {"lr": 0.1, "epochs": 1, "device": "cpu"}
    found = [train_resnet.identity(row | {"epochs": n, "lr": lr}, small)
             for n, lr in ((1, 0.1), (9, 0.1), (1, 0.2))]  # fmt: skip
    for owner, name, other in ((torch, "get_num_threads", lambda: 9), (train_resnet, "CODE", "x")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, other)
            found.append(train_resnet.identity(row, small))
    assert found[0] == found[1]
    assert len(set(found)) == 4
    edited = (ROOT / "train_resnet.py").read_bytes() + b" " + (ROOT / "common.py").read_bytes()
    assert hashlib.sha256(edited).hexdigest() != train_resnet.CODE
