"""Commands that we suggest, written so that a shell does what they say.

A folder may be called "a b", "it's" or "-rf". Every suggestion that holds a path or a user's words is built here:

    command_line("rm", "-r", Path("a b/run"))      rm -r 'a b/run'
    command_line("dit", "validate", Path("-run"))  dit validate ./-run
"""

from __future__ import annotations

import os
import shlex
from os import PathLike


def command_line(*words: str | PathLike[str] | int) -> str:
    """The words as one command for bash, zsh and other POSIX shells. Give paths as `Path`, not as text: one that
    begins with "-" gets "./" in front, or a program would take it for an option.
    """
    return " ".join(quoted(word) for word in words)


def quoted(word: str | PathLike[str] | int) -> str:
    """One word of such a command."""
    text = str(word)
    if isinstance(word, PathLike) and text.startswith("-"):
        text = f"./{text}"
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(map(_escape, text)) + "'"  # line breaks, escape codes and bytes that are no text


def _escape(character: str) -> str:
    if character in "\\'":
        return f"\\{character}"
    if character.isprintable():
        return character
    return "".join(f"\\x{byte:02x}" for byte in os.fsencode(character))
