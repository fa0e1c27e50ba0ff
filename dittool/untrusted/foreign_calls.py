"""Which classes of other programs may be called in a pickle, and with what: step 4 of `pickle_names`.

A member of an enumeration, `Color("red")`, has the form of a call that starts a program, `PopenSpawn("reboot")`: the
bytes do not tell one from the other. Our reader calls neither; what it must not do is pass what would act where the
file is unpickled. What an attacker cannot choose is which classes there are in that place, nor how they are called, and
without a command, path, address or code in his hand few of them are of use to him. So:

- Nothing, small numbers, `None`, truth values, dtypes and tensors say nothing: any class may be called with them.
- Words may be given to classes whose name and package are not those of something that runs, opens or fetches, unless
  the words name a program or a file. Where the class's name does not end in a word for a choice (`CHOICES`), the file
  is read, and rule K1 warns of the call.
- A dictionary may be given to classes that are named as dictionaries are (`ConfigDict`), one of numbers to all others.
- An empty kind of OrderedDict, defaultdict or deque is a call with nothing, or with a factory or a length.

Measured on 99 packages (torch, transformers, diffusers, sympy and what they bring; 39,000 classes) when words passed
for the names in `CHOICES` alone: 455 classes have such a name and are no enumerations, 117 of them take one argument,
and none of these was found to run, open or import what a word says.
"""

from __future__ import annotations

import re

from dittool.untrusted.foreign_values import ClassName, ForeignObject
from dittool.untrusted.pickle_names import (
    DTYPES,
    DTYPES_WITHOUT_NUMBERS_HERE,
    FACTORIES,
    PARTIAL,
    canonical,
    is_class,
    is_foreign,
    is_object,
)
from dittool.untrusted.tensor_spec import TensorSpec

# Last words of a class's name that say that its objects are choices of a few
CHOICES = (
    *("Type", "Mode", "Kind", "Format", "Strategy", "Policy", "Style", "Level", "Method", "Stage", "Split", "Phase"),
    *("Precision", "Dtype", "DType", "Variant", "Scheme", "Schedule", "Parameterization", "Objective", "Enum"),
    *("Choice", "Option", "Role", "Status", "Direction", "Flag", "Flags", "Names"),
)
_MAPPINGS = ("Dict", "Config", "Cfg", "Namespace", "Box", "Map", "Counter", "Settings", "Params")
_OF_CHOICES = re.compile(rf"_*([A-Z]\w*[a-z0-9_])?({'|'.join(CHOICES)})", re.ASCII)
_OF_MAPPINGS = re.compile(rf"\w*({'|'.join(_MAPPINGS)})", re.ASCII)

# Words in the name of a class, and packages, that run commands, fetch or open what they are given, or load code
_ACTING = {
    *("popen", "spawn", "process", "subprocess", "command", "commands", "cmd", "shell", "bash", "exec", "execute"),
    *("executor", "run", "runner", "system", "eval", "evaluate", "import", "importer", "loader", "opener", "ssh"),
    *("sftp", "ftp", "machine", "docker", "client", "connection", "server", "socket", "session", "launcher", "launch"),
    *("interpreter", "terminal", "downloader", "download", "installer", "install", "compiler", "compile", "script"),
    *("browser", "driver", "daemon", "proxy", "pickle", "pickler", "unpickler"),
}
_ACTING_PACKAGES = {
    *("pip", "setuptools", "pkg_resources", "wheel", "virtualenv", "conda", "pytest", "_pytest", "py", "pyximport"),
    *("cloudpickle", "dill", "joblib", "jsonpickle", "six", "future", "past", "jinja2", "mako", "yaml", "sympy"),
    *("pexpect", "ptyprocess", "winpty", "sh", "plumbum", "delegator", "fabric", "fabric2", "invoke", "psutil"),
    *("paramiko", "asyncssh", "docker", "kubernetes", "selenium", "playwright", "pyppeteer", "git", "dulwich"),
    *("keyring", "requests", "urllib3", "httpx", "aiohttp", "boto3", "botocore", "s3fs", "gcsfs", "fsspec"),
    *("smart_open", "IPython", "ipykernel", "jupyter_client", "celery", "rq", "execnet", "rpyc", "Pyro4", "Pyro5"),
    *("zmq", "twisted", "tornado", "gevent", "eventlet", "ansible", "airflow", "luigi", "cffi", "numexpr"),
    *("sqlalchemy", "pymysql", "psycopg2", "win32api", "win32com", "wmi", "pyautogui", "pynput", "nltk", "lxml"),
}
# Functions of any package that no configuration keeps a call of
_ACTING_FUNCTIONS = {
    *("system", "popen", "Popen", "exec", "eval", "execfile", "run", "call", "check_call", "check_output", "getoutput"),
    *("spawn", "shell", "execute", "import_module", "loads", "run_command", "run_cmd", "getattr", "setattr", "map"),
    *("filter", "reduce", "starmap", "apply", "compile", "open", "urlopen", "urlretrieve"),
}
_KEPT_PREFIXES = ("torch.nn.", "torch._C._nn.", "torch.optim.", "torch._C._VariableFunctionsClass.", "math.")
_PROGRAMS = {
    *("reboot", "shutdown", "poweroff", "halt", "sh", "bash", "zsh", "dash", "fish", "cmd", "powershell", "pwsh"),
    *("python", "python2", "python3", "perl", "ruby", "node", "php", "nc", "ncat", "netcat", "curl", "wget", "ssh"),
    *("sudo", "su", "rm", "mv", "cp", "dd", "mkfs", "kill", "killall", "pkill", "calc", "xcalc", "whoami", "id"),
    *("ls", "touch", "xterm", "env", "nohup", "exit", "quit"),
}
_PART_OF_A_NAME = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+")
_WORD = r"[\w+%-][\w+.%-]*"
_WORDS = re.compile(rf"(?=.{{1,64}}$){_WORD}(?:(/|[ ,]{{1,2}}){_WORD})*|", re.ASCII)
_OF_A_FILE = re.compile(r"(?i)\.(exe|com|bat|cmd|sh|ps1|vbs|jar|so|dll|py|pyc|pyw|pkl|pickle)\b")
_SMALL = range(-(2**20), 2**20 + 1)  # numbers that are no size to exhaust a machine with
_MOST_PARTS = 8  # of a value that is a tuple, and arguments


