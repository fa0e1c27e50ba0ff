"""Prints what CHANGELOG.md says of a version, for the page of its release: python .ci/release_notes.py 0.2.0

Exits with 1 when there is nothing, or when it is not the package's version ("Unreleased" is what comes next).
"""

from __future__ import annotations

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UNRELEASED = "Unreleased"


def version() -> str:
    """As the package says it, read without importing it."""
    source = (ROOT / "dittool" / "__init__.py").read_text(encoding="utf-8")
    found = re.search(r'^__version__ = "([^"]+)"', source, re.MULTILINE)
    assert found is not None
    return found[1]


def notes(changelog: str, of: str) -> str:
    """The section of a version, "" without one. `## 0.1.0` and `## 0.1.0 (2026-01-01)` are its heading."""
    parts = re.split(r"^## (\S+).*\n", changelog, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True)).get(of, "").strip()


def main(wanted: str) -> int:
    wanted = wanted.removeprefix("v")  # of a tag
    if wanted not in (UNRELEASED, version()):
        print(f"release {wanted}: the package says {version()} (dittool/__init__.py)", file=sys.stderr)
        return 1
    found = notes((ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), wanted)
    if not found:
        print(f"CHANGELOG.md: nothing under '## {wanted}'", file=sys.stderr)
        return 1
    print(found)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
