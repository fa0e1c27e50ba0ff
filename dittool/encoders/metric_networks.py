"""The networks that published figures are measured in, each with the resizing that belongs to it.

    inception         the Inception of TensorFlow, 2015-12-05, pooled features (N, 2048): FID, KID, precision, recall.
                      Resized to 299² bilinearly as TensorFlow 1 did, without smoothing: "legacy", what ADM's evaluator,
                      torch-fidelity and the tables of DiT and SiT have
    inception-clean   the same network, resized by an antialiased bicubic filter (arXiv 2104.11222): clean-fid
    dinov2            DINOv2 ViT-L/14, CLS token (N, 1024), 224² as clean-fid resizes (arXiv 2306.04675): FD-DINOv2
    clip              CLIP ViT-L/14 at 336², projected (N, 768), the whole picture squeezed into the square by an
                      antialiased bicubic filter (arXiv 2401.09603): CMMD
    clip-crop         the same network on the centre of the picture, as CLIP was trained, beside captions: CLIP score

Weights are taken from the folder that `DIT_METRIC_WEIGHTS` names, else from the caches of torch and of the hub, and
never downloaded: a figure is worth nothing with weights that somebody else has chosen, so they are fetched knowingly.

Pixels are (B, H, W, 3) uint8.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dittool.ckpt.weights import load_weights
from dittool.devices import device_of_choice, in_parts
from dittool.encoders.pretrained import quiet, revision_of, torch_cached, weights_hash
from dittool.encoders.torchvision_remedy import ensure_torchvision
from dittool.errors import UsageError, WeightsMissingError, described
from dittool.shell import command_line
from dittool.storage import file_sha256

WEIGHTS_VARIABLE = "DIT_METRIC_WEIGHTS"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"
_INCEPTION_AT = f"https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/{INCEPTION_FILE}"
DINOV2, CLIP = "facebook/dinov2-large", "openai/clip-vit-large-patch14-336"
LEGACY, CLEAN = "legacy: bilinear of TensorFlow 1, not antialiased", "clean: bicubic, antialiased"
_AT_ONCE = 32  # images through a network

_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
_OF_CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))


@dataclass(frozen=True)
class FeatureNetwork:
    """One way to features, and what stands beside each figure that it gives."""

    name: str
    weights: str  # file or hub id
    sha256: str  # of names, shapes and bytes of all of its tensors
    published: bool | None  # whether the file is the published one; None: the hub's revision says it
    revision: str
    resizing: str
    side: int  # pixels that the network sees
    _features: Callable[[np.ndarray], Tensor]
    texts: Callable[[Sequence[str]], Tensor] | None = None  # captions → (B, F), where it reads them

    def features(self, pixels: np.ndarray) -> Tensor:
        """(B, F) float32 on the CPU."""
        return torch.cat(in_parts(lambda rows: self._features(pixels[rows]), len(pixels), _AT_ONCE))

    def to_json(self) -> dict[str, object]:
        return {
            "network": self.name,
            "weights": self.weights,
            "sha256": self.sha256,
            "published": self.published,
            "revision": self.revision,
            "resizing": self.resizing,
            "side": self.side,
        }


def load_network(name: str) -> FeatureNetwork:
    """Raises `WeightsMissingError` with what to fetch and where to put it, `UsageError` where a package is missing,
    `UnsafeFileError` for a file that could do harm.
    """
    if name in ("inception", "inception-clean"):
        return _inception(name)
    return _dinov2() if name == "dinov2" else _clip(name)


def _inception(name: str) -> FeatureNetwork:
    network, sha256, published = _inception_network()
    device = device_of_choice()
    resize, resizing = (_bilinear_of_tensorflow, LEGACY) if name == "inception" else (_clean, CLEAN)

    @torch.inference_mode()
    def features(pixels: np.ndarray) -> Tensor:
        images = resize(_floats(pixels).to(device), 299)
        return network((images - 128) / 128).flatten(1).float().cpu()

    return FeatureNetwork(name, INCEPTION_FILE, sha256, published, "2015-12-05", resizing, 299, features)


@lru_cache(maxsize=1)
def _inception_network() -> tuple[nn.Module, str, bool]:
    """All layers up to the pooled features, one behind the other; the hash of their tensors; whether the file is the
    published one.
    """
    own = _own_folder()
    path = own / INCEPTION_FILE if own else torch_cached(INCEPTION_FILE)
    if not path.is_file():
        raise WeightsMissingError(
            f"{path}: no such file: the Inception weights of FID, KID, precision and recall",
            f"fetch {_INCEPTION_AT} (95 MB) and put it there",
        )
    ensure_torchvision()
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ImportError as error:
        raise UsageError(
            f"torch-fidelity, which holds the network of FID, cannot be imported: {described(error)}",
            "pip install 'dit[metrics]'",
        ) from error
    published = file_sha256(path).startswith(INCEPTION_FILE.split("-")[-1].removesuffix(".pth"))
    # known to the bit, or read as a stranger's file
    weights = torch.load(path, map_location="cpu", weights_only=True) if published else load_weights(path)
    readable = io.BytesIO()
    torch.save(weights, readable)  # torch-fidelity unpickles what it is given: it is given what was read safely
    readable.seek(0)
    try:
        model = FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=readable)
    except RuntimeError as error:
        raise WeightsMissingError(
            f"{path}: not the weights of this network: {described(error)}", _INCEPTION_AT
        ) from error
    sha256 = weights_hash(model)
    layers = [layer for layer_name, layer in model.named_children() if layer_name != "fc"]
    return nn.Sequential(*layers).to(device_of_choice()).eval(), sha256, published


def _dinov2() -> FeatureNetwork:
    ensure_torchvision()
    from transformers import Dinov2Model

    model, sha256, revision = _pretrained(Dinov2Model, DINOV2)
    device, side = device_of_choice(), 224

    @torch.inference_mode()
    def features(pixels: np.ndarray) -> Tensor:
        images = _normalised(_clean(_floats(pixels).to(device), side) / 255, _IMAGENET)
        return model(pixel_values=images).last_hidden_state[:, 0].float().cpu()

    return FeatureNetwork("dinov2", DINOV2, sha256, None, revision, CLEAN, side, features)


def _clip(name: str) -> FeatureNetwork:
    ensure_torchvision()
    from transformers import AutoTokenizer, CLIPModel

    model, sha256, revision = _pretrained(CLIPModel, CLIP)
    tokenizer = _loaded(CLIP, lambda place: AutoTokenizer.from_pretrained(place, local_files_only=True))
    device, side = device_of_choice(), int(model.config.vision_config.image_size)
    cropped = name == "clip-crop"

    @torch.inference_mode()
    def features(pixels: np.ndarray) -> Tensor:
        images = _floats(pixels).to(device) / 255
        images = _centre(images, side) if cropped else _bicubic(images, (side, side))
        seen = model.vision_model(pixel_values=_normalised(images, _OF_CLIP)).pooler_output
        return model.visual_projection(seen).float().cpu()

    @torch.inference_mode()
    def texts(captions: Sequence[str]) -> Tensor:
        limit = int(model.config.text_config.max_position_embeddings)
        tokens = tokenizer(list(captions), padding=True, truncation=True, max_length=limit, return_tensors="pt")
        read = model.text_model(
            input_ids=tokens["input_ids"].to(device), attention_mask=tokens["attention_mask"].to(device)
        )
        return model.text_projection(read.pooler_output).float().cpu()

    resizing = f"{'centre crop' if cropped else 'squeezed into the square'}, bicubic, antialiased"
    return FeatureNetwork(name, CLIP, sha256, None, revision, resizing, side, features, texts if cropped else None)


def _pretrained(model_class: Any, hub_id: str) -> tuple[Any, str, str]:
    """The network with all of its tensors, their hash, and the hub's revision."""

    def load(place: str) -> Any:
        return model_class.from_pretrained(place, dtype=torch.float32, local_files_only=True, output_loading_info=True)

    model, info = _loaded(hub_id, load)
    if missing := sorted(info["missing_keys"]):
        raise WeightsMissingError(
            f"{_place(hub_id)}: lacks {len(missing)} of the model's tensors, the first: {missing[0]}",
            f"the weights are of another network, or were cut: fetch them again: {_fetch(hub_id)}",
        )
    model.eval().requires_grad_(False)
    sha256 = weights_hash(model)
    return model.to(device_of_choice()), sha256, revision_of(_place(hub_id))


