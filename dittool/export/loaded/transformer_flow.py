"""The rectified-flow transformer as a model of diffusers."""

from __future__ import annotations

from typing import Any, cast

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from dittool.models.conditioning import Conditions
from dittool.models.dit import DiT, DiTConfig


class FlowTransformer(ModelMixin, ConfigMixin):  # type: ignore[misc]  # they type config_name differently
    """Velocity dz/dt of the rectified flow z_t = (1 − t)·x0 + t·ε, given a caption and a reference image.

    Args:
        architecture: the fields of `DiTConfig`.
    """

    @register_to_config
    def __init__(self, architecture: dict[str, Any]) -> None:
        super().__init__()
        self.dit = DiT(DiTConfig(**architecture))

    def forward(
        self,
        hidden_states: Tensor,
        timestep: Tensor,
        encoder_hidden_states: Tensor | None = None,
        encoder_attention_mask: Tensor | None = None,
        image_cls: Tensor | None = None,
        image_patches: Tensor | None = None,
        patch_grid: tuple[int, int] | None = None,
        return_dict: bool = True,
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """The velocity at z_t. Conditions that are None are the learned nulls.

        Args:
            hidden_states: (B, C, H, W) normalised latents z_t.
            timestep: (B,) t in [0, 1]; 1 is noise.
            encoder_hidden_states: (B, L, text width); encoder_attention_mask: (B, L) bool, True on tokens.
            image_cls: (B, image width); image_patches: (B, N, image width), row-major over `patch_grid`, by default
                the grid of the latent's tokens.
        """
        grid = patch_grid or self.dit.token_grid(hidden_states)
        text, mask = encoder_hidden_states, encoder_attention_mask
        velocity = self.dit(hidden_states, timestep, Conditions(text, mask, image_cls, image_patches, grid))
        return Transformer2DModelOutput(velocity) if return_dict else (cast("Tensor", velocity),)
