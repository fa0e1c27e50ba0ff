"""A contact sheet: pictures as the encoders will see them, captions beneath and what is odd about them marked, so that
a person finds a wrong pairing or a wrong crop in ten seconds. Nothing is encoded.

Shown are two pictures with each mark, a few of every bucket, and as many more as fit, all chosen by the hash of the
image: the same source gives the same sheet.
"""

from __future__ import annotations

import io
import re
import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont, PngImagePlugin

from dittool.config.architectures import ImageConfig
from dittool.console import SILENT, Talk, escaped
from dittool.data.records import UNKNOWN_WORDS, Record
from dittool.data.source.formats import ImageRefused
from dittool.data.source.item import Pairing, shown
from dittool.data.source.scan import DUPLICATE, ScanSummary, load_pixels, scan, summary
from dittool.encoders.text import token_counter
from dittool.errors import BadDataError, UsageError
from dittool.geometry import Bucket
from dittool.storage import write_atomic

MOST_SHOWN = 42
_SIGNED = ("Software", "dit embed --preview")
_OF_A_MARK, _OF_A_BUCKET = 2, 4
_MUCH_CROPPED = 0.2  # share of the picture that is cut off
_FEW_WORDS = 2
_MANY_ALIKE = 3  # images with one caption
_MARKS_OF_FLAGS = {
    "exif-rotated": "turned",
    "icc-converted": "colours converted",
    "icc-ignored": "colours not converted",
    "cmyk-converted": "inks converted",
    "16-bit-reduced": "16 bits reduced",
    "alpha-composited": "transparent",
    "first-frame-only": "first frame",
    "no-end-chunk": "end missing",
    "upscaled": "enlarged",
    DUPLICATE: "duplicate",
    UNKNOWN_WORDS: "unknown words",
}

# Pixels of the sheet
_COLUMNS, _CELL, _TALLEST, _GAP, _EDGE = 6, 264, 220, 20, 32
_CAPTION_LINES = 5
_FOR_MANY_SCRIPTS = re.compile(r"(?i)noto|cjk|han|hei|ming|song|gothic|unifont|droid|arial ?uni")
_FONTS_LOOKED_AT = 60
_PAPER, _INK, _FAINT, _RULE, _EMPTY = "#ffffff", "#1a1a1a", "#767676", "#d8d8d8", "#ececec"
_TAG_PAPER, _TAG_INK = "#fdebc8", "#7a4b00"


@dataclass(frozen=True)
class Sheet:
    """A drawn contact sheet and what it counts."""

    image: Image.Image
    shown: int
    used: int
    refused: int
    marks: dict[str, int]  # what is odd → how many of all used images
    examples: dict[str, str]  # the same → the first one's name

    def rows(self) -> list[tuple[str, int, str]]:
        """(what is odd, how many, the first)."""
        return [(mark, count, self.examples[mark]) for mark, count in sorted(self.marks.items())]

    def figures(self) -> dict[str, object]:
        """All but the picture."""
        return {key: value for key, value in vars(self).items() if key != "image"}


def preview(source: Path, config: ImageConfig, talk: Talk = SILENT) -> Sheet:
    """The contact sheet of a source. Raises as `scan` does, and `BadDataError` when no image can be used."""
    data = config.data
    records = scan(source, data.bucket_sizes(), talk, pairing=Pairing.of(data), keep=data.keep)
    used = [record for record in records if record.used]
    if not used:
        first = next((record for record in records if record.detail), None)
        why = f": {shown(first.name)}: {first.detail}" if first else ""
        raise BadDataError(f"{source}: none of {len(records)} images can be used{why}", "each image needs a caption")
    counter = token_counter(config.encoders.text)
    if counter is None:
        talk.note(f"the tokenizer of {config.encoders.text} is not on this disk: captions that it cuts are not marked")
    marks = marks_of(used, config.encoders.max_text_tokens, counter)
    chosen = choose(used, marks)
    counts = Counter(_kind(mark) for record in used for mark in marks[record.id])
    examples = {_kind(mark): shown(record.name) for record in reversed(used) for mark in marks[record.id]}
    sheet = _draw(source, records, chosen, marks, talk)
    return Sheet(sheet, len(chosen), len(used), len(records) - len(used), dict(counts), examples)


