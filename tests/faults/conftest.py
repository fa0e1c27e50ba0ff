"""A clumsy or hostile user's desk: a few good drawn images, room for bad ones, and what the commands made of them.

Every test here goes in through the command line and judges what a user can see: the exit code, the lines, the files.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

FEATURE_FOLDERS = ("dinov3", "dinov3_patches", "vae_latents", "t5_hidden")
GOOD = ("scene-0001", "scene-0002", "scene-0003")


@dataclass(frozen=True)
class Embedded:
    """What `dit embed` left behind."""

    outcome: Any  # code, out, err
    folder: Path

    @property
    def rows(self) -> dict[str, dict[str, Any]]:
        """The lines of records.jsonl by the name that the source uses."""
        lines = (self.folder / "records.jsonl").read_text(encoding="utf-8").splitlines()
        return {row["name"]: row for row in map(json.loads, lines)}

    @property
    def answer(self) -> dict[str, Any]:
        """The object that `--json` printed."""
        return json.loads(self.outcome.out)

    @property
    def reasons(self) -> dict[str, str]:
        """Why each refused input was refused."""
        return {name: row["reason"] for name, row in self.rows.items() if row["status"] == "refused"}

    @property
    def used(self) -> set[str]:
        return {name for name, row in self.rows.items() if row["status"] == "used"}

    def array(self, feature: str, name: str) -> np.ndarray:
        return np.load(self.folder / feature / f"{self.rows[name]['id']}.npy", allow_pickle=False)

    def colour(self, name: str, across: float = 0.5, down: float = 0.5) -> tuple[int, ...]:
        """The colour that the stored latent shows at a place of the image, both from 0 to 1: what a model would be
        trained on.
        """
        from dittool.encoders.vae import load_codec

        # (H, W, 3)
        pixels = load_codec("builtin:dct").decode(torch.from_numpy(self.array("vae_latents", name)[None]))[0]
        height, width = pixels.shape[:2]
        return tuple(pixels[int(down * height), int(across * width)].tolist())

    def lost_nothing(self, **refused: str) -> Embedded:
        """Asserts that the run succeeded, that exactly these inputs were refused, and that all others are complete.

        `refused`: name → reason; a name that is no Python word goes in by `**{"a b": "reason"}`.
        """
        assert self.outcome.code == 0, self.outcome.err
        assert self.reasons == refused
        rows = self.rows.values()
        assert all(row["reason"] and row["detail"] for row in rows if row["status"] == "refused")
        assert self.used >= set(GOOD)
        assert (self.answer["inputs"], self.answer["used"]) == (len(rows), len(rows) - len(refused))
        return self.complete()

    def complete(self) -> Embedded:
        """Asserts that the used inputs and no others have their features, finite and complete, and that nothing is
        half-written.
        """
        ids = {row["id"] for row in self.rows.values() if row["status"] == "used"}
        for feature in FEATURE_FOLDERS:
            paths = list((self.folder / feature).iterdir())
            assert {path.stem for path in paths} == ids
            assert all(np.isfinite(np.load(path, allow_pickle=False)).all() for path in paths)
        assert not list(self.folder.rglob(".tmp-*"))
        assert "Traceback" not in self.outcome.out + self.outcome.err
        return self


@dataclass(frozen=True)
class Desk:
    """A folder of images beside the folder of their features."""

    dit: Callable[..., Any]
    root: Path

    @property
    def images(self) -> Path:
        return self.root / "images"

    def put(self, name: str, image: bytes, caption: str | bytes | None = "a picture") -> Path:
        """An image file and its caption; None: no caption."""
        path = self.images / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
        if caption is not None:
            path.with_suffix(".txt").write_bytes(caption if isinstance(caption, bytes) else caption.encode())
        return path

    def embed(self, *options: object, source: Path | None = None, out: str = "derived") -> Embedded:
        """`dit embed` of the images with the demo preset, its numbers as JSON."""
        outcome = self.dit(
            "embed", source or self.images, "--preset", "demo", "--out", self.root / out, "--json", *options
        )
        return Embedded(outcome, self.root / out)

    def run(self, *arguments: object) -> Any:
        """Any other command."""
        return self.dit(*arguments)


@pytest.fixture(scope="session")
def drawn_images(tmp_path_factory) -> Path:
    from dittool.demo.drawing import draw_dataset

    folder = tmp_path_factory.mktemp("drawn_images")
    draw_dataset(folder, len(GOOD), seed=0)
    return folder


@pytest.fixture
def desk(dit, drawn_images, tmp_path) -> Desk:
    """Three good images with captions, free to be joined by others."""
    shutil.copytree(drawn_images, tmp_path / "images")
    return Desk(dit, tmp_path)


@pytest.fixture
def shards(tiny_shards, tmp_path) -> Path:
    """Two dozen samples in shards with their index, free to be damaged."""
    return shutil.copytree(tiny_shards.folder, tmp_path / "shards")


@pytest.fixture
def older_shards(shards) -> Path:
    """The same without an index, as other tools write them."""
    for path in (shards / "index.json", *shards.rglob("*.members.json")):
        path.unlink()
    return shards


@pytest.fixture
def one_error():
    """`one_error(outcome, 3, "what", "which")`: the exit code, then one line with these words, then a next step, and
    nothing else of an error.
    """

    def check(outcome: Any, code: int, *words: str) -> str:
        lines = outcome.err.splitlines()
        errors = [line for line in lines if line.startswith("error: ")]
        assert (outcome.code, len(errors)) == (code, 1), outcome.err
        assert all(word in errors[0] for word in words), errors[0]
        rest = lines[lines.index(errors[0]) + 1 :]  # longer messages go on, indented deeper than the next step
        assert rest[-1].startswith("  next: ") and all(line.startswith("    ") for line in rest[:-1])
        assert "Traceback" not in outcome.out + outcome.err
        return errors[0]

    return check


@pytest.fixture
def readers(desk, tiny_shards):
    """`readers(shards)`: what each command that reads shards says of them, by its name; a training that starts is a
    tiny one.
    """
    options = [part for override in tiny_shards.overrides for part in ("-s", override)]
    train = ("train", "--preset", "demo", "--no-audit")

    def read(shards):
        return {
            "verify": desk.run("shard", "--verify", "--out", shards),
            "audit": desk.run("audit", shards),
            "train": desk.run(*train, "--data", shards, "--out", desk.root / "run", *options),
        }

    return read


@pytest.fixture
def refused(readers, one_error):
    """`refused(shards, code, "word")`: verify and train end with this code and say the word, the audit fails, and
    no run was begun.
    """

    def check(shards, code, *words):
        read = readers(shards)
        for name in ("verify", "train"):
            one_error(read[name], code, *words)
        assert read["audit"].code in (1, code), read["audit"].err
        assert not list(shards.parent.glob("run/checkpoints/*"))

    return check
