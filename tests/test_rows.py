"""Rows: none lost, doubled or torn; what a spreadsheet rewrites is read, what is broken refused."""

import csv
import multiprocessing
import os
import re
import shutil
import signal
import time

import pytest
from conftest import ROOT, SMALL, assert_refused

import common
import train_svm

COLUMNS = ("dataset", "C", "gamma", *common.RESULTS)
NUMBERS = {"n_train": 350, "n_val": 50, "n_test": 70, "val_accuracy": 0.5, "test_accuracy": 0.5,
           "train_time_ms": 12.5, "predict_time_ms": 1.0}  # fmt: skip


@pytest.fixture(autouse=True)
def path(tmp_path, monkeypatch):
    monkeypatch.setitem(common.COLUMNS, "rows", COLUMNS)
    monkeypatch.setitem(common.KEY, "rows", COLUMNS[:3])
    (tmp_path / ".running").mkdir()
    return tmp_path / "rows.csv"


def save(path, name, status="ok", C=1.0, gamma="scale", **values):
    row = {"dataset": name, "C": C, "gamma": gamma, "status": status}
    common.save_row(path, row | (NUMBERS if status == "ok" else {}) | values)


def names(path):
    return [row["dataset"] for row in common.read_rows(path)]


def test_a_row_comes_back_as_it_was_written_and_takes_the_place_of_one_with_its_key(path):
    assert common.read_rows(path) == []
    reason = 'a "quoted", text\nof two lines | and a bar'
    for value in (1, 2):
        save(path, "a", C=0.1 + 0.2, gamma=1e-4, reason=reason, n_test=value)
        save(path, "b")
    (row, _) = common.read_rows(path)
    assert (row["dataset"], row["C"], row["gamma"]) == ("a", 0.1 + 0.2, 1e-4)
    assert (row["reason"], row["n_test"], row["train_time_ms"]) == (reason, 2, 12.5)
    assert names(path) == ["a", "b"]


def test_a_failed_row_never_replaces_a_finished_one_but_is_replaced_by_one(path):
    for status in ("diverged", "ok", "failed"):
        save(path, "a", status=status)
    assert [row["status"] for row in common.read_rows(path)] == ["ok"]


def by_hand(path):
    """All that a spreadsheet changes: 70.0, 1E-03, quotes, blanks, a mark, CRLF, other columns."""
    words = {"0.001": "1E-03", "digits": "digits "}
    words |= {str(number): f"{number}.0" for number in range(100_000)}
    lines = list(csv.reader(path.read_text().splitlines()))
    with path.open("w", newline="", encoding="utf-8-sig") as file:
        for line in lines:
            cells = [
                "note" if line is lines[0] else "",
                *map(words.get, reversed(line), reversed(line)),
            ]
            csv.writer(file, quoting=csv.QUOTE_ALL).writerow(cells)
            file.write("\r\n")


@pytest.mark.parametrize("name", ["resnet", "svm"])
def test_after_other_software_has_rewritten_a_file_no_row_is_run_again(tmp_path, name):
    path = tmp_path / f"{name}.csv"
    shutil.copy(ROOT / "results/reference" / path.name, path)
    common.save_row(path, common.read_rows(path)[0] | {"dataset": "digits"})
    rows = common.read_rows(path)
    by_hand(path)
    assert common.unfinished(path, rows, before={}, again=lambda row: False) == []
    assert all(
        old.items() <= new.items() for old, new in zip(rows, common.read_rows(path), strict=True)
    )


def test_columns_that_somebody_has_added_stay(path):
    save(path, "a")
    header, line = path.read_text().splitlines()
    path.write_text(f"note,{header}\nmine,{line}\n")
    save(path, "b")
    assert [row["note"] for row in common.read_rows(path)] == ["mine", None]


BAD_CELLS = {
    "val_accuracy": ['"0,985"', "high", "", "nan"], "train_time_ms": ["", "inf"],
    "n_test": ["\x1b[2J"], "C": ["0; touch owned #"], "gamma": ["wide"], "status": ["OK", ""],
}  # fmt: skip


