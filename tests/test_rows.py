"""Rows: none lost, doubled or torn; what a spreadsheet rewrites is read, what is broken refused."""

import csv
import multiprocessing
import os
import signal
import time

import pytest
from conftest import assert_refused

import common

COLUMNS = ("name", "C", "gamma", "status", "reason", "val_accuracy", "n_test", "fit_time_ms")
NUMBERS = {"val_accuracy": 0.5, "n_test": 70, "fit_time_ms": 12.5}


@pytest.fixture(autouse=True)
def columns(monkeypatch):
    monkeypatch.setitem(common.COLUMNS, "rows", COLUMNS)
    monkeypatch.setattr(common, "TEXT", common.TEXT | {"name"})


@pytest.fixture
def path(tmp_path):
    return tmp_path / "rows.csv"


def save(path, name, status="ok", C=1.0, gamma="scale", **values):
    numbers = NUMBERS if status == "ok" else {}
    row = {"name": name, "C": C, "gamma": gamma, "status": status}
    common.save_row(path, row | numbers | values)


def names(path):
    return [row["name"] for row in common.read_rows(path)]


def test_a_row_comes_back_as_it_was_written(path):
    assert common.read_rows(path) == []
    reason = 'a "quoted", text\nof two lines | and a bar'
    save(path, "a", C=0.1 + 0.2, gamma=1e-4, reason=reason)
    (row,) = common.read_rows(path)
    expected = {"name": "a", "C": 0.1 + 0.2, "gamma": 1e-4, "status": "ok", "reason": reason}
    assert row == expected | NUMBERS


def test_a_row_takes_the_place_of_one_with_its_key_and_no_other(path):
    for name, value in (("a", 1), ("b", 2), ("a", 3)):
        save(path, name, n_test=value)
    assert [(row["name"], row["n_test"]) for row in common.read_rows(path)] == [("b", 2), ("a", 3)]


def test_a_failed_row_never_replaces_a_finished_one_but_is_replaced_by_one(path):
    save(path, "a", status="diverged")
    save(path, "a")
    save(path, "a", status="diverged")
    assert [row["status"] for row in common.read_rows(path)] == ["ok"]


@pytest.mark.parametrize("order", [1, -1])
def test_a_merge_of_a_finished_and_a_failed_row_costs_neither_until_the_run_is_repeated(
    path, order
):
    """As `cat` or a git merge leaves them: saving another row keeps the finished one."""
    save(path, "a")
    header, finished = path.read_text().splitlines()
    failed = "a,1.0,scale,diverged,loss is nan,,,"
    path.write_text("\n".join([header, *[finished, failed][::order], ""]))
    save(path, "b")
    assert sorted((row["name"], row["status"]) for row in common.read_rows(path)) == [
        ("a", "diverged"), ("a", "ok"), ("b", "ok"),
    ]  # fmt: skip
    save(path, "a", status="out_of_memory")
    assert "ok" in {row["status"] for row in common.read_rows(path) if row["name"] == "a"}


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("\n", "\r\n"), ("\n", "\r"), ("\n", "\n\n"), ("12.5\n", "12.5"), ("name", "\ufeffname"),
        ("0.01", "1E-02"), (",70,", ",70.0,"), ("scale", '"scale"'),
    ],
    ids=["crlf", "cr", "blank lines", "no end", "mark", "exponent", "70.0", "quotes"],
)  # fmt: skip
def test_what_a_spreadsheet_rewrites_without_loss_is_the_same_row(path, old, new):
    save(path, "a", C=0.01)
    before, text = common.read_rows(path), path.read_text()
    assert old in text
    path.write_bytes(text.replace(old, new).encode())
    assert common.read_rows(path) == before
    save(path, "a", C=0.01, n_test=9)
    assert [row["n_test"] for row in common.read_rows(path)] == [9], "its key is the same, too"


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("val_accuracy", '"0,985"'), ("val_accuracy", "high"), ("val_accuracy", ""),
        ("val_accuracy", "nan"), ("val_accuracy", "1.5"), ("val_accuracy", "-0.1"),
        ("fit_time_ms", "0"), ("fit_time_ms", "5e-324"), ("fit_time_ms", "1e308"),
        ("fit_time_ms", "inf"), ("n_test", "0"), ("n_test", "\x1b[2J"), ("C", "0; touch owned #"),
        ("gamma", "wide"),
    ],
)  # fmt: skip
def test_a_cell_that_is_no_value_is_named_with_its_line_and_left_alone(path, capsys, column, value):
    save(path, "a")
    save(path, "b")
    header, first, last = path.read_text().splitlines()
    cells = last.split(",")
    cells[COLUMNS.index(column)] = value
    text = "\n".join([header, first, ",".join(cells), ""])
    path.write_text(text)
    assert_refused(capsys, lambda: save(path, "c"), f"rows.csv, line 3: {column} is ")
    assert path.read_text() == text


