"""The frame of `dit`: help, version, what a mistake on the command line looks like, and how every error ends."""

from __future__ import annotations

import errno
import importlib
import inspect
import json
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import typer

from dittool import __version__
from dittool.cli import BUILT_IN
from dittool.config.load import config_from_dict, load_config
from dittool.config.presets import preset_names
from dittool.errors import BadDataError, Interrupted, UsageError


@pytest.fixture
def train_is(monkeypatch):
    """Puts a function in the place of `dit train`."""

    def put(function):
        monkeypatch.setitem(sys.modules, "dittool.commands.train", SimpleNamespace(main=function))

    return put


@pytest.fixture
def train_raises(train_is):
    def put(error):
        def main():
            raise error

        train_is(main)

    return put


# Help


def test_help_lists_every_command_with_its_line(dit):
    shown = dit("--help")
    assert shown.code == 0 and shown.err == ""
    for name, line in BUILT_IN.items():
        assert f"  {name} " in shown.out and line in shown.out


def test_without_arguments_dit_shows_its_help(dit):
    assert dit() == dit("-h")


def test_version(dit):
    assert dit("--version").out == f"dit {__version__}\n"


@pytest.mark.parametrize("name", BUILT_IN)
def test_a_command_says_in_its_help_what_the_list_says(dit, name):
    module = importlib.import_module(f"dittool.commands.{name.replace('-', '_')}")
    assert inspect.getdoc(module.main).startswith(BUILT_IN[name].rstrip("."))
    shown = dit(name, "--help")
    assert (shown.code, shown.err) == (0, "")
    assert shown.out.startswith(f"Usage: dit {name} ") and "--json" in shown.out


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_command_opens_the_console_that_verbose_acts_on(name):
    module = importlib.import_module(f"dittool.commands.{name.replace('-', '_')}")
    assert "quiet, verbose)" in inspect.getsource(module.main) and "console_for(" in inspect.getsource(module.main)


def test_verbose_says_what_runs_and_when_each_remark_was_made(dit):
    plain, outcome = dit("presets"), dit("presets", "--verbose")
    first, *rest = outcome.err.splitlines()
    assert first.startswith(f"[0:00] dit {__version__}, Python ") and outcome.out == plain.out
    assert rest[-1].startswith("[0:0") and "print one with" in rest[-1] and "[" not in plain.err
    assert "exclude each other" in dit("presets", "--verbose", "--quiet").err


# Mistakes on the command line


@pytest.mark.parametrize(
    ("arguments", "message", "hint"),
    [
        (["trian"], "No such command 'trian'. Did you mean 'train'?", "see dit --help"),
        (["nonsense"], "No such command 'nonsense'.", "see dit --help"),
        (["--verison"], "No such option: --verison", "did you mean --version? see dit --help"),
        (["presets", "--jsno"], "No such option: --jsno", "did you mean --json? see dit presets --help"),
        (["presets", "-x"], "No such option: -x", "see dit presets --help"),
        (["presets", "nano", "more"], "Got unexpected extra argument(s) (more)", "see dit presets --help"),
        (
            ["presets", "nano", "--set"],
            "Option '--set' requires an argument.",
            "write --set KEY=VALUE; see dit presets",
        ),
        (["train", "-s"], "Option '-s' requires an argument.", "write -s KEY=VALUE; see dit train --help"),
        (["train", "--preset"], "Option '--preset' requires an argument.", "write --preset P; see dit train --help"),
        (["train", "--stepz", "3"], "No such option: --stepz", "did you mean -s train.steps=…? see dit train --help"),
        (["train", "--lr=1e-4"], "No such option: --lr", "did you mean -s train.lr=…? see dit train --help"),
        (["train", "--batch-size", "4"], "No such option: --batch-size", "did you mean -s train.batch_size=…?"),
        (["train", "--resum"], "No such option: --resum", "did you mean --resume? see dit train --help"),
        (["sample", "--stepz", "3"], "No such option: --stepz", "did you mean --steps? see dit sample --help"),
        (["presets", "nanoo"], "preset 'nanoo' does not exist", "did you mean 'nano'?"),
    ],
)
def test_a_mistake_on_the_command_line_is_two_lines_and_exit_code_2(dit, arguments, message, hint):
    outcome = dit(*arguments)
    assert (outcome.code, outcome.out) == (2, "")
    first, second = outcome.err.splitlines()
    assert first.startswith(f"error: {message}")
    assert second.startswith(f"  next: {hint}")