def save_sheet(sheet: Sheet, path: Path) -> None:
    """Writes the sheet as PNG, over an earlier one too. Raises `UsageError` when the path is no .png, or another file
    stands there.
    """
    if path.suffix.lower() != ".png":
        raise UsageError(f"--preview {path}: a sheet is a .png", "give a file that ends in .png")
    if path.exists() and not _is_sheet(path):
        raise UsageError(f"{path}: stands there already and is no sheet of an earlier preview", "give another file")
    notes = PngImagePlugin.PngInfo()
    notes.add_text(*_SIGNED)
    file = io.BytesIO()
    sheet.image.save(file, "PNG", pnginfo=notes)
    write_atomic(path, file.getvalue())


def _is_sheet(path: Path) -> bool:
    try:
        with Image.open(path, formats=("PNG",)) as image:
            return image.info.get(_SIGNED[0]) == _SIGNED[1]
    except (OSError, ValueError, SyntaxError):
        return False


def pairs_to_show(records: Sequence[Record], count: int = 5) -> list[Record]:
    """A few used records, chosen by the hash of the image."""
    return _by_hash(record for record in records if record.used and not record.flipped)[:count]


def marks_of(
    used: Sequence[Record], max_tokens: int, token_count: Callable[[str], int] | None
) -> dict[str, tuple[str, ...]]:
    """Id → what is odd about a record, in a few words each. `token_count` of a caption: None when nobody can count."""
    alike = Counter(record.caption for record in used)

    def marks(record: Record) -> Iterable[str]:
        flags = {flag.partition(":")[0] for flag in record.flags}
        yield from (mark for flag, mark in _MARKS_OF_FLAGS.items() if flag in flags)
        if (cropped := _cropped(record)) > _MUCH_CROPPED:
            yield f"cropped by {cropped:.0%}"
        # a token has a byte at least, so short captions need not be counted
        if token_count is not None and len(record.caption.encode()) + 2 > max_tokens:
            tokens = token_count(record.caption)
            if tokens > max_tokens:
                yield f"caption cut: {tokens} tokens"
        if record.cls:
            return  # the name of its class is all that it is meant to have
        if alike[record.caption] >= _MANY_ALIKE:
            yield f"caption shared by {alike[record.caption]}"
        elif _words(record.caption) in (_words(Path(record.name).name), _words(Path(record.name).parent.name)):
            yield "caption is a file's name"
        elif len(record.caption.split()) <= _FEW_WORDS and record.caption.isascii():  # other scripts have no spaces
            yield "short caption"

    return {record.id: tuple(marks(record)) for record in used}


def choose(used: Sequence[Record], marks: dict[str, tuple[str, ...]]) -> list[Record]:
    """The records that are shown, by bucket, the marked ones first."""
    in_order = _by_hash(used)
    by_mark: dict[str, list[Record]] = defaultdict(list)
    by_bucket: dict[str, list[Record]] = defaultdict(list)
    for record in in_order:
        by_bucket[record.bucket].append(record)
        for mark in marks[record.id]:
            by_mark[_kind(mark)].append(record)
    wanted = [record for kind in sorted(by_mark) for record in by_mark[kind][:_OF_A_MARK]]
    wanted += [record for bucket in sorted(by_bucket) for record in by_bucket[bucket][:_OF_A_BUCKET]]
    chosen = list({record.id: record for record in [*wanted, *in_order]}.values())[:MOST_SHOWN]
    return sorted(chosen, key=lambda record: (-len(by_bucket[record.bucket]), record.bucket, not marks[record.id]))


def _by_hash(records: Iterable[Record]) -> list[Record]:
    return sorted(records, key=lambda record: (record.image_sha256, record.id))


def _cropped(record: Record) -> float:
    """The share of the upright picture that its bucket does not show."""
    if record.crop is None or not record.width * record.height:
        return 0.0
    left, top, right, bottom = record.crop
    return 1 - (right - left) * (bottom - top) / (record.width * record.height)


