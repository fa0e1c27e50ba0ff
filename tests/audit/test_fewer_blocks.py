"""A large model is judged on a copy with fewer of its equal blocks: an odd one among them is found all the same."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from dittool.audit.registry import built_in_rules
from dittool.audit.report import Audit
from dittool.audit.runner import audit_subject
from dittool.audit.specimens.foreign import model as foreign_model
from dittool.audit.specimens.foreign.fewer_blocks import with_fewer_blocks
from dittool.audit.specimens.watching import answers_without_gradient
from tests.audit import deep_models as models
from tests.audit.opened import open_subject

_FILE = Path(models.__file__)


def _inputs() -> dict[str, torch.Tensor]:
    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(2, models.CHANNELS, 6, 4, generator=drawn)
    return {"x": x, "t": torch.tensor([0.2, 0.7]), "y": torch.tensor([1, 4])}


def _left_out(model: nn.Module) -> set[str]:
    """Blocks that an equal one stands for."""
    torch.manual_seed(0)
    found = with_fewer_blocks(model.eval(), _inputs())
    return set(found.stands_for) if found else set()


def _blocks(*indices: int) -> set[str]:
    return {f"blocks.{index}" for index in indices}


@pytest.mark.parametrize("make", [models.Deep, models.Tables, models.Paired])
def test_of_equal_blocks_the_first_and_the_last_are_kept(make: Callable[[int], nn.Module]) -> None:
    left_out = _left_out(make(11))
    assert _blocks(2, 3, 4, 7, 8, 9) <= left_out
    assert not left_out & _blocks(0, 10)
    if make is models.Paired:  # something else stands between the blocks of its second half
        assert not left_out & _blocks(5, 6)


@pytest.mark.parametrize(
    "what",
    ["attribute", "chance", "open gate", "bias", "forward", "hook", "buffer", "shared", "frozen"],
)
def test_a_block_that_has_something_of_its_own_is_kept(what: str) -> None:
    left_out = _left_out(models.Odd(what=what))
    assert "blocks.3" not in left_out
    assert "blocks.4" in left_out


@pytest.mark.parametrize("make", [models.Indexed, models.Mixed, models.Late])
def test_a_block_that_does_otherwise_or_is_called_otherwise_is_kept_or_confirmed(make: Callable[[], nn.Module]) -> None:
    assert ("blocks.3" not in _left_out(make())) == (make is models.Indexed)


@pytest.mark.parametrize("make", [models.Weighed, models.Widening, models.Wavering])
def test_a_model_that_needs_all_of_its_blocks_keeps_them(make: Callable[[], nn.Module]) -> None:
    inputs = {name: tensor for name, tensor in _inputs().items() if name != "y" or make is not models.Widening}
    assert with_fewer_blocks(make().eval(), inputs) is None


def test_the_whole_model_is_as_it_was() -> None:
    model = models.Deep().train()
    model.blocks[2].qkv.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = with_fewer_blocks(model, _inputs())
    assert found is not None and model.training and not model.blocks[2].qkv.weight.requires_grad
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_the_copy_shares_its_weights_and_answers_as_its_blocks_would() -> None:
    model = models.Deep().eval()
    found = with_fewer_blocks(model, _inputs())
    assert found is not None
    of_whole = {parameter.data_ptr() for parameter in model.parameters()}
    shared = sum(parameter.data_ptr() in of_whole for parameter in found.model.parameters())
    assert shared > 10 and len(list(found.model.parameters())) < len(list(model.parameters()))
    (whole,), (short,) = (answers_without_gradient(each, _inputs()) for each in (model, found.model))
    assert torch.equal(whole, short)  # all gates are closed


# What the rules find


@pytest.fixture
def everything_is_large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign_model, "LARGEST_BUILT", 0)


def _audited(target: str, *codes: str, kwargs: str | None = None) -> Audit:
    subject = open_subject(f"{_FILE}:{target}", kwargs=kwargs)
    return audit_subject(subject, [rule for rule in built_in_rules() if rule.code in codes])


def _found(audit: Audit, status: str = "fail") -> list[str]:
    assert not audit.crashes
    return [judged.finding.evidence for judged in audit.findings if judged.finding.status == status]


@pytest.mark.parametrize(
    ("target", "kwargs", "code", "says"),
    [
        ("Odd", '{"what": "open gate"}', "E1", "blocks.3"),
        ("Odd", '{"what": "not a number"}', "R1", "blocks.3.out.weight"),
        ("Odd", '{"what": "attribute"}', "C8", "another sample's moves"),
        ("Odd", '{"what": "hook"}', "C8", "another sample's moves"),
        ("Indexed", None, "C8", "another sample's moves"),
        ("Mixed", None, "C8", "another sample's moves"),
        ("Kept", '{"use_checkpoint": true}', "E5", "blocks.3"),
    ],
)
@pytest.mark.usefixtures("everything_is_large")
def test_a_fault_of_one_block_is_found(target: str, kwargs: str | None, code: str, says: str) -> None:
    audit = _audited(target, code, kwargs=kwargs)
    assert any(says in evidence for evidence in (*_found(audit), *_found(audit, "warn")))


@pytest.mark.usefixtures("everything_is_large")
def test_one_bias_and_one_block_of_chance_warn() -> None:
    assert "blocks.3.out.bias" in _found(_audited("Odd", "E3", kwargs='{"what": "bias"}'), "warn")[0]
    assert "chance acts" in _found(_audited("Odd", "R2", kwargs='{"what": "chance"}'), "warn")[0]


@pytest.mark.parametrize("target", ["Late", "Tables"])
@pytest.mark.usefixtures("everything_is_large")
def test_what_acts_in_blocks_that_are_left_out_alone_is_not_called_dead(target: str) -> None:
    audit = _audited(target, "C6")
    assert "fewer" not in str(audit) and not _found(audit) and not _found(audit, "warn")


@pytest.mark.usefixtures("everything_is_large")
def test_a_clean_model_passes_and_the_report_says_on_how_many_blocks() -> None:
    audit = _audited("Deep", "R1", "E1", "E2", "E3", "E5", "C6", "C8")
    assert not _found(audit) and not _found(audit, "warn")
    said = {judged.rule.code for judged in audit.findings if "of its 7 blocks" in judged.finding.evidence}
    assert said == {"E2", "E5", "C6", "C8"}
