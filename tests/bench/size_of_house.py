"""How large the house is: files, lines, statements, `Any`, room by room; then forks on an architecture's name and
circles.

    python -m tests.bench.size_of_house [FOLDER]     of this checkout, or of another (`git worktree add ../old v0.1.0`)

Growth is measured in statements: a formatter makes lines, not statements. Docstrings and comments do
not count as such.
"""

from __future__ import annotations

import ast
import sys
from collections import Counter
from pathlib import Path

from tests.house import House, circles, statements, uses_of_any

COLUMNS = ("files", "lines", "statements", "Any")


def size_of(paths: list[Path]) -> Counter[str]:
    texts = [path.read_text(encoding="utf-8") for path in paths]
    trees = [ast.parse(text) for text in texts]
    return Counter(
        {
            "files": len(paths),
            "lines": sum(len(text.splitlines()) for text in texts),
            "statements": sum(map(statements, trees)),
            "Any": sum(map(uses_of_any, trees)),
        }
    )


def row(name: str, size: Counter[str]) -> str:
    return f"{name:<14}" + "".join(f"{size[column]:>12,}" for column in COLUMNS)


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[2]).resolve()
    house = House(root)
    rooms: dict[str, list[Path]] = {}
    for name, path in house.files.items():
        rooms.setdefault(house.room_of(name), []).append(path)
    print(f"{'room':<14}" + "".join(f"{column:>12}" for column in COLUMNS))
    for room, paths in sorted(rooms.items()):
        print(row(room, size_of(paths)))
    print(row("source", size_of(list(house.files.values()))))
    print(row("tests", size_of(sorted((root / "tests").rglob("*.py")))))
    found = house.forks_outside_families()
    print(f"\nforks on an architecture's name outside families/ and config/: {sum(map(len, found.values()))}")
    for name, places in found.items():
        print(f"  {name}: {' · '.join(places)}")
    between = {room: set(targets) for room, targets in house.room_arrows.items()}
    for what, circle in (("files", circles(house.arrows)), ("rooms", circles(between))):
        print(f"circles between {what}: {len(circle)}")
        for names in circle:
            print(f"  {' · '.join(names)}")


if __name__ == "__main__":
    main()
