"""Means and standard deviations over all samples of a set, in float64, by a method that does not cancel.

Summing squares loses all digits when the mean is large against the deviation, and float16 sums overflow. Here each
array gives its own mean and sum of squared distances from it, and two such results are joined exactly as their union
would have been counted:

    n = n_a + n_b      δ = mean_b − mean_a      mean = mean_a + δ·n_b/n      M2 = M2_a + M2_b + δ²·n_a·n_b/n

(Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances", 1979.)
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dittool.data.records import IMAGE_CLS, IMAGE_PATCHES, LATENT, TEXT, Feature, first_text, is_kind, text_members
from dittool.encoders.cards import FeatureWidths
from dittool.errors import BadDataError

_ROWS = 256  # of an array, converted at once: 256 × 1024 float64 stay in the processor's cache


@dataclass(frozen=True)
class Moments:
    """Count, mean and sum of squared distances from the mean, for each channel."""

    count: int
    mean: np.ndarray  # (C,) float64
    squares: np.ndarray  # (C,) float64, M2 above

    @staticmethod
    def of(values: np.ndarray, axis: int) -> Moments:
        """Of an array (n, C) with `axis` 1, or (C, n) with `axis` 0: the axis is that of the channels."""
        if axis == 0:
            parts = values.astype(np.float64)  # (C, n): a latent, small
            mean = parts.mean(axis=1)
            parts -= mean[:, None]
            return Moments(parts.shape[1], mean, np.einsum("cn,cn->c", parts, parts))
        return Moments.joined(_of_rows(values[start : start + _ROWS]) for start in range(0, len(values), _ROWS))

    @staticmethod
    def joined(parts: Iterable[Moments]) -> Moments:
        """Of all values that the parts were counted from. Raises ValueError when there is no part."""
        total = None
        for part in parts:
            total = part if total is None else total._with(part)
        if total is None:
            raise ValueError("no moments to join")
        return total

    def _with(self, other: Moments) -> Moments:
        count, delta = self.count + other.count, other.mean - self.mean
        squares = self.squares + other.squares + np.square(delta) * (self.count * other.count / count)
        return Moments(count, self.mean + delta * (other.count / count), squares)

    @property
    def std(self) -> np.ndarray:
        """(C,) standard deviation of the values themselves (divisor n)."""
        return np.sqrt(self.squares / self.count)

    def to_json(self) -> list[Any]:
        return [self.count, self.mean.tolist(), self.squares.tolist()]

    @staticmethod
    def from_json(value: list[Any]) -> Moments:
        return Moments(int(value[0]), np.array(value[1], dtype=np.float64), np.array(value[2], dtype=np.float64))


def _of_rows(rows: np.ndarray) -> Moments:
    values = rows.astype(np.float64)  # (n, C)
    mean = values.mean(axis=0)
    values -= mean
    return Moments(len(values), mean, np.einsum("nc,nc->c", values, values))


_NAMES = {LATENT: "latent", IMAGE_CLS: "cls", IMAGE_PATCHES: "patch"}


@dataclass
class ShardStatistics:
    """What one shard's samples add to the statistics of the set. Survives JSON without losing a bit."""

    samples: int = 0
    text_tokens: int = 0  # of all captions
    longest_text: int = 0
    moments: dict[str, Moments] = field(default_factory=dict)  # by "latent", "cls", "patch"
    widths: FeatureWidths = field(default_factory=FeatureWidths)
    # kind → captions, their tokens, and the longest; none of a set that keeps one of an image
    kinds: dict[str, tuple[int, int, int]] = field(default_factory=dict)

    def add(self, arrays: dict[Feature, np.ndarray]) -> None:
        """One sample: CLS (C,), patches (N, C) as the model sees them, latent (channels, h, w), text (L, D) of each
        caption; widths as of all others.
        """
        latent = arrays[LATENT]
        self.widths = widths_of(arrays)
        self.samples += 1
        lengths = {feature.member: len(array) for feature, array in arrays.items() if feature.name == TEXT.name}
        self.text_tokens += sum(lengths.values())
        self.longest_text = max(self.longest_text, *lengths.values())
        for member, kind in text_members(lengths).items():
            if kind:
                count, tokens, longest = self.kinds.get(kind, (0, 0, 0))
                self.kinds[kind] = count + 1, tokens + lengths[member], max(longest, lengths[member])
        found = {
            LATENT: Moments.of(latent.reshape(len(latent), -1), axis=0),
            IMAGE_CLS: Moments.of(arrays[IMAGE_CLS][None], axis=1),
        }
        if IMAGE_PATCHES in arrays:
            found[IMAGE_PATCHES] = Moments.of(arrays[IMAGE_PATCHES], axis=1)
        for feature, moments in found.items():
            name = _NAMES[feature]
            self.moments[name] = Moments.joined([self.moments[name], moments]) if name in self.moments else moments

    def to_json(self) -> dict[str, object]:
        moments = {name: channel.to_json() for name, channel in self.moments.items()}
        return {
            "samples": self.samples,
            "text_tokens": self.text_tokens,
            "longest_text": self.longest_text,
            "dims": self.widths.to_json(),
            "moments": moments,
            **({"kinds": self.kinds} if self.kinds else {}),
        }

    @staticmethod
    def from_json(value: dict[str, Any]) -> ShardStatistics:
        moments = {name: Moments.from_json(channel) for name, channel in value["moments"].items()}
        widths = FeatureWidths.from_json(value["dims"], "a line of shards.jsonl")
        kinds = {kind: (int(count), int(tokens), int(most)) for kind, (count, tokens, most) in _kinds_in(value).items()}
        return ShardStatistics(value["samples"], value["text_tokens"], value["longest_text"], moments, widths, kinds)


