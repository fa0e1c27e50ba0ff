"""What may be asked of drawing, from Python or on the command line: each error says what would serve.

All raise `UsageError`.
"""

from __future__ import annotations

from collections.abc import Sequence

from dittool.config.schema import DEFAULT_STRENGTH
from dittool.errors import UsageError
from dittool.geometry import parse_size


def require_prompts(prompt: object, has_reference: bool) -> list[str]:
    """The prompts of a call, none where the reference alone says what to draw."""
    if prompt is None and has_reference:
        return []
    if prompt is None:
        raise UsageError("neither prompt nor reference: nothing to draw", 'for example: pipe(prompt="a red circle")')
    prompts = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(prompts, Sequence) or not prompts or not all(isinstance(text, str) for text in prompts):
        raise UsageError(f"prompt {prompt!r:.80}: neither text nor a list of texts", 'for example: ["a dog", "a cat"]')
    return list(prompts)


def require_seeds(count: int, seed: int) -> list[int]:
    """The seeds of `count` pictures."""
    if not _is_whole(count) or not _is_whole(seed) or count < 1 or seed < 0:
        raise UsageError(
            f"count {count!r} and seed {seed!r}: at least one picture, and a seed of at least 0",
            "for example: count=4, seed=7",
        )
    return list(range(seed, seed + count))


def require_size(size: object) -> tuple[int, int] | None:
    """(width, height) in pixels of a pair or of text, None: not asked for."""
    if size is None:
        return None
    try:
        found = parse_size(size) if isinstance(size, str) else size
    except ValueError as error:
        raise UsageError(f"size {error}", "give (width, height) in pixels, or text: size='1216x832'") from error
    if isinstance(found, Sequence) and len(found) == 2 and all(_is_whole(side) and side > 0 for side in found):
        return int(found[0]), int(found[1])
    raise UsageError(
        f"size {size!r:.80}: not two sides of at least one pixel",
        "give (width, height) in pixels, or text: size='1216x832'",
    )


def require_strength(strength: float | None, has_init: bool, dashes: str = "") -> float:
    """How much of an image to begin with is drawn anew; 1 without one. `dashes` stand before names in messages: "--" on
    the command line.
    """
    if strength is None:
        return DEFAULT_STRENGTH if has_init else 1.0
    if not has_init:
        example = f"{dashes}init IMG" if dashes else "init='sketch.png'"
        raise UsageError(f"{dashes}strength has no effect without {dashes}init", f"name the image: {example}")
    if not 0 <= strength <= 1:
        raise UsageError(
            f"{dashes}strength {strength:g} is outside of 0 to 1",
            "0 gives the image itself, 1 nothing of it; for example 0.6",
        )
    return strength


def _is_whole(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)