@pytest.mark.parametrize(
    "text",
    [
        "name,C,status\na,1,ok\n",
        ",".join(reversed(COLUMNS)) + "\n",
        ",".join(COLUMNS) + "\na,1.0,sca",
        ",".join(COLUMNS) + '\na,1.0,"scale\n',
        ",".join(COLUMNS) + "\na,1.0,scale,ok,,0.5,70,12.5b,1.0,scale,ok,,0.5,70,12.5\n",
    ],
)
def test_other_columns_and_torn_lines_are_refused_and_left_alone(path, capsys, text):
    path.write_text(text)
    assert_refused(capsys, lambda: save(path, "b"))
    assert path.read_text() == text


def test_a_broken_line_is_named(path, capsys):
    cells = "1,scale,ok,,0.5,70,12.5"
    path.write_text("\n".join([",".join(COLUMNS), f"a,{cells}", f'"b"x,{cells}']))
    assert_refused(capsys, lambda: common.read_rows(path), "rows.csv, line 3: ")


def test_a_folder_or_bytes_in_place_of_the_file_are_refused(path, capsys):
    path.write_bytes(b"\xff\xfe\n")
    assert_refused(capsys, lambda: common.read_rows(path))
    path.unlink()
    path.mkdir()
    assert_refused(capsys, lambda: common.read_rows(path))


def test_no_link_is_followed_and_no_temporary_file_stays(path, tmp_path):
    """A killed writer leaves one, which the next removes."""
    (tmp_path / "owned").write_text("mine")
    (tmp_path / "rows.csv.1-2.tmp").symlink_to(tmp_path / "owned")
    save(path, "a")
    assert (tmp_path / "owned").read_text() == "mine"
    assert sorted(os.listdir(tmp_path)) == [".lock", "owned", "rows.csv"]


def write_rows(path, writer, count):
    for number in range(count):
        save(path, f"{writer}-{number}")


def start(work, *args):
    process = multiprocessing.get_context("fork").Process(target=work, args=args)
    process.start()
    return process


def test_writers_at_the_same_time_lose_and_tear_nothing(path, tmp_path):
    writers = [start(write_rows, path, writer, 15) for writer in range(8)]
    for writer in writers:
        writer.join()
    assert sorted(names(path)) == sorted(f"{w}-{number}" for w in range(8) for number in range(15))
    assert sorted(os.listdir(tmp_path)) == [".lock", "rows.csv"]


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(path):
    for attempt in range(10):
        writer = start(write_rows, path, attempt, 10_000)
        time.sleep(0.1 + 0.005 * attempt)
        before = names(path)
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        with path.open(newline="") as file:
            assert {len(line) for line in csv.reader(file, strict=True)} == {len(COLUMNS)}
        assert names(path)[: len(before)] == before
        assert before


def test_a_full_disk_costs_no_row(path, tmp_path):
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
    assert sorted(os.listdir(tmp_path)) == [".lock", "rows.csv"]
