"""Arguments of a foreign forward: those of its signature; of `forward(*inputs)` and `forward(**inputs)` those that its
source reads.
"""

from __future__ import annotations

import inspect

from torch import nn

from dittool.audit.specimens.foreign.holders import keys_read, places_read, source_of

_OPEN = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


def parameters_of(model: nn.Module) -> dict[str, inspect.Parameter]:
    """Each by its name, in their order; none where neither tells."""
    signature = inspect.signature(model.forward).parameters
    named = {name: parameter for name, parameter in signature.items() if parameter.kind not in _OPEN}
    if named:
        return named
    source, read = source_of(model), [*places_of(model)]
    for name, parameter in signature.items():
        if parameter.kind is parameter.VAR_KEYWORD:
            read += [key for key in keys_read(source, name) if key.isidentifier()]
    return {name: inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY) for name in read}


def places_of(model: nn.Module) -> tuple[str, ...]:
    """What is given to `forward(*inputs)` by its place, called as the source calls it; nothing for other forwards."""
    signature = inspect.signature(model.forward).parameters
    if not takes_places_alone(model):
        return ()
    (name,) = (name for name, parameter in signature.items() if parameter.kind is parameter.VAR_POSITIONAL)
    return tuple(called for _, called in places_read(source_of(model), name)[1])


def takes_places_alone(model: nn.Module) -> bool:
    """Whether nothing of a forward's positional arguments has a name."""
    kinds = [parameter.kind for parameter in inspect.signature(model.forward).parameters.values()]
    return inspect.Parameter.VAR_POSITIONAL in kinds and all(kind in _OPEN for kind in kinds)
