"""The `dit` program: its list of commands, third-party commands, and the one place where errors end.

Nothing is imported before it is asked for: `dit --help` knows each command's name and line from the table below, or
from a plugin's metadata, and only the command that is called is loaded. A command is a function with Typer annotations
whose docstring is its help; it returns nothing, or ends with `raise typer.Exit(code)`.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import select
import signal
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from importlib.metadata import EntryPoint
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from dittool import __version__
from dittool.completion import COMPLETE_VARIABLE
from dittool.console import Console, abandon, prepare_streams
from dittool.errors import (
    ANSWER_IS_NO,
    BUG,
    DONE,
    DitError,
    Interrupted,
    StorageError,
    UsageError,
    described,
    from_os_error,
    is_debugging,
    is_out_of_descriptors,
    no_descriptor_left,
    one_line,
)
from dittool.plugins import REMEDY, installed, package_of

# In the order of the work. The module is dittool.commands.NAME, and its docstring begins with the line.
BUILT_IN = {
    "demo": "Draw, embed, shard, audit, train, validate and sample.",
    "embed": "Make the features of every image and caption that has none.",
    "shard": "Pack features into shards per bucket, or verify a set.",
    "audit": "Check a checkpoint, preset, run, data folder or model.",
    "train": "Train a model.",
    "ablate": "Train the same run with one thing changed, pair by pair.",
    "runs": "List runs: state, step, losses, verdict, time left.",
    "validate": "Judge a checkpoint: three tests, a verdict, a report.",
    "sample": "Draw images with a trained model (its EMA weights).",
    "inspect-ckpt": "Show what is in a checkpoint without running any of it.",
    "average": "Average weights over a length chosen after training.",
    "warmstart": "Carry old weights over to another architecture.",
    "export": "Make a folder that others load without dit.",
    "presets": "List the presets, or print one.",
    "bench": "Measure this machine on a preset.",
    "doctor": "Find what of this machine and installation will bite.",
}
PLUGIN_GROUP = "dit.commands"
Loaded = TyperCommand | TyperGroup  # what a stub becomes when it is called
BROKEN_PIPE = 128 + 13  # as a shell reports a program whose reader had gone
_HELP = (
    "Train diffusion transformers with two conditions, and prove at every step that what was built is what was asked"
    " for."
)


def main() -> None:
    """The console script: runs the command line of this process and exits with its code."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed by the caller: dit … >&-
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    prepare_streams()
    sys.exit(run(sys.argv[1:]))


def run(arguments: Sequence[str]) -> int:
    """Runs one command line and returns its exit code. Every error ends here, as one line and a next step on stderr."""
    if COMPLETE_VARIABLE in os.environ:
        return _answer_shell()
    try:
        code = _invoke(build_root(installed_commands()), arguments)
        sys.stdout.flush()
        return code if isinstance(code, int) else DONE
    except typer.Exit as stop:
        return stop.exit_code
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, BrokenPipeError) and _reader_is_gone():
            abandon(sys.stdout)
            return BROKEN_PIPE
        if is_debugging():
            import traceback

            traceback.print_exception(error)
        explained = explain(error)
        Console().error(explained.message, explained.hint)
        return explained.exit_code


def build_root(plugins: Iterable[EntryPoint]) -> TyperGroup:
    """The `dit` command with a stub for each built-in and each plugin. Says on stderr which plugins are refused."""
    settings = {"help_option_names": ["-h", "--help"], "max_content_width": 100}  # commands inherit them
    # help by Rich would take twice as long
    app = typer.Typer(add_completion=True, rich_markup_mode=None, context_settings=settings)
    app.callback(invoke_without_command=True, help=_HELP)(_root)
    root = typer.main.get_command(app)  # with the options of completion, which get_group leaves out
    assert isinstance(root, TyperGroup)
    for name, line in BUILT_IN.items():
        root.add_command(_Stub(name, line, partial(_built_in_command, name)))
    for plugin in plugins:
        if plugin.name in root.commands:
            Console().warn(f"{_title(plugin)} is not used: a command of that name exists already")
        else:
            root.add_command(_Stub(plugin.name, f"({_title(plugin)})", partial(_plugin_command, plugin), plugin))
    return root


