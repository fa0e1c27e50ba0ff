"""Attention and MLP have no biases; norms, input projections, timestep MLP, modulation and output layer may have.

## What it checks
Every bias in the network at its real size: none may stand in a block's q, k, v, attention output or MLP. The evidence
names those that do and counts what all biases cost. A table of attention's logits by distance, `rel_bias`, is none. In
a foreign model's blocks every layer is looked at but norms and what the condition vector feeds. Under the profile `any`
biases are a choice, and warn.

## Why it matters
The recipe has none there: the modulation's shifts already do what they could do, and weights with them fit no other
model of the recipe. It is not about size: the biases that stay cost a third of a percent of a tiny network and a few
hundredths of a percent of a large one.

## Example
`nn.Linear(width, 3 * width)` for q, k, v fails; `nn.Linear(width, 3 * width, bias=False)` passes.

## Fix
Build those layers with `bias=False`.
"""

from __future__ import annotations

from dittool.audit.rule import Finding, chosen, passed
from dittool.audit.specimens.specimen import Biases
from dittool.audit.subject import Checkpoint, Foreign, Preset

CODE, NAME, SEVERITY, SCOPE, SINCE = "E3", "bias", "error", ("model", "weights"), "0.1"

_FIX = "build these layers with bias=False"
_CHOICE = (
    "A choice: the modulation's shifts already do it, and these weights fit no model of the recipe. DiT, SiT, PixArt,"
    " SD3 and Flux keep biases; Lumina 2, AuraFlow and Z-Image do without"
)


def check(subject: Preset | Checkpoint | Foreign) -> list[Finding]:
    found = subject.specimen.biases()
    if found.wrong:
        which = f"{len(found.wrong)} biases in the blocks' attention and MLP, first {next(iter(found.wrong))}"
        return chosen(f"{found.source}{which}; {_cost(found.wrong, found)}", _FIX, _CHOICE)
    return passed(
        f"{found.source}none in {found.layers} attention and MLP layers; {len(found.elsewhere)} elsewhere,"
        f" {_cost(found.elsewhere, found)}"
    )


def _cost(biases: dict[str, int], found: Biases) -> str:
    cost = sum(biases.values())
    return f"{cost:,} parameters, {cost / found.parameters:.3%} of {found.parameters:,}"
