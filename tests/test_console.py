"""Stdout carries the answer, stderr the talk; both survive hostile text and readers that leave."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from dittool import console as console_module
from dittool.console import SILENT, Console, duration_text, escaped, figures_text


def test_results_and_tables_go_to_stdout_and_talk_to_stderr(capsys):
    console = Console()
    console.result("an answer")
    console.table(["name", "passed"], [["D001", "✔ yes"]])
    console.note("a remark")
    console.warn("a warning")
    console.error("what went wrong", "what to do")
    out, err = capsys.readouterr()
    assert out.startswith("an answer\n") and "D001" in out and "✔ yes" in out
    assert err == "a remark\nwarning: a warning\nerror: what went wrong\n  next: what to do\n"


def test_json_prints_one_object_and_nothing_else_on_stdout(capsys):
    console = Console(json=True)
    console.result("an answer")
    console.table(["name"], [["x"]], title="a table")
    console.json({"ok": True})
    assert json.loads(capsys.readouterr().out) == {"ok": True}


def test_without_json_the_object_is_not_printed(capsys):
    Console().json({"ok": True})
    assert capsys.readouterr().out == ""


def test_json_holds_paths_as_text_array_scalars_as_numbers_and_no_nan(capsys):
    import numpy as np

    value = {
        "path": Path("a/é"),
        "loss": float("nan"),
        "worst": [float("inf"), 1.5],
        "mean": np.float32(0.5),
        "count": np.int64(3),
        "box": (1, 2),
    }
    Console(json=True).json(value)
    read = json.loads(capsys.readouterr().out, parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert read == {"path": "a/é", "loss": None, "worst": [None, 1.5], "mean": 0.5, "count": 3, "box": [1, 2]}


def test_json_refuses_what_would_become_meaningless_text():
    with pytest.raises(TypeError, match="object has no place in JSON"):
        Console(json=True).json({"value": object()})


def test_quiet_keeps_warnings_and_drops_remarks_and_progress(capsys):
    console = Console(quiet=True, verbose=True)
    console.note("a remark")
    with console.progress("embed", 2) as task:
        task.advance(2)
    console.warn("a warning")
    assert capsys.readouterr().err == "warning: a warning\n"


def test_a_table_is_at_most_100_columns_wide_and_loses_nothing(capsys):
    path = "/".join(["folder"] * 40)
    Console().table(["file", "count", "words"], [[path, 12, "many words " * 20]], title="[bold]files[/]")
    out = capsys.readouterr().out
    assert max(len(line) for line in out.splitlines()) <= 100
    assert "".join(line.split(" ")[0] for line in out.splitlines()).endswith(path)
    assert "[bold]files[/]" in out


def test_a_table_stays_100_columns_wide_on_a_wider_terminal(capsys, monkeypatch):
    monkeypatch.setenv("TTY_COMPATIBLE", "1")
    monkeypatch.setenv("COLUMNS", "200")
    Console().table(["words"], [["many words " * 30]])
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in capsys.readouterr().out.splitlines()]
    assert 60 < max(len(line) for line in lines) <= 100


def test_a_long_line_is_not_broken_so_that_it_can_be_searched(capsys):
    line = "x" * 300
    Console().result(line)
    assert capsys.readouterr().out == line + "\n"


@pytest.mark.parametrize("text", ["[red]not a style[/red]", ":cat: stays", "[/]", "C:\\temp\\[1]"])
def test_text_is_printed_as_it_is_and_never_read_as_markup(capsys, text):
    console = Console()
    console.result(text)
    console.warn(text)
    console.table([text], [[text]])
    out, err = capsys.readouterr()
    assert out.count(text) == 3
    assert err == f"warning: {text}\n"


def test_control_characters_of_a_caption_are_shown_and_not_obeyed(capsys):
    Console().result("a\x1b[2Jcat \u202e\x07\u2028é日本\n")
    assert capsys.readouterr().out == "a\\x1b[2Jcat \\u202e\\x07\\u2028é日本\n\n"
    assert escaped("plain") == "plain"


def test_progress_in_a_log_is_one_line_now_and_then_and_one_at_the_end(capsys, monkeypatch):
    clock = iter(range(0, 1000, 4))  # seconds; each look at the clock takes four
    monkeypatch.setattr(console_module.time, "monotonic", lambda: next(clock))
    with Console().progress("train", 6, "steps") as task:
        for step in range(6):
            task.advance(loss=0.5 / (step + 1), seen=24 * (step + 1))
    lines = capsys.readouterr().err.splitlines()
    assert 2 <= len(lines) < 6
    assert lines[0].startswith("train 3/6 steps  ") and "/s  " in lines[0] and " left  loss 0.1667  seen 72" in lines[0]
    assert (
        lines[-1].startswith("train 6/6 steps  ")
        and "left" not in lines[-1]
        and lines[-1].endswith("loss 0.08333  seen 144")
    )


def test_progress_over_nothing_says_so(capsys):
    with Console().progress("embed", 0):
        pass
    assert capsys.readouterr().err.startswith("embed 0/0")


def test_the_default_listener_is_silent(capsys):
    SILENT.note("x")
    SILENT.warn("x")
    with SILENT.progress("x", 1) as task:
        task.advance(1, loss=1.0)
    assert capsys.readouterr() == ("", "")


def test_figures_show_counts_whole_and_measurements_to_four_digits():
    assert figures_text({"loss": 0.123456, "images": 123456, "lr": 3e-4}) == "loss 0.1235  images 123,456  lr 0.0003"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00"), (61, "1:01"), (3599, "59:59"), (3600, "1:00:00"), (90_061, "25:01:01")]
)
def test_durations_read_like_a_clock(seconds, text):
    assert duration_text(seconds) == text


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize("json_wanted", [False, True])
def test_work_goes_on_and_keeps_its_exit_code_when_the_reader_leaves(stream, json_wanted):
    code = (
        "import sys, time\n"
        "from dittool.console import Console\n"
        f"console = Console(json={json_wanted})\n"
        "sys.stdin.read()\n"  # until the reader has left
        "for number in range(3):\n"
        "    console.result('x' * 70000); console.note('y' * 70000); console.table(['z'], [['z' * 70000]]);"
        " console.json({'a': 'b' * 70000})\n"
        "sys.exit(3)"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    getattr(child, stream).close()
    child.stdin.close()
    rest = (child.stderr if stream == "stdout" else child.stdout).read()
    assert child.wait() == 3
    assert b"Traceback" not in rest and b"BrokenPipe" not in rest


# What the surroundings ask for


def escape_codes(text: str) -> list[str]:
    return re.findall(r"\x1b\[[0-9;]*m", text)


def test_no_color_means_no_escape_codes_at_all(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    console = Console()
    console.error("wrong", "do this")
    console.table(["a"], [["✘ fail"]])
    assert all(map(escape_codes, capsys.readouterr()))
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console()
    console.error("wrong", "do this")
    console.table(["a"], [["✘ fail"]])
    assert not any(map(escape_codes, capsys.readouterr()))


def test_a_dumb_terminal_gets_no_escape_codes(capsys, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "dumb")
    Console().error("wrong")
    assert escape_codes(capsys.readouterr().err) == []


@pytest.mark.parametrize(("columns", "widest"), [("50", 50), ("70", 70), ("200", 100), ("wide", 100), ("", 100)])
def test_a_table_in_a_pipe_is_as_wide_as_columns_says(capsys, monkeypatch, columns, widest):
    monkeypatch.setenv("COLUMNS", columns)
    Console().table(["words"], [["many words " * 40]])
    lines = capsys.readouterr().out.splitlines()
    assert widest - 12 < max(len(line.rstrip()) for line in lines) <= widest
