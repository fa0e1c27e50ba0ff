"""The identity card is there, is whole, and is the preset's and the checkpoint's.

## What it checks
The card names all three encoders with the hash of their weights, and its own hash is the one in the index. With
`--preset`: encoders, buckets and storage are those of the preset. A checkpoint must remember the card that it was
trained on, unchanged, with the encoders that its own configuration names, and a finite normalisation for each latent
channel. A card that `dit shard --index` wrote for a set of another program is a claim, compared with shapes only: that,
and a set without any card, is a warning.

## Why it matters
Two encoders of the same width give features that fit every shape and mean something else. A checkpoint without the
statistics of its data cannot be decoded: reconstructions against latents of another scale were once judged as the
model's fault.

## Example
Shards of `facebook/dinov2-large` under a preset that says `facebook/dinov3-vitl16…` fail, though both are 1024 wide.

## Fix
Embed with the preset's encoders into another folder, or name what the data are: `-s encoders.image=…`. A claim stays
one; rules D1 to D3 say whether the features contradict it.
"""

from __future__ import annotations

import math

from dittool.audit.rule import Finding, failed, passed, skipped, warned
from dittool.audit.subject import Checkpoint, Data
from dittool.config.architectures import ImageConfig, with_patch_storage
from dittool.data.identity import IdentityCard
from dittool.encoders.cards import EncoderCard
from dittool.errors import BadDataError
from dittool.shell import quoted

CODE, NAME, SEVERITY, SCOPE, SINCE = "D4", "identity", "error", ("data", "checkpoint"), "0.1"

_FIX = "embed with the preset's encoders into another folder, or name what the data are with -s encoders.KIND=NAME"
_CLAIMED = "see what rules D1 to D3 say of the claim; to know, embed the images again with dit embed"
_KINDS = ("image", "text", "vae")


def check(subject: Data | Checkpoint) -> list[Finding]:
    return _check_data(subject) if isinstance(subject, Data) else _check_checkpoint(subject)


def _check_data(subject: Data) -> list[Finding]:
    data, expected = subject.opened, subject.expected
    if data.card is None:
        claim = (
            f"make the set with dit embed and dit shard, or say what made it: dit shard --index {quoted(data.folder)}"
            " --preset P"
        )
        return warned(
            f"no identity card for {len(data.refs)} samples: which encoders made their features is not known", claim
        )
    faults = _card_faults(data.card)
    if data.index is not None and data.index.identity_hash != data.card.sha256:
        faults.append(
            f"the index says identity {data.index.identity_hash[:12]}…, the card in it has {data.card.sha256[:12]}…"
        )
    if not faults and expected is not None:
        faults = _config_faults(data.card, expected.specimen.features())
    if faults:
        return failed("; ".join(faults), _FIX)
    against = "; as the preset says" if expected is not None else "; not compared with a preset: name one with --preset"
    return _judged(data.card, f"identity {data.card.sha256[:12]}…: {_encoders(data.card)}{against}")


def _check_checkpoint(subject: Checkpoint) -> list[Finding]:
    view = subject.view
    if not view.ours:
        return skipped("weights alone remember no data")
    config = None if view.config is None else subject.specimen.features()
    if not isinstance(view.data.get("identity"), dict):
        evidence = f"the checkpoint of step {view.content.get('step')} does not remember which data it was trained on"
        return failed(evidence, "without it no features fit these weights: train again")
    try:
        card = IdentityCard.from_json(view.data["identity"], "the checkpoint", complete=True)
    except BadDataError as error:
        return failed(error.message, _FIX)
    faults = _card_faults(card)
    if view.data["identity_hash"] != card.sha256:
        faults.append(f"identity {view.data['identity_hash'][:12]}… beside a card of {card.sha256[:12]}…")
    channels = card.vae.channels
    for name, values in view.data["norm"].items():
        if (
            len(values) != channels
            or not all(math.isfinite(value) for value in values)
            or (name == "scale" and not all(values))
        ):
            faults.append(f"normalisation: {name} is not {channels} finite numbers, one a channel")
    if not faults and config is not None:
        faults += _config_faults(card, config)
    if not faults and subject.expected is not None:
        faults += _config_faults(card, subject.expected.specimen.features())
    if faults:
        return failed("; ".join(faults), _FIX)
    return _judged(
        card,
        f"trained on identity {card.sha256[:12]}…: {_encoders(card)}; normalisation of {channels} channels",
    )


def _judged(card: IdentityCard, evidence: str) -> list[Finding]:
    """For a card without faults."""
    if card.claimed:
        return warned(
            f"{evidence}; its {len(_KINDS)} encoders are claimed: another program made the features, nobody saw with"
            " what",
            _CLAIMED,
        )
    return passed(evidence)


def _card_faults(card: IdentityCard) -> list[str]:
    named = {encoder.kind for encoder in card.encoders if encoder.id and encoder.weights}
    missing = [kind for kind in _KINDS if kind not in named]
    return (
        [f"the card does not say which {', '.join(missing)} encoder of which weights made the features"]
        if missing
        else []
    )


def _config_faults(card: IdentityCard, config: ImageConfig) -> list[str]:
    pairs = [(encoder.kind, encoder.id, getattr(config.encoders, encoder.kind)) for encoder in _in_order(card)]
    faults = [
        f"{kind} encoder '{found}', the configuration says '{wanted}'"
        for kind, found, wanted in pairs
        if found != wanted
    ]
    buckets = sorted(bucket.name for bucket in config.data.bucket_sizes())
    if sorted(card.buckets) != buckets:
        faults.append(f"buckets {', '.join(sorted(card.buckets))}, the configuration says {', '.join(buckets)}")
    if card.patch_storage != (wanted := with_patch_storage(config, card.patch_storage).data.patch_storage):
        faults.append(f"patches stored in {card.patch_storage}, the configuration says {wanted}")
    return faults


def _encoders(card: IdentityCard) -> str:
    return ", ".join(f"{encoder.kind} {encoder.id}" for encoder in _in_order(card))


def _in_order(card: IdentityCard) -> tuple[EncoderCard, ...]:
    return card.image, card.text, card.vae
