"""The small training state of the checkpoint tests, and the tripwire that no file may touch."""

from tests.ckpt.conftest import state, tripwire, valid

__all__ = ["state", "tripwire", "valid"]
