"""Pictures as files: each holds all that is needed to draw it again, in a text chunk of a PNG, in the EXIF description
of a JPEG or a WebP.

What is read back comes from a file that anybody may have written: it is checked field by field before anything is done
with it.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, TypeVar

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydantic import Field, ValidationError, model_validator

from dittool.config.schema import LATER_SETTINGS, SampleSettings
from dittool.config.values import Counted, Section, Share, Size, require
from dittool.data.source.images import LARGEST_FILE
from dittool.errors import BadDataError, DitError, UsageError
from dittool.nearest import did_you_mean
from dittool.sampling.grid import parse_grid
from dittool.storage import require_replaceable, write_atomic
from dittool.whereabouts import exact_place, find, remembered

SETTINGS_KEY = "dit"  # the PNG text chunk that holds the settings as JSON
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
_PATHS = ("checkpoint", "weak", "reference", "init")  # settings that name a file
_EXIF_DESCRIPTION = 0x010E
_ENCODING: dict[str, dict[str, Any]] = {
    "PNG": {},
    "JPEG": {"quality": 95, "subsampling": 0},
    "WEBP": {"lossless": True},
}
_HINT = "--from needs a picture that dit sample has written, not edited or saved again since"

_MOST_STEPS, _MOST_AT_ONCE = 10_000, 64  # a file that asks for more asks for this machine's time

_Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Drawn(Section, extra="ignore"):
    """What stands inside every picture. Paths are as they were given."""

    checkpoint: str
    checkpoint_sha256: _Sha256
    seed: Counted
    # [first seed, count] of the images drawn together
    batch: Annotated[list[Counted], Field(min_length=2, max_length=2)] | None = None
    made_with: dict[str, object] = Field({})

    @model_validator(mode="after")
    def _of_its_batch(self) -> _Drawn:
        first, count = self.batch or (self.seed, 1)
        if not (1 <= count <= _MOST_AT_ONCE and first <= self.seed < first + count):
            raise ValueError(
                f"seed {self.seed} is none of a batch of {count} that begins at {first}, or the batch has more than"
                f" {_MOST_AT_ONCE}"
            )
        return self


class OneStepSettings(_Drawn):
    """What a picture of a one-step generator needs to be drawn again."""

    label: str = Field(alias="class")
    alpha: Annotated[float, Field(ge=1)]


class PictureSettings(_Drawn, SampleSettings, extra="ignore"):
    """What a picture of prompt and reference needs to be drawn again."""

    prompt: str | None
    reference: str | None
    reference_sha256: _Sha256 | None
    init: str | None = None
    init_sha256: _Sha256 | None = None
    strength: Share = 1.0
    negative: str | None = None
    weak: str | None = None
    weak_sha256: _Sha256 | None = None
    size: Size
    grid: Annotated[list[str], Field(min_length=2, max_length=2)] | None = None  # as the option: across, down

    @model_validator(mode="after")
    def _usable(self) -> PictureSettings:
        may_lack = {"guidance_interval", *LATER_SETTINGS, "cfg_weak"}
        left_out = SampleSettings.model_fields.keys() - self.model_fields_set - may_lack
        require(
            (not left_out, f"{', '.join(sorted(left_out))}: not said"),
            (self.steps <= _MOST_STEPS, f"steps {self.steps:,}: more than {_MOST_STEPS:,}"),
        )
        if self.grid is not None:
            parse_grid(self.grid)
        return self

    def sampling(self) -> dict[str, object]:
        """The fields of `SampleSettings`."""
        return self.model_dump(include=set(SampleSettings.model_fields))


_Settings = TypeVar("_Settings", PictureSettings, OneStepSettings)


@dataclass(frozen=True)
class Output:
    """Where pictures go: one file, or a folder in which nothing is overwritten."""

    folder: Path
    file: Path | None

    @staticmethod
    def of(out: Path, count: int, inputs: Sequence[Path | None] = (), force: bool = False) -> Output:
        """What `--out` means for `count` pictures. Nothing is made yet.

        Raises `UsageError` for one file where several pictures are drawn, for a format that cannot be written, and for
        a file that is an input or, without `force`, no picture of ours.
        """
        suffix = out.suffix.lower()
        if out.is_dir() or suffix not in Image.registered_extensions():
            return Output(out, None)
        if suffix not in FORMATS:
            raise UsageError(
                f"--out {out}: pictures are written as {', '.join(FORMATS)}", f"for example: --out {out.stem}.png"
            )
        if count > 1:
            raise UsageError(f"--out {out} names one file for {count} images", "name a folder, or draw one image")
        require_replaceable(out, [path for path in inputs if path], force, has_settings, "--out")
        return Output(out.parent, out)

    def path(self, stem: str) -> Path:
        """Of a picture that is called so where the output is a folder."""
        return self.file or free_path(self.folder / f"{stem}.png")


def write_picture(path: Path, image: Image.Image, settings: Mapping[str, object] | None = None) -> None:
    """A picture in the format of the path's suffix, complete or not at all, with its settings inside. Raises
    `UsageError` when a JPEG or a WebP has no room for them.
    """
    text = None if settings is None else json.dumps(settings, ensure_ascii=True)
    try:
        write_atomic(path, lambda file: _encode(file, image, FORMATS[path.suffix.lower()], text))
    except ValueError as error:  # of Pillow: EXIF has 64 kB
        raise UsageError(f"{path}: its settings do not fit into it: {error}", "give a .png, which has room") from error


def _encode(file: BinaryIO, image: Image.Image, kind: str, text: str | None) -> None:
    described: dict[str, Any] = {}
    if text is not None and kind == "PNG":
        described["pnginfo"] = PngInfo()
        described["pnginfo"].add_text(SETTINGS_KEY, text)
    elif text is not None:
        described["exif"] = Image.Exif()
        described["exif"][_EXIF_DESCRIPTION] = text
    image.save(file, format=kind, **_ENCODING[kind], **described)


def seen_from(folder: Path, settings: Mapping[str, object]) -> dict[str, object]:
    """Settings for a picture in `folder`, with the paths that a move of the project does not change."""
    return {
        key: remembered(Path(str(value)), folder) if key in _PATHS and value else value
        for key, value in settings.items()
    }


def file_of(picture: Path, text: str | None, given: Path | None, option: str) -> Path | None:
    """A file that a picture was drawn with: as the option gives it, else where the picture, which remembers `text`, has
    it. Raises `UsageError` naming the option when it is not there.
    """
    if given is not None or text is None:
        if given is not None and not given.exists():
            raise UsageError(f"{option} {given}: no such file", did_you_mean(given, "check the path"))
        return given
    found = find(text, picture.parent)
    if found is None:
        place = exact_place(text, picture.parent)
        raise UsageError(f"{picture} was drawn with {place}, which is not there", f"say where it is now: {option} PATH")
    return found


def free_path(path: Path) -> Path:
    """The path, or with the first number that makes it new: pictures drawn before are not overwritten."""
    free, number = path, 1
    while free.exists():
        number += 1
        free = path.with_stem(f"{path.stem}_{number}")
    return free


def is_of_one_step(path: Path) -> bool:
    """Whether a picture's settings name a class, as those of a one-step generator do. Raises as `read_settings`
    does.
    """
    try:
        inside = json.loads(_settings_text(path))
    except (ValueError, RecursionError) as error:
        raise BadDataError(f"{path}: the settings inside cannot be used: no JSON", _HINT) from error
    return isinstance(inside, dict) and "class" in inside


def read_settings(path: Path) -> PictureSettings:
    """The settings inside a picture. Raises `UsageError` when there is no such file and `BadDataError` when they
    cannot be read.
    """
    return _read(path, PictureSettings)


def read_one_step_settings(path: Path) -> OneStepSettings:
    """The same of a picture of a one-step generator."""
    return _read(path, OneStepSettings)


def _read(path: Path, kind: type[_Settings]) -> _Settings:
    text = _settings_text(path)
    try:
        return kind.model_validate_json(text)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = "".join(f"{part}: " for part in first["loc"])
        raise BadDataError(
            f"{path}: the settings inside cannot be used: {key}{first['msg'].removeprefix('Value error, ')}", _HINT
        ) from error
    except UsageError as error:
        raise BadDataError(f"{path}: the settings inside cannot be used: {error.message}", _HINT) from error


def same_pixels(path: Path, pixels: np.ndarray) -> bool:
    """Whether a picture's file holds exactly these pixels, (H, W, 3) uint8; of a JPEG, whether it holds what they
    become in one.
    """
    kind = FORMATS.get(path.suffix.lower(), "PNG")
    if kind == "JPEG":
        raw = io.BytesIO()
        _encode(raw, Image.fromarray(pixels), kind, None)
        pixels = np.asarray(Image.open(raw))
    with Image.open(path, formats=(kind,)) as image:
        return image.mode == "RGB" and np.array_equal(np.asarray(image), pixels)


def has_settings(path: Path) -> bool:
    """Whether a file is a picture of ours."""
    try:
        return bool(_settings_text(path))
    except DitError:
        return False


def _settings_text(path: Path) -> str:
    if not path.is_file():
        raise UsageError(f"--from {path}: no such file", did_you_mean(path, "check the path"))
    if path.stat().st_size > LARGEST_FILE:
        raise BadDataError(f"{path}: {path.stat().st_size:,} bytes, a picture has at most {LARGEST_FILE:,}", _HINT)
    kind = FORMATS.get(path.suffix.lower(), "PNG")
    try:
        with Image.open(path, formats=(kind,)) as image:
            image.load()  # reads the file to its end, where PNG may have its text
            text = image.info.get(SETTINGS_KEY) if kind == "PNG" else image.getexif().get(_EXIF_DESCRIPTION)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise BadDataError(f"{path}: not a readable {kind}: {error}", _HINT) from error
    ours = isinstance(text, str) and (kind == "PNG" or text.startswith("{"))  # anybody describes a picture
    if not ours:
        place = f"the PNG has no text chunk '{SETTINGS_KEY}'" if kind == "PNG" else "its EXIF has none of dit's"
        raise BadDataError(f"{path}: no settings inside: {place}", _HINT)
    return str(text)
