"""How many samples show rule D10 which share of wrong pairs, and how often it cries wolf. Run: python -m
tests.bench.pairs_power --images FOLDER

So many samples are drawn from a pool of pictures of one kind, a share of them gets the latents, CLS tokens or captions
of others of their bucket, and the rule judges the draw. Kinds with near-identical, flat and nearly empty pictures are
there for false alarms.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dittool.audit.content import LOOK, PAIRED_CELLS
from dittool.audit.rule import FAIL, PASS, SKIP, Finding
from dittool.audit.rules import D10_pairs as D10
from dittool.data.alignment import underneath
from dittool.data.pairing import FeaturePair, pair_up
from dittool.demo.drawing import caption, plan_scenes
from dittool.encoders.text import load_text_encoder
from dittool.encoders.torchvision_remedy import ensure_torchvision
from dittool.encoders.vae import load_codec
from tests.audit.misplaced import Eyes, textured
from tests.bench.audit_power import ENCODERS, POOL, draws, pictures

SIZES = (24, 48, 96, 192, 300)
SHARES = (0.05, 0.1, 0.25, 0.5, 1.0)
SIDE = 128


def near_identical(number: int) -> np.ndarray:
    """One picture again and again, with a sensor's noise."""
    chance = np.random.default_rng(number)
    return _clipped(textured(7, SIDE, SIDE) + chance.normal(0, 2, (SIDE, SIDE, 3)) + chance.normal())


