"""What the two processes say to each other: one JSON object a line, plain data that runs nothing when it is read."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

from dittool.audit.rule import Finding, Profile
from dittool.errors import BadDataError, DitError, StorageError, UnsafeFileError, UsageError

_ERRORS = {kind.exit_code: kind for kind in (UsageError, BadDataError, UnsafeFileError, StorageError)}


@dataclass(frozen=True)
class Request:
    """What is to be judged, and how it is opened."""

    target: str  # file.py:Name or package.module:Name
    codes: Sequence[str]  # of the rules, in the order in which they judge
    named: bool  # whether somebody asked for these rules
    kwargs: str | None = None
    example: str | None = None
    profile: Profile | None = None
    trained: bool = False

    def line(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_line(cls, line: str) -> Request:
        return cls(**json.loads(line))


def error_as_data(error: DitError) -> dict[str, object]:
    return {"code": error.exit_code, "message": error.message, "hint": error.hint}


def error_from_data(data: Mapping[str, object]) -> DitError:
    code, message, hint = data["code"], str(data["message"]), str(data["hint"])
    return _ERRORS[code](message, hint) if isinstance(code, int) and code in _ERRORS else DitError(message, hint)


def finding_from_data(data: Mapping[str, object]) -> Finding:
    said = {name: str(value) for name, value in data.items() if name != "ends"}
    return Finding(**said, ends=data.get("ends") is True)