def may_be_called(kind: ClassName, arguments: tuple[object, ...]) -> bool:
    """Whether a call of another program's class can do no more than make a small value."""
    if not is_foreign(kind) or not is_class(kind) or len(arguments) > _MOST_PARTS:
        return False
    parts = _parts(arguments)
    if parts and all(map(_says_nothing, parts)):
        return True
    if acts(kind):
        return False
    if arguments == ():
        return True
    if len(arguments) == 1 and isinstance(arguments[0], dict):
        return bool(_OF_MAPPINGS.fullmatch(kind.name)) or all(map(_is_number, arguments[0].values()))
    if all(_says_nothing(part) or _is_of_words(part) for part in parts):
        return True
    known = len(arguments) == 1 and type(arguments[0]) is ClassName and canonical(arguments[0]) in FACTORIES
    return known or is_bounded(*arguments)


def is_of_unknown_words(kind: ClassName, arguments: tuple[object, ...]) -> bool:
    """Whether a class is given words that by its name is not sure to be an enumeration."""
    return any(type(part) is str for part in _parts(arguments)) and not _is_of_choices(kind)


def acts(kind: ClassName) -> bool:
    """Whether a class, by its name or its package, runs, opens or fetches what it is given."""
    words = {word.lower() for word in _PART_OF_A_NAME.findall(kind.name)}
    return _of_acting_package(kind) or bool(words & _ACTING and not _is_of_choices(kind))


def may_be_kept(function: object) -> bool:
    """Whether functools.partial may hold it: nobody calls it while a file is unpickled."""
    if type(function) is not ClassName:
        return False
    full, last = canonical(function), function.name.rpartition(".")[2]
    if is_foreign(function):
        return not _of_acting_package(function) and last not in _ACTING_FUNCTIONS
    return full in FACTORIES or full.startswith(_KEPT_PREFIXES)


def is_factory(*values: object) -> bool:
    """Of a defaultdict's values: a kind of container, a class of another program, or a call of one that is kept."""
    return len(values) < 2 and all(map(_makes_values, values))


def _makes_values(value: object) -> bool:
    if type(value) is ForeignObject and is_object(value, PARTIAL) and value.arguments:
        return _makes_values(value.arguments[0])
    if type(value) is not ClassName:
        return value is None
    return canonical(value) in FACTORIES or (is_foreign(value) and is_class(value) and not acts(value))


def _of_acting_package(kind: ClassName) -> bool:
    return kind.module.split(".")[0] in _ACTING_PACKAGES


def _is_of_choices(kind: ClassName) -> bool:
    return bool(_OF_CHOICES.fullmatch(kind.name.rpartition(".")[2]))


def _parts(arguments: tuple[object, ...]) -> tuple[object, ...]:
    """The arguments, or what is in the only one where that is a tuple."""
    alone = arguments[0] if len(arguments) == 1 else None
    return alone if type(alone) is tuple and len(alone) <= _MOST_PARTS else arguments


def _says_nothing(value: object) -> bool:
    if type(value) is ClassName:
        return canonical(value) in DTYPES or canonical(value) in DTYPES_WITHOUT_NUMBERS_HERE
    if isinstance(value, (tuple, list)):  # of a shape, or a set
        return 0 < len(value) <= _MOST_PARTS and all(map(_is_number, value))
    return _is_number(value) or type(value) is TensorSpec


def _is_number(value: object) -> bool:
    return value is None or type(value) in (bool, float) or (type(value) is int and value in _SMALL)


def _is_of_words(value: object) -> bool:
    if type(value) is not str or not _WORDS.fullmatch(value) or value.count("/") > 1:
        return False
    programs = _PROGRAMS & set(re.split("[ ,/]+", value.lower()))
    return not programs and ".." not in value and not _OF_A_FILE.search(value)


def is_bounded(*values: object) -> bool:
    """An empty tuple or list and the most that there may be, as a deque is given."""
    lengths = all(value is None or type(value) is int for value in values[1:])
    return 0 < len(values) < 3 and type(values[0]) in (tuple, list) and not values[0] and lengths
