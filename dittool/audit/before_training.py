"""The audit of a configuration that is about to be trained; its result goes into the run's folder."""

from __future__ import annotations

from pathlib import Path

from dittool.audit.registry import load_rules
from dittool.audit.report import as_json, as_markdown
from dittool.audit.runner import Audit, audit_subject
from dittool.audit.targets import SpecimenOf, preset_subject
from dittool.ckpt.files import list_checkpoints
from dittool.config.architectures import AnyConfig
from dittool.console import Talk
from dittool.storage import output_folder, write_atomic, write_json

JSON_NAME, REVIEW_NAME = "audit.json", "audit.md"


def audit_before_training(config: AnyConfig, specimen_of: SpecimenOf, name: str, run: Path, talk: Talk) -> Audit | None:
    """Leaves audit.json and audit.md in the run's folder. None, and nothing is done, for a folder that already
    holds checkpoints.
    """
    if list_checkpoints(run / "checkpoints"):
        return None
    result = audit_subject(preset_subject(name, specimen_of, config), load_rules().rules, talk=talk)
    write_json(output_folder(run) / JSON_NAME, as_json(result))
    write_atomic(run / REVIEW_NAME, as_markdown(result).encode())
    return result
