"""Flipped variants of images and captions, prepared before anything is encoded: `data.flip = "prepared"`.

Cached features cannot be flipped: an image encoder's positions, a VAE's texture and the word "left" all know which side
they are on. So the variant is a record of its own. Its bucketed image is mirrored, its caption has left and right
swapped, and every encoder sees those.

A wrong word costs more than a missing variant: a caption is flipped only when each "left" and "right" in it stands
where it can only be a side ("on the left", "his right arm", "left to right"). "Left behind", "right now", "left-handed"
and captions that speak of visible text, which would be mirrored, get no variant. The rules read English.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import replace

from dittool.data.records import Record, is_safe_key, safe_key

NOT_FLIPPED = "not-flipped"  # the flag is NOT_FLIPPED:REASON
TEXT, HANDEDNESS, TURNING, OTHER_LANGUAGE, UNCLEAR = (
    "text-in-image",
    "handedness",
    "turning-sense",
    "other-language",
    "unclear-left-right",
)


def with_flips(records: Sequence[Record]) -> list[Record]:
    """The records, each used one followed by its flipped variant, or flagged with the reason why it has none.

    A variant has the id ID-flip (another safe one when that is taken) and the same name, image and image_sha256, so
    that a hold-out by image hash puts both on the same side.
    """
    taken = {record.id.casefold() for record in records}
    both: list[Record] = []
    for record in records:
        flipped, reason = _flipped_captions(record) if record.used else ((), "")
        if reason:
            record = replace(record, flags=(*record.flags, f"{NOT_FLIPPED}:{reason}"))
        both.append(record)
        if record.used and not reason:
            key = _flip_id(record.id, taken)
            taken.add(key.casefold())
            variant = replace(record, id=key, caption=flipped[0][1], flipped=True)
            both.append(replace(variant, captions=flipped if record.captions else ()))
    return both


def _flipped_captions(record: Record) -> tuple[tuple[tuple[str, str], ...], str]:
    """(kind and text of the variant's captions, ""), or why there is none. What a caption tells of the picture itself
    (visible text, hands, turning) speaks against the variant; one that is only unclear is left out of it.
    """
    captions = record.captions or (("", record.caption),)
    reasons = [why_not_flipped(text) for _, text in captions]
    kept = [(kind, flip_caption(text)) for (kind, text), reason in zip(captions, reasons, strict=True) if not reason]
    against = next((reason for reason in reasons if reason in (TEXT, HANDEDNESS, TURNING)), "")
    return tuple(kept), against or ("" if kept else reasons[0])


def why_not_flipped(caption: str) -> str:
    """The reason code for which a caption has no flipped form that is surely right, or "" when it has one."""
    text = caption.lower()
    for reason, pattern in (
        (TEXT, _VISIBLE_TEXT),
        (HANDEDNESS, _HANDEDNESS),
        (TURNING, _TURNING),
        (OTHER_LANGUAGE, _FOREIGN),
        (UNCLEAR, _ARROWS),
    ):
        if pattern.search(text):
            return reason
    if any(
        letter.isalpha() and not unicodedata.name(letter, "").startswith(("LATIN", "FEMININE", "MASCULINE"))
        for letter in caption
    ):
        return OTHER_LANGUAGE
    words = [match for match in _WORD.finditer(text) if "left" in match[0] or "right" in match[0]]
    clear = all(
        _HARMLESS.fullmatch(word[0]) or (_SIDE.fullmatch(word[0]) and _is_direction(text, word)) for word in words
    )
    return "" if clear else UNCLEAR


def flip_caption(caption: str) -> str:
    """The caption with left and right swapped as whole words, case kept. Twice gives the caption back. Ask
    `why_not_flipped` first.
    """
    return _WORD.sub(lambda match: _other_side(match[0]) if _SIDE.fullmatch(match[0].lower()) else match[0], caption)


def _other_side(word: str) -> str:
    side = "left" if word.lower().startswith("left") else "right"
    other = "right" if side == "left" else "left"
    swapped = other + word.lower()[len(side) :]
    if word.isupper():
        return swapped.upper()
    return swapped.capitalize() if word[0].isupper() else swapped


def _flip_id(record_id: str, taken: set[str]) -> str:
    key, count = f"{record_id}-flip", 0
    while not is_safe_key(key) or key.casefold() in taken:
        count += 1
        key = safe_key(f"{record_id} flip {count}")  # with a hash: short enough, and nobody else's
    return key


# --- words ---

_WORD = re.compile(r"[^\W_]+")
_SIDE = re.compile(r"(left|right)(most|wards?|hand)?")  # what is swapped
_HARMLESS = re.compile(
    r"(?:copy|up|al|out|down|forth|birth)right\w*|\w*[bfw]right\w*|cleft\w*|leftovers?|right(?:s|ly|ful|fully|eous)"
)

_VISIBLE_TEXT = re.compile(
    r"\b(?:texts?|letters?|lettering|lettered|words?|wording|signs?|signage|signposts?|signboards?|numbers?(?!\s+of\b)|numbered|numerals?|digits?"
    r"|logos?|logotypes?|brand(?:s|ed|ing)?|captions?|captioned|titles?|titled|subtitles?|headlines?|labels?|labell?ed|written|writing|handwriting"
    r"|handwritten|inscriptions?|inscribed|engraved|slogans?|monograms?|initials|watermark(?:s|ed)?|signatures?|signed|fonts?|typograph\w+"
    r"|alphabets?|calligraphy|graffiti|billboards?|posters?|newspapers?|magazines?|menus?|calendars?|keyboards?|clocks?|maps?|scoreboards?"
    r"|screenshots?|barcodes?|qr|stamps?|sheet\s+music|licen[cs]e\s+plates?|number\s+plates?|speech\s+bubbles?"
    r"|reads|says|saying|spells|spelled|spelling)\b"
    r"|[\"“”„«»]|(?<!\w)['‘][^'’]+['’](?!\w)"  # something is quoted
)
_HANDEDNESS = re.compile(
    r"\b(?:left|right)[\s-]?hand(?:ed\w*|ers?)\b|\b(?:left|right)(?:y|ies)\b|\bsouthpaws?\b|\bambidextrous\b"
)
_TURNING = re.compile(r"clockwise\b|\bstarboard\b|\bport[\s-]?side\b")
_FOREIGN = re.compile(
    r"\b(?:links|rechts|linke[nmrs]?|rechte[nmrs]?|gauche|droite?|izquierd[ao]s?|derech[ao]s?|sinistr[ao]|destr[ao]|esquerd[ao]s?|direit[ao]s?"
    r"|vänster|höger|venstre|højre|høyre|lewo|lewej|prawo|prawej)\b"
)
_ARROWS = re.compile("[←-⇿⟵-⟿⬀-⬑➔-➾👈👉]")

# --- where "left" and "right" are sides ---

# characters looked at on either side: phrases are shorter, and a caption of nothing but "left" stays cheap
_CONTEXT = 120
_OWNER = r"(?:the|its|his|her|their|my|your|our)"
_WHERE = (
    r"(?:far|extreme|immediate|upper|lower|top|bottom|middle|mid|center|centre|central|front|back|rear|outer|inner)"
)
_PAIRED_BEFORE = re.compile(r"\b(?:left|right)\s*(?:and|or|to|/|&|-to-)\s*(?:to\s+)?(?:the\s+)?$")
_PAIRED_AFTER = re.compile(r"\s*(?:and|or|to|/|&|-to-)\s*(?:to\s+)?(?:the\s+)?(?:left|right)\b")
_PLACED = re.compile(  # on the left, to his far right, on the viewer's left, at right
    rf"\b(?:(?:on|at|from|towards?)|(?:on|to|at|from|towards?|in|along)\s+(?:{_OWNER}\s+(?:\w+['’]s?\s+)?|\w+['’]s\s+))\s*(?:{_WHERE}[\s-]+)*$"
)
_OWNED = re.compile(rf"\b{_OWNER}\s+(?:{_WHERE}[\s-]+)*$")  # the left figure, her right arm
# top left
_CORNER = re.compile(r"\b(?:upper|lower|top|bottom|middle|mid|center|centre|central|front|back|rear)[\s_,-]+$")
_HEADING = re.compile(  # facing left, looking slightly to the right, turned right
    r"\b(?:fac(?:ing|es|ed)|look(?:ing|s|ed)|gaz(?:ing|es)|glanc(?:ing|es)|star(?:ing|es)|turn(?:ing|ed|s)|point(?:ing|ed|s)|mov(?:ing|es)|heading"
    r"|lean(?:ing|s)|walk(?:ing|s)|run(?:ning|s)|fl(?:ying|ies)|sw(?:imming|ims)|driving|sailing|riding|tilt(?:ed|ing|s)|angled|ben(?:ding|t)"
    r"|curv(?:ing|es|ed)|swing(?:ing|s)|sliding|shifted|positioned|placed|aligned|oriented|rotated)"
    r"(?:\s+(?:slightly|directly|straight|sharply|diagonally|sideways|further|more|to|towards?))*\s+$"
)
_SIDED = re.compile(  # left side, right-hand corner
    r"[\s-]+(?:hand|sides?|corner|edge|margin|border|panel|column|lane|foreground|background|facing|pointing|arm|leg|foot|eye|ear|shoulder"
    r"|knee|elbow|wrist|ankle|cheek|thigh|hip|paw)\b"
)
_REMAINS_OF = re.compile(
    r"\b(?:what|that|nothing|little|much|all|anything|everything|some|none)(?:['’]s|\s+(?:is|was|are|were|has|been))*\s+$"
)
_OF = re.compile(r"\s+of\b")
_ALONE_BEFORE = re.compile(r"(?:^|[(\[,;:.!?–—/])\s*$")
_ALONE_AFTER = re.compile(r"\s*(?:$|[)\],;:.!?–—/])")

# --- where they are not, whatever stands before ---

_NEVER = re.compile(r"-(?:leaning|brain\w*|click\w*|minded|thinking|field)\b|[\s-]+wing\w*")
_CORRECT = re.compile(  # the right time, a right angle, right-side up
    r"[\s-]+(?:now|away|angles?|angled|triangles?|way|time|moment|size|amount|number|place|things?|tools?|answers?|choices?|decision|order|fit|kind"
    r"|sort|track|balance|spot|mind|direction|conditions|ingredients|people|stuff|sides?[\s-]+(?:up|out|in)|hand[\s-]+man|of[\s-]+way"
    r"|to(?!\s+(?:the\s+)?left))\b"
)
_EXACTLY = re.compile(  # right behind it; but "on the right behind it" is a place
    r"[\s-]+(?:at|in|on|onto|into|up|down|through|out|off|above|over|below|beneath|under|underneath|behind|before|after|beside|next|near|by|here"
    r"|there|back|past|around|across|along|against|between|inside|outside|where|when|as|from|opposite)\b"
)


def _is_direction(text: str, word: re.Match[str]) -> bool:
    """Whether the "left" or "right" that `word` found in a lower-case text can only be a side."""
    if word[0] not in ("left", "right"):
        return True  # leftmost, rightward, lefthand
    before, after = text[max(0, word.start() - _CONTEXT) : word.start()], text[word.end() : word.end() + _CONTEXT]
    is_right = word[0] == "right"
    if _NEVER.match(after) or (is_right and _CORRECT.match(after)):
        return False
    if _PLACED.search(before) or _SIDED.match(after) or (_ALONE_BEFORE.search(before) and _ALONE_AFTER.match(after)):
        return True
    if is_right and _EXACTLY.match(after):
        return False
    return bool(
        any(pattern.search(before) for pattern in (_PAIRED_BEFORE, _OWNED, _CORNER, _HEADING))
        or _PAIRED_AFTER.match(after)
        or (_OF.match(after) and not _REMAINS_OF.search(before))
    )
