"""Rows: none lost, doubled or torn, and none read from a file that has other columns."""

import csv
import multiprocessing
import os
import resource
import signal
import time

import pytest

import common

COLUMNS, KEY = ("status", "reason", "name", "value"), ("name",)


def save(path, **row):
    common.save_row(path, {"status": "ok"} | row, COLUMNS, KEY)


def load(path):
    return common.load_rows(path, COLUMNS)


def test_a_row_comes_back_as_it_was_written(tmp_path):
    path = tmp_path / "rows.csv"
    value = 'a "quoted", text\nof two lines | and a bar'
    save(path, name=value, value=0.1 + 0.2)
    assert load(path) == [{"status": "ok", "reason": "", "name": value, "value": str(0.1 + 0.2)}]
    assert float(load(path)[0]["value"]) == 0.1 + 0.2


def test_an_absent_file_has_no_rows(tmp_path):
    assert load(tmp_path / "rows.csv") == []


def test_a_row_takes_the_place_of_one_with_its_key_and_no_other(tmp_path):
    path = tmp_path / "rows.csv"
    for name, value in (("a", 1), ("b", 2), ("a", 3)):
        save(path, name=name, value=value)
    assert [(row["name"], row["value"]) for row in load(path)] == [("b", "2"), ("a", "3")]


def test_a_failure_never_replaces_a_finished_row_but_is_replaced_by_one(tmp_path):
    path = tmp_path / "rows.csv"
    save(path, name="a", status="diverged")
    save(path, name="a", value=1)
    save(path, name="a", status="diverged")
    assert [(row["status"], row["value"]) for row in load(path)] == [("ok", "1")]


def test_a_column_that_the_file_does_not_have_is_a_mistake(tmp_path):
    with pytest.raises(ValueError, match="colour"):
        save(tmp_path / "rows.csv", name="a", colour="red")
    assert not (tmp_path / "rows.csv").exists()


@pytest.mark.parametrize(
    "text",
    [
        "status,reason,name\nok,,a\n",
        "status,reason,value,name\nok,,1,a\n",
        "status,reason,name,value,more\nok,,a,1,2\n",
        "status,reason,name,value\nok,,a\n",
        'status,reason,name,value\nok,,"a\n',
        "status,reason,name,value\nok,,aok,,b,2\nok,,c,3\n",
        "status,reason,name,value\n\nok,,c,3\n",
    ],
)
def test_a_file_with_other_columns_or_a_broken_row_is_refused_and_left_alone(
    tmp_path, capsys, text
):
    path = tmp_path / "rows.csv"
    path.write_text(text)
    with pytest.raises(SystemExit) as stop:
        save(path, name="b", value=2)
    assert stop.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1
    assert path.read_text() == text


@pytest.mark.parametrize(
    "torn", [b"ok", b"ok,,b,", b"ok,,b,2", b'ok,,b,"2', b"\0" * 50, "ok,,\u00e9,1".encode()[:5]]
)
def test_a_torn_last_line_is_set_aside_and_the_rest_is_used(tmp_path, capsys, torn):
    path = tmp_path / "rows.csv"
    save(path, name="a", value=1)
    path.write_bytes(path.read_bytes() + torn)
    assert [row["name"] for row in load(path)] == ["a"], "reading changes nothing"
    assert path.read_bytes().endswith(torn)
    save(path, name="c", value=3)
    assert [row["name"] for row in load(path)] == ["a", "c"]
    assert (tmp_path / "rows.csv.torn").read_bytes() == torn + b"\n"
    assert capsys.readouterr().out.count("rows.csv.torn") == 1


def test_what_is_no_file_of_a_sane_size_is_refused_and_not_read(tmp_path, monkeypatch, capsys):
    os.mkfifo(tmp_path / "fifo.csv")
    (tmp_path / "endless.csv").symlink_to("/dev/zero")
    save(tmp_path / "large.csv", name="a")
    monkeypatch.setattr(common, "MAX_FILE_BYTES", 20)
    for name in ("fifo.csv", "endless.csv", "large.csv"):
        with pytest.raises(SystemExit) as stop:
            load(tmp_path / name)
        assert stop.value.code == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_a_collapsed_run_is_a_result_that_no_failure_replaces(tmp_path):
    path = tmp_path / "rows.csv"
    save(path, name="a", status="collapsed", value=1)
    save(path, name="a", status="out_of_memory")
    assert [(row["status"], row["value"]) for row in load(path)] == [("collapsed", "1")]
    save(path, name="a", value=2)
    assert [(row["status"], row["value"]) for row in load(path)] == [("ok", "2")]


def test_a_full_disk_costs_no_row(tmp_path):
    """The file may not grow: the row that does not fit raises, all before it are there."""
    path = tmp_path / "rows.csv"

    def fill():
        resource.setrlimit(resource.RLIMIT_FSIZE, (200, 200))
        try:
            write_rows(path, "full", 1000)
        except OSError:
            os._exit(3)

    writer = multiprocessing.get_context("fork").Process(target=fill)
    writer.start()
    writer.join()
    assert writer.exitcode == 3
    rows = load(path)
    assert [row["value"] for row in rows] == [str(number) for number in range(len(rows))]
    assert 150 < path.stat().st_size <= 200
    assert sorted(os.listdir(tmp_path)) == [".lock", "rows.csv"]


def write_rows(path, writer, count):
    for number in range(count):
        save(path, name=f"{writer}-{number}", value=number)


def test_writers_at_the_same_time_lose_and_tear_nothing(tmp_path):
    path = tmp_path / "rows.csv"
    fork = multiprocessing.get_context("fork")
    writers = [fork.Process(target=write_rows, args=(path, writer, 25)) for writer in range(8)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    names = sorted(row["name"] for row in load(path))
    assert names == sorted(f"{writer}-{number}" for writer in range(8) for number in range(25))
    assert sorted(os.listdir(tmp_path)) == [".lock", "rows.csv"]


def test_a_writer_killed_at_any_moment_leaves_a_whole_file(tmp_path):
    path = tmp_path / "rows.csv"
    fork = multiprocessing.get_context("fork")
    for attempt in range(10):
        writer = fork.Process(target=write_rows, args=(path, attempt, 10_000))
        writer.start()
        time.sleep(0.1 + 0.005 * attempt)
        before = len(load(path))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        with path.open(newline="") as file:
            lines = list(csv.reader(file, strict=True))
        assert all(len(line) == len(COLUMNS) for line in lines)
        assert len(load(path)) >= before > 0


def test_keys_of_written_and_of_new_rows_are_equal():
    new = {"lr": 1e-4, "limit": None, "amp": True, "epochs": 3}
    assert common.row_key(new, tuple(new)) == ("0.0001", "", "true", "3")
