"""Every option of a command with a value to try it by, and the lines that they are tried in.

Paths are those of `workshop.py`. An option that a command has and this table lacks ends the matrix: a new option comes
with an example.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field

import typer
from typer.core import TyperCommand

Words = tuple[str, ...]

TALK: dict[str, Words] = {"--json": ("--json",), "--quiet": ("--quiet",), "--verbose": ("--verbose",)}
CPU: dict[str, Words] = {"--device": ("--device", "cpu")}
SMALLER: dict[str, Words] = {"--set": ("-s", "model.depth=3")}

# command → option → how it is given; an argument is called by its metavar
EXAMPLES: dict[str, dict[str, Words]] = {
    "validate": {
        "RUN|CHECKPOINT|SAMPLES.npz": ("run/checkpoints/checkpoint_step0000002.pt",),
        "--data": ("--data", "few"),
        "--tests": ("--tests", "dino_swap"),
        "--limit": ("--limit", "2"),
        "--split": ("--split", "train"),
        "--lpips-backbone": ("--lpips-backbone", "alexnet.safetensors"),
        "--images": ("--images", "20"),
        "--reference": ("--reference", "no-such.npz"),
        "--features-out": ("--features-out", "features.npz"),
        "--out": ("--out", "judged"),
        "--compare": ("--compare", "run", "other"),
        "--repeat": ("--repeat", "no-such.json"),
        **CPU,
        **TALK,
    },
    "sample": {
        "--prompt": ("--prompt", "a blue square"),
        "--negative": ("--negative", "a green triangle"),
        "--ref": ("--ref", "other.png"),
        "--prompts": ("--prompts", "prompts.jsonl"),
        "--from": ("--from", "drawn.png"),
        "--checkpoint": ("--checkpoint", "run/checkpoints/checkpoint_step0000002.pt"),
        "--size": ("--size", "64x96"),
        "-n": ("-n", "2"),
        "--seed": ("--seed", "7"),
        "--steps": ("--steps", "3"),
        "--solver": ("--solver", "heun"),
        "--cfg-text": ("--cfg-text", "5"),
        "--cfg-dino": ("--cfg-dino", "4"),
        "--guidance": ("--guidance", "nested"),
        "--guidance-interval": ("--guidance-interval", "0.2", "0.45"),
        "--guidance-parallel": ("--guidance-parallel", "0.5"),
        "--guidance-norm": ("--guidance-norm", "0.001"),
        "--guidance-momentum": ("--guidance-momentum", "-0.5"),
        "--weak": ("--weak", "other"),
        "--cfg-weak": ("--cfg-weak", "3"),
        "--weak-routed": ("--weak-routed", "0.5"),
        "--grid": ("--grid", "cfg-text=1,2", "cfg-dino=1"),
        "--init": ("--init", "other.png"),
        "--strength": ("--strength", "0.5"),
        "--class": ("--class", "blue-square"),
        "--alpha": ("--alpha", "1.5"),
        "--out": ("--out", "new.png"),
        "--part": ("--part", "0/1"),
        "--force": ("--force",),
        **CPU,
        **TALK,
    },
    "inspect-ckpt": {
        "FILE": ("run/checkpoints/checkpoint_step0000002.pt",),
        "--tree": ("--tree",),
        "--diff": ("--diff", "other"),
        "--export": ("--export", "new.safetensors"),
        "--weights": ("--weights", "model"),
        "--force": ("--force",),
        **TALK,
    },
    "average": {
        "RUN": ("run",),  # which has none
        "--width": ("--width", "0.08"),
        "--out": ("--out", "new.pt"),
        "--at": ("--at", "2"),
        "--force": ("--force",),
        **TALK,
    },
    "runs": {"FOLDER": ("run",), "--page": ("--page",), **TALK},
    "warmstart": {
        "OLD": ("run/checkpoints/checkpoint_step0000002.pt",),
        "--preset": ("--preset", "deeper.toml"),
        "--out": ("--out", "new.safetensors"),
        **SMALLER,
        "--data": ("--data", "few"),
        "--text-dim": ("--text-dim", "32"),
        "--image-dim": ("--image-dim", "32"),
        "--latent-channels": ("--latent-channels", "4"),
        "--force": ("--force",),
        **TALK,
    },
    "shard": {
        "DERIVED": ("derived-again",),
        "--out": ("--out", "packed"),
        "--shard-size": ("--shard-size", "2"),
        "--limit": ("--limit", "20"),
        "--holdout": ("--holdout", "0.5"),
        "--part": ("--part", "0/1"),
        "--seed": ("--seed", "3"),
        "--verify": ("--verify",),
        "--index": ("--index", "foreign"),
        "--preset": ("--preset", "demo"),
        "--set": ("-s", "encoders.max_text_tokens=96"),
        **TALK,
    },
    "bench": {"--preset": ("--preset", "deeper.toml"), **SMALLER, **TALK},
    "train": {
        "--preset": ("--preset", "deeper.toml"),
        "--data": ("--data", "few"),
        "--out": ("--out", "run"),
        **SMALLER,
        "--resume": ("--resume",),
        "--continue": ("--continue",),
        "--resume-from": ("--resume-from", "run/checkpoints/checkpoint_step0000002.pt"),
        "--strict": ("--strict",),
        "--init": ("--init", "start.safetensors"),
        "--copies": ("--copies", "s3://no-such-bucket/run"),
        "--dry-run": ("--dry-run",),
        "--no-audit": ("--no-audit",),
        **CPU,
        **TALK,
    },
}


@dataclass(frozen=True, eq=False)
class Situation:
    """A line that options are added to. An option that it has already takes the place of its own."""

    name: str
    command: str
    line: Mapping[str, Words]
    # Without an effect of their own in this line, and rightly so: they ask for what holds anyway. Option → why
    idle: Mapping[str, str] = field(default_factory=dict)
    paired: bool = True  # False: what tells this line from another of its command is the one option of all its pairs

    def words(self, *added: str) -> list[str]:
        given = {**self.line, **{name: EXAMPLES[self.command][name] for name in added}}
        arguments = [name for name in given if not name.startswith("-")]
        ordered = [*arguments, *(name for name in given if name not in arguments)]
        return [self.command, *(word for name in ordered for word in given[name])]

    @property
    def options(self) -> list[str]:
        """That may be added."""
        return [name for name, words in EXAMPLES[self.command].items() if self.line.get(name) != words]


HERE = {"--device": "the CPU is the only device of this machine"}
NOTHING_THERE = {"--force": "nothing stands where the result goes"}
NO_RUN = {"--continue": "nothing is there to go on with"}
NO_REMARK = {"--quiet": "there is no remark"}
PROMPT, REF, C = ("--prompt", "a red circle"), ("--ref", "ref.png"), ("--checkpoint", "run")
TINY = ("--preset", "tiny.toml")
ARE_DEFAULTS = {"--preset": "the same encoders"}

SITUATIONS = (
    Situation("a judgement", "validate", {"RUN|CHECKPOINT|SAMPLES.npz": ("run",)}, HERE),
    Situation("two runs", "validate", {"--compare": ("--compare", "run", "other")}, NO_REMARK),
    Situation(
        "prompt and reference",
        "sample",
        {"--prompt": PROMPT, "--ref": REF, "--checkpoint": C},
        HERE | NOTHING_THERE | {"--from": "all that the picture holds may be said anew"},
    ),
    Situation("a prompt", "sample", {"--prompt": PROMPT, "--checkpoint": C}, HERE | NOTHING_THERE, paired=False),
    Situation("a reference", "sample", {"--ref": REF, "--checkpoint": C}, HERE | NOTHING_THERE, paired=False),
    Situation(
        "a file of prompts",
        "sample",
        {"--prompts": ("--prompts", "prompts.txt"), "--checkpoint": C},
        HERE | NOTHING_THERE,
        paired=False,
    ),
    Situation(
        "a set of images",
        "sample",
        {"--prompts": ("--prompts", "prompts.txt"), "--checkpoint": C, "--out": ("--out", "new.npz")},
        HERE | NOTHING_THERE | {"--part": "there is no other part"},
        paired=False,
    ),
    Situation(
        "an image to begin with",
        "sample",
        {"--prompt": PROMPT, "--init": ("--init", "ref.png"), "--checkpoint": C},
        HERE | NOTHING_THERE,
        paired=False,
    ),
    Situation("a picture again", "sample", {"--from": ("--from", "drawn.png")}, HERE | NOTHING_THERE),
    Situation(
        "a class",
        "sample",
        {"--class": ("--class", "red-circle"), "--checkpoint": ("--checkpoint", "classes")},
        HERE | NOTHING_THERE,
    ),
    Situation("a class again", "sample", {"--from": ("--from", "class.png")}, HERE | NOTHING_THERE),
    Situation(
        "over a stranger's picture",
        "sample",
        {"--prompt": PROMPT, "--checkpoint": C, "--out": ("--out", "theirs.png")},
        HERE,
        paired=False,
    ),
    Situation("a checkpoint", "inspect-ckpt", {"FILE": ("run",)}, NO_REMARK | NOTHING_THERE),
    Situation(
        "an export", "inspect-ckpt", {"FILE": ("run",), "--export": ("--export", "w.safetensors")}, NOTHING_THERE
    ),
    Situation(
        "over a stranger's weights",
        "inspect-ckpt",
        {"FILE": ("run",), "--export": ("--export", "theirs.safetensors")},
        paired=False,
    ),
    Situation(
        "an average", "average", {"RUN": ("averaged",), "--width": ("--width", "0.1")}, NO_REMARK | NOTHING_THERE
    ),
    Situation(
        "over a stranger's average",
        "average",
        {"RUN": ("averaged",), "--width": ("--width", "0.1"), "--out": ("--out", "theirs.pt")},
        paired=False,
    ),
    Situation("runs", "runs", {"FOLDER": (".",)}),
    Situation(
        "old weights",
        "warmstart",
        {"OLD": ("run",), "--preset": TINY, "--out": ("--out", "w.safetensors")},
        NOTHING_THERE,
    ),
    Situation(
        "over a stranger's start",
        "warmstart",
        {"OLD": ("run",), "--preset": TINY, "--out": ("--out", "theirs.safetensors")},
        paired=False,
    ),
    Situation("packing", "shard", {"DERIVED": ("derived",)}),
    Situation("verifying", "shard", {"--verify": ("--verify",), "--out": ("--out", "few")}),
    Situation("a lost index", "shard", {"DERIVED": ("derived",), "--index": ("--index", "lost")}),
    Situation("a foreign set", "shard", {"--index": ("--index", "foreign"), "--preset": ("--preset", "demo")}),
    Situation("a machine", "bench", {"--preset": TINY}),
    Situation(
        "a plan",
        "train",
        {"--preset": TINY, "--data": ("--data", "data/shards"), "--dry-run": ("--dry-run",)},
        HERE | NO_RUN,
    ),
    Situation(
        "a plan of a run",
        "train",
        {
            "--out": ("--out", "run"),
            "--resume": ("--resume",),
            "--dry-run": ("--dry-run",),
            "--set": ("-s", "train.steps=2000"),  # the run has ended
        },
        HERE | {"--strict": "the newest checkpoint is valid"},
    ),
)


def options_of(command: str) -> list[str]:
    """Of a command, as Typer has them; an argument by its metavar."""
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    app.command()(importlib.import_module(f"dittool.commands.{command.replace('-', '_')}").main)
    found = typer.main.get_command(app)
    assert isinstance(found, TyperCommand)
    names = []
    for parameter in found.params:
        long = [name for name in parameter.opts if name.startswith("--")]
        is_option = parameter.param_type_name == "option"
        names.append((long or parameter.opts)[0] if is_option else str(parameter.metavar))
    return names


def require_examples() -> None:
    """Raises `KeyError` naming the options of a command that the table lacks, or has and the command lacks."""
    for command, examples in EXAMPLES.items():
        if wrong := set(options_of(command)) ^ set(examples):
            raise KeyError(f"dit {command}: no example, or no such option: {', '.join(sorted(wrong))}")