def installed_commands() -> list[EntryPoint]:
    """What installed packages offer in the entry-point group `dit.commands`, without importing any of it. Says on
    stderr whose entry points cannot be read.
    """
    plugins, refused = installed(PLUGIN_GROUP)
    for line in refused:
        Console().warn(line)
    return plugins


class _Stub(TyperCommand):
    """A command that is imported when it is called; until then its name and one line are known."""

    def __init__(self, name: str, line: str, load: Callable[[], Loaded], plugin: EntryPoint | None = None) -> None:
        super().__init__(name, help=line)
        self._load, self.plugin = load, plugin

    def make_context(self, info_name: str | None, args: list[str], *rest: Any, **settings: Any) -> Any:
        command = self._load()
        try:
            # the real command's context: it parses, and it is run
            context: Any = command.make_context(info_name, list(args), *rest, **settings)
        except typer.TyperException as error:
            raise _usage_error(error, command) from error
        for line in _given_twice(command, context, args):
            Console().warn(line)
        return context


def _root(
    context: typer.Context, version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False
) -> None:
    if version:
        typer.echo(f"dit {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def _given_twice(command: Loaded, context: typer.Context, arguments: list[str]) -> list[str]:
    """A line for each option that was given more than once where only the last one counts."""
    values, _, given = command.make_parser(context).parse_args(list(arguments))
    lines = []
    for parameter, times in Counter(given).items():
        one_counts = (
            parameter.param_type_name == "option" and not parameter.multiple and not getattr(parameter, "count", 0)
        )
        is_switch = getattr(parameter, "is_flag", False) and not parameter.secondary_opts
        if times > 1 and one_counts and not is_switch:
            value = values[parameter.name]
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            lines.append(f"{parameter.opts[0]} is given {times} times: the last one holds, {shown}")
    return lines


def _invoke(root: TyperGroup, arguments: Sequence[str]) -> object:
    with root.make_context("dit", list(arguments)) as context:
        try:
            return root.invoke(context)
        except (typer.Exit, BrokenPipeError):
            raise
        except (Exception, SystemExit) as error:
            stub = root.commands.get(context.invoked_subcommand or "")
            plugin = stub.plugin if isinstance(stub, _Stub) else None
            if isinstance(error, SystemExit) and not isinstance(error.code, str):  # a code of the program's own
                raise typer.Exit(error.code or DONE) from error
            if plugin is None or explain(error).exit_code != BUG:
                raise
            raise DitError(
                f"{_title(plugin)} failed: {described(error)}",
                "run again with DIT_DEBUG=1 and report it to its authors",
            ) from error


def _answer_shell() -> int:
    """What may stand where the cursor is, for a shell whose user pressed Tab. Silent when it cannot be said: a message
    would be printed into the line that is being typed.
    """
    try:
        build_root(installed(PLUGIN_GROUP)[0]).main([], "dit", complete_var=COMPLETE_VARIABLE, standalone_mode=False)
    except SystemExit as stop:
        return int(stop.code or 0)
    except Exception:
        if is_debugging():
            raise
    return ANSWER_IS_NO


def _reader_is_gone() -> bool:
    """Whether it is stdout that nobody reads any more, and not a pipe between our own processes."""
    watch = select.poll()
    watch.register(sys.stdout, 0)  # a broken pipe is reported without being asked for
    return bool(watch.poll(0))


def _built_in_command(name: str) -> Loaded:
    _require_posix()
    return _command(name, importlib.import_module(f"dittool.commands.{name.replace('-', '_')}").main)


def _require_posix() -> None:
    """Every command locks files and handles signals in the way of Unix, which Windows does not have."""
    if importlib.util.find_spec("fcntl") is None:
        raise UsageError(
            f"dit runs on Linux and macOS; this Python, on {sys.platform}, has no fcntl",
            "on Windows use WSL (https://learn.microsoft.com/windows/wsl/install) and install dit there",
        )


def _command(name: str, function: Callable[..., None]) -> Loaded:
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command(name)(function)
    return _made(app)


def _made(app: typer.Typer) -> Loaded:
    command = typer.main.get_command(app)
    assert isinstance(command, Loaded)  # Typer makes nothing else
    return command


def _plugin_command(plugin: EntryPoint) -> Loaded:
    """The command that an entry point names: a function like the built-ins', or a Typer app."""
    try:
        found = plugin.load()
        if isinstance(found, typer.Typer):
            return _made(found)
        if not callable(found):
            raise TypeError(f"{plugin.value} is a {type(found).__name__}, not a function and not a Typer app")
        return _command(plugin.name, found)
    except (Exception, SystemExit) as error:  # somebody else's module: anything can happen while it is imported
        hint = f"{REMEDY}; the other commands are not affected"
        raise UsageError(f"{_title(plugin)} cannot be loaded: {described(error)}", hint) from error


def _title(plugin: EntryPoint) -> str:
    return f"plugin '{plugin.name}' of {package_of(plugin)}"


def explain(error: BaseException) -> DitError:
    """What the user is told about an error that reached the top: message, next step, exit code."""
    if isinstance(error, DitError):
        return error
    if isinstance(error, typer.TyperException):
        return _usage_error(error)
    if isinstance(error, (KeyboardInterrupt, typer.Abort)):
        return Interrupted("interrupted", "", signal.SIGINT)
    if isinstance(error, OSError) and (storage_error := from_os_error(error)):
        return storage_error
    if is_out_of_descriptors(error):
        return no_descriptor_left("a socket, a library or a file")
    return _memory_error(error) or DitError(
        f"internal error: {described(error)}", "run again with DIT_DEBUG=1 for a traceback, and report it"
    )


def _usage_error(error: typer.TyperException, command: Loaded | None = None) -> UsageError:
    context = getattr(error, "ctx", None)
    path = context.command_path if context else f"dit {command.name}" if command else "dit"
    see, option = f"see {path} --help", getattr(error, "option_name", "")
    if hasattr(error, "possibilities"):  # there is no such option
        near = _options_near(option, command) if command else error.possibilities
        return UsageError(error.message, f"did you mean {' or '.join(near)}? {see}" if near else see)
    for parameter in command.params if command else ():
        if option in parameter.opts and parameter.metavar:  # it stands without its value
            see = f"write {option} {parameter.metavar}; {see}"
    return UsageError(one_line(error.format_message()).replace(": Value error, ", ": ", 1), see)


def _options_near(written: str, command: Loaded) -> list[str]:
    """What somebody may have meant who wrote an option that there is not: an option, or a key of the configuration."""
    options = [name for parameter in command.params for name in parameter.opts if name.startswith("--")]
    words = {option[2:]: option for option in [*options, "--help"]}
    if "--set" in options:
        from dittool.config.load import keys_by_name

        words = {name: f"-s {key}=…" for name, key in keys_by_name().items()} | words
    word = written.lstrip("-").partition("=")[0].replace("-", "_")
    return [words[name] for name in difflib.get_close_matches(word, words, n=1, cutoff=0.75)]


def _memory_error(error: BaseException) -> StorageError | None:
    if isinstance(error, getattr(sys.modules.get("torch"), "OutOfMemoryError", ())):
        # what was asked for and what the device has; then comes advice to programmers
        message = ". ".join(one_line(error).split(". ")[:3])
    elif isinstance(error, MemoryError) or "DefaultCPUAllocator" in str(error):
        message = f"out of memory: {one_line(error) or 'this process could not get more'}"
    else:
        return None
    return StorageError(message, "make the batch or the model smaller, or set model.gradient_checkpointing = true")