def _kind(mark: str) -> str:
    """The mark without its numbers."""
    return mark.partition(":")[0].rstrip("0123456789%").removesuffix(" by ").removesuffix(" by").strip()


def _words(text: str) -> str:
    return " ".join(text.casefold().replace("_", " ").replace("-", " ").split())


# --- drawing ---


def _draw(
    source: Path, records: Sequence[Record], chosen: Sequence[Record], marks: dict[str, tuple[str, ...]], talk: Talk
) -> Image.Image:
    counts = summary(records)
    cells: dict[str, list[Image.Image]] = defaultdict(list)
    with talk.progress("preview", len(chosen), "image") as task:
        for record in chosen:
            cells[record.bucket].append(_cell(record, source, marks[record.id]))
            task.advance()
    width = 2 * _EDGE + _COLUMNS * _CELL + (_COLUMNS - 1) * _GAP
    blocks = [_heading(source, counts, width)]
    for bucket, pictures in cells.items():
        blocks.append(_bucket_heading(bucket, counts.buckets.get(bucket, 0), len(pictures), width))
        blocks += [_row(pictures[start : start + _COLUMNS], width) for start in range(0, len(pictures), _COLUMNS)]
    sheet = Image.new("RGB", (width, sum(block.height for block in blocks) + _EDGE), _PAPER)
    top = 0
    for block in blocks:
        sheet.paste(block, (0, top))
        top += block.height
    return sheet


def _heading(source: Path, counts: ScanSummary, width: int) -> Image.Image:
    refused = ", ".join(f"{count} {reason}" for reason, count in counts.reasons.items())
    text = f"{counts.used} used, {counts.refused} refused" + (f": {refused}" if refused else "")
    lines = textwrap.wrap(text, 200)[:3]
    block = Image.new("RGB", (width, 74 + 22 * len(lines)), _PAPER)
    draw = ImageDraw.Draw(block)
    draw.text((_EDGE, _EDGE - 6), shown(str(source))[-110:], _INK, _font(24, bold=True))
    for number, line in enumerate(lines):
        draw.text((_EDGE, _EDGE + 30 + 22 * number), line, _FAINT, _font(15))
    return block


def _bucket_heading(bucket: str, images: int, shown: int, width: int) -> Image.Image:
    block = Image.new("RGB", (width, 52), _PAPER)
    draw = ImageDraw.Draw(block)
    draw.line((_EDGE, 8, width - _EDGE, 8), _RULE)
    draw.text((_EDGE, 18), bucket.replace("x", " × "), _INK, _font(17, bold=True))
    left = _EDGE + draw.textlength(bucket.replace("x", " × "), _font(17, bold=True)) + 14
    draw.text((left, 20), f"{shown} of {images} images", _FAINT, _font(15))
    return block


def _row(cells: Sequence[Image.Image], width: int) -> Image.Image:
    block = Image.new("RGB", (width, max(cell.height for cell in cells) + _GAP), _PAPER)
    for column, cell in enumerate(cells):
        block.paste(cell, (_EDGE + column * (_CELL + _GAP), 0))
    return block


def _cell(record: Record, source: Path, marks: Sequence[str]) -> Image.Image:
    """One picture with its name, marks and caption."""
    picture = _picture(record, source)
    tags = _tag_rows(marks)
    font = _font_for(record.caption)
    caption = _wrapped(escaped(record.caption), font, _CAPTION_LINES)
    height = picture.height + 8 + 24 * len(tags) + 19 * len(caption) + 20
    cell = Image.new("RGB", (_CELL, height), _PAPER)
    cell.paste(picture, (0, 0))
    draw, top = ImageDraw.Draw(cell), picture.height + 8
    for row in tags:
        left = 0
        for tag in row:
            wide = int(draw.textlength(tag, _font(12))) + 12
            draw.rounded_rectangle((left, top, left + wide, top + 19), 4, _TAG_PAPER)
            draw.text((left + 6, top + 2), tag, _TAG_INK, _font(12))
            left += wide + 6
        top += 24
    for line in caption:
        draw.text((0, top), line, _INK, font)
        top += 19
    draw.text((0, top), _ending(shown(record.image), _font(11)), _FAINT, _font(11))
    return cell


