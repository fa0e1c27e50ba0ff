"""How many images show rule D3 that patches were made of random crops, and how often clean sets look so. Run: python -m
tests.bench.crops_power --images FOLDER

So many images are drawn from a pool of pictures of one kind, and the rule judges the draw as a set without an index.
Kinds with near-identical, flat and nearly empty pictures are there for false alarms.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dittool.audit.rule import Finding
from dittool.audit.rules.D3_alignment import verdict
from dittool.data.alignment import align, observe
from dittool.data.crops import own_windows, sketch
from dittool.encoders.torchvision_remedy import ensure_torchvision
from dittool.encoders.vae import load_codec
from tests.audit.misplaced import RANDOMLY_CROPPED, Eyes, clean
from tests.bench.audit_power import ENCODERS, POOL, draws, pictures
from tests.bench.pairs_power import ODD

SIZES = (24, 48, 64, 96)  # the rule looks at 96 images at most


class Pool:
    """Pictures through an encoder, as rule D3 sees them."""

    def __init__(self, eyes: Eyes, images: list[np.ndarray], seen: Callable[[Eyes, np.ndarray], np.ndarray]) -> None:
        codec, self._observed, self._sketches = load_codec("builtin:dct"), [], []
        for number, image in enumerate(images):
            patches, latent, grid = seen(eyes, image), codec.encode(image[None])[0].numpy(), eyes.grid(image)
            self._observed.append(observe(patches, latent, grid, image.shape[1::-1], 512, number))
            self._sketches.append(sketch(patches, latent, grid))

    def judge(self, chosen: np.ndarray) -> Finding:
        found = align([self._observed[n] for n in chosen])
        return verdict(found, own_windows([self._sketches[n] for n in chosen]))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=Path, help="a folder of pictures besides the drawn ones")
    parser.add_argument("--draws", type=int, default=10)
    parser.add_argument("--clean-draws", type=int, default=5, help="for each kind and size")
    parser.add_argument("--encoder", choices=ENCODERS, action="append", help="this one; all by default")
    options = parser.parse_args()
    ensure_torchvision()
    usual = pictures(options.images)
    kinds = usual | {name: [make(n) for n in range(POOL)] for name, make in ODD.items()}
    alarms, judged = 0, 0
    for encoder in options.encoder or ENCODERS:
        eyes = ENCODERS[encoder]()
        for kind, images in usual.items():
            for name, misplace in RANDOMLY_CROPPED.items():
                pool, row = Pool(eyes, images, misplace), []
                for size in SIZES:
                    said = [pool.judge(chosen).evidence for chosen in draws(len(images), size, options.draws, size)]
                    row.append(f"{np.mean(['made of random crops' in one for one in said]):.0%}")
                print(f"| {name} | {kind} | {eyes.name} | {' | '.join(row)} |", flush=True)
        for kind, images in kinds.items():
            pool = Pool(eyes, images, clean)
            found = [
                pool.judge(chosen)
                for size in SIZES
                for chosen in draws(len(images), size, options.clean_draws, size + 1)
            ]
            failed = [finding.evidence for finding in found if finding.status == "fail"]
            alarms, judged = alarms + len(failed), judged + len(found)
            print(f"{eyes.name}, {kind}: {len(found)} clean draws, {len(failed)} fail {failed[:1]}", flush=True)
    print(f"\n{alarms} false alarms in {judged} clean draws")


if __name__ == "__main__":
    main()
