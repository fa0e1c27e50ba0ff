"""A script that calls `embed()` while it is imported is told what it lacks, and not that memory is short."""

from __future__ import annotations

import subprocess
import sys

import pytest

SCRIPT = """
from pathlib import Path
from dittool.config.load import load_config
from dittool.data.features import pipeline
from dittool.data.features.embed import embed
pipeline._WORTH_A_PROCESS = pipeline._SMALL = 1  # worker processes for a few drawings
GUARDembed(Path(r"SOURCE"), Path("derived"), load_config("demo"), ("vae",))
"""


@pytest.mark.slow
@pytest.mark.parametrize("guard", ["", pytest.param('if __name__ == "__main__": ', marks=pytest.mark.slow)])
def test_worker_processes_of_a_script(tiny_shards, tmp_path, guard):
    script = tmp_path / "mine.py"
    script.write_text(SCRIPT.replace("GUARD", guard).replace("SOURCE", str(tiny_shards.images)))
    run = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, check=False)
    if guard:
        assert (run.returncode, run.stderr) == (0, "")
        return
    assert run.returncode == 1
    last = run.stderr.splitlines()[-1]
    assert str(script) in last and 'if __name__ == "__main__"' in last and "memory" not in last
    assert "already in use" not in run.stderr, "the workers themselves say nothing"
