"""Forms that a latent may have: an image or a video of one frame, with channels first or last, tokens, one token."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from dittool.audit.specimens.foreign.forms import BATCH, SIDE_IN_TOKENS, Form

_MOST_CHANNELS = 64  # of a latent whose channels come last


def latent_forms(
    sides: Sequence[int], channels: Sequence[int], widths: Sequence[int], frames: Sequence[int] = ()
) -> list[Form]:
    """A latent as an image, also with its channels last, as tokens, as a video of one frame, as one token a sample, as
    heads of autoregressive models take it. `frames`: how many a video has where the model's settings say so.
    """
    new = 29  # another width than that of any other tensor
    counts = list(dict.fromkeys([*channels, new]))
    images = [Form((BATCH, count, side, side)) for count in counts for side in sides]
    ends = [*channels, *(width // cells for width in widths[:4] for cells in (1, 4, 16) if width % cells == 0)]
    last = [
        Form((BATCH, side, side, count))
        for count in dict.fromkeys(ends)
        if 0 < count <= _MOST_CHANNELS
        for side in sides[:2]
    ]
    tokens = [Form((BATCH, SIDE_IN_TOKENS**2, width)) for width in (new, *widths)]
    videos = [
        Form(sizes)
        for side in sides
        for count in counts
        for length in (*frames, 1)
        for sizes in ((BATCH, count, length, side, side), (BATCH, length, count, side, side))
    ]
    videos_last = [Form((BATCH, 1, side, side, count)) for side in sides[:2] for count in dict.fromkeys(ends[:8])]
    vectors = [Form((BATCH, width)) for width in (new, *widths)]
    return images[:8] + tokens[:1] + videos[:4] + last + images[8:] + tokens[1:] + videos[4:] + videos_last + vectors


def largest_label(model: nn.Module) -> int:
    """One less than the smallest table has rows, for labels that every table takes."""
    tables = [module.num_embeddings for module in model.modules() if isinstance(module, nn.Embedding)]
    return max(min(tables) - 1, 2) if tables else 2
