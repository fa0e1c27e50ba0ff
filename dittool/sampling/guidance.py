"""Guidance with two conditions: three branches of the model, run as one batch and combined.

    additive   v = v_∅ + s_text·(v_text − v_∅) + s_dino·(v_dino − v_∅)
    nested     v = v_∅ + s_dino·(v_dino − v_∅) + s_text·(v_full − v_dino)

Nested guidance is that of InstructPix2Pix (arXiv 2211.09800, eq. 3).

With a negative prompt n, every branch without the caption has n in its place: v_∅ becomes v(n, ∅), v_dino v(n, dino).

With one condition only, both are classifier-free guidance (arXiv 2207.12598) on that condition. Outside of the guidance
interval (arXiv 2404.07724) v is the conditional branch alone: v_full, or v_text or v_dino where there is one condition.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

# (keeps text, keeps reference)
BRANCHES = {"none": (False, False), "text": (True, False), "dino": (False, True), "full": (True, True)}


@dataclass(frozen=True)
class Guidance:
    """Weights of the branches; they sum to 1, and branches of weight 0 need not run."""

    weights: dict[str, float]

    @property
    def branches(self) -> list[str]:
        return list(self.weights)

    def combine(self, velocities: Tensor) -> Tensor:
        """(branches, B, C, H, W) → (B, C, H, W)."""
        weights = velocities.new_tensor(list(self.weights.values()))
        return (velocities * weights[:, None, None, None, None]).sum(dim=0)


def guidance(kind: str, cfg_text: float, cfg_dino: float, has_text: bool, has_reference: bool) -> Guidance:
    """The branch weights of a guidance rule. A condition that is not there has no branch.

    Raises ValueError for an unknown kind.
    """
    if kind not in ("additive", "nested"):
        raise ValueError(f"guidance '{kind}' is neither additive nor nested")
    s_text, s_dino = cfg_text if has_text else 0.0, cfg_dino if has_reference else 0.0
    if kind == "additive" or not (has_text and has_reference):
        weights = {"none": 1 - s_text - s_dino, "text": s_text, "dino": s_dino}
    else:
        weights = {"none": 1 - s_dino, "dino": s_dino - s_text, "full": s_text}
    needed = {name: weight for name, weight in weights.items() if weight != 0}
    return Guidance(needed)


def unguided(cfg_text: float, cfg_dino: float, has_text: bool, has_reference: bool) -> Guidance:
    """The conditional branch alone: with every condition that is there and whose scale is not 0."""
    kept = (has_text and cfg_text != 0, has_reference and cfg_dino != 0)
    return Guidance({next(name for name, keeps in BRANCHES.items() if keeps == kept): 1.0})
