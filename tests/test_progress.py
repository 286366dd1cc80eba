"""Progress as people and programs see it."""

import json
import re
import sys
import threading
import time

import pytest

from ikebana.system import progress, progress_bars


def work():
    """Report a stage of three steps, a message, an event and a result."""
    with progress.stage("paint", 3, "petals") as bar:
        for _ in range(3):
            bar.advance(1, loss=0.5)
    progress.message("done painting")
    progress.event("painted", petals=3)
    progress.result("a/folder")


def test_progress_goes_to_standard_error_and_only_the_result_to_standard_output(capsys):
    with progress.use_reporter(progress.TerminalReporter()):
        work()
    out, err = capsys.readouterr()
    assert out == "a/folder\n"
    assert "paint: 3/3 petals" in err
    assert "loss 0.500" in err
    assert "done painting" in err


def test_json_mode_prints_one_object_per_line_and_nothing_to_standard_error(capsys):
    with progress.use_reporter(progress.JsonReporter()):
        work()
    out, err = capsys.readouterr()
    events = [json.loads(line) for line in out.splitlines()]
    assert err == ""
    assert [event["event"] for event in events] == ["stage", "progress", "progress", "stage_end", "message", "painted"]
    assert events[2] == {"event": "progress", "stage": "paint", "done": 3, "total": 3, "unit": "petals", "loss": 0.5}


def test_the_silent_reporter_prints_nothing(capsys):
    with progress.use_reporter(progress.SilentReporter()):
        work()
    assert capsys.readouterr() == ("", "")


def test_the_previous_reporter_is_restored_afterwards(capsys):
    with progress.use_reporter(progress.TerminalReporter()):
        with progress.use_reporter(progress.SilentReporter()):
            progress.message("unheard")
        progress.message("heard")
    assert capsys.readouterr().err == "heard\n"


@pytest.mark.parametrize("kind", [progress_bars.MovingBar, progress_bars.PlainBar])
def test_a_bar_closes_after_interrupted_work_or_work_of_unknown_length(kind, capsys):
    for total in (10, 0):
        bar = kind("paint", total, "petals")
        bar.advance(4)
        bar.close()
    assert "paint" in capsys.readouterr().err


def test_a_line_of_a_log_file_says_something_new_and_no_time_left_before_the_first_result(monkeypatch, capsys):
    monkeypatch.setattr(progress_bars, "LINE_SECONDS", -1.0)
    bar = progress_bars.PlainBar("paint", 10, "petals")
    for done in (0, 0, 5, 0, 5, 0):
        bar.advance(done)
    bar.close()
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"paint: {done}/10 petals" for done in (0, 5, 10)]
    assert "left" not in lines[0]
    assert "left" in lines[1]


@pytest.mark.parametrize(("total", "done", "counted"), [(0, 1, "1 photo"), (1, 1, "1/1 photo"), (2, 1, "1/2 photos")])
def test_a_line_of_a_log_file_counts_one_photo_in_the_singular(total, done, counted, capsys):
    bar = progress_bars.PlainBar("read", total, "photos")
    bar.advance(done)
    bar.close()
    assert capsys.readouterr().err.split("  ")[0].strip() == f"read: {counted}"


def test_times_of_one_name_add_up():
    clock = progress.Stopwatch()
    clock.lap("train")
    first = clock.seconds["train"]
    clock.lap("train")
    assert clock.seconds["train"] >= first
    assert set(clock.seconds) == {"train"}
    clock.lap("train", min_seconds=1000.0)  # the time of an earlier, interrupted process
    assert clock.seconds["train"] == 1000.0


def test_work_of_unknown_length_prints_few_events(capsys):
    with progress.use_reporter(progress.JsonReporter()), progress.stage("unpack", 0, "files") as bar:
        for _ in range(1000):
            bar.advance(1)
    assert len(capsys.readouterr().out.splitlines()) < 10


@pytest.mark.usefixtures("terminal")
def test_a_terminal_shows_that_libraries_are_loading(capsys, monkeypatch):
    progress.show_loading()
    assert capsys.readouterr() == ("", "")  # a log file needs no such message
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    progress.show_loading()
    with progress.use_reporter(progress.JsonReporter()):
        progress.show_loading()
    assert capsys.readouterr() == ("", progress.LOADING_TEXT)
    progress.message("ready")
    written = capsys.readouterr().err
    assert written.endswith("\rready\n")
    assert written.count(" ") >= len(progress.LOADING_TEXT)


