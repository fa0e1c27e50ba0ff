"""Faults of features and shards. Each function plants one; see `planted.py`."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from dittool.audit.subject import Subject
from dittool.config.load import load_config
from dittool.data.features.store import FeatureStore
from dittool.data.identity import json_sha256
from dittool.data.records import FEATURES
from dittool.data.shards.index import read_index
from dittool.data.shards.older_sets import index_older_set
from dittool.data.shards.write import shard
from dittool.data.source.scan import load_pixels
from dittool.encoders.image import DinoEncoder, load_image_encoder
from dittool.encoders.text import load_text_encoder
from dittool.seeding import unit_interval
from tests.audit.planted import plants
from tests.audit.workshop import Workshop


def _first_sample(shop: Workshop) -> str:
    return sorted(path.stem for path in (shop.clean / "derived/vae_latents").iterdir())[0]


@plants("D1", "patches of a finer grid, cut to what fits nothing")
def stale_grid(shop: Workshop) -> Subject:
    return shop.open(shop.shards(lambda record, arrays: {"dinov3_patches": arrays["dinov3_patches"][:-2]}))


@plants("D1", "a latent that was resized")
def resized_latent(shop: Workshop) -> Subject:
    return shop.open(shop.shards(lambda record, arrays: {"vae_latents": arrays["vae_latents"][:, ::2, ::2]}))


def _patches_as(shop: Workshop, tokens: Callable[[DinoEncoder, np.ndarray], np.ndarray]) -> Subject:
    """Shards whose patches come from `tokens(encoder, pixels)`, cut or repeated to the number that the bucket's
    grid has.
    """
    encoder = load_image_encoder("builtin:dinov3", "fp32")

    def change(record, arrays):
        made = tokens(encoder, load_pixels(record, shop.clean / "images"))
        count = len(arrays["dinov3_patches"])
        return {"dinov3_patches": np.resize(made, (count, made.shape[1])).astype(np.float16)}

    return shop.open(shop.shards(change))


def _encode(encoder: DinoEncoder, pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Patches of the image resized to (width, height)."""
    resized = np.array(Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC))
    return encoder.encode(resized[None]).patches[0].numpy()


@plants("D2", "registers stored as patches, the last four patches lost")
@plants("D3", "registers stored as patches, the last four patches lost")
def stored_registers(shop: Workshop) -> Subject:
    def after_cls(encoder, pixels):
        kept = []
        handle = encoder._model.register_forward_hook(
            lambda _model, _inputs, output: kept.append(output.last_hidden_state[0, 1:])
        )
        encoder.encode(pixels[None])
        handle.remove()
        return kept[0].numpy()

    return _patches_as(shop, after_cls)


@plants("D3", "DINO on a centre crop, the latent on the whole image")
def centre_crop(shop: Workshop) -> Subject:
    def crop(encoder, pixels):
        height, width = pixels.shape[:2]
        top, left = height // 8, width // 8
        return _encode(encoder, np.ascontiguousarray(pixels[top : height - top, left : width - left]), (width, height))

    return _patches_as(shop, crop)


@plants("D3", "a flip of the latent only")
def flipped_latent(shop: Workshop) -> Subject:
    return shop.open(
        shop.shards(lambda record, arrays: {"vae_latents": np.ascontiguousarray(arrays["vae_latents"][:, :, ::-1])})
    )