@pytest.mark.parametrize(
    ("column", "value"), [(column, cell) for column, cells in BAD_CELLS.items() for cell in cells]
)
def test_a_cell_that_is_no_value_is_named_with_its_line_and_left_alone(path, capsys, column, value):
    for name in "ab":
        save(path, name)
    header, first, last = path.read_text().splitlines()
    cells = last.split(",")
    cells[COLUMNS.index(column)] = value
    text = "\n".join([header, first, ",".join(cells), ""])
    path.write_text(text)
    assert_refused(capsys, lambda: save(path, "c"), "rows.csv, line 3: ", column)
    assert path.read_text() == text


WHOLE = "a,1,scale,ok,,350,50,70,0.5,0.5,12.5,1,"


@pytest.mark.parametrize(
    "lines",
    ["a,1.0,sca", 'a,1.0,"scale', WHOLE.replace("a", '"b"x', 1), WHOLE[:-3] + WHOLE, "\udcff"],
)
def test_torn_lines_and_bytes_are_refused_and_left_alone(path, capsys, lines):
    text = f"{','.join(COLUMNS)}\n{lines}\n"
    path.write_text(text, errors="surrogateescape")
    assert_refused(capsys, lambda: save(path, "b"), "rows.csv")
    assert path.read_text(errors="surrogateescape") == text


def test_a_link_stays_a_link(path, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    path.symlink_to(tmp_path / "elsewhere/real.csv")
    for name in "ab":
        save(path, name)
    assert path.is_symlink()
    assert names(path) == ["a", "b"]


@pytest.mark.parametrize("refusals", [2, 99])
def test_a_file_that_is_held_open_is_tried_again_before_its_row_is_printed(
    run, tmp_path, capsys, monkeypatch, refusals
):
    """As programs on Windows do."""
    replace, errors = os.replace, [PermissionError(13, "Permission denied")] * refusals

    def refuse(*names):
        if errors:
            raise errors.pop()
        replace(*names)

    monkeypatch.setattr(os, "replace", refuse)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    flags = [*SMALL, "--kernel", "rbf", "--C", "1", "--gamma", "scale"]
    if refusals == 2:
        assert run(train_svm, *flags) == 0
    else:
        with pytest.raises(OSError, match=r"cannot write .*results/svm.csv: Permission denied"):
            run(train_svm, *flags)
        assert re.search(r"not saved: {.*'test_accuracy': ", capsys.readouterr().out)
    assert len(common.read_rows(tmp_path / "results/svm.csv")) == (refusals == 2)
    assert not list(tmp_path.rglob("*.tmp"))


# --- several writers -----------------------------------------------------------------------------


def write_rows(path, writer, count):
    for number in range(count):
        save(path, f"{writer}-{number}")


def start(work, *args):
    process = multiprocessing.get_context("fork").Process(target=work, args=args)
    process.start()
    return process


def test_eight_writers_lose_and_tear_nothing_although_others_are_killed(path):
    writers = [start(write_rows, path, writer, 12) for writer in range(8)]
    for attempt in range(8):
        killed = start(write_rows, path, f"killed{attempt}", 10_000)
        time.sleep(0.1 + 0.01 * attempt)
        before = names(path)
        os.kill(killed.pid, signal.SIGKILL)
        killed.join()
        assert names(path)[: len(before)] == before
    for writer in writers:
        writer.join()
    save(path, "last")
    found = sorted(name for name in names(path) if not name.startswith("killed"))
    assert found == sorted(["last", *(f"{w}-{number}" for w in range(8) for number in range(12))])
    assert sorted(os.listdir(path.parent)) == [".running", "rows.csv"]


def test_a_full_disk_costs_no_row(path):
    """The file may not grow: the row that does not fit raises, all before it are there."""
    resource = pytest.importorskip("resource")

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (400, 400))
        try:
            write_rows(path, "full", 1000)
        except OSError:
            os._exit(3)

    writer = start(fill)
    writer.join()
    assert writer.exitcode == 3
    assert names(path) == [f"full-{number}" for number in range(len(names(path)))]
    assert 300 < path.stat().st_size <= 400
    assert sorted(os.listdir(path.parent)) == [".running", "rows.csv"]
