"""How many images show which fault to the rules D2 and D3, and how often they cry wolf. Run: python
tests/bench/audit_power.py --images FOLDER

Patches are misplaced in the ways of tests/audit/misplaced.py, by encoders and on pictures of several kinds; so many
images are drawn from a pool, and the rules judge them. Sets have no index. Printed is, for each fault, the least number
of images at which it is found in all draws. Random weights stand for an encoder that says little of what it sees,
`patch colours` for a trained one: it is no network, and says of each patch what stands there. With --time the rules
judge 1,000 images of the sizes that DINOv3-L has at 512².
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import hashlib
import resource
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from dittool.audit.data_view import DataView
from dittool.audit.rules import D2_registers as D2
from dittool.audit.rules import D3_alignment as D3
from dittool.audit.subject import Data
from dittool.data.alignment import Observed, align, observe
from dittool.data.records import IMAGE_CLS, IMAGE_PATCHES
from dittool.data.shards.columns import SampleRef
from dittool.demo.drawing import draw_scene, plan_scenes
from dittool.encoders.image import DinoEncoder
from dittool.encoders.torchvision_remedy import ensure_torchvision
from dittool.encoders.vae import load_codec
from dittool.geometry import buckets_for_area, crop_box, nearest_bucket
from tests.audit.misplaced import MISPLACED, Eyes, builtin_eyes, clean, colour_eyes, eyes_of, textured
from tests.audit.opened import open_subject
from tests.bench.bench_reading import make_set

SIZES = (24, 32, 48, 64, 96, 128, 192, 256)  # images
SHOWN_BY = {  # fault → what D3 must call it
    "registers stored as patches": "shifted by +4",
    "CLS stored as a patch": "shifted by +1",
    "centre crop for DINO": "centre crop of 0.875",
    "mirrored for DINO only": "flipped left to right",
    "grid written column by column": ("column by column", "transposed"),
    "stale grid of patch 14": "a grid of patch 14, cut to fit",
    "shifted by a row": "shifted by +1 row",
}
POOL, AREA, FOLDER_AREA = 300, 128, 192


def random_dinov3() -> Eyes:
    from transformers import DINOv3ViTConfig, DINOv3ViTModel

    torch.manual_seed(0)
    config = DINOv3ViTConfig(
        patch_size=16,
        num_register_tokens=4,
        hidden_size=192,
        intermediate_size=768,
        num_hidden_layers=6,
        num_attention_heads=3,
    )
    return eyes_of(DinoEncoder(DINOv3ViTModel(config), "random DINOv3, 6 layers of 192", "0", "fp32"))


def random_dinov2() -> Eyes:
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    torch.manual_seed(0)
    config = Dinov2WithRegistersConfig(
        patch_size=14,
        image_size=518,
        num_register_tokens=4,
        hidden_size=192,
        num_hidden_layers=6,
        num_attention_heads=3,
    )
    return eyes_of(
        DinoEncoder(Dinov2WithRegistersModel(config), "random DINOv2, 6 layers of 192, patch 14", "0", "fp32")
    )


ENCODERS = {"builtin": builtin_eyes, "dinov3": random_dinov3, "dinov2": random_dinov2, "colours": colour_eyes}


def on_white(picture: Image.Image) -> Image.Image:
    return Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture).convert("RGB")


def bucketed(picture: Image.Image, area: int) -> np.ndarray:
    buckets = buckets_for_area((area, area))
    bucket = nearest_bucket(*picture.size, buckets)
    return np.array(
        picture.resize((bucket.width, bucket.height), Image.Resampling.BICUBIC, box=crop_box(*picture.size, bucket))
    )


def pictures(folder: Path | None) -> dict[str, list[np.ndarray]]:
    buckets = buckets_for_area((AREA, AREA))
    kinds = {
        "drawn": [bucketed(draw_scene(scene), AREA) for scene in plan_scenes(POOL, seed=0)],
        "textured": [
            textured(n, buckets[n % len(buckets)].width, buckets[n % len(buckets)].height) for n in range(POOL)
        ],
    }
    if folder is not None:
        paths = sorted(path for path in folder.iterdir() if path.suffix in (".png", ".jpg", ".webp"))
        kinds[folder.name] = [bucketed(on_white(Image.open(path).convert("RGBA")), FOLDER_AREA) for path in paths]
    return kinds


class Pool:
    """Pictures through an encoder, misplaced in one way, as the two rules see them."""

    def __init__(self, eyes: Eyes, images: list[np.ndarray], latents: list[np.ndarray], misplace) -> None:
        self._cls = [eyes.tokens(image)[0] for image in images]
        self._patches = [misplace(eyes, image).astype(np.float32) for image in images]
        self._refs = [
            SampleRef(str(n), f"{image.shape[1]}x{image.shape[0]}", "train", "", {}) for n, image in enumerate(images)
        ]
        self._observed: list[Observed] = [
            observe(patches, latent, eyes.grid(image), image.shape[1::-1], 1024, n)
            for n, (patches, latent, image) in enumerate(zip(self._patches, latents, images, strict=True))
        ]

    def judge(self, chosen: np.ndarray) -> tuple[str, str, str]:
        """Status of D2; status of D3 and what it says."""
        view = DataView(Path(), [self._refs[n] for n in chosen], None, None, self._array, None, None)
        (d2,), (d3,) = (
            D2.check(Data("", view, "shards")),
            D3.verdict(align([self._observed[n] for n in chosen]), None),  # random crops: crops_power.py
        )
        return d2.status, d3.status, d3.evidence

    def _array(self, ref: SampleRef, feature) -> np.ndarray:
        return {IMAGE_CLS: self._cls, IMAGE_PATCHES: self._patches}[feature][int(ref.id)]


def draws(pool: int, size: int, count: int, seed: int) -> list[np.ndarray]:
    chance = np.random.default_rng(seed)
    return [chance.choice(pool, size, replace=False) for _ in range(count)]


def least(found_at: dict[int, float]) -> str:
    """The least size from which all draws show the fault, else the best share."""
    for size in found_at:
        if all(share == 1 for other, share in found_at.items() if other >= size):
            return str(size)
    best = max(found_at, key=lambda size: (found_at[size], size))
    return f"{found_at[best]:.0%} at {best}"


def measure_fault(
    name: str, pool: Pool, sizes: list[int], available: int, count: int
) -> tuple[dict[int, float], dict[int, float], int]:
    """By size the shares of draws in which D2 and D3 find the fault, up to the size at which both always do; how
    often D3 passed it.
    """
    by_d2, by_d3, passed = {}, {}, 0
    expected = SHOWN_BY[name]
    for size in sizes:
        judged = [pool.judge(chosen) for chosen in draws(available, size, count, size)]
        by_d2[size] = np.mean([d2 == "fail" for d2, _, _ in judged])
        named = [
            any(f"{one} explains" in said for one in ([expected] if isinstance(expected, str) else expected))
            for _, _, said in judged
        ]
        by_d3[size] = np.mean([d3 == "fail" and right for (_, d3, _), right in zip(judged, named, strict=True)])
        passed += sum(d3 == "pass" for _, d3, _ in judged)
        if by_d3[size] == 1 and (by_d2[size] == 1 or "registers" not in name):
            break
    return by_d2, by_d3, passed


def seeing_once(eyes: Eyes) -> Eyes:
    """The same encoder, which remembers what it has seen."""
    seen: dict[bytes, np.ndarray] = {}

    def tokens(pixels: np.ndarray) -> np.ndarray:
        key = hashlib.blake2b(pixels.tobytes() + bytes(str(pixels.shape), "ascii")).digest()
        if key not in seen:
            seen[key] = eyes.tokens(pixels)
        return seen[key]

    return replace(eyes, tokens=tokens)


def measure_encoder(
    eyes: Eyes, kinds: dict[str, list[np.ndarray]], latents: dict[str, list[np.ndarray]], options: argparse.Namespace
) -> None:
    print(f"\n## {eyes.name}\n\n| pictures | fault | D2 | D3 | D3 passed it |\n| --- | --- | --- | --- | --- |")
    for kind, images in kinds.items():
        sizes = [size for size in SIZES if size < len(images)]
        for name, misplace in MISPLACED.items():
            if "patch 14" in name and eyes.patch_size == 14:
                continue
            by_d2, by_d3, passed = measure_fault(
                name, Pool(eyes, images, latents[kind], misplace), sizes, len(images), options.draws
            )
            d2 = least(by_d2) if "registers" in name else "1" if "CLS" in name else "–"
            print(f"| {kind} | {name} | {d2} | {least(by_d3)} | {passed} of {options.draws * len(by_d3)} |", flush=True)
    print(
        "\n| pictures | images | D2 false | D3 false | D3 passes | D3 says it cannot tell |\n| --- | --- | --- | --- |"
        " --- | --- |"
    )
    for kind, images in kinds.items():
        pool = Pool(eyes, images, latents[kind], clean)
        for size in (24, 64):
            judged = [pool.judge(chosen) for chosen in draws(len(images), size, options.clean_draws, size + 1)]
            d2, d3 = Counter(status for status, _, _ in judged), Counter(status for _, status, _ in judged)
            print(f"| {kind} | {size} | {d2['fail']} | {d3['fail']} | {d3['pass']} | {d3['skip']} |", flush=True)


def measure_power(options: argparse.Namespace) -> None:
    codec, kinds = load_codec("builtin:dct"), pictures(options.images)
    latents = {kind: [codec.encode(image[None])[0].numpy() for image in images] for kind, images in kinds.items()}
    print(
        f"{options.draws} draws a size, {options.clean_draws} clean draws; pools:"
        f" {', '.join(f'{len(v)} {k}' for k, v in kinds.items())}"
    )
    for name in options.encoder or ENCODERS:
        measure_encoder(seeing_once(ENCODERS[name]()), kinds, latents, options)


def measure_time() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        make_set(Path(scratch), 1024)
        (Path(scratch) / "index.json").unlink()  # a set of an older program
        subject = open_subject(scratch)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for rule in (D2, D3):
            start, cpu = time.perf_counter(), time.process_time()
            (finding,) = rule.check(subject)
            took, busy = time.perf_counter() - start, time.process_time() - cpu
            peak = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
            print(
                f"{rule.CODE} on {len(subject.data.refs)} images: {took:.1f} s, {busy:.1f} s of CPU, {peak:.0f} MB;"
                f" {finding.evidence[:90]}…"
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="a folder of pictures besides the drawn ones")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--clean-draws", type=int, default=200)
    parser.add_argument("--encoder", choices=ENCODERS, action="append", help="this one; all by default")
    parser.add_argument("--time", action="store_true", help="only the time on 1,024 images")
    options = parser.parse_args()
    ensure_torchvision()
    if options.time:
        measure_time()
    else:
        measure_power(options)


if __name__ == "__main__":
    main()