def _picture(record: Record, source: Path) -> Image.Image:
    """The bucketed picture, as large as a cell allows; for one that cannot be decoded a field that says why."""
    bucket = Bucket.from_name(record.bucket)
    scale = min(_CELL / bucket.width, _TALLEST / bucket.height)
    size = max(1, round(bucket.width * scale)), max(1, round(bucket.height * scale))
    try:
        return Image.fromarray(load_pixels(record, source)).resize(size, Image.Resampling.LANCZOS)
    except ImageRefused as refused:
        field = Image.new("RGB", (max(size[0], _CELL), size[1]), _EMPTY)
        lines = _wrapped(escaped(f"{refused.reason}: {refused.detail}"), _font(13), 6)
        ImageDraw.Draw(field).multiline_text((10, 10), "\n".join(lines), _TAG_INK, _font(13))
        return field


def _tag_rows(marks: Sequence[str]) -> list[list[str]]:
    """Marks in rows that fit into a cell."""
    rows: list[list[str]] = []
    left = 0.0
    for mark in marks:
        wide = _font(12).getlength(mark) + 18
        if not rows or left + wide > _CELL:
            rows.append([])
            left = 0
        rows[-1].append(mark)
        left += wide
    return rows


def _wrapped(text: str, font: ImageFont.FreeTypeFont, most: int) -> list[str]:
    """Lines that fit into a cell; what does not fit into `most` of them ends in an ellipsis."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        while font.getlength(word) > _CELL:  # a script without spaces, or an address
            fits = next(end for end in range(len(word), 0, -1) if font.getlength(word[:end]) <= _CELL or end == 1)
            lines, line = [*lines, *([line] if line else []), word[:fits]], ""
            word = word[fits:]
        if line and font.getlength(f"{line} {word}") > _CELL:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}".strip()
        if len(lines) > most:
            break
    lines += [line] if line else []
    if len(lines) > most:
        last = lines[most - 1]
        while last and font.getlength(f"{last} …") > _CELL:
            last = last[:-1]
        lines = [*lines[: most - 1], f"{last} …"]
    return lines


def _ending(text: str, font: ImageFont.FreeTypeFont) -> str:
    """The end of a path, as much as fits into a cell."""
    if font.getlength(text) <= _CELL:
        return text
    while font.getlength(f"…{text}") > _CELL:
        text = text[1:]
    return f"…{text}"


def _font_for(caption: str) -> ImageFont.FreeTypeFont:
    """The font of a caption: one of this system's where ours lacks its letters and that one does not."""
    known = _letters(str(_font(14).path))
    missing = next((letter for letter in caption if letter.isalpha() and ord(letter) not in known), "")
    file = _system_font(missing) if missing else ""
    return ImageFont.truetype(file, 14) if file else _font(14)


@cache
def _system_font(letter: str) -> str:
    """A font of this system that has a letter; "" when there is none among those looked at."""
    from matplotlib import font_manager

    files = sorted(font_manager.findSystemFonts(), key=lambda file: (not _FOR_MANY_SCRIPTS.search(file), file))
    return next((file for file in files[:_FONTS_LOOKED_AT] if ord(letter) in _letters(file)), "")


@cache
def _letters(file: str) -> frozenset[int]:
    """Code points that a font can draw; none of one that cannot be read."""
    from fontTools.ttLib import TTFont

    try:
        with TTFont(file, fontNumber=0, lazy=True) as font:
            return frozenset(font.getBestCmap() or ())
    except Exception:  # a font of the system, whatever its fault: the next one will do
        return frozenset()


@cache
def _font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which matplotlib brings: Latin, Greek, Cyrillic, Arabic and more; no Chinese."""
    import matplotlib

    folder = Path(matplotlib.get_data_path()) / "fonts/ttf"
    return ImageFont.truetype(str(folder / ("DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf")), size)
