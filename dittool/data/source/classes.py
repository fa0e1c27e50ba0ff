"""A folder of class folders as a source: CLASS/NAME.jpg without any text. The folder's name is the class, and the
caption.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from dittool.data.source.folder import Walked
from dittool.data.source.item import CAPTION_SUFFIX, IMAGE_SUFFIXES, Source, SourceItem, stem_of, suffix_of


def is_class_folder(walked: Walked) -> bool:
    """Whether every image lies in a folder and none of them can have a caption."""
    images = walked.having(*IMAGE_SUFFIXES)
    return bool(images) and not walked.having(CAPTION_SUFFIX) and all("/" in path for path in images)


def classes_source(folder: Path, walked: Walked) -> Source:
    """Each image with the name of the outermost folder that it lies in; hyphens and underscores of the caption are
    spaces.
    """
    images = walked.having(*IMAGE_SUFFIXES)
    ignored = walked.ignored + Counter(
        suffix_of(path) or "no suffix" for path in walked.files if suffix_of(path) not in IMAGE_SUFFIXES
    )
    items = list(walked.problems)
    for path in images:
        name = path.split("/")[0]
        items.append(SourceItem(stem_of(path), path, name.replace("-", " ").replace("_", " "), cls=name))
    return Source("classes", folder, items, dict(ignored))