def in_variants(number: int) -> np.ndarray:
    """Each picture eight times, as frames of a film."""
    chance = np.random.default_rng(number)
    noise = chance.normal(0, 2, (SIDE, SIDE, 3))
    return _clipped(textured(1000 + number // 8, SIDE, SIDE) * chance.uniform(0.97, 1.03) + noise)


def flat(number: int) -> np.ndarray:
    colour = np.random.default_rng(number).integers(0, 256, 3).astype(np.uint8)
    return np.broadcast_to(colour, (SIDE, SIDE, 3)).copy()


def lines(number: int) -> np.ndarray:
    chance, picture = np.random.default_rng(number), Image.new("RGB", (SIDE, SIDE), "white")
    for _ in range(chance.integers(2, 6)):
        ImageDraw.Draw(picture).line([tuple(map(int, chance.integers(20, 108, 2))) for _ in range(4)], "black", 2)
    return np.array(picture)


def icon(number: int) -> np.ndarray:
    """A dark disc with a letter: only size and letter differ."""
    chance, picture = np.random.default_rng(number), Image.new("RGB", (SIDE, SIDE), "white")
    draw, radius = ImageDraw.Draw(picture), int(chance.integers(30, 40))
    draw.ellipse((64 - radius, 64 - radius, 64 + radius, 64 + radius), fill=(30, 30, 30))
    draw.text((56, 56), chr(65 + int(chance.integers(26))), fill="white")
    return np.array(picture)


def with_logo(number: int) -> np.ndarray:
    picture = textured(5000 + number, SIDE, SIDE)
    picture[:17, :35] = (200, 20, 30)
    return picture


ODD = {
    "near-identical": near_identical,
    "in variants": in_variants,
    "flat": flat,
    "lines": lines,
    "icons": icon,
    "with a logo": with_logo,
}


def _clipped(values: np.ndarray) -> np.ndarray:
    return np.clip(values, 0, 255).astype(np.uint8)


class Pool:
    """Pictures through an encoder, as rule D10 sees them."""

    def __init__(self, eyes: Eyes, images: list[np.ndarray], captions: list[str] | None) -> None:
        codec, words = load_codec("builtin:dct"), load_text_encoder("builtin:words", "fp32", 77)
        self.latents, self.cls, self.captions = [], [], []
        for number, image in enumerate(images):
            tokens = eyes.tokens(image)
            cls, patches = tokens[:1], tokens[1 + eyes.registers :].astype(np.float16).astype(np.float32)
            latent = codec.encode(image[None])[0].numpy()
            cells = np.random.default_rng(len(patches)).choice(len(patches), min(len(patches), PAIRED_CELLS), False)
            name, kind, look = str(number), str(image.shape), underneath(latent, LOOK)
            below = underneath(latent, eyes.grid(image))[cells]
            self.latents.append(FeaturePair(name, kind, patches[cells], below, look))
            self.cls.append(FeaturePair(name, kind, cls, patches.mean(axis=0, keepdims=True), look))
            if captions is not None:
                text = words.encode([captions[number]])[0].hidden.numpy().mean(axis=0, keepdims=True)
                self.captions.append(FeaturePair(name, "", text, cls, look, captions[number]))


def judge(what: str, drawn: list[FeaturePair]) -> Finding:
    if what == "captions":
        findings = D10.captions_and_cls(drawn) + D10.captions_and_features(drawn)
        return max(findings, key=lambda finding: (finding.status == FAIL, finding.status == PASS))
    found = pair_up(drawn)
    if what == "CLS tokens":
        return D10.cls_and_patches(found)[0]
    if len(found.ids) < D10.FEWEST:
        return Finding(SKIP, "")
    return Finding(FAIL if D10.wrong(found) else PASS, "")


def exchanged(drawn: list[FeaturePair], share: float, seed: int) -> list[FeaturePair]:
    """So many samples hold what the next chosen one of their kind should; captions see what it saw."""
    made, chance = list(drawn), np.random.default_rng(seed)
    for kind in {sample.kind for sample in drawn}:
        places = [i for i, sample in enumerate(drawn) if sample.kind == kind]
        chosen = [int(i) for i in chance.permutation(places)[: round(share * len(places))]]
        for own, other in zip(chosen, [*chosen[1:], *chosen[:1]], strict=True):
            if drawn[own].text:
                # the string and its features
                made[own] = replace(drawn[own], inputs=drawn[other].inputs, text=drawn[other].text)
            else:
                made[own] = replace(drawn[own], targets=drawn[other].targets)
    return made


def shares_found(what: str, pool: list[FeaturePair], count: int) -> None:
    for size in (size for size in SIZES if size <= len(pool)):
        row = []
        for share in SHARES:
            judged = [
                judge(what, exchanged([pool[n] for n in chosen], share, number))
                for number, chosen in enumerate(draws(len(pool), size, count, size))
            ]
            row.append(f"{np.mean([finding.status == FAIL for finding in judged]):.0%}")
        print(f"| {what} | {size} | {' | '.join(row)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="a folder of pictures besides the drawn ones")
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--clean-draws", type=int, default=8, help="for each kind, feature and size")
    parser.add_argument("--encoder", choices=ENCODERS, action="append", help="this one; all by default")
    options = parser.parse_args()
    ensure_torchvision()
    kinds = pictures(options.images) | {name: [make(n) for n in range(POOL)] for name, make in ODD.items()}
    captions = {"drawn": [caption(scene) for scene in plan_scenes(POOL, seed=0)]}
    if options.images is not None:
        texts = sorted(options.images.glob("*.txt"))
        captions[options.images.name] = [path.read_text().strip() for path in texts]
    alarms, clean = 0, 0
    for name in options.encoder or ENCODERS:
        eyes = ENCODERS[name]()
        for kind, images in kinds.items():
            pool = Pool(eyes, images, captions.get(kind))
            parts = {"latents": pool.latents, "CLS tokens": pool.cls} | (
                {"captions": pool.captions} if pool.captions else {}
            )
            for what, some in parts.items():
                judged = [
                    judge(what, [some[n] for n in chosen])
                    for size in SIZES
                    if size <= len(some)
                    for chosen in draws(len(some), size, options.clean_draws, size + 1)
                ]
                failed = sum(finding.status == FAIL for finding in judged)
                passed = sum(finding.status == PASS for finding in judged)
                alarms, clean = alarms + failed, clean + len(judged)
                print(
                    f"{eyes.name}, {kind}, {what}: {len(judged)} clean draws, {passed} pass, {failed} fail", flush=True
                )
            if kind not in ODD:
                print(f"\n{eyes.name}, {kind}\n\n| wrong | samples | {' | '.join(f'{s:.0%}' for s in SHARES)} |")
                for what, some in parts.items():
                    shares_found(what, some, options.draws)
    print(f"\n{alarms} false alarms in {clean} clean draws")


if __name__ == "__main__":
    main()