def test_a_class_name_cannot_control_the_terminal(capsys):
    with progress.use_reporter(progress.TerminalReporter()):
        progress.message("rose\x1b[2J\x07.jpg: no photo\n  a line\tand a column, Gänseblümchen")
    assert capsys.readouterr().err == "rose\\x1b[2J\\x07.jpg: no photo\n  a line\tand a column, Gänseblümchen\n"


@pytest.mark.parametrize("columns", [80, 100])
def test_a_narrow_terminal_keeps_the_time_left_and_drops_the_rate(columns, monkeypatch, capfd):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    bar = progress_bars.MovingBar("train 2/2", 100, "photos")
    bar.started -= 10
    bar.progress.get_time = lambda: time.monotonic() + 10  # rich estimates the time left from these ten seconds
    bar.advance(33, epoch="12/30", loss=1.611, accuracy=0.233, val_accuracy=0.3)
    bar.progress.refresh()
    bar.close()
    line = re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", capfd.readouterr().err).splitlines()[-1]
    assert re.search(r"\d+:\d\d|--:--", line)
    assert ("photos/s" in line) == (columns == 100)
    assert "12/30" in line
    assert len(line) <= columns


@pytest.mark.parametrize("columns", ["0", "1", "10"])
def test_a_bar_is_readable_at_any_terminal_width(columns, monkeypatch, capfd):
    monkeypatch.setenv("COLUMNS", columns)
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    bar = progress_bars.MovingBar("read photos", 100, "photos")
    bar.advance(100)
    bar.close()
    assert re.search(r"read photos .*100%", re.sub(r"\x1b\[[\d;?]*[a-zA-Z]", "", capfd.readouterr().err))


def test_only_photos_and_files_have_a_rate():
    assert progress_bars.format_speed(20, 2.0, "photos") == "10 photos/s"
    assert progress_bars.format_speed(20, 2.0, "steps") == ""


def test_quiet_prints_warnings_errors_and_the_result(capfd):
    with progress.use_reporter(progress.QuietReporter()):
        progress.message("a message")
        progress.warn("a warning")
        progress.error("an error")
        progress.event("epoch", loss=1.0)
        progress.result("the result")
        with progress.stage("train", 10) as bar:
            bar.advance(10)
    out, err = capfd.readouterr()
    assert out == "the result\n"
    assert err == "a warning\nan error\n"


# --- listeners ---


def test_a_listener_gets_the_events_of_json_and_changes_nothing_else(capsys):
    with progress.use_reporter(progress.JsonReporter()):
        work()
        printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    events = []
    with progress.use_reporter(progress.TerminalReporter()), progress.listen(events.append):
        work()
    assert events == printed
    out, err = capsys.readouterr()
    assert out == "a/folder\n"
    assert "paint: 3/3 petals" in err
    work()
    assert events == printed  # the block has ended


def test_listeners_may_be_nested_and_hear_no_other_thread():
    outer, inner = [], []
    with progress.listen(outer.append):
        with progress.listen(inner.append):
            progress.event("painted", petals=3)
            thread = threading.Thread(target=lambda: progress.event("elsewhere"))
            thread.start()
            thread.join()
        progress.event("dried")
    assert inner == [{"event": "painted", "petals": 3}]
    assert outer == [*inner, {"event": "dried"}]


def test_an_exception_in_a_listener_ends_the_call():
    def refuse(event):
        raise ValueError(event["event"])

    with progress.listen(refuse), pytest.raises(ValueError, match="painted"):
        progress.event("painted")


def test_a_warning_of_a_call_within_a_listener_is_still_logged(caplog):
    with progress.listen(lambda event: None):
        progress.warn("the disk is almost full")
    assert [record.getMessage() for record in caplog.records] == ["the disk is almost full"]


@pytest.mark.parametrize(
    ("done", "total", "elapsed", "expected"),
    [(0, 10, 5, ""), (5, 10, 0.5, ""), (10, 10, 9, ""), (5, 10, 83, "1:23 left"), (1, 100, 100, "2:45 h left")],
)
def test_the_time_left_follows_from_the_speed(done, total, elapsed, expected):
    assert progress_bars.format_time_left(done, total, elapsed) == expected
