"""tests/verify.py: it finds what differs, and takes each row as it was run."""

import os
import re

import pytest
import torch
import verify
from conftest import SMALL, assert_refused

import common
import train_resnet
import train_svm


@pytest.fixture
def recorded(tmp_path, monkeypatch, capsys):
    """A file of four SVM rows."""
    monkeypatch.chdir(tmp_path)
    assert train_svm.main([*SMALL, "--C", "1", "--gamma", "scale", "0.01", "--degree", "2"]) == 0
    capsys.readouterr()
    return tmp_path / "results/svm.csv"


def test_the_same_rows_are_the_same_and_what_differs_is_told_with_its_machine(recorded, capsys):
    before = recorded.read_bytes()
    assert verify.main(["svm", "9"]) == 0
    out = capsys.readouterr().out
    assert "4 of 4 rows came out the same\n" in out
    assert " was " not in out
    assert recorded.read_bytes() == before
    assert sorted(os.listdir(recorded.parent)) == [".lock", "svm.csv"]
    row = common.read_rows(recorded)[0]
    common.save_row(recorded, row | {"support_vectors": 7, "torch": "1.0"})
    assert verify.main(["svm", "9"]) == 1
    out = capsys.readouterr().out
    assert out.count("differs in support_vectors\n") == 1
    assert f"  torch was '1.0', is '{torch.__version__}'" in out
    assert "3 of 4 rows came out the same" in out


def test_a_row_is_run_again_with_its_threads(recorded, monkeypatch):
    taken = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    row = common.read_rows(recorded)[0] | {"threads": 7}
    verify.run_again(row, "svm", None)
    assert taken[0] == 7


def test_a_resnet_is_trained_to_the_same_weights(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    flags = ["--device", "cpu", "--opt", "sgd", "adam", "--momentum", "0.5", "--no-amp"]
    train_resnet.main([*SMALL, *flags, "--epochs", "1", "2", "--seed", "1", "--split-seed", "3"])
    assert verify.main(["resnet", "2"]) == 0
    assert "2 of 2 rows came out the same" in capsys.readouterr().out
    path = tmp_path / "results/resnet.csv"
    path.write_text(re.sub(r"[0-9a-f]{64}", 64 * "0", path.read_text()))
    assert verify.main(["resnet", "1"]) == 1
    assert "differs in weights_sha256\n" in capsys.readouterr().out


def test_without_rows_it_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert_refused(capsys, lambda: verify.main(["svm", "1"]), "no finished row")
