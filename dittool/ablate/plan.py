"""What is compared: a base, its variants, seeds and updates. Read from a TOML file, checked before the first hour.

base = "demo"                       a preset, or a path ending in .toml
updates = 1100                      of the base; by default its train.steps
seeds = [0, 1, 2]

[set]                               keys of every run, the base's too
"train.batch_size" = 16

[variant.muon]                      what this row changes
"train.optimizer" = "muon"

[grid]                              or each value of a key, a row each
"train.lr" = [1e-3, 3e-3]
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from dittool.ablate.statistics import DECIDING_SEEDS
from dittool.config.architectures import AnyConfig
from dittool.config.load import ConfigError, config_to_dict, load_config, read_section
from dittool.config.values import Counted, Positive, Section, Share, require
from dittool.errors import UsageError, listed

BASE = "base"  # the row that the others are compared with
_NAME = re.compile(r"[\w][\w .=+-]{0,60}")  # a folder's, too
_OWNED = {  # keys that a plan sets for each of its runs, and what to write instead
    "train.steps": "updates = 1100",
    "train.seed": "seeds = [0, 1, 2]; for other first weights train.init_draw",
    "train.eval_every": "looks = 3",
    "train.sample_every": "leave it out: each run is drawn from at its end",
    "checkpoint.every": "leave it out: each run is saved at its quarters",
    "validate.every": 'tests = ["text_manip"]',
}
_SHARED = ("data.", "encoders.", "model.arch")  # rows read the same shards, and have losses of one kind


def _dotted(tree: object) -> object:
    """`{"train": {"lr": 1}}`, which TOML makes of a key without quotes, as `{"train.lr": 1}`."""
    if not isinstance(tree, dict):
        return tree
    found: dict[str, object] = {}
    for key, value in tree.items():
        below = _dotted(value) if isinstance(value, dict) and value else value
        found |= {f"{key}.{name}": one for name, one in below.items()} if isinstance(below, dict) else {key: value}
    return found


Keys = Annotated[dict[str, object], BeforeValidator(_dotted)]  # dotted keys and their values


class Plan(Section):
    """A plan as it stands in its file."""

    base: str
    updates: Positive | None = None
    seeds: list[Counted] = Field(default=[0], min_length=1)
    set: Keys = Field(default={})
    variant: dict[str, Keys] = Field(default={})
    grid: Annotated[dict[str, list[object]], BeforeValidator(_dotted)] = Field(default={})
    samples: Positive = 64  # of the hold-out, on which all runs are measured
    equal_time: bool = True  # run each variant once more, with a schedule as short as its cost asks
    # and to its end in such shares of the updates, too
    shorter: list[Annotated[Share, Field(gt=0, lt=1)]] = Field(default=[])
    looks: Counted = 0  # so many times on the way, evenly spaced, the runs of all seeds are compared
    stop_worse: bool = True  # a row that is surely worse at a look is run no further
    drawn_images: Counted = 0  # the data are so many pictures of the drawn set, made under OUT/data
    tests: list[str] = Field(default=[])  # of `dit validate`, whose figures each run is judged by, too
    # of captions trained on, and as many of captions never seen, that each run draws and a checker reads; for the drawn
    # set of `dit demo` alone
    scenes: Counted = 0
    target: Share | None = None  # of the pictures from captions never seen: share whose `target_attribute` is right
    target_attribute: str = "shape"
    confirm_seeds: list[Counted] = Field(default=[])  # on which the best row is run again, with the base

    @model_validator(mode="after")
    def _rows(self) -> Plan:
        names = [*self.variant, *self.grid_rows()]
        odd = [name for name in names if name == BASE or not _NAME.fullmatch(name)]
        twice = sorted({name for name in names if names.count(name) > 1})
        shared = sorted(set(self.seeds) & set(self.confirm_seeds))
        empty = [name for name, keys in self.variant.items() if not keys]
        values = [_json(value) for several in self.grid.values() for value in several]
        require(
            (bool(names), "no row: give a [variant.NAME] with the keys that it changes, or a [grid]"),
            (not odd, f"{listed(odd)}: a row's name is letters, digits, spaces and . = + -, and not '{BASE}'"),
            (not twice, f"{listed(twice)}: named twice"),
            (not empty, f"{listed(empty)}: changes nothing"),
            (len(set(values)) == len(values), "grid: a value stands twice"),
            (len(self.grid) < 2, f"grid has {len(self.grid)} keys; one is compared at a time"),
            (len(set(self.seeds)) == len(self.seeds), "seeds: one stands twice"),
            (
                not self.looks or len(self.seeds) >= DECIDING_SEEDS,
                f"looks: with {len(self.seeds)} of {DECIDING_SEEDS} seeds chance cannot be told from harm on the way;"
                " add seeds or leave looks out",
            ),
            (self.target is None or self.scenes > 0, "target: a share of drawn scenes; say how many with scenes = 36"),
            (not shared, f"confirm_seeds: {listed(list(map(str, shared)))} of seeds; no choice may have seen them"),
        )
        return self

    @model_validator(mode="after")
    def _keys(self) -> Plan:
        rows: list[Keys] = [*self.variant.values(), dict(self.grid)]
        owned = sorted({key for keys in (self.set, *rows) for key in keys if key in _OWNED})
        shared = sorted({key for keys in rows for key in keys if key.startswith(_SHARED)})
        same: dict[str, list[str]] = {}
        for name, keys in self.rows().items():
            same.setdefault(_json(dict(sorted(keys.items()))), []).append(name)
        require(
            *((False, f"{key}: the plan's own; write {_OWNED[key]}") for key in owned),
            *(
                (False, f"{key}: rows read the same shards and have losses of one kind; write it into [set]")
                for key in shared
            ),
            *((len(names) == 1, f"{' and '.join(names)}: change the same") for names in same.values()),
        )
        return self

    def grid_rows(self) -> dict[str, Keys]:
        """`train.lr=0.003` → the key and value, for each value of the grid."""
        return {
            f"{key.split('.')[-1]}={_json(value)}".replace('"', ""): {key: value}
            for key, values in self.grid.items()
            for value in values
        }

    def rows(self) -> dict[str, Keys]:
        """What each row changes, the base (nothing) first."""
        return {BASE: {}, **self.variant, **self.grid_rows()}


@dataclass(frozen=True)
class Rows:
    """A plan whose every configuration has been read."""

    plan: Plan
    changes: Mapping[str, Keys]
    updates: int

    @property
    def looks(self) -> list[int]:
        """After how many updates runs are compared on the way."""
        every = self.updates // (self.plan.looks + 1)
        return [every * number for number in range(1, self.plan.looks + 1)]

    @property
    def looks_of_a_seed(self) -> int:
        """How often the runs of each further seed are looked at: on the way and at the end."""
        return len(self.looks) + 1

    def config(self, row: str, seed: int, updates: int) -> AnyConfig:
        """Of a run. Its warm-up and cooldown are as long a share of it as of the preset's own schedule, or as of
        `updates` where the plan sets them. Evaluated at each look and the end, drawn at the end, judged never.
        """
        keys = {**self.plan.set, **self.changes[row]}
        ours: Keys = {
            **self._lengths(keys, updates),
            "train.steps": updates,
            "train.seed": seed,
            "train.sample_every": updates,
            "train.eval_every": self.looks[0] if self.looks and updates == self.updates else updates,
            "checkpoint.every": max(updates // 4, 1),
        }
        if "validate" in config_to_dict(load_config(self.plan.base)):
            ours["validate.every"] = 0
        return load_config(self.plan.base, _overrides({**keys, **ours}))

    def _lengths(self, keys: Keys, updates: int) -> Keys:
        """Of the warm-up and the cooldown."""
        names = ("train.warmup_steps", "train.cooldown_steps")
        preset = load_config(self.plan.base, _overrides({key: keys[key] for key in keys if key not in names})).train
        found: Keys = {}
        left = updates - 1  # a warm-up ends before the last
        for key, of_preset in zip(names, (preset.warmup_steps, preset.cooldown_steps), strict=True):
            length, of = (keys[key], self.updates) if key in keys else (of_preset, preset.steps)
            as_written = key in keys and updates == self.updates
            if isinstance(length, int | float) and not as_written:
                found[key] = shortened = min(round(length * updates / of), left)
                left = updates - shortened
        return found


def read_plan(path: Path) -> Rows:
    """Raises `UsageError` naming every mistake of the plan, and what `load_config` raises for a row's keys."""
    try:
        plan = read_section(path, Plan)
    except ConfigError as error:
        raise UsageError(error.message, "docs/ablate.md shows a plan") from error
    updates = plan.updates or load_config(plan.base, _overrides(plan.set)).train.steps
    if plan.looks >= updates:
        raise UsageError(f"{path}: looks = {plan.looks}: there are {updates} updates", "look less often")
    rows = Rows(plan, plan.rows(), updates)
    for row in rows.changes:
        try:
            rows.config(row, plan.seeds[0], rows.updates)
        except UsageError as error:
            raise UsageError(f"{path}: row '{row}': {error.message}", error.hint) from error
    return rows


def _overrides(keys: Mapping[str, object]) -> list[str]:
    return [f"{key}={_json(value)}" for key, value in keys.items()]


def _json(value: object) -> str:
    """Of numbers, texts and lists also their TOML. A date is a text: no key has one."""
    return json.dumps(value, default=str)
