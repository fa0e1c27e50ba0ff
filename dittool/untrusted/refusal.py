"""The refusal of a file that could run code or exhaust the machine: what is in it, and what its reader can do."""

from __future__ import annotations

import _compat_pickle
import sys
from pathlib import Path

from dittool.errors import BadDataError, UnsafeFileError

# of Python's own modules those whose objects training programs save with their settings; others reach the system
_HOLDS_VALUES = {
    "UserDict",
    "UserList",
    "UserString",
    "argparse",
    "collections",
    "dataclasses",
    "datetime",
    "decimal",
    "enum",
    "fractions",
    "pathlib",
    "types",
}
_OF_PYTHON_2 = {name.split(".")[0] for name in _compat_pickle.IMPORT_MAPPING} - {"test"}
_OF_PYTHON_2 |= {"exceptions", "popen2", "urllib"}
# what newer versions of Python lack, and an older one that unpickles the file may have
_REMOVED = {
    *("asynchat", "asyncore", "cgi", "cgitb", "crypt", "distutils", "imp", "lib2to3", "mailcap", "msilib", "nntplib"),
    *("pipes", "smtpd", "telnetlib", "xdrlib"),
}
OF_PYTHON = sys.stdlib_module_names | _OF_PYTHON_2 | _REMOVED
_OF_THE_SYSTEM = OF_PYTHON - _HOLDS_VALUES
_TO_ITS_READER = "do not load this file; ask its maker for the weights as .safetensors"
_TO_ITS_MAKER = (
    "if it is yours, save its weights alone where the program that wrote it runs:"
    ' safetensors.torch.save_file(state_dict, "W.safetensors"); else ask its maker for that, and do not load this file'
)


def unsafe(path: Path, thing: str, advice: str = _TO_ITS_READER) -> UnsafeFileError:
    """The refusal of a file, naming the thing in it that no checkpoint of tensors and plain values has."""
    return UnsafeFileError(f"{path}: refused without loading it: {thing}", advice)


def unsafe_global(path: Path, module: str, name: str, called: bool = False) -> UnsafeFileError:
    """The refusal of a pickle that names an object to import, or calls it: an attack's, or a training program's beside
    the weights that it saved.
    """
    thing = f"global {module}.{name}"[:207] + (", called" if called else "")
    if module.split(".")[0] in _OF_THE_SYSTEM:
        return unsafe(path, thing)
    return unsafe(path, f"{thing}, an object of another program beside the weights", _TO_ITS_MAKER)


def cut_short(path: Path, where: str) -> BadDataError:
    """What is said of a file that ends too early: that is how downloads fail, and no attack."""
    return BadDataError(f"{path}: cut short: {where}", "copy or download it again")
