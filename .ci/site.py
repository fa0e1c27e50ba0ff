"""What `properdocs build --strict` does beside reading docs/: README and its neighbours become pages of the site, links
out of docs/ lead to them or become plain text, and fences lose the words behind their language.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from properdocs.structure.files import File

ROOT = Path(__file__).resolve().parents[1]
PAGES = {"README.md": "index.md"} | {name: name for name in ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")}
LINK = re.compile(r"(!?\[[^\]]*\])\(([^)\s]+)\)")
REFERENCE = re.compile(r"^(\[\w+\]: )([^\s:]+)(?=\s|$)", re.MULTILINE)
HEADINGS = re.compile(r"[^\w\- ]")


def on_config(config):
    """Headings get the anchors that forges give them, so that links to them lead there from both."""
    config.mdx_configs.setdefault("toc", {})["slugify"] = _anchor
    return config


def _anchor(heading: str, _separator: str) -> str:
    return HEADINGS.sub("", heading.lower()).replace(" ", "-")


def on_files(files, config):
    for name, place in PAGES.items():
        files.append(File.generated(config, place, content=(ROOT / name).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown, page, config, files):
    from_root = {place: name for name, place in PAGES.items()}.get(page.file.src_uri)
    here = posixpath.dirname(from_root or f"docs/{page.file.src_uri}")  # of the page in the repository
    markdown = re.sub(r"^(`{3,}\w+) .*$", r"\1", markdown, flags=re.MULTILINE)
    uri = page.file.src_uri
    markdown = REFERENCE.sub(lambda found: found[1] + (_place(found[2], here, uri) or found[2]), markdown)
    return LINK.sub(lambda found: _link(*found.groups(), _place(found[2], here, uri)), markdown)


def _link(words: str, _target: str, place: str | None) -> str:
    return f"{words}({place})" if place else words.strip("[]")


def _place(target: str, here: str, uri: str) -> str | None:
    """A link's target as it is on the site; None for a file of the repository that is no part of it."""
    if "://" in target or target.startswith("#"):
        return target
    path, mark, anchor = target.partition("#")
    path = posixpath.normpath(posixpath.join(here, path))  # in the repository
    if (ROOT / path).exists() and not path.startswith("docs/") and path not in PAGES:
        return None
    place = PAGES.get(path, path.removeprefix("docs/"))
    return f"{posixpath.relpath(place, posixpath.dirname(uri) or '.')}{mark}{anchor}"