def widths_of(arrays: dict[Feature, np.ndarray]) -> FeatureWidths:
    """What a model must know of a sample's features."""
    return FeatureWidths(first_text(arrays).shape[1], arrays[IMAGE_CLS].shape[0], arrays[LATENT].shape[0])


@dataclass(frozen=True)
class SetStatistics:
    """`statistics` of index.json, over all samples of a set: one mean and one standard deviation a channel."""

    samples: int
    latent_mean: tuple[float, ...]
    latent_std: tuple[float, ...]
    cls_mean: tuple[float, ...]
    cls_std: tuple[float, ...]
    patch_mean: tuple[float, ...]  # none where no patches are stored
    patch_std: tuple[float, ...]
    tokens_mean: float  # of a caption
    tokens_max: int
    # kind → captions, mean and largest number of their tokens; none of a set that keeps one caption of an image
    kinds: tuple[tuple[str, int, float, int], ...] = ()

    @staticmethod
    def joined(parts: Sequence[ShardStatistics]) -> SetStatistics:
        """Over all shards. Joined in the order given, so that equal sets give equal bytes."""
        samples = sum(part.samples for part in parts)
        channels: dict[str, tuple[float, ...]] = {}
        for name in _NAMES.values():
            if name not in parts[0].moments:
                channels |= {f"{name}_mean": (), f"{name}_std": ()}
                continue
            total = Moments.joined(part.moments[name] for part in parts)
            channels |= {f"{name}_mean": tuple(total.mean.tolist()), f"{name}_std": tuple(total.std.tolist())}
        kinds = []
        for kind in sorted({kind for part in parts for kind in part.kinds}):
            counts, tokens, longest = zip(*(part.kinds[kind] for part in parts if kind in part.kinds), strict=True)
            kinds.append((kind, sum(counts), sum(tokens) / sum(counts), max(longest)))
        captions = sum(count for _, count, *_ in kinds) or samples
        mean = sum(part.text_tokens for part in parts) / captions
        longest_text = max(part.longest_text for part in parts)
        return SetStatistics(samples, **channels, tokens_mean=mean, tokens_max=longest_text, kinds=tuple(kinds))

    @staticmethod
    def from_json(value: dict[str, Any], widths: FeatureWidths, source: str) -> SetStatistics:
        """From an index or a checkpoint that may come from anywhere, for samples of these widths. Raises
        `BadDataError` with all that cannot be.
        """
        patches = 0 if value.get("patch_mean") == [] else widths.image
        counts = {"latent": widths.latent_channels, "cls": widths.image, "patch": patches}
        channels = {f"{name}_{of}": count for name, count in counts.items() for of in ("mean", "std")}
        wrong = [
            f"{key} is not {count} finite numbers"
            for key, count in channels.items()
            if not _is_row(value.get(key), count)
        ]
        tokens = value.get("text_tokens", {})
        if not isinstance(tokens, dict) or not all(_is_finite(tokens.get(key)) for key in ("mean", "max")):
            wrong.append(f"text_tokens = {tokens!r}")
        elif not _are_kinds(_kinds_in(tokens)):
            wrong.append(f"text_tokens.kinds = {tokens['kinds']!r}")
        if type(value.get("samples")) is not int:
            wrong.append(f"samples = {value.get('samples')!r}")
        if wrong:
            raise BadDataError(
                f"{source}: {'; '.join(wrong)}",
                "copy the set again; one that was made here is made again with: dit shard",
            )
        return SetStatistics(
            value["samples"],
            **{key: tuple(value[key]) for key in channels},
            tokens_mean=tokens["mean"],
            tokens_max=tokens["max"],
            kinds=tuple((kind, *figures) for kind, figures in _kinds_in(tokens).items()),
        )

    def to_json(self) -> dict[str, object]:
        channels = {
            f"{name}_{of}": list(getattr(self, f"{name}_{of}")) for name in _NAMES.values() for of in ("mean", "std")
        }
        tokens: dict[str, object] = {"mean": self.tokens_mean, "max": self.tokens_max}
        if self.kinds:
            tokens["kinds"] = {kind: list(figures) for kind, *figures in self.kinds}
        return {"samples": self.samples, **channels, "text_tokens": tokens}

    def differing_keys(self, found: SetStatistics) -> list[str]:
        """Keys of the JSON form that are further apart than sums of one set may be on two machines."""
        mine = self.to_json()
        return [key for key, value in found.to_json().items() if not _are_close(mine[key], value)]


def _are_close(mine: Any, found: Any) -> bool:
    if isinstance(found, dict):
        return mine.keys() == found.keys() and all(_are_close(mine[key], value) for key, value in found.items())
    return bool(np.allclose(np.asarray(mine, dtype=np.float64), found, rtol=1e-9, atol=1e-12))


def _kinds_in(value: dict[str, Any]) -> dict[str, Any]:
    return value.get("kinds", {})


def _are_kinds(kinds: object) -> bool:
    return isinstance(kinds, dict) and all(is_kind(kind) and _is_row(row, 3) for kind, row in kinds.items())


def _is_row(value: object, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(map(_is_finite, value))


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
