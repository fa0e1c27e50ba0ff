"""What runs in the process that judges a stranger's model: it opens the model, asks the rules one by one, and sends at
once what they find, so that nothing is lost when the next one ends the process.
"""

from __future__ import annotations

import builtins
import faulthandler
import json
import mmap
import os
import signal
import threading
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from inspect import getattr_static

import torch

from dittool.audit.isolation.messages import Request, error_as_data
from dittool.audit.isolation.watched import MOST_PROCESSES
from dittool.audit.registry import load_rules
from dittool.audit.rule import FAIL, SKIP, WARN, Finding
from dittool.audit.runner import audit_subject
from dittool.audit.specimens.foreign.model import ForeignModel
from dittool.audit.specimens.foreign.sources import line_of
from dittool.audit.subject import Foreign
from dittool.audit.targets import open_factory
from dittool.console import Talk
from dittool.errors import DitError, UsageError, described, is_debugging

Send = Callable[[Mapping[str, object]], None]


def main(asked: int, answering: int) -> None:
    """Reads a `Request` from one pipe and sends answers through the other."""
    prints = os.dup(2)
    faulthandler.enable(prints)
    faulthandler.register(signal.SIGUSR1, prints)  # of who watches, when nothing comes any more
    pipe = os.fdopen(asked)
    request = Request.from_line(pipe.readline())
    threading.Thread(target=_end_with_the_asker, args=[pipe.fileno()], daemon=True).start()
    send = _sender(answering)
    os.register_at_fork(before=_fork_counter(answering))
    try:
        _judge(request, send)
    except DitError as error:
        send({"error": error_as_data(error)})
    except BaseException as error:  # a stranger's code may raise anything
        if is_debugging():
            traceback.print_exc()
        send({"broke": described(error)})
    send({"end": True})


def _judge(request: Request, send: Send) -> None:
    rules, before = {rule.code: rule for rule in load_rules().rules}, _replaceable()
    send({"begin": True})
    try:
        subject = open_factory(request.target, request.kwargs, request.example, request.trained)
    except SystemExit as error:
        message = f"{request.target}: the model's own code calls exit({error.code!r}) where it is called"
        raise UsageError(message, "let it raise an error instead") from error
    now = _replaceable()
    changed = ", ".join(name for name, value in before.items() if _is_replaced(value, now.get(name)))
    if changed:
        send({"warn": f"the model's own code replaces {changed}: it is judged as it runs with that"})
    for code in request.codes:
        send({"rule": code})
        found = audit_subject(subject, [rules[code]], request.named, _Sending(send), profile=request.profile)
        for judged in found.findings:
            send({"finding": asdict(_with_line(judged.finding, subject))})
        for crash in found.crashes:
            if changed:
                why = f"the model's own code replaces {changed}, and with that this rule raises {crash.error}"
                send({"finding": asdict(Finding(SKIP, why))})
            else:
                send({"crash": crash.error, "counts": crash.counts})
        if any(judged.finding.ends for judged in found.findings):
            return


def _with_line(finding: Finding, subject: Foreign) -> Finding:
    """What is to be changed, with the line of the stranger's source."""
    if finding.status not in (FAIL, WARN) or not isinstance(subject.specimen, ForeignModel):
        return finding
    try:
        model, factory = subject.specimen.whole, subject.specimen.factory
        return replace(finding, where=line_of(model, factory, finding.evidence))
    except Exception:  # a stranger's classes may answer anything
        return finding


def _replaceable() -> dict[str, object]:
    """What a stranger's code may put something else in place of, by name."""
    modules = {"torch": torch, "torch.nn": torch.nn, "torch.nn.functional": torch.nn.functional, "builtins": builtins}
    classes = {"torch.Tensor": torch.Tensor, "torch.nn.Module": torch.nn.Module, "torch.nn.Linear": torch.nn.Linear}
    of_modules = {f"{room}.{name}": value for room, module in modules.items() for name, value in vars(module).items()}
    of_classes = {f"{room}.{name}": getattr_static(kind, name) for room, kind in classes.items() for name in dir(kind)}
    return of_modules | of_classes


def _is_replaced(before: object, after: object) -> bool:
    """Torch itself puts other functions of its own in place when parts of it are first used."""
    return before is not after and not str(getattr(after, "__module__", None)).startswith("torch")


def _sender(pipe: int) -> Send:
    """Sends from this process alone: what the model's code forks from it goes no further than to its next line."""
    process, write, encode, leave = os.getpid(), os.write, json.dumps, os._exit

    def send(message: Mapping[str, object]) -> None:
        if os.getpid() != process:
            leave(0)
        line = encode(message).encode() + b"\n"
        while line:
            line = line[write(pipe, line) :]

    return send


def _fork_counter(pipe: int) -> Callable[[], None]:
    """Ends the whole session where too many processes are forked from it, faster than one who watches could."""
    shared, write, kill = mmap.mmap(-1, 8), os.write, os.killpg  # of all these processes together

    def count() -> None:
        forks = int.from_bytes(shared[:], "little") + 1
        shared[:] = forks.to_bytes(8, "little")
        if forks > MOST_PROCESSES:
            write(pipe, json.dumps({"forks": forks}).encode() + b"\n")
            kill(0, signal.SIGKILL)

    return count


def _end_with_the_asker(pipe: int) -> None:
    while os.read(pipe, 1):
        pass
    os.killpg(0, signal.SIGKILL)


class _Sending(Talk):
    """Says nothing itself, and sends warnings."""

    def __init__(self, send: Send) -> None:
        self._send = send

    def warn(self, text: str) -> None:
        self._send({"warn": text})
