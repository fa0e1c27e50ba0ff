"""Widths of well-known encoders, for telling a model's size before any features exist, and their licences.

Training never reads this table: there the widths come from the data's identity card. Sources: the encoders' own configs
on the hub.
"""

from __future__ import annotations

from dittool.encoders.cards import FeatureWidths

IMAGE_WIDTHS = {
    "builtin:dinov3": 64,
    "facebook/dinov3-vits16-pretrain-lvd1689m": 384,
    "facebook/dinov3-vitb16-pretrain-lvd1689m": 768,
    "facebook/dinov3-vitl16-pretrain-lvd1689m": 1024,
    "facebook/dinov2-small": 384,
    "facebook/dinov2-base": 768,
    "facebook/dinov2-large": 1024,
    "facebook/dinov2-with-registers-small": 384,
    "facebook/dinov2-with-registers-base": 768,
    "facebook/dinov2-with-registers-large": 1024,
}
TEXT_WIDTHS = {
    "builtin:words": 64,
    "google/t5-v1_1-base": 768,
    "google/t5-v1_1-large": 1024,
    "google/t5-v1_1-xl": 2048,
    "google/t5-v1_1-xxl": 4096,
}
_GATED = (
    "facebook/dinov3-",
    "black-forest-labs/FLUX.1-",
    "black-forest-labs/FLUX.2-dev",
    "stabilityai/stable-diffusion-3",
)
KNOW_EVERY_SCRIPT = (
    "umT5, mT5 and byT5 know every script: -s encoders.text=google/umt5-xxl, google/mt5-xxl or google/byt5-xl"
)
LATENT_CHANNELS = {
    "builtin:dct": 16,
    "black-forest-labs/FLUX.1-dev": 16,
    "black-forest-labs/FLUX.1-schnell": 16,
    "black-forest-labs/FLUX.2-klein-4B": 128,  # packed: 32 of each of four cells
    "Alpha-VLLM/Lumina-Image-2.0": 16,
    "ostris/vae-kl-f8-d16": 16,
    "mit-han-lab/dc-ae-f32c32-sana-1.0-diffusers": 32,
    "madebyollin/taef1": 16,
}


def is_gated(name: str) -> bool:
    """Whether the hub gives these weights only to accounts that accepted their terms, as far as it is known."""
    return name.startswith(_GATED)


def known_widths(image: str, text: str, vae: str) -> FeatureWidths | None:
    """What the data would say of their features, for three names of `[encoders]`; None when one
    of them is not in the tables.
    """
    text_width, image_width, channels = TEXT_WIDTHS.get(text), IMAGE_WIDTHS.get(image), LATENT_CHANNELS.get(vae)
    if text_width is None or image_width is None or channels is None:
        return None
    return FeatureWidths(text_width, image_width, channels)


# By how ids begin, as read on their pages (docs/encoders.md says when); a model card asks its reader to look.
_LICENCES = {
    "builtin:": "Apache-2.0, code of dit; nothing is trained in it",
    "facebook/dinov3-": "DINOv3 License",
    "facebook/dinov2-large": "Apache-2.0",
    "facebook/dinov2-with-registers-base": "Apache-2.0",
    "google/t5-v1_1-base": "Apache-2.0",
    "google/t5-v1_1-xxl": "Apache-2.0",
    "ostris/vae-kl-f8-d16": "MIT",
    "madebyollin/taef1": "MIT",
    "Alpha-VLLM/Lumina-Image-2.0": "Apache-2.0, of the repository; the autoencoder's files name FLUX.1-dev as origin",
    "black-forest-labs/FLUX.2-klein-4B": "Apache-2.0, of the model",
}


def licence_of(encoder: str) -> str | None:
    """Of an encoder by its id; None: not known here."""
    return next((licence for start, licence in _LICENCES.items() if encoder.startswith(start)), None)
