"""The one-step generator as a model of diffusers."""

from __future__ import annotations

from typing import Any

from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_outputs import Transformer2DModelOutput
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor

from dittool.models.drift_dit import ClassConditions, DriftDiT, DriftDiTConfig


class DriftTransformer(ModelMixin, ConfigMixin):  # type: ignore[misc]  # they type config_name differently
    """f(ε; class, α): one latent for each noise, in one evaluation.

    Args:
        architecture: the fields of `DriftDiTConfig`.
    """

    @register_to_config
    def __init__(self, architecture: dict[str, Any]) -> None:
        super().__init__()
        self.generator = DriftDiT(DriftDiTConfig(**architecture))

    def forward(
        self, hidden_states: Tensor, alpha: Tensor, class_labels: Tensor, style: Tensor, return_dict: bool = True
    ) -> Transformer2DModelOutput | tuple[Tensor]:
        """Normalised latents (B, C, H, W).

        Args:
            hidden_states: (B, C, H, W) noise, N(0, 1).
            alpha: (B,) guidance scales; 1 is none.
            class_labels: (B,) int64; style: (B, S) int64 code words, drawn at random.
        """
        latents = self.generator(hidden_states, alpha, ClassConditions(class_labels, style))
        return Transformer2DModelOutput(latents) if return_dict else (latents,)
