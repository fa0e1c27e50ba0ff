"""A reader of exports who has diffusers and no dit: a process of its own, started with `python -I`.

    reader_without_dit.py JOBS.json OUT.npz        JOBS: [[folder, [keywords of a call, …]], …]

Saved are the pictures of job i, call k, number n under "i/k/n". Ends with an error where anything imports dittool.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


class _NoDit:
    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name.partition(".")[0] == "dittool":
            raise AssertionError(f"the export imports {name}")


sys.meta_path.insert(0, _NoDit())

import torch  # noqa: E402

# Beside a CPU build of torch the registry's torchvision, which diffusers imports, lacks two operators: the reader's own
# installation, which no export can know of.
_torchvision = torch.library.Library("torchvision", "FRAGMENT")
_torchvision.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
_torchvision.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

import numpy as np  # noqa: E402
from diffusers import DiffusionPipeline  # noqa: E402


def main(jobs: str, out: str) -> None:
    torch.set_num_threads(1)
    pictures = {}
    for number, (folder, calls) in enumerate(json.loads(Path(jobs).read_text())):
        pipe = DiffusionPipeline.from_pretrained(folder, trust_remote_code=True)
        for place, call in enumerate(calls):
            for index, image in enumerate(pipe(**call).images):
                pictures[f"{number}/{place}/{index}"] = np.asarray(image)
    assert not [name for name in sys.modules if name.partition(".")[0] == "dittool"]
    np.savez(out, **pictures)


if __name__ == "__main__":
    main(*sys.argv[1:])
