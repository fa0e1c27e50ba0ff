"""The page: complete, self-contained, and not to be broken by what stands in the data."""

from __future__ import annotations

import json
import re
from html.parser import HTMLParser

import pytest

from dittool.data.shards.read import ShardSet
from dittool.validate.report import figure_text, percent_text
from tests.validate.oracle import judge

HOSTILE = 'a red circle on the left </td><script>alert(1)</script> \u202egnp.exe\x07 & "quoted"'


class Page(HTMLParser):
    """Tags with their attributes, and all text."""

    def __init__(self, html):
        super().__init__()
        self.tags, self.text = [], ""
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def values(self, attribute):
        return [attributes[attribute] for _, attributes in self.tags if attribute in attributes]


@pytest.fixture(scope="module")
def validated(drawn, oracle, tmp_path_factory):
    return judge(oracle(), drawn[0], tmp_path_factory.mktemp("report"), limit=6)


@pytest.fixture(scope="module")
def page(validated):
    return Page(validated.report.read_text("utf-8"))


def test_the_page_loads_nothing_from_anywhere(validated, page):
    assert all(source.startswith("data:image/") for source in page.values("src"))
    assert not page.values("href") and not page.values("srcset")
    assert not re.search(r"url\(|@import", validated.report.read_text("utf-8"))
    policy = next(
        attributes["content"]
        for tag, attributes in page.tags
        if attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy


def test_every_picture_is_in_the_page_and_has_a_text_for_those_who_do_not_see_it(validated, page):
    images = [attributes for tag, attributes in page.tags if tag == "img"]
    parts = [validated.results[part] for part in ("reconstruction", "dino_swap", "text_manip")]
    assert len(images) == 3 * sum(len(part.get("per_image") or part["per_pair"]) for part in parts)
    assert all(attributes["alt"] for attributes in images)


def test_the_page_says_verdict_criteria_captions_weights_and_settings(validated, page):
    assert "GO" in page.text and "EMA weights" in page.text and "held-out images" in page.text
    for criterion in validated.criteria:
        assert criterion.title in page.text
    for row in validated.results["reconstruction"]["per_image"]:
        assert row["caption"] in page.text
    for row in validated.results["text_manip"]["per_pair"]:
        assert row["edited"] in page.text
    assert "[validate.thresholds]" in page.text


def test_the_page_knows_phones_and_both_colour_schemes(page):
    meta = {attributes.get("name"): attributes.get("content") for tag, attributes in page.tags if tag == "meta"}
    assert meta["viewport"].startswith("width=device-width") and meta["color-scheme"] == "light dark"


def test_hostile_captions_stay_text(drawn, oracle, tmp_path):
    shards, _ = drawn

    class Hostile(ShardSet):
        def read_member(self, ref, member):
            data = super().read_member(ref, member)
            return (
                json.dumps(json.loads(data) | {"caption": HOSTILE, "name": HOSTILE}).encode()
                if member == "json"
                else data
            )

    done = judge(oracle(), Hostile(shards.folder, shards.samples, shards.index), tmp_path, limit=4)
    html = done.report.read_text("utf-8")
    page = Page(html)
    assert "alert(1)" not in "".join(re.findall(r"<script>.*?</script>", html, re.DOTALL)), (
        "the page's own script is the only one"
    )
    assert sum(tag == "script" for tag, _ in page.tags) == 1
    assert "<script>alert(1)</script>" in page.text, "it is shown as what it is"
    assert "\u202e" not in html and "\x07" not in html
    assert done.results["text_manip"]["edit_shown"] is None, "the checker does not read such captions"


def test_figures_are_short_and_missing_ones_are_dashes():
    assert figure_text(0.21449) == "0.214"
    assert figure_text(24.06, "psnr") == "24.1"
    assert figure_text(None) == "–" == percent_text(None)
    assert percent_text(0.938) == "94\N{NO-BREAK SPACE}%"
