"""Sets without an index, as an older program would have left them, and the rules' judgement on them."""

from __future__ import annotations

import io
import json
import tarfile

import numpy as np

from dittool.audit.registry import built_in_rules
from dittool.audit.runner import audit_subject
from dittool.encoders.vae import load_codec
from dittool.untrusted.npy import npy_bytes
from tests.audit.opened import open_subject

RULES = {rule.code: rule for rule in built_in_rules()}
WIDTH = 8  # of the text


def some_text(caption, length, seed, padding=0.0):
    """Caption, text (512, D) and mask (512,); rows behind `length` hold `padding`."""
    text = np.full((512, WIDTH), padding, np.float16)
    text[:length] = np.random.default_rng(seed).normal(size=(length, WIDTH))
    return caption, text, np.arange(512) < length


def pack(folder, pictures, patches, cls=None, latents=None, texts=None):
    """Tars as an older program wrote them: fp32 patches, 512 rows of text and their mask, one folder a bucket.

    Args:
        cls: instead of random ones.
        latents, texts: by a picture's number, instead of the codec's, and of random ones: caption, text (512, D), mask
        (512,).
    """
    codec, chance = load_codec("builtin:dct"), np.random.default_rng(0)
    by_bucket = {}
    for number, (picture, tokens) in enumerate(zip(pictures, patches, strict=True)):
        caption, text, mask = (texts or {}).get(number) or some_text(
            f"picture number {number}", int(chance.integers(4, 18)), number
        )
        arrays = {
            "dinov3.npy": chance.normal(size=tokens.shape[1]).astype(np.float32) if cls is None else cls[number],
            "dinov3_patches.npy": tokens.astype(np.float32),
            "t5h.npy": text,
            "t5m.npy": mask,
            "vae.npy": (latents or {}).get(number, codec.encode(picture[None])[0].numpy().astype(np.float16)),
        }
        members = {"json": json.dumps({"caption": caption}).encode()} | {
            name: npy_bytes(array) for name, array in arrays.items()
        }
        by_bucket.setdefault(f"bucket_{picture.shape[1]}x{picture.shape[0]}", {})[f"{number:04d}"] = members
    for bucket, samples in by_bucket.items():
        (folder / bucket).mkdir(parents=True)
        with tarfile.open(folder / bucket / "shard-000000.tar", "w") as tar:
            for key, members in samples.items():
                for name, content in members.items():
                    info = tarfile.TarInfo(f"{key}.{name}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
    return folder


def judge_all(folder, *codes):
    """All findings of these rules, or of all of them."""
    result = audit_subject(open_subject(str(folder)), [RULES[code] for code in codes or RULES])
    assert not result.crashes
    return [judged.finding for judged in result.findings]


def judge(folder, *codes):
    result = audit_subject(open_subject(str(folder)), [RULES[code] for code in codes or RULES])
    assert not result.crashes
    return {judged.rule.code: judged.finding for judged in result.findings}
