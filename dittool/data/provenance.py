"""What a checkpoint remembers of the data it was trained on; without it, its weights mean nothing."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from dittool.config.schema import Config
from dittool.data.identity import identity_hash
from dittool.data.normalisation import LatentNorm, latent_norm
from dittool.data.shards.read import SampleRef, ShardSet
from dittool.errors import BadDataError


@dataclass(frozen=True)
class Provenance:
    """The `data` key of a checkpoint."""

    identity: dict[str, Any]  # the identity card
    identity_hash: str
    dims: dict[str, int]  # widths of the features: text, image, latent_channels
    norm: LatentNorm
    statistics: dict[str, Any]
    order_hash: str  # of the ids and buckets of the training samples, in order

    @staticmethod
    def of(shards: ShardSet, refs: list[SampleRef], config: Config) -> Provenance:
        """Raises `BadDataError` for a set whose identity card was changed after it was made."""
        if (found := identity_hash(shards.card)) != shards.identity_hash:
            raise BadDataError(
                f"{shards.folder}: the identity card in its index hashes to {found[:12]}…, when the set was made it was"
                f" {shards.identity_hash[:12]}…",
                "make the shards again with: dit shard",
            )
        norm = latent_norm(config.data.latent_scaling, shards.card["encoders"]["vae"], shards.statistics)
        order = hashlib.sha256("\n".join(f"{ref.id} {ref.bucket}" for ref in refs).encode()).hexdigest()
        return Provenance(shards.card, shards.identity_hash, shards.dims, norm, shards.statistics, order)

    def to_dict(self) -> dict[str, Any]:
        plain = {
            name: getattr(self, name) for name in ("identity", "identity_hash", "dims", "statistics", "order_hash")
        }
        return {**plain, "norm": self.norm.to_dict()}

    @staticmethod
    def from_dict(value: dict[str, Any]) -> Provenance:
        return Provenance(**{**value, "norm": LatentNorm.from_dict(value["norm"])})
