"""What a checkpoint remembers of the data it was trained on; without it, its weights mean nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from dittool.config.architectures import ImageConfig
from dittool.data.identity import IdentityCard, json_sha256
from dittool.data.normalisation import LatentNorm, latent_norm
from dittool.data.shards.columns import SampleRef, Samples
from dittool.data.shards.read import ShardSet
from dittool.data.shards.statistics import SetStatistics
from dittool.encoders.cards import FeatureWidths
from dittool.errors import BadDataError

_OTHER_FILE = "name a checkpoint that this program wrote"


@dataclass(frozen=True)
class ToyCard:
    """The identity of points that are drawn while training: their settings are all that made them."""

    toy: Mapping[str, object]  # the section [toy]

    def to_json(self) -> dict[str, object]:
        return {"toy": dict(self.toy)}

    @property
    def sha256(self) -> str:
        return json_sha256(self.to_json())


@dataclass(frozen=True)
class Provenance:
    """The `data` key of a checkpoint."""

    identity: IdentityCard | ToyCard
    identity_hash: str
    widths: FeatureWidths
    norm: LatentNorm
    statistics: SetStatistics | None  # None for a toy's points
    order_hash: str  # of the ids and buckets of the training samples, in order

    @staticmethod
    def of(shards: ShardSet, refs: Sequence[SampleRef], config: ImageConfig) -> Provenance:
        """Raises `BadDataError` for a set whose identity card was changed after it was made."""
        if (found := shards.card.sha256) != shards.identity_hash:
            raise BadDataError(
                f"{shards.folder}: the identity card in its index hashes to {found[:12]}…, when the set was made it was"
                f" {shards.identity_hash[:12]}…",
                "restore index.json from a copy, or make the set again from its features with: dit shard",
            )
        statistics = shards.statistics
        norm = latent_norm(config.data.latent_scaling, shards.card.vae, statistics.latent_mean, statistics.latent_std)
        order = Samples.of(refs).order_sha256()
        return Provenance(shards.card, shards.identity_hash, shards.widths, norm, statistics, order)

    @staticmethod
    def of_toy(settings: Mapping[str, object]) -> Provenance:
        """For points that the section [toy] of a configuration describes."""
        card = ToyCard(settings)
        return Provenance(card, card.sha256, FeatureWidths(), LatentNorm((), ()), None, "")

    @property
    def card(self) -> IdentityCard:
        """Raises `BadDataError` for a toy's points, which no encoder made."""
        if isinstance(self.identity, IdentityCard):
            return self.identity
        raise BadDataError("this checkpoint was trained on a toy's points, which no encoder made", _OTHER_FILE)

    def is_same_data(self, other: Provenance) -> bool:
        """Whether nothing but a claim tells them apart: an index that `dit shard --index --preset P` made of the same
        samples has a card of its own, and with it another identity.
        """
        if not (isinstance(self.identity, IdentityCard) and isinstance(other.identity, IdentityCard)):
            return self == other
        same_samples = (self.order_hash, self.statistics, self.norm) == (other.order_hash, other.statistics, other.norm)
        return same_samples and self.identity.names_same_making(other.identity)

    def to_json(self) -> dict[str, object]:
        return {
            "identity": self.identity.to_json(),
            "identity_hash": self.identity_hash,
            "dims": self.widths.to_json(),
            "statistics": {} if self.statistics is None else self.statistics.to_json(),
            "order_hash": self.order_hash,
            "norm": self.norm.to_json(),
        }

    @staticmethod
    def from_json(value: object, source: str) -> Provenance:
        """Of a checkpoint that may come from anywhere. Raises `BadDataError` naming `source`."""
        if not isinstance(value, dict) or (
            wrong := [key for key, kind in _KINDS.items() if not isinstance(value.get(key), kind)]
        ):
            what = ", ".join(wrong) if isinstance(value, dict) else type(value).__name__
            raise BadDataError(f"{source}: what it remembers of its data cannot be read: {what}", _OTHER_FILE)
        identity, widths = value["identity"], FeatureWidths.from_json(value["dims"], f"{source}: dims")
        return Provenance(
            ToyCard(identity["toy"])
            if isinstance(identity.get("toy"), dict)
            else IdentityCard.from_json(identity, f"{source}: identity", complete=True),
            value["identity_hash"],
            widths,
            LatentNorm.from_json(value["norm"], source),
            SetStatistics.from_json(value["statistics"], widths, f"{source}: statistics") if value["dims"] else None,
            value["order_hash"],
        )


_KINDS = {"identity": dict, "identity_hash": str, "dims": dict, "statistics": dict, "order_hash": str, "norm": dict}
