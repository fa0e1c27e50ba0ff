"""Every option of the commands beside training against every other: does each act, or is the line refused?

    python -m tests.bench.option_matrix RUN [SITUATION …]     RUN: the folder of a demo's run; half an hour on one core
    python -m tests.bench.option_matrix --singles RUN         each option alone, a few minutes

Prints what is wrong, then the counts of each situation. What a line did and how it is judged: tests/options/matrix.py.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.options.matrix import WRONG, Matrix
from tests.options.table import SITUATIONS, require_examples
from tests.options.workshop import build, class_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--singles", action="store_true")
    parser.add_argument("run", type=Path)
    parser.add_argument("situations", nargs="*")
    given = parser.parse_args()
    require_examples()
    with tempfile.TemporaryDirectory() as scratch:
        (workshop := Path(scratch) / "workshop").mkdir()
        build(workshop, given.run, class_run(Path(scratch) / "class"))
        matrix, total = Matrix(workshop, Path(scratch)), Counter[str]()
        for situation in SITUATIONS:
            if given.situations and not {situation.name, situation.command} & set(given.situations):
                continue
            start, counts = time.monotonic(), Counter[str]()
            lines = [(option,) for option in situation.options]
            for line in lines if given.singles else [*lines, *matrix.pairs(situation)]:
                outcome = matrix.single(situation, *line) if len(line) == 1 else matrix.pair(situation, *line)
                counts[outcome.split(":")[0]] += 1
                if outcome.startswith(WRONG):
                    print(f"  {situation.command}, {situation.name}: {' + '.join(line)}: {outcome}", flush=True)
            total += counts
            spent = time.monotonic() - start
            print(
                f"{situation.command}, {situation.name}: {counts.total()} lines in {spent:.0f} s: {dict(counts)}",
                flush=True,
            )
        print(f"in all {total.total()} lines: {dict(total)}")


if __name__ == "__main__":
    main()