def _loaded(hub_id: str, load: Callable[[str], Any]) -> Any:
    import transformers

    quiet(transformers)
    place = _place(hub_id)
    try:
        return load(place)
    except Exception as error:  # whatever the library raises for files that are missing, damaged or of another model
        raise WeightsMissingError(
            f"{place}: cannot be loaded from this disk: {described(error)[:200]}",
            f"fetch it: {_fetch(hub_id)}",
        ) from error


def _place(hub_id: str) -> str:
    """The folder of a network's files, or its id, which names the hub's cache."""
    own = _own_folder()
    return str(own / hub_id.split("/")[1]) if own else hub_id


def _fetch(hub_id: str) -> str:
    own = _own_folder()
    return command_line("hf", "download", hub_id, *(["--local-dir", _place(hub_id)] if own else []))


def _own_folder() -> Path | None:
    named = os.environ.get(WEIGHTS_VARIABLE)
    if not named:
        return None
    folder = Path(named).expanduser()
    if not folder.is_dir():
        raise UsageError(f"{WEIGHTS_VARIABLE}={named}: no such folder", "name the folder of the weights, or unset it")
    return folder


def _floats(pixels: np.ndarray) -> Tensor:
    """(B, 3, H, W) float32, 0 to 255."""
    return torch.from_numpy(np.array(pixels)).permute(0, 3, 1, 2).float()  # a copy: what is read may be mapped


def _bilinear_of_tensorflow(images: Tensor, side: int) -> Tensor:
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    resized = interpolate_bilinear_2d_like_tensorflow1x(images, size=(side, side), align_corners=False)
    assert isinstance(resized, Tensor)
    return resized


def _clean(images: Tensor, side: int) -> Tensor:
    """As Pillow resizes floats, which is what clean-fid does, within 0 to 255."""
    return _bicubic(images, (side, side)).clamp(0, 255)


def _bicubic(images: Tensor, size: tuple[int, int]) -> Tensor:
    """To (height, width)."""
    return F.interpolate(images, size, mode="bicubic", antialias=True)


def _centre(images: Tensor, side: int) -> Tensor:
    """The shorter side to `side`, then the middle square."""
    height, width = images.shape[2:]
    shorter = min(height, width)
    resized = _bicubic(images, (round(height * side / shorter), round(width * side / shorter)))
    top, left = (resized.shape[2] - side) // 2, (resized.shape[3] - side) // 2
    return resized[:, :, top : top + side, left : left + side]


def _normalised(images: Tensor, statistics: tuple[tuple[float, ...], tuple[float, ...]]) -> Tensor:
    mean, deviation = (images.new_tensor(row).view(1, 3, 1, 1) for row in statistics)
    return (images - mean) / deviation
