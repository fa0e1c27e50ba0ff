"""What features are made of: the sections `[encoders]` and `[data]`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from dittool.config.values import PLAIN_KIND, Columns, Pattern, Positive, Section, Size, Whole, kind_named, require
from dittool.geometry import SIDE_MULTIPLE, Bucket, buckets_for_area, buckets_from_names, parse_size

# Where the captions of images stand: docs/sources.md
CaptionPlace = Literal["auto", "txt", "caption", "metadata", "coco", "folder"]


class Encoders(Section):
    """Names are `builtin:…`, a hub id, or a local folder."""

    image: str
    text: str
    vae: str
    dtype: Literal["fp32", "bf16"] = "fp32"  # arithmetic of image and text encoders; the VAE always runs in fp32
    max_text_tokens: Positive = 512
    # of the text encoder, whose hidden states are the features: 0 the embeddings, -1 the last; its own output without
    text_layer: Whole | None = None


class Keep(Section):
    """Which inputs are embedded; what does not pass is refused and counted. Scripts are the first words of letters'
    Unicode names: "LATIN", "CJK".
    """

    min_side: Positive | None = None  # pixels, of the shorter side
    max_aspect: Annotated[float, Field(ge=1)] | None = None  # longer side over shorter
    caption: Pattern | None = None  # a regular expression that is found in the caption
    not_caption: Pattern | None = None  # one that is not
    scripts: Annotated[list[str], Field(min_length=1)] | None = None  # of nearly all letters of the caption
    # columns of a list → least and most
    scores: dict[str, Annotated[list[float], Field(min_length=2, max_length=2)]] | None = None
    names: str | None = None  # a text with names, ids or image paths, one a line: only these …
    not_names: str | None = None  # … and all but these


class Data(Section):
    area: Size | None = None  # "512x512": the seven buckets scaled to this area …
    buckets: Annotated[list[Size], Field(min_length=1)] | None = None  # … or the buckets themselves, "WIDTHxHEIGHT"
    # pixels: sides of the area's buckets are multiples of it; 64 from 512x512 on and 16 below, if it is not given
    multiple: Positive | None = None
    # of the patch features on disk (docs/storage.md); auto: fp16 where training reads them, else none
    patch_storage: Literal["auto", "fp16", "fp32", "int8", "pooled", "none"] = "auto"
    # texts beside images, lists, COCO's annotations, names of folders; auto: all but the last, and an error where two
    # of them differ
    captions: CaptionPlace = "auto"
    image_column: Annotated[str, Field(min_length=1)] | None = None  # of lists, where it has no usual name
    # of lists, and of JSON beside an image; several: each is a kind of caption, and all are kept
    caption_column: Columns | None = None
    # of an image that has several captions under one name the first, or all; lines: of a text, too, each line
    several_captions: Literal["first", "all", "lines"] = "first"
    # how often a kind is drawn in training, against the others that an image has; 1 where it is not named
    caption_weights: dict[str, Annotated[float, Field(ge=0)]] | None = None
    keep: Keep | None = None  # which inputs are embedded, of all that can be
    holdout: Annotated[float, Field(ge=0, lt=1)] = 0.05  # share of images kept out of training
    # the same picture saved again, at another size or quality: on one side of the hold-out, or not looked for
    near_copies: Literal["together", "ignored"] = "together"
    # prepared: every image also mirrored, left and right swapped in its caption: docs/sources.md
    flip: Literal["none", "prepared"] = "none"
    latent_scaling: Literal["card", "measured"] = "card"  # the VAE's own scale and shift, or statistics of this data

    @model_validator(mode="after")
    def _one_of(self) -> Data:
        kinds = list(map(kind_named, self.caption_column)) if isinstance(self.caption_column, list) else []
        require(
            ((self.area is None) != (self.buckets is None), "exactly one of area and buckets must be given"),
            (self.multiple is None or self.area is not None, "multiple has no effect without area"),
            (
                (self.multiple or SIDE_MULTIPLE) % SIDE_MULTIPLE == 0,
                f"multiple {self.multiple} is not a multiple of {SIDE_MULTIPLE}",
            ),
            (
                len(set(kinds)) == len(kinds),
                f"caption_column names kinds of captions that are one: {', '.join(kinds)}",
            ),
        )
        return self

    @property
    def caption_kinds(self) -> tuple[str, ...]:
        """Of an image's captions, where several are kept; none where one is."""
        if isinstance(self.caption_column, list):
            return tuple(map(kind_named, self.caption_column))
        return () if self.several_captions == "first" else (PLAIN_KIND,)

    def bucket_sizes(self) -> list[Bucket]:
        """The buckets that the section asks for. Raises `UsageError` naming every size that cannot serve."""
        if self.area is None:
            return buckets_from_names(self.buckets or [])
        return buckets_for_area(parse_size(self.area), self.multiple)
