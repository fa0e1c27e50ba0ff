"""Tab completes presets, runs, checkpoints and rule codes, in real shells, without loading anything heavy."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dittool.audit.registry import BUILT_IN
from dittool.completion import rule_codes
from dittool.config.presets import preset_names
from tests.test_architecture import HEAVY


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A working folder with two runs, one of them with a blank in its name, and a preset of one's own."""
    for run in ("nano", "a b"):
        (tmp_path / "runs" / run / "checkpoints").mkdir(parents=True)
        (tmp_path / "runs" / run / "checkpoints" / "checkpoint_final.pt").touch()
    (tmp_path / "runs" / "empty").mkdir()
    (tmp_path / "mine.toml").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def asked(line: str, shell: str = "fish") -> list[str]:
    """What `dit` answers to a shell for the last word of a line."""
    surroundings = {
        "_DIT_COMPLETE": f"complete_{shell}",
        "_TYPER_COMPLETE_ARGS": line,
        "_TYPER_COMPLETE_FISH_ACTION": "get-args",
        "COMP_WORDS": line,
        "COMP_CWORD": str(len(line.split(" ")) - 1),
    }
    run = subprocess.run(
        [sys.executable, "-m", "dittool"],
        env=os.environ | surroundings,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.stderr == ""
    return [word for word in run.stdout.splitlines() if word]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("dit train --preset nano", ["nano", "nano-fast", "nano-open", "nano-patches"]),
        ("dit embed --preset m", ["medium", "mine.toml"]),
        ("dit presets dri", [name for name in preset_names() if name.startswith("drift")]),
        ("dit validate runs/", ["runs/a b", "runs/nano"]),
        ("dit sample --checkpoint runs/nano/", ["runs/nano/checkpoints/checkpoint_final.pt"]),
        ("dit train --resume --out runs/n", ["runs/nano"]),
        ("dit inspect-ckpt runs/e", []),
        ("dit audit nano-p", ["nano-patches"]),
        ("dit audit --select K", ["K1", "K2", "K3", "K4", "K5", "K6"]),
        ("dit audit --ignore K1,E5,K", ["K1,E5,K2", "K1,E5,K3", "K1,E5,K4", "K1,E5,K5", "K1,E5,K6"]),
        ("dit audit --explain a", ["all"]),
        ("dit shard ", []),
        ("dit no-such-command x", []),
    ],
)
def test_tab_offers_what_may_stand_there(project, line, words):
    assert asked(line) == words


def test_every_rule_is_offered():
    assert sorted(rule_codes("")) == sorted(BUILT_IN)


def test_commands_and_options_are_offered(project):
    assert "train\tTrain a model." in asked("dit tr")
    assert any(word.startswith("--preset\t") for word in asked("dit train --p"))


def test_bash_gets_words_that_it_can_put_into_the_line(project):
    assert asked("dit validate runs/a", "bash") == [r"runs/a\ b"]


def test_a_broken_command_prints_nothing_into_the_line(project):
    code = "import sys; sys.modules['dittool.commands.train'] = None; from dittool.cli import run; sys.exit(run([]))"
    surroundings = {"_DIT_COMPLETE": "complete_bash", "COMP_WORDS": "dit train --p", "COMP_CWORD": "2"}
    run = subprocess.run([sys.executable, "-c", code], env=os.environ | surroundings, capture_output=True, check=False)
    assert (run.stdout, run.stderr, run.returncode) == (b"", b"", 1)


@pytest.mark.parametrize("line", ["dit train --preset n", "dit validate runs/", "dit audit --select E", "dit tr"])
def test_completing_loads_nothing_heavy(project, line):
    code = "import sys; from dittool.cli import run; code = run([]); print(); print(*sys.modules); sys.exit(code)"
    surroundings = {"_DIT_COMPLETE": "complete_zsh", "_TYPER_COMPLETE_ARGS": line}
    run = subprocess.run(
        [sys.executable, "-c", code], env=os.environ | surroundings, capture_output=True, text=True, check=True
    )
    assert {module.split(".")[0] for module in run.stdout.splitlines()[-1].split()} & HEAVY == set()


# In real shells


def installed_in(shell: str, home: Path) -> dict[str, str]:
    """Surroundings in which `dit --install-completion` was called from this shell."""
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    bin_folder = home / "bin"
    bin_folder.mkdir(parents=True)
    (bin_folder / "dit").write_text(f'#!/bin/sh\nexec {sys.executable} -m dittool "$@"\n')
    (bin_folder / "dit").chmod(0o755)
    surroundings = os.environ | {"HOME": str(home), "ZDOTDIR": str(home), "XDG_CONFIG_HOME": str(home / ".config")}
    surroundings["PATH"] = f"{bin_folder}{os.pathsep}{surroundings['PATH']}"
    script = subprocess.run(
        [shell, "-c", "dit --install-completion; true"], env=surroundings, capture_output=True, text=True, check=True
    )
    assert f"{shell} completion installed in {home}" in script.stdout
    return surroundings


def test_in_bash(project, tmp_path):
    surroundings = installed_in("bash", tmp_path / "home")
    script = (
        "source ~/.bash_completions/dit.sh; COMP_WORDS=(dit inspect-ckpt runs/a); COMP_CWORD=2; "
        '_dit_completion dit; printf "%s\\n" "${COMPREPLY[@]}"; complete -p dit'
    )
    run = subprocess.run(["bash", "-c", script], env=surroundings, capture_output=True, text=True, check=True)
    assert run.stdout.splitlines() == [r"runs/a\ b", "complete -o default -F _dit_completion dit"]


def test_in_fish(project, tmp_path):
    surroundings = installed_in("fish", tmp_path / "home")
    run = subprocess.run(
        ["fish", "-c", "complete -C 'dit train --preset nano'; complete -C 'dit validate runs/'"],
        env=surroundings,
        capture_output=True,
        text=True,
        check=True,
    )
    assert [line.split("\t")[0] for line in run.stdout.splitlines()] == [
        "nano",
        "nano-fast",
        "nano-open",
        "nano-patches",
        "runs/a b",
        "runs/nano",
    ]


def test_in_zsh(project, tmp_path):
    surroundings = installed_in("zsh", tmp_path / "home")
    # what zsh evaluates; it quotes the words itself
    script = 'words=(dit train --preset nano-p); CURRENT=4; _arguments() { print -r -- "$@" }; compdef() { }; '
    script += "source ~/.zfunc/_dit; _dit_completion"
    run = subprocess.run(["zsh", "-c", script], env=surroundings, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == '*: :(("nano-patches"))'