@plants("D3", "a grid stored column by column")
def transposed_grid(shop: Workshop) -> Subject:
    def transpose(record, arrays):
        width, height = (int(side) // 16 for side in record.bucket.split("x"))
        patches = arrays["dinov3_patches"]
        return {"dinov3_patches": patches.reshape(height, width, -1).swapaxes(0, 1).reshape(patches.shape)}

    return shop.open(shop.shards(transpose))


@plants("D3", "a grid of patch 14, cut to the count of patch 16")
def grid_of_patch_14(shop: Workshop) -> Subject:
    return _patches_as(
        shop,
        lambda encoder, pixels: _encode(encoder, pixels, tuple(round(side / 14) * 16 for side in pixels.shape[1::-1])),
    )


@plants("D3", "patches shifted by a row")
def shifted_row(shop: Workshop) -> Subject:
    def shift(record, arrays):
        columns = int(record.bucket.split("x")[0]) // 16
        return {"dinov3_patches": np.roll(arrays["dinov3_patches"], columns, axis=0)}

    return shop.open(shop.shards(shift))


@plants("D4", "features of another encoder of the same width")
def other_encoder(shop: Workshop) -> Subject:
    return shop.open(shop.shards(), load_config("demo", ["encoders.image=facebook/dinov2-large", "data.area=96x96"]))


@plants("D4", "a card that was edited by hand")
def edited_card(shop: Workshop) -> Subject:
    return shop.open(
        shop.edit_index(shop.shards(), lambda index: index["identity"]["encoders"]["vae"].update(scale=0.3611))
    )


@plants("D4", "a checkpoint that does not remember its data")
def no_identity(shop: Workshop) -> Subject:
    return shop.open(shop.checkpoint(lambda content: content.update(data={})))


@plants("D4", "a card that is only a claim", status="warn")
def claimed_card(shop: Workshop) -> Subject:
    shards = shop.without_index(shop.shards())
    index_older_set(shards, load_config("demo", ["data.area=96x96"]))
    return shop.open(shards)


@plants("D4", "a checkpoint that was trained on a claim", status="warn")
def trained_on_a_claim(shop: Workshop) -> Subject:
    def claim(content):
        content["data"]["identity"]["claimed"] = True
        content["data"]["identity_hash"] = json_sha256(content["data"]["identity"])

    return shop.open(shop.checkpoint(claim))


@plants("D5", "a shard that is listed for training and held out")
def holdout_overlap(shop: Workshop) -> Subject:
    def overlap(index):
        held = next(row for row in index["shards"] if row["split"] == "holdout")
        index["shards"].append({**held, "split": "train"})

    return shop.open(shop.edit_index(shop.shards(), overlap))


@plants("D5", "a picture saved again under another name, on the other side")
def resaved_picture(shop: Workshop) -> Subject:
    def copy_across(records):
        share = load_config("demo").data.holdout
        is_held = unit_interval("holdout", records[0].image_sha256) < share
        other_side = next(
            f"{n:064x}" for n in range(10_000) if (unit_interval("holdout", f"{n:064x}") < share) != is_held
        )
        return [*records, replace(records[0], id="copy", name="copy", image_sha256=other_side)]

    return shop.open(shop.shards(records=copy_across))


@plants("D6", "NaN in one latent")
def nan_latent(shop: Workshop) -> Subject:
    def spoil(record, arrays):
        return {"vae_latents": arrays["vae_latents"] * np.float16(np.nan)} if record.id == _first_sample(shop) else {}

    return shop.open(shop.derived(spoil))


@plants("D6", "a CLS that is the mean of the patches")
def pooled_cls(shop: Workshop) -> Subject:
    return shop.open(
        shop.shards(
            lambda record, arrays: {
                "dinov3": arrays["dinov3_patches"].astype(np.float32).mean(axis=0).astype(np.float16)
            }
        )
    )


@plants("D6", "latents that were normalised before they were stored")
def normalised_twice(shop: Workshop) -> Subject:
    def of_a_scaled_codec(index):
        index["identity"]["encoders"]["vae"].update(id="black-forest-labs/FLUX.1-schnell", scale=0.3611, shift=0.1159)
        index["identity_hash"] = json_sha256(index["identity"])

    return shop.open(shop.edit_index(shop.shards(), of_a_scaled_codec))


@plants("D6", "latents that were normalised channel by channel, and a card that does not say so")
def normalised_by_channel(shop: Workshop) -> Subject:
    statistics = read_index(shop.clean / "shards").statistics
    mean, std = (np.array(values)[:, None, None] for values in (statistics.latent_mean, statistics.latent_std))
    return shop.open(
        shop.shards(lambda record, arrays: {"vae_latents": ((arrays["vae_latents"] - mean) / std).astype(np.float16)})
    )


@plants("D6", "statistics that overflowed")
def wrong_statistics(shop: Workshop) -> Subject:
    return shop.open(shop.edit_index(shop.shards(), lambda index: index["statistics"].update(latent_std=[9.0] * 16)))


@plants("D7", "a shard that was cut")
def cut_shard(shop: Workshop) -> Subject:
    shards = shop.shards()
    tar = sorted(shards.glob("bucket_*/shard-*.tar"))[0]
    tar.write_bytes(tar.read_bytes()[: tar.stat().st_size // 2])
    return shop.open(shards)


@plants("D7", "a tar cut between two members, in a set without an index")
def cut_at_a_boundary(shop: Workshop) -> Subject:
    from dittool.untrusted.tar import tar_members

    shards = shop.without_index(shop.shards())
    tar = sorted(shards.glob("bucket_*/shard-*.tar"))[0]
    member = tar_members(tar)[7]
    tar.write_bytes(tar.read_bytes()[: member.offset + -(-member.size // 512) * 512])
    return shop.open(shards)


@plants("D7", "one flipped byte")
def flipped_byte(shop: Workshop) -> Subject:
    shards = shop.shards()
    tar = sorted(shards.glob("bucket_*/shard-*.tar"))[0]
    content = bytearray(tar.read_bytes())
    content[len(content) // 2] ^= 1
    tar.write_bytes(content)
    return shop.open(shards)


@plants("D7", "a feature that is missing from a derived folder")
def missing_feature(shop: Workshop) -> Subject:
    derived = shop.derived()
    (derived / "dinov3" / f"{_first_sample(shop)}.npy").unlink()
    return shop.open(derived)


@plants("D7", "a flipped byte in a derived folder")
def flipped_feature_byte(shop: Workshop) -> Subject:
    derived = shutil.copytree(shop.clean / "derived", shop.bench / "derived")
    path = derived / "vae_latents" / f"{_first_sample(shop)}.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    return shop.open(derived)


@plants("D8", "captions that are all equal")
def equal_captions(shop: Workshop) -> Subject:
    return shop.open(shop.shards(records=lambda records: [replace(record, caption="a picture") for record in records]))


@plants("D8", "padding stored without a mask")
def stored_padding(shop: Workshop) -> Subject:
    return shop.open(shop.shards(lambda record, arrays: {"t5_hidden": np.pad(arrays["t5_hidden"], ((0, 55), (0, 0)))}))


@plants("D8", "captions that all end at 77 tokens", status="warn")
def cut_captions(shop: Workshop) -> Subject:
    return shop.open(shop.shards(lambda record, arrays: {"t5_hidden": np.tile(arrays["t5_hidden"], (9, 1))[:77]}))


@plants("D8", "features that do not depend on the caption")
def deaf_text(shop: Workshop) -> Subject:
    return shop.open(shop.shards(lambda record, arrays: {"t5_hidden": np.ones((5, 64), np.float16)}))


@plants("D8", "captions edited after their features were made")
def edited_captions(shop: Workshop) -> Subject:
    def mirror_some(records):
        first = records[0]
        return [
            *records,
            *(
                replace(first, id=f"copy{n}", name=f"copy{n}", caption=f"{first.caption}, mirrored {n} times")
                for n in range(1, 5)
            ),
        ]

    return shop.open(shop.derived(records=mirror_some))


def _exchanged(shop: Workshop, feature: str, share: float = 1.0) -> Subject:
    """Shards in which so many samples have this feature of another image: of the one before, in the order of ids."""
    store = FeatureStore(shop.clean / "derived")
    ids_of: dict[str, list[str]] = {}  # by bucket, so that the shape fits
    for record in sorted(store.read_records(), key=lambda record: record.id):
        if unit_interval("exchanged", record.id) < share:
            ids_of.setdefault(record.bucket, []).append(record.id)
    before = {own: other for ids in ids_of.values() for own, other in zip(ids, [ids[-1], *ids[:-1]], strict=True)}
    made_by = {one.name: one for one in FEATURES}[feature]
    return shop.open(
        shop.shards(
            lambda record, arrays: {feature: store.read(made_by, before[record.id])} if record.id in before else {}
        )
    )


@plants("D10", "latents that were written one sample late")
def late_latents(shop: Workshop) -> Subject:
    return _exchanged(shop, "vae_latents")


@plants("D10", "patches of other images in a quarter of the samples")
def some_patches_of_others(shop: Workshop) -> Subject:
    return _exchanged(shop, "dinov3_patches", 0.25)


@plants("D10", "CLS tokens of other images in half of the samples")
def half_of_cls_tokens_of_others(shop: Workshop) -> Subject:
    return _exchanged(shop, "dinov3", 0.5)


@plants("D10", "captions of other images")
def captions_of_others(shop: Workshop) -> Subject:
    def shift(records):
        return [
            replace(own, caption=other.caption) for own, other in zip(records, records[1:] + records[:1], strict=True)
        ]

    derived = shop.derived(records=shift)
    embed_captions(derived)
    shard(derived, shop.bench / "shards", shard_size=20)
    return shop.open(shop.bench / "shards")


def embed_captions(derived: Path) -> None:
    """Makes the text features of a derived folder those of the captions in its records."""
    store, encoder = FeatureStore(derived), load_text_encoder("builtin:words", "fp32", 77)
    records = store.read_records()
    for record in records:
        np.save(derived / "t5_hidden" / f"{record.id}.npy", encoder.encode([record.caption])[0].hidden.numpy())
    store.append_journal("t5", records)


@plants("D10", "captions exchanged after their features were made")
def exchanged_strings(shop: Workshop) -> Subject:
    def shift(records):
        return [
            replace(own, caption=other.caption) for own, other in zip(records, records[1:] + records[:1], strict=True)
        ]

    return shop.open(shop.derived(records=shift))


@plants("D8", "left and right exchanged in every other caption, after the features were made")
def mirrored_strings(shop: Workshop) -> Subject:
    sides = {"left": "right", "right": "left"}

    def mirror(records):
        def mirrored(record):
            return replace(
                record, caption=" ".join(sides.get(w.strip(","), w.strip(",")) for w in record.caption.split())
            )

        plain = [replace(record, caption=record.caption.replace(",", "")) for record in records]
        return [mirrored(record) if number % 2 else record for number, record in enumerate(plain)]

    return shop.open(shop.derived(records=mirror))


@plants("D9", "one picture many times", status="warn")
def duplicates(shop: Workshop) -> Subject:
    return shop.open(
        shop.shards(
            records=lambda records: [*records, *(replace(records[0], id=f"copy{n}", name=f"copy{n}") for n in range(5))]
        )
    )


@plants("D9", "a bucket smaller than a batch", status="warn")
def small_bucket(shop: Workshop) -> Subject:
    return shop.open(shop.shards(), load_config("demo", ["train.batch_size=64", "data.area=96x96"]))
