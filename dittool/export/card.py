"""The model card of an export, README.md: what the model is, how it is loaded, and what is known of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData

from dittool.audit.runner import JSON_NAME
from dittool.config.architectures import AnyConfig, architecture
from dittool.config.load import config_to_dict, config_to_toml
from dittool.data.provenance import Provenance
from dittool.encoders.cards import EncoderCard
from dittool.encoders.known import is_gated, licence_of
from dittool.errors import BadDataError, listed, one_line
from dittool.storage import read_json, write_atomic
from dittool.validate.compare import RESULTS
from dittool.validate.verdict import value_text

_TEMPLATE = Path(__file__).with_name("card.md")
_KINDS = {"image": "images", "text": "captions", "vae": "latents"}
_HASH = 40  # letters of a commit
_TASKS = {True: "text-to-image", False: "unconditional-image-generation"}  # by whether it reads captions


@dataclass(frozen=True)
class Picture:
    """One that shows what the model draws."""

    file: str  # below the folder
    words: str  # what it was drawn from


@dataclass(frozen=True)
class About:
    """What the card is of."""

    name: str
    config: AnyConfig
    data: Provenance
    classes: Sequence[str]  # of a generator
    step: int
    weights: str
    dtype: str
    parameters: int
    kind: str | None  # of the sources beside the weights; None: there are none
    run: Path  # where results may lie
    programs: bool = False  # of torch.export, and nothing else
    pictures: Sequence[Picture] = ()
    licence: str | None = None  # as the hub names it
    repository: str | None = None  # on the hub, where it is pushed to


def write_card(folder: Path, about: About) -> Path:
    """Writes README.md."""
    captioned = not about.classes
    data = ModelCardData(
        library_name="diffusers" if about.kind else "dit",
        license=about.licence,
        pipeline_tag=_TASKS[captioned],
        tags=["dit", "diffusion", "rectified-flow" if captioned else "drifting"],
    )
    card = ModelCard.from_template(data, template_path=str(_TEMPLATE), **_said(about, captioned))
    write_atomic(folder / "README.md", f"{card.content.rstrip()}\n".encode())
    return folder / "README.md"


def _said(about: About, captioned: bool) -> dict[str, Any]:
    """What the template asks for."""
    data, statistics = about.data, about.data.statistics
    assert statistics is not None, "what draws images was trained on some"
    first = about.classes[0] if about.classes else ""
    prompt = _quoted(about.pictures[0].words if captioned and about.pictures else "a black dog")
    call = f'pipe("{_quoted(first)}")' if first else f'pipe("{prompt}")'
    return {
        "name": about.name,
        "description": cell(about.config.description),
        "pictures": _sheet(about.pictures),
        "captioned": captioned,
        "code": about.kind is not None,
        "programs": about.programs,
        "place": about.repository or "FOLDER",
        "call": f'{call}.images[0].save("drawn.png")',
        "pipeline": f"pipeline_{about.kind}",
        "transformer": f"transformer_{about.kind}",
        "options": f'--class "{_quoted(first)}"' if first else f'--prompt "{prompt}"',
        "kind": architecture(about.config).title.partition(",")[0].removeprefix("a ").capitalize(),
        "parameters": f"{about.parameters:,}",
        "weights": {"ema": "averaged (EMA)", "model": "raw"}.get(about.weights, about.weights),
        "dtype": about.dtype,
        "step": f"{about.step:,}",
        "settings": [(key, cell(value)) for key, value in config_to_dict(about.config)["sample"].items()],
        "samples": f"{statistics.samples:,}",
        "classes": about.classes,
        "class_names": cell(listed(list(about.classes))),
        "tokens_mean": f"{statistics.tokens_mean:.1f}",
        "tokens_max": statistics.tokens_max,
        "buckets": listed(list(data.card.buckets)),
        "crop": data.card.crop,
        "identity": data.identity_hash[:16],
        "encoders": [_encoder(card) for card in data.card.encoders],
        "results": _results(about.run, about.step) if about.weights == "ema" else None,  # it judges those
        "audit": _audit(about.run),
        "toml": config_to_toml(about.config).strip().replace("```", "'''"),
    }


def _sheet(pictures: Sequence[Picture]) -> str:
    """Words above pictures, as a table."""
    rows = ([picture.words for picture in pictures], ["---"] * len(pictures), [f"![]({one.file})" for one in pictures])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows) if pictures else ""


def _encoder(card: EncoderCard) -> dict[str, str]:
    known = (licence_of(card.id) or "not known") + (", gated" if is_gated(card.id) else "")
    at_hub = len(card.revision) == _HASH
    shown = f"[{card.id}](https://huggingface.co/{card.id})" if at_hub else f"`{card.id}`"
    revision = f"`{card.revision[:12]}`" if at_hub else card.revision
    return {"kind": _KINDS[card.kind], "id": shown, "revision": revision, "licence": known}


def _results(run: Path, step: int) -> dict[str, Any] | None:
    """The judgement of this step on the hold-out, where the run's folder has a whole one."""
    found = _json(run / "validation" / f"step{step:07d}" / RESULTS)
    if found is None or not isinstance(found.get("criteria"), list) or found.get("step") != step:
        return None
    marks = {True: "✔", False: "✘", None: "–"}
    rows = [
        {
            "mark": marks.get(row.get("passed"), "–"),
            "title": cell(row.get("title", row.get("name"))),
            "value": value_text(row.get("value")),
            "bound": _bound(row.get("threshold"), bool(row.get("lower_is_better"))),
        }
        for row in found["criteria"]
    ]
    images = found.get("data", {})
    of = f"{images.get('images', '?')} {cell(images.get('described', 'images'))}"
    return {"verdict": cell(found.get("verdict")), "images": of, "rows": rows}


def _bound(threshold: object, lower_is_better: bool) -> str:
    if threshold is None:
        return "does not decide"
    if isinstance(threshold, list):
        return " to ".join(map(str, threshold))
    return f"{'at most' if lower_is_better else 'at least'} {threshold}"


def _audit(run: Path) -> dict[str, Any] | None:
    """What the audit before training found, where the run's folder has it: counts, and what did not pass."""
    found = _json(run / JSON_NAME)
    if found is None or not isinstance(found.get("findings"), list) or not isinstance(found.get("counts"), dict):
        return None
    loud = [one for one in found["findings"] if one.get("status") in ("fail", "warn")]
    lines = [f"{one.get('status')}: {one.get('code')} {one.get('name')}: {cell(one.get('evidence'))}" for one in loud]
    return {"counts": ", ".join(f"{count} {status}" for status, count in found["counts"].items()), "lines": lines}


def _json(path: Path) -> Mapping[str, Any] | None:
    try:
        value = read_json(path) if path.is_file() else None
    except BadDataError:
        return None
    return value if isinstance(value, dict) else None


def cell(value: object) -> str:
    """Any text in a line or in a cell of a table, without an effect of its own."""
    plain = one_line(value).replace("|", "\\|").replace("<", "&lt;")
    return plain.replace("[", "\\[") if isinstance(value, str) else plain


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace('"', '\\"')