def test_a_value_of_the_wrong_type_names_its_option(dit, train_is):
    def main(steps: int = 1):
        """Train."""

    train_is(main)
    outcome = dit("train", "--steps", "many")
    assert outcome.code == 2
    assert outcome.err.splitlines()[0].startswith("error: Invalid value for '--steps': ")


# The error boundary


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (UsageError("train.lr: wrong", "correct it"), 2, ["error: train.lr: wrong", "  next: correct it"]),
        (BadDataError("x.tar: torn", "make it again"), 3, ["error: x.tar: torn", "  next: make it again"]),
        (
            Interrupted("stopped at step 7, saved", "go on with --resume", 15),
            143,
            ["error: stopped at step 7, saved", "  next: go on with --resume"],
        ),
        (KeyboardInterrupt(), 130, ["error: interrupted"]),
        (
            MemoryError(),
            5,
            ["error: out of memory: this process could not get more", "  next: make the batch or the model smaller"],
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate\n9 bytes"),
            5,
            ["error: out of memory: DefaultCPUAllocator", "  next: make"],
        ),
        (
            OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "runs/x"),
            5,
            [f"error: runs/x: {os.strerror(errno.ENOSPC)}", "  next: free some space"],
        ),
        (
            FileNotFoundError(2, "No such file", "x"),
            70,
            ["error: internal error: FileNotFoundError", "  next: run again with DIT_DEBUG=1"],
        ),
        (KeyError("lost\nkey"), 70, ["error: internal error: KeyError: 'lost", "  next: run again with DIT_DEBUG=1"]),
        (EOFError(), 70, ["error: internal error: EOFError", "  next: run again with DIT_DEBUG=1"]),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_an_error_ends_as_one_line_and_a_next_step_without_traceback(dit, train_raises, error, code, lines):
    train_raises(error)
    outcome = dit("train")
    assert (outcome.code, outcome.out) == (code, "")
    assert len(outcome.err.splitlines()) == len(lines)
    assert all(shown.startswith(wanted) for shown, wanted in zip(outcome.err.splitlines(), lines, strict=True))


def test_a_full_gpu_is_one_line_with_what_was_asked_for_and_what_there_is(dit, train_raises):
    import torch

    text = (
        "CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79.10 GiB of which 1.5 GiB is"
        " free. Of the allocated"
    )
    train_raises(torch.OutOfMemoryError(f"{text} memory …\nsee documentation"))
    outcome = dit("train")
    assert outcome.code == 5
    assert outcome.err.splitlines()[0] == f"error: {text.removesuffix('. Of the allocated')}"


def test_debugging_shows_the_traceback_before_the_two_lines(dit, train_raises, monkeypatch):
    monkeypatch.setenv("DIT_DEBUG", "1")
    train_raises(UsageError("wrong", "correct it"))
    outcome = dit("train")
    assert outcome.code == 2
    assert outcome.err.startswith("Traceback (most recent call last)")
    assert outcome.err.endswith("error: wrong\n  next: correct it\n")


@pytest.mark.parametrize("code", [0, 1, 3])
def test_a_command_chooses_its_exit_code(dit, train_is, code):
    def main():
        raise typer.Exit(code)

    train_is(main)
    assert dit("train") == type(dit("--version"))(code, "", "")


def test_an_error_in_json_mode_leaves_stdout_empty(dit):
    outcome = dit("presets", "nonsense", "--json")
    assert (outcome.code, outcome.out) == (2, "")


