"""The remedy for a torchvision that does not fit torch. Each test is a fresh process: the damage is done at import."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

# What the registry's CUDA build does beside a CPU torch, in three lines: it describes an operator that nobody defined.
MISFIT = """
import torchvision.half
import torch
torch.library.register_fake("torchvision::nms")(lambda dets, scores, iou_threshold: dets)
torch.library.register_fake("torchvision::qnms")(lambda dets, scores, iou_threshold: dets)
"""


def python(code: str, torchvision: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Runs the code in a fresh process in which `torchvision`, if given, is the only one of that name."""
    path = f"import sys; sys.path.insert(0, {str(torchvision)!r})\n" if torchvision else ""
    return subprocess.run([sys.executable, "-c", path + code], capture_output=True, text=True, check=False)


@pytest.fixture
def stand_in(tmp_path):
    def write(source: str) -> Path:
        package = tmp_path / "torchvision"
        package.mkdir()
        (package / "__init__.py").write_text(source)
        (package / "half.py").write_text("print('half imported')")
        return tmp_path

    return write


@pytest.mark.slow
def test_transformers_diffusers_and_lpips_import_after_the_remedy():
    run = python(
        "from dittool.encoders.torchvision_remedy import ensure_torchvision\n"
        "ensure_torchvision()\n"
        "from transformers import DINOv3ViTModel\n"
        "from diffusers import AutoencoderKL\n"
        "import lpips\n"
        "print(DINOv3ViTModel.__name__, AutoencoderKL.__name__, lpips.LPIPS.__name__)"
    )
    assert run.stdout.split()[-3:] == ["DINOv3ViTModel", "AutoencoderKL", "LPIPS"], run.stderr


def test_a_misfit_torchvision_cannot_be_imported_without_the_remedy(stand_in):
    run = python("import torchvision", stand_in(MISFIT))
    assert "operator torchvision::nms does not exist" in run.stderr


def test_a_misfit_torchvision_is_imported_whole_with_the_remedy(stand_in):
    run = python(
        "from dittool.encoders.torchvision_remedy import ensure_torchvision\n"
        "ensure_torchvision()\n"
        "ensure_torchvision()\n"
        "import torchvision, gc; gc.collect()\n"
        "import torch; print(torch.ops.torchvision.nms.default.name(), torchvision.half.__name__)",
        stand_in(MISFIT),
    )
    assert run.stdout.splitlines() == ["half imported", "half imported", "torchvision::nms torchvision.half"], (
        run.stderr
    )


def test_nothing_changes_where_torchvision_loads(stand_in):
    run = python(
        "from dittool.encoders.torchvision_remedy import ensure_torchvision\n"
        "ensure_torchvision()\n"
        "import torchvision; print(torchvision.loaded, 'torch' in sys.modules)",
        stand_in("loaded = 'as it is'"),
    )
    assert run.stdout.strip() == "as it is False", run.stderr


@pytest.mark.parametrize(
    "failure",
    ["RuntimeError('another reason')", "ImportError('no such symbol')", "ModuleNotFoundError('no PIL', name='PIL')"],
)
def test_any_other_failure_of_torchvision_is_shown(stand_in, failure):
    run = python(
        "from dittool.encoders.torchvision_remedy import ensure_torchvision\nensure_torchvision()",
        stand_in(f"raise {failure}"),
    )
    assert run.returncode == 1
    assert run.stderr.strip().splitlines()[-1].split(":")[0] == failure.split("(")[0]


def test_a_missing_torchvision_is_left_to_the_libraries(tmp_path):
    run = python(
        "sys.path = [entry for entry in sys.path if 'site-packages' not in entry]\n"
        "from dittool.encoders.torchvision_remedy import ensure_torchvision\n"
        "ensure_torchvision(); print('torchvision' in sys.modules)",
        Path(__file__).resolve().parents[2],
    )
    assert run.stdout.strip() == "False", run.stderr
