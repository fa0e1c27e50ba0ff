"""The files of a folder of diffusers around the weights: what its parts are, and the sources that run them.

    model_index.json                        the parts, what the pipeline has to know, the encoders' cards
    pipeline_KIND.py                        the pipeline
    transformer/config.json                 the architecture
    transformer/transformer_KIND.py         the network
    scheduler/scheduler_config.json         the time grid's shift

The sources are those of `dit`, joined (`export/joining.py`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from dittool import __version__
from dittool.encoders.builtin import OURS, THEIRS
from dittool.encoders.cards import EncoderCard
from dittool.errors import UsageError
from dittool.export.joining import Symbol, joined
from dittool.sampling.for_diffusers import DiffusersParts
from dittool.storage import output_folder, write_atomic, write_json

_LOADED = "dittool.export.loaded"
_LICENCE = "SPDX-License-Identifier: Apache-2.0 (this code, not the weights beside it)"
# A pipeline names the transformer's class in annotations alone, and settings are checked where a run is configured.
_STAND_INS: dict[Symbol, Symbol] = {
    (module, name): (f"{_LOADED}.settings", name)
    for module, name in (
        ("dittool.models.dit", "DiT"),
        ("dittool.models.drift_dit", "DriftDiT"),
        ("dittool.config.schema", "SampleSettings"),
    )
}


def write_folder(folder: Path, parts: DiffusersParts, cards: Mapping[str, EncoderCard]) -> list[Path]:
    """Writes all but the weights. Raises OSError with no file half-written."""
    transformer, pipeline = f"transformer_{parts.kind}", f"pipeline_{parts.kind}"
    names = {"transformer": f"{parts.kind.title()}Transformer", "pipeline": f"{parts.kind.title()}Pipeline"}
    told = {"_diffusers_version": version("diffusers")}
    described = {kind: _card(card) for kind, card in cards.items()}
    index: dict[str, object] = {"_class_name": [pipeline, names["pipeline"]], **told}
    index |= {"transformer": [transformer, names["transformer"]], "facts": parts.facts, "encoders": described}
    files: dict[str, object] = {
        "transformer/config.json": {"_class_name": names["transformer"], **told, "architecture": parts.architecture},
        f"transformer/{transformer}.py": transformer_source(parts.kind),
        f"{pipeline}.py": pipeline_source(parts.kind, cards),
    }
    if parts.sample is not None:
        scheduler = "FlowMatchEulerDiscreteScheduler"
        index |= {"scheduler": ["diffusers", scheduler], "sample": parts.sample}
        grid = {"num_train_timesteps": 1000, "shift": parts.shift}
        files["scheduler/scheduler_config.json"] = {"_class_name": scheduler, **told, **grid}
    files["model_index.json"] = index  # last: before it the folder is no pipeline
    for name, content in files.items():
        path = folder / name
        output_folder(path.parent)
        write_atomic(path, content.encode()) if isinstance(content, str) else write_json(path, content)
    return [folder / name for name in files]


def transformer_source(kind: str) -> str:
    """The file with the network of a kind of model, alone."""
    return joined(
        [(f"{_LOADED}.transformer_{kind}", f"{kind.title()}Transformer")],
        f"The network of this model, for diffusers: {kind.title()}Transformer, at the end.\n\n{_origin()}",
    )


def pipeline_source(kind: str, cards: Mapping[str, EncoderCard]) -> str:
    """The file with the pipeline of a kind of model, and the code of its encoders."""
    instead = dict(_STAND_INS)
    for card_kind, name in (("image", "image_encoder"), ("text", "text_encoder"), ("vae", "codec")):
        if cards[card_kind].id.startswith(THEIRS):
            raise UsageError(
                f"the {card_kind} encoder '{cards[card_kind].id}' is of another package: its code cannot travel",
                "export the weights alone: --format safetensors",
            )
        if cards[card_kind].id.startswith(OURS):
            instead[f"{_LOADED}.published", f"published_{name}"] = (f"{_LOADED}.built_in", f"built_in_{name}")
    return joined(
        [(f"{_LOADED}.pipeline_{kind}", f"{kind.title()}Pipeline")],
        f"The pipeline of this model, for diffusers: {kind.title()}Pipeline, at the end.\n\n{_origin()}",
        instead,
    )


def _origin() -> str:
    return (
        f"Made by dit {__version__} (`dit export`) from its own sources, which trained the model: each definition\n"
        f"as it stands there, under a line that names its file. Needs diffusers, transformers and torch, not dit.\n"
        f"{_LICENCE}"
    )


def _card(card: EncoderCard) -> dict[str, object]:
    return {key: value for key, value in asdict(card).items() if key != "unknown"}