def test_a_built_in_command_that_cannot_be_imported_is_a_bug_of_ours_and_harms_no_other(dit, monkeypatch):
    monkeypatch.setitem(sys.modules, "dittool.commands.train", None)
    assert dit("train").code == 70
    assert dit("presets").code == 0


# As a process


def test_where_there_is_no_unix_a_command_names_wsl_and_the_help_still_shows():
    code = "import sys; sys.modules['fcntl'] = None; from dittool.cli import run; sys.exit(run(sys.argv[1:]))"
    refused = subprocess.run([sys.executable, "-c", code, "train", "--preset", "demo"], capture_output=True, text=True)
    assert refused.returncode == 2
    assert (
        refused.stderr.splitlines()[0]
        == f"error: dit runs on Linux and macOS; this Python, on {sys.platform}, has no fcntl"
    )
    assert "use WSL" in refused.stderr.splitlines()[1] and len(refused.stderr.splitlines()) == 2
    assert subprocess.run([sys.executable, "-c", code, "--help"], capture_output=True).returncode == 0


@pytest.mark.row(17)
def test_a_reader_that_leaves_ends_nothing_with_a_traceback():
    for arguments, codes in [
        (["presets", "--quiet"], (0,)),
        (["presets", "--json"], (0,)),
        (["--help"], (141,)),
    ]:
        child = subprocess.Popen(
            [sys.executable, "-m", "dittool", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        child.stdout.close()
        assert (child.stderr.read().replace("\nprint one with: dit presets NAME\n", ""), child.wait() in codes) == (
            "",
            True,
        ), arguments


def test_a_broken_pipe_that_is_not_stdout_is_an_error_like_any_other():
    code = (
        "import sys, types\n"
        "from dittool.cli import run\n"
        "def main(): raise BrokenPipeError(32, 'a worker died')\n"
        "sys.modules['dittool.commands.train'] = types.SimpleNamespace(main=main)\n"
        "sys.exit(run(['train']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 70
    assert done.stderr.startswith("error: internal error: BrokenPipeError: ")


@pytest.mark.row(17)
@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&-"])
def test_closed_streams_end_nothing(closed):
    run = subprocess.run(
        f"{sys.executable} -m dittool presets --quiet {closed}",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (run.returncode, run.stderr) == (0, "")


@pytest.mark.parametrize("arguments", ["presets -q", "presets --json", "--help", "train --help", "--version"])
def test_a_full_disk_under_stdout_is_told_as_that(arguments):
    run = subprocess.run(
        f"{sys.executable} -m dittool {arguments} > /dev/full",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 5
    message, hint = run.stderr.splitlines()
    assert message == "error: standard output: No space left on device"
    assert hint.startswith("  next: free some space where it goes") and "--out" not in hint


def test_a_full_disk_under_stderr_ends_no_work():
    run = subprocess.run(
        f"{sys.executable} -m dittool presets 2> /dev/full",
        shell=True,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0 and "nano" in run.stdout


def test_a_terminal_without_signs_gets_plain_words():
    code = (
        "from dittool.cli import main; import sys, types; from dittool.console import Console\n"
        "def show():\n"
        "    Console().table(['', 'rule'], [['✔ pass', 'E1'], ['✘', 'E2'], ['– skip', 'E3']])\n"
        "    Console().result('✔ 4×4 → 2² … café')\n"
        "sys.modules['dittool.commands.train'] = types.SimpleNamespace(main=show); sys.argv[1:] = ['train']; main()"
    )
    surroundings = os.environ | {"PYTHONIOENCODING": "ascii"}
    run = subprocess.run([sys.executable, "-c", code], env=surroundings, capture_output=True, text=True, check=False)
    assert run.stderr == "" and "\\u" not in run.stdout
    lines = [line.replace("|", "").split() for line in run.stdout.splitlines()]
    assert lines[-4:] == [["pass", "E1"], ["no", "E2"], ["skip", "E3"], ["yes", "4x4", "->", "2^2", "...", r"caf\xe9"]]


def test_a_name_that_is_not_text_is_printed_and_not_stumbled_over(tmp_path):
    name = os.fsencode(tmp_path) + b"/caf\xe9.toml"
    run = subprocess.run([sys.executable, "-m", "dittool", "presets", name], capture_output=True, check=False)
    assert run.returncode == 2
    assert run.stderr.splitlines()[0].endswith(b"caf\\udce9.toml: no such file")


# dit presets


def test_presets_are_listed_with_what_tells_them_apart(dit):
    shown = dit("presets")
    assert shown.code == 0
    for name in preset_names():
        config = load_config(name)
        assert config.description in shown.out
        (row,) = (
            line.split()
            for line in shown.out.splitlines()
            if line.startswith(f"{name} ") and config.description not in line
        )
        sizes = (getattr(config.model, key, None) for key in ("depth", "width", "heads"))
        assert row[1] == "/".join(str(size) for size in sizes if size is not None)
        assert row[-2:] == [f"{config.train.steps:,}", f"{config.train.batch_size:,}"]
        assert ("patches" in row) == (config.model.arch == "dit" and config.model.patches)


def test_a_printed_preset_is_a_preset(dit, tmp_path):
    (tmp_path / "mine.toml").write_text(dit("presets", "nano", "-s", "train.lr=1e-5").out)
    assert load_config(str(tmp_path / "mine.toml")) == load_config("nano", ["train.lr=1e-5"])


def test_presets_as_json(dit):
    listed = json.loads(dit("presets", "--json").out)["presets"]
    assert [row["name"] for row in listed] == preset_names()
    assert next(row for row in listed if row["name"] == "nano")["conditions"] == ["text", "CLS"]
    printed = json.loads(dit("presets", "nano", "--json").out)
    assert config_from_dict(printed["config"], "stdout") == load_config("nano")


def test_a_presets_tensors_are_listed_with_their_total(dit):
    shown = dit("presets", "drift-b2", "--params")
    assert shown.code == 0 and "133,088,720 parameters in 160 tensors" in shown.out
    listed = json.loads(dit("presets", "nano", "--params", "--json").out)
    assert (
        listed["parameters"]
        == sum(tensor["parameters"] for tensor in listed["tensors"])
        == sum(count for _, count in listed["groups"].values())
    )


def test_tensors_of_no_preset_are_told(dit):
    outcome = dit("presets", "--params")
    assert outcome.code == 2 and "no preset is named" in outcome.err


def test_an_override_without_a_preset_is_told(dit):
    outcome = dit("presets", "-s", "train.lr=1")
    assert outcome.code == 2 and "no preset is named" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("presets", "nano", "--set", "train.steps=5", "-s", "train.lr=1e-5"), ""),  # repeatable
        (("presets", "nano", "--json", "--json", "-v", "-v"), ""),  # a switch twice is on
        (("audit", "demo", "--select", "E4", "--format", "json", "--format", "markdown"), "--format is given 2 times"),
        (("sample", "--from", "a.png", "--from", "b.png"), "--from is given 2 times: the last one holds, b.png"),
        (("embed", "none", "--out", "a", "--out=b", "--out", "c"), "--out is given 3 times: the last one holds, c"),
        (
            ("sample", "--grid", "a=1", "b=2", "--grid", "c=1", "d=2"),
            "--grid is given 2 times: the last one holds, c=1",
        ),
    ],
)
def test_an_option_given_twice_is_said_with_the_value_that_holds(arguments, said, dit, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    warnings = [line for line in dit(*arguments).err.splitlines() if "given" in line and line.startswith("warning: ")]
    assert len(warnings) == bool(said) and all(said in line for line in warnings)


def test_a_choice_that_is_none_is_named_beside_those_that_are(dit):
    assert dit("validate", "--split", "both").err.splitlines()[0] == (
        "error: Invalid value for '--split': 'both' is not one of 'holdout', 'train'."
    )
