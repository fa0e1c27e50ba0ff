"""TREAD: which tokens pass, that skipping ones come back where they were, and that a sample's draw is its own."""

from __future__ import annotations

import pytest
import torch

from dittool.config.load import load_config
from dittool.console import Talk
from dittool.errors import UsageError
from dittool.families import flow as family
from dittool.families import flow_evaluation
from dittool.models.dit import DiT
from dittool.objective.alignment import Alignment
from dittool.objective.flow import flow_loss
from dittool.objective.routing import passing_tokens
from dittool.train.loop import train
from tests.models.plain_dit import PlainDiT
from tests.models.test_dit import CONFIG, build, conditions


@pytest.mark.parametrize(("tokens", "share", "count"), [(64, 0.5, 32), (64, 0.3, 45), (1, 0.9, 1), (10, 0.99, 1)])
def test_so_many_tokens_pass_each_once_and_in_order(tokens, share, count):
    route = passing_tokens(range(50), tokens, share)
    assert route.shape == (50, count) and bool((route.diff(dim=1) > 0).all()) and int(route.max()) < tokens


def test_every_token_passes_as_often_as_any_other():
    counts = torch.bincount(passing_tokens(range(4000), 12, 0.5).flatten(), minlength=12)
    assert (counts - 2000).abs().max() < 5 * (4000 * 0.25) ** 0.5


def test_a_sample_has_the_same_route_alone_and_beside_others():
    assert torch.equal(passing_tokens([3, 7, 9], 20, 0.4)[1:2], passing_tokens([7], 20, 0.4))


@pytest.mark.parametrize("changes", [{}, {"positions": "rope", "qk_norm": False}, {"shared_modulation": True}])
@pytest.mark.parametrize("blocks", [(1, 1), (2, 2), (1, 2)])
def test_skipping_tokens_are_in_no_block_between_and_stand_where_they_were(changes, blocks):
    model, grid = build(routed_blocks=blocks, **changes), (2, 3)
    z, t, c = torch.randn(3, 16, 4, 6), torch.tensor([0.1, 0.5, 0.9]), conditions(3, grid=grid)
    route = passing_tokens([5, 6, 7], 6, 0.5)
    with torch.no_grad():
        found = model(z, t, c, None, None, route)
        for i in range(3):
            plain = PlainDiT(model.state_dict(), model.config, route[i].tolist())
            expected = plain.velocity(z[i], t[i], c.text[i], c.cls[i], c.patches[i], grid)
            torch.testing.assert_close(found[i], expected, rtol=1e-5, atol=1e-5)
        assert not torch.allclose(found, model(z, t, c), atol=1e-3)  # all tokens pass where nothing is said


def test_tokens_of_a_routed_block_are_aligned_with_their_own_patches():
    model, grid = build(routed_blocks=(2, 2), aligned_block=2), (2, 3)
    x0, noise = torch.randn(2, 4, 16, 4, 6)
    c, seen, modes = conditions(4, grid=grid), [], torch.tensor([0, 2, 1, 3])
    route, alignment = passing_tokens(range(4), 6, 0.5), Alignment(1.0, CONFIG.patch_size, active=True)
    model.blocks[1].register_forward_hook(lambda _module, _inputs, tokens: seen.append(tokens))
    found = flow_loss(model, x0, noise, torch.full((4,), 0.5), c, modes, alignment, route).alignment
    for sample in (0, 2):
        tokens, patches = model.alignment_head(seen[0][sample]), c.patches[sample][route[sample]]
        wanted = (1 - torch.cosine_similarity(tokens, patches, dim=1)).mean()
        torch.testing.assert_close(found[sample], wanted)


# In a run


def test_the_draw_depends_on_seed_and_sample_and_on_neither_processes_nor_accumulation(tiny_shards):
    config = tiny_shards.config_with("model.depth=3", "tread.share=0.5")
    one = [family.route_of(config, tiny_shards.stream()[number]) for number in range(3)]
    for number, whole in enumerate(one):
        halves = [family.route_of(config, tiny_shards.stream(rank, 2, accumulate=3)[number]) for rank in range(2)]
        assert torch.equal(whole, torch.cat(halves))
    assert not torch.equal(one[0][0], one[0][1])
    other = tiny_shards.config_with("model.depth=3", "tread.share=0.5", "train.seed=5")
    assert not torch.equal(one[0], family.route_of(other, tiny_shards.stream()[0]))


class Heard(Talk):
    def __init__(self) -> None:
        self.warnings: list[str] = []

    def warn(self, text: str) -> None:
        self.warnings.append(text)


def test_nothing_is_routed_but_in_training_and_few_tokens_are_warned_of(tiny_shards, tmp_path, monkeypatch):
    trained, evaluated, real, talk = [], [], family.flow_loss, Heard()

    def watched(model, x0, noise, t, conditions, modes, alignment=None, route=None):
        (evaluated if isinstance(model, DiT) else trained).append(route)  # a run calls its replica's forward
        return real(model, x0, noise, t, conditions, modes, alignment, route)

    monkeypatch.setattr(family, "flow_loss", watched)
    monkeypatch.setattr(flow_evaluation, "flow_loss", watched)
    keys = ("model.depth=3", "tread.share=0.5", "train.steps=3", "train.eval_every=3")
    train(tiny_shards.config_with(*keys), tiny_shards.folder, tmp_path / "run", talk=talk)
    assert len(trained) == 3 and all(route is not None for route in trained)
    assert evaluated and all(route is None for route in evaluated)
    assert any("tread.share 0.5" in line and "1,024" in line for line in talk.warnings)


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        (["tread.first=2"], "first has no effect with share = 0"),
        (["tread.share=0.5", "tread.last=6"], "must be one before the model's last, 6"),
        (["tread.share=0.5", "tread.first=4", "tread.last=3"], r"tread\.first 4 is behind tread\.last 3"),
        (["tread.share=0.5", "model.depth=2"], "must be one before the model's last, 2"),
    ],
)
def test_routes_that_cannot_be_are_refused(keys, said):
    with pytest.raises(UsageError, match=said):
        load_config("demo", keys)


def test_by_default_the_blocks_are_those_of_the_paper():
    config = load_config("large", ["tread.share=0.5"])
    assert (config.model.depth, config.tread.blocks(28)) == (28, (3, 24))
