"""What messages advise can be done: the commands exist, and have the options that are named with them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from dittool.cli import BUILT_IN, _built_in_command
from tests.test_architecture import ROOT

# Words before what are options of other programs, in texts of ours.
OTHERS = {
    "--force-reinstall",  # pip
    "--no-deps",
    "--shm-size",
    "--ipc",
    "--ulimit",  # docker run
    "--sort",  # tar
    "--force-download",
    "--local-dir",
    "--include",
    "--repo-type",  # hf download
    "--url",  # of img2dataset --url_list and --url_col, as far as they are read here
    "--output",  # and its --output_format and --output_folder
    "--signals-to-handle",
    "--shutdown-timeout",
    "--nproc-per-node",
    "--standalone",  # torchrun
    "--signal",  # sbatch
}


@cache
def options_of(command: str) -> frozenset[str]:
    found = _built_in_command(command)
    return frozenset({"--help", *(name for parameter in found.params for name in parameter.opts)})


EVERY_OPTION = frozenset().union({"--version", "--install-completion", "--show-completion"}, *map(options_of, BUILT_IN))


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Every text in a file, what is filled in as {}; with the line where it stands."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield (
                node.lineno,
                "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values),
            )
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in inside:
            yield node.lineno, node.value
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("command_line"):
            words = [word.value if isinstance(word, ast.Constant) else "{}" for word in node.args]
            yield node.lineno, " ".join(map(str, words))


def commands_in(text: str) -> Iterator[tuple[str, list[str]]]:
    """`dit COMMAND` in a text, with the options that follow before the sentence or command ends."""
    for match in re.finditer(r"\bdit ([a-z][a-z-]*)([^`;:|&()\n]*)", text):
        words = re.split(r",? (?:then|or|and|again|see|to) |\bdit |[,.](?: |$)", match[2], maxsplit=1)[0]
        yield match[1], re.findall(r"(?<![\w-])(--[a-z][a-z-]+|-[a-z])\b", words)


# What stands behind "dit" in a sentence about the program.
SENTENCES = {
    *("as", "is", "that", "which", "and", "or", "in", "to", "for", "of", "on", "there", "here", "by", "with", "has"),
    *("reads", "runs", "does", "wrote", "writes", "makes", "checkpoint", "itself"),
}


def faults(text: str) -> list[str]:
    wrong = []
    for command, options in commands_in(text):
        if command not in BUILT_IN:
            wrong += [] if command in SENTENCES else [f"there is no dit {command}"]
        else:
            wrong += [f"dit {command} has no {option}" for option in options if option not in options_of(command)]
    named = re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)
    return wrong + [f"no command has {option}" for option in named if option not in EVERY_OPTION | OTHERS]


@pytest.mark.parametrize("room", ["dittool", "commands"])
def test_commands_and_options_in_texts_exist(room):
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {fault}"
        for path in sorted((ROOT / room).rglob("*.py"))
        for line, text in texts(path)
        for fault in faults(text)
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("make it again with: dit shrad --out F", ["there is no dit shrad"]),
        ("run dit shard --outt F, then go on", ["dit shard has no --outt", "no command has --outt"]),
        ("run dit shard --resume", ["dit shard has no --resume"]),
        ("run dit embed {} --out {}, then dit shard {} --out {}", []),
        ("leave --verfy out", ["no command has --verfy"]),
        ("dit train --resume -s train.steps=3", []),
    ],
)
def test_what_does_not_exist_is_found(text, found):
    assert faults(text) == found
