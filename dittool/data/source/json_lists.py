"""Lists of captions in one JSON file, in the shapes that people have:

    [{"image": "a.jpg", "caption": "…"}, …]                            BLIP, LLaVA and many others; or under one key
    {"a.jpg": "…" or ["…", …] or {"caption": "…"}, …}                  kohya's metadata, whose names may lack suffixes
    {"images": [{"filename": "a.jpg", "sentences": [{"raw": "…"}, …]}, …]}    Karpathy's splits of Flickr and COCO
    {"image": "a.jpg", "caption": "…"} on each line                    JSON lines under the suffix of JSON

COCO's own format, which keeps images and captions in two lists, is read in coco.py.
"""

from __future__ import annotations

import json
import posixpath
import re
from pathlib import Path
from typing import Any

from dittool.data.source.captions import are_labels
from dittool.data.source.columns import CAPTION_COLUMNS, OTHER_CAPTION_COLUMNS, BadRow, Row, columns_of
from dittool.data.source.item import IMAGE_SUFFIXES, Pairing

_LARGEST = 1 << 30  # bytes; Karpathy's dataset_coco.json has 144 million
_HEAD = 1 << 16  # bytes that show whether a file is worth parsing
_TRIED = 1000  # of the texts of names, to see whether they are captions
_KARPATHY = "sentences"
_OF_COCO = re.compile(r'"(images|annotations)"\s*:')
_WINDOWS_DRIVE = re.compile(r"^[A-Za-z]:")


def json_list(path: Path, pairing: Pairing) -> list[Row | BadRow] | None:
    """The rows of the list in a file, one for each image it names; None where it is another kind of JSON, or has no
    captions under a usual name or the one that `pairing` gives.
    """
    try:
        value = _parsed(path.read_bytes()) if _is_worth_parsing(path, pairing) else None
    except (OSError, ValueError, RecursionError):  # what is no JSON is no list
        return None
    rows = _rows_in(value, pairing)
    first = next((row for row in rows if isinstance(row, dict)), None)
    columns = columns_of(tuple(first), pairing) if first is not None else None
    return rows if columns is not None and columns.path and columns.captions else None


def _parsed(raw: bytes) -> Any:
    """The JSON, or a list of the lines where each is one. Raises ValueError, RecursionError."""
    try:
        return json.loads(raw)
    except json.JSONDecodeError:
        lines = raw.decode(json.detect_encoding(raw[:4])).split("\n")
        return [json.loads(line) for line in lines if line.strip()]


def _rows_in(value: Any, pairing: Pairing) -> list[Row | BadRow]:
    if isinstance(value, dict):
        lists = [rows for rows in value.values() if isinstance(rows, list) and rows and isinstance(rows[0], dict)]
        if not lists:
            texts = [said for said in value.values() if isinstance(said, str)][:_TRIED]
            if texts and are_labels(texts) and pairing.captions == "auto":
                return []
            return [_named_row(name, said, pairing) for name, said in value.items()]
        value = lists[0] if len(lists) == 1 else next((rows for rows in lists if _KARPATHY in rows[0]), lists[0])
    if not isinstance(value, list):
        return []
    return [_row(row, pairing) for row in value]


def _row(row: Any, pairing: Pairing) -> Row | BadRow:
    if not isinstance(row, dict):
        return BadRow(f"not a JSON object but {type(row).__name__}")
    sentences = row.get(_KARPATHY)
    if not isinstance(sentences, list) or not isinstance(row.get("filename"), str):
        return row
    path = posixpath.join(str(row.get("filepath") or ""), row["filename"])
    texts = [sentence.get("raw") if isinstance(sentence, dict) else sentence for sentence in sentences]
    return _under_names(path, texts, pairing)


def _named_row(name: str, said: Any, pairing: Pairing) -> Row | BadRow:
    """The row of an image that is a key of the file."""
    path = _WINDOWS_DRIVE.sub("", name.replace("\\", "/")).lstrip("/")  # kohya's may be from the root
    if isinstance(said, dict):
        return {**said, (pairing.image_column or "image_path"): path}
    return _under_names(path, said, pairing)


def _under_names(path: str, captions: Any, pairing: Pairing) -> Row:
    return {(pairing.image_column or "image_path"): path, pairing.caption_key: captions}


def _is_worth_parsing(path: Path, pairing: Pairing) -> bool:
    """A look at the beginning: a caption's column or an image's name stands there, and it is none of COCO's files,
    which may be hundreds of megabytes of boxes.
    """
    if not path.is_file() or path.stat().st_size > _LARGEST:
        return False
    with path.open("rb") as file:
        raw = file.read(_HEAD)
    head = raw.decode(json.detect_encoding(raw[:4]), "replace")
    if f'"{_KARPATHY}"' in head:
        return True
    names = (
        *CAPTION_COLUMNS,
        *OTHER_CAPTION_COLUMNS,
        pairing.caption_key,
        *pairing.caption_columns,
    )
    said = "|".join(rf'"{re.escape(name)}"' for name in names)
    suffixes = "|".join(re.escape(suffix) for suffix in sorted(IMAGE_SUFFIXES))
    return not _OF_COCO.search(head) and re.search(rf'{said}|(?:{suffixes})"', head, re.IGNORECASE) is not None
