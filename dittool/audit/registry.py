"""The rules that there are: ours in one table, and those of other packages through the entry-point group
`dit.audit_rules`.

A plugin's entry point names a module that is a rule (see `rule.py`). Codes are never reused, not even of rules that are
gone.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint

from dittool.audit.rule import Rule, rule_from_module
from dittool.errors import UsageError, described
from dittool.plugins import REMEDY, installed, package_of

PLUGIN_GROUP = "dit.audit_rules"

BUILT_IN = {
    # it runs at all
    "R1": "R1_runs",
    "R2": "R2_same_twice",
    # from-scratch stability
    "E1": "E1_zero_init",
    "E2": "E2_dynamic_positions",
    "E3": "E3_bias",
    "E4": "E4_ema_warmup",
    "E5": "E5_gradient_checkpointing",
    # the configuration is honoured
    "C1": "C1_live_keys",
    "C2": "C2_dropout",
    "C3": "C3_timesteps",
    "C4": "C4_precision",
    "C5": "C5_schedule",
    "C6": "C6_live_conditions",
    "C7": "C7_guidance",
    "C8": "C8_independent_samples",
    # the data is what the model thinks it is
    "D1": "D1_grid",
    "D2": "D2_registers",
    "D3": "D3_alignment",
    "D4": "D4_identity",
    "D5": "D5_holdout",
    "D6": "D6_values",
    "D7": "D7_integrity",
    "D8": "D8_captions",
    "D9": "D9_balance",
    "D10": "D10_pairs",
    # the one-step generator
    "G1": "G1_attention_entropy",
    "G2": "G2_live_generator",
    # checkpoints
    "K1": "K1_container",
    "K2": "K2_finite",
    "K3": "K3_architecture",
    "K4": "K4_dead_parts",
    "K5": "K5_complete",
    "K6": "K6_ema",
}


@dataclass(frozen=True)
class RuleSet:
    """The rules that can be used, and one line for each plugin that cannot."""

    rules: tuple[Rule, ...]
    refused: tuple[str, ...]

    def selected(self, select: Sequence[str] = (), ignore: Sequence[str] = ()) -> list[Rule]:
        """Rules whose code begins with one of `select` (empty: all) and with none of `ignore`; a whole code is that
        rule alone, D1 not D10 too. Raises `UsageError` for a prefix of no code.
        """
        for prefix in (*select, *ignore):
            if not any(rule.code.startswith(prefix) for rule in self.rules):
                raise UsageError(
                    f"no rule's code begins with '{prefix}'; there are {', '.join(rule.code for rule in self.rules)}",
                    _SEE,
                )
        wanted = [rule for rule in self.rules if not select or self._named(rule.code, select)]
        return [rule for rule in wanted if not self._named(rule.code, ignore)]

    def _named(self, code: str, prefixes: Sequence[str]) -> bool:
        codes = {rule.code for rule in self.rules}
        return any(code == prefix if prefix in codes else code.startswith(prefix) for prefix in prefixes)

    def get(self, code: str) -> Rule:
        """The rule of a code. Raises `UsageError`."""
        for rule in self.rules:
            if rule.code == code.upper():
                return rule
        raise UsageError(f"there is no rule {code}; there are {', '.join(rule.code for rule in self.rules)}", _SEE)


_SEE = "the rules and their pages: dit audit --explain all"


def built_in_rules() -> list[Rule]:
    """Our own rules, in the table's order."""
    return [rule_from_module(importlib.import_module(f"dittool.audit.rules.{module}")) for module in BUILT_IN.values()]


def load_rules(plugins: Iterable[EntryPoint] | None = None) -> RuleSet:
    """Our rules and the plugins' (default: those of the installed packages). A broken plugin is named in `refused`
    and harms nothing else.
    """
    rules = built_in_rules()
    refused = []
    for plugin in (
        installed(PLUGIN_GROUP)[0] if plugins is None else plugins
    ):  # what is unreadable, the program has said
        title = f"audit rule '{plugin.name}' of {package_of(plugin)}"
        try:
            with redirect_stdout(sys.stderr):  # what it prints is no part of a result
                rule = replace(rule_from_module(plugin.load()), package=package_of(plugin))
        except (Exception, SystemExit) as error:  # somebody else's module: anything can happen while it is imported
            refused.append(f"{title} cannot be used: {described(error)}; {REMEDY}")
            continue
        if any(rule.code == other.code for other in rules):
            refused.append(f"{title} is not used: the code {rule.code} is taken")
        else:
            rules.append(rule)
    return RuleSet(tuple(rules), tuple(refused))
