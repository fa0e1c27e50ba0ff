"""Guidance with two conditions: branches of the model, and what each weighs in the guided velocity.

    additive   v = v_∅ + s_text·(v_text − v_∅) + s_dino·(v_dino − v_∅)
    nested     v = v_∅ + s_dino·(v_dino − v_∅) + s_text·(v_full − v_dino)
    joint      v = v_full + (s_text − 1)·(v_full − v_dino) + (s_dino − 1)·(v_full − v_text)

Nested guidance is that of InstructPix2Pix (arXiv 2211.09800, eq. 3); with equal scales v_dino falls out of it, and what
is left is classifier-free guidance on both conditions at once. Joint guidance stands on v_full, which training sees
most, and goes from it away from what each condition's absence gives.

With one condition only, all three are classifier-free guidance (arXiv 2207.12598) on that condition, and a scale of 0
leaves its condition out. With a negative prompt n, every branch without the caption has n in its place: v_∅ becomes
v(n, ∅), v_dino v(n, dino).

Outside of the guidance interval (arXiv 2404.07724) v is the plain conditional branch v_c alone: v_full, or v_text or
v_dino where there is one condition.

A weak model, a smaller or less trained one of the same data, is one more thing to go away from (autoguidance, arXiv
2406.02507, eq. 2, there with v = v_c alone, which is nested or joint guidance at scales of 1):

    weak       v ← v + (s_weak − 1)·(v_c − v_c of the weak model)

The weak model may be the model itself with tokens that skip its middle blocks, as training with `[tread]` knows it
(TREAD, arXiv 2501.04765; guidance by it, arXiv 2601.01608).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor

# (keeps text, keeps reference)
BRANCHES = {"none": (False, False), "text": (True, False), "dino": (False, True), "full": (True, True)}
KINDS = ("additive", "nested", "joint")


@dataclass(frozen=True)
class Guidance:
    """Weights of the branches; they sum to 1, and branches of weight 0 need not run."""

    weights: Mapping[str, float]
    weak: Mapping[str, float] = field(default_factory=dict)  # of branches of the weak model
    plain: Mapping[str, float] = field(default_factory=dict)  # the weights at scales of 1, where they are asked for

    @property
    def branches(self) -> list[str]:
        return list({**self.weights, **self.plain})

    @property
    def passes(self) -> int:
        """Of the models, for one guided velocity."""
        return len(self.branches) + len(self.weak)

    def combine(self, velocities: Tensor) -> Tensor:
        """(branches, then those of the weak model, B, C, H, W) → (B, C, H, W)."""
        return self._sum(velocities, self.weights, self.weak)

    def combine_plain(self, velocities: Tensor) -> Tensor:
        """The same as it would be at scales of 1."""
        return self._sum(velocities, self.plain, {})

    def _sum(self, velocities: Tensor, own: Mapping[str, float], weak: Mapping[str, float]) -> Tensor:
        values = [own.get(name, 0.0) for name in self.branches] + [weak.get(name, 0.0) for name in self.weak]
        return (velocities * velocities.new_tensor(values)[:, None, None, None, None]).sum(dim=0)


def guidance(kind: str, cfg_text: float, cfg_dino: float, has_text: bool, has_reference: bool) -> Guidance:
    """The branch weights of a guidance rule. A condition that is not there has no branch.

    Raises ValueError for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"guidance '{kind}' is none of {', '.join(KINDS)}")
    s_text, s_dino = cfg_text if has_text else 0.0, cfg_dino if has_reference else 0.0
    if kind == "nested" and has_text and has_reference:
        weights = {"none": 1 - s_dino, "dino": s_dino - s_text, "full": s_text}
    elif kind == "joint" and s_text and s_dino:
        weights = {"text": 1 - s_dino, "dino": 1 - s_text, "full": s_text + s_dino - 1}
    else:
        weights = {"none": 1 - s_text - s_dino, "text": s_text, "dino": s_dino}
    return Guidance(_running(weights))


def unguided(cfg_text: float, cfg_dino: float, has_text: bool, has_reference: bool) -> Guidance:
    """The plain conditional branch alone: with every condition that is there and whose scale is not 0."""
    kept = (has_text and cfg_text != 0, has_reference and cfg_dino != 0)
    return Guidance({next(name for name, keeps in BRANCHES.items() if keeps == kept): 1.0})


def against_weak(rule: Guidance, plain_branch: str, cfg_weak: float) -> Guidance:
    """v + (s_weak − 1)·(v_c − v_c of the weak model); a scale of 1 leaves the rule as it is."""
    if cfg_weak == 1:
        return rule
    weights = {**rule.weights, plain_branch: rule.weights.get(plain_branch, 0.0) + cfg_weak - 1}
    return Guidance(_running(weights), weak={plain_branch: 1 - cfg_weak})


def _running(weights: Mapping[str, float]) -> dict[str, float]:
    return {name: weight for name, weight in weights.items() if weight != 0}
