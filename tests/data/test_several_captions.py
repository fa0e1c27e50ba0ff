"""Several captions of an image, from the source to the batch: which are kept, stored, drawn, judged and read."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dittool.audit.data_view import open_derived, open_shards
from dittool.audit.rules import D8_captions
from dittool.data.features.embed import embed
from dittool.data.features.store import FeatureStore
from dittool.data.features.verify import verify as verify_features
from dittool.data.identity import IdentityCard
from dittool.data.records import TEXT, text_members
from dittool.data.shards import caption_draw
from dittool.data.shards.caption_draw import drawn_caption, require_known_kinds, shares_drawn
from dittool.data.shards.columns import SampleRef
from dittool.data.shards.from_encoders import embed_into_shards
from dittool.data.shards.older_sets import index_again
from dittool.data.shards.read import ShardSet
from dittool.data.shards.stream import BatchStream
from dittool.data.shards.verify import verify
from dittool.data.shards.webdataset_pipeline import as_webdataset
from dittool.data.shards.write import shard
from dittool.demo.drawing import draw_dataset
from dittool.encoders.text import load_text_encoder
from dittool.errors import BadDataError, UsageError
from dittool.families.family import family_of
from dittool.storage import read_json
from dittool.train.distributed import Ranks
from dittool.train.loop import train
from tests.data.several import KINDS, config, write_list
from tests.run_states import assert_same_bits, final_state, stopped_at

WORDS = load_text_encoder("builtin:words", "fp32", 512)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The table, the features and the shards."""
    root = tmp_path_factory.mktemp("several")
    draw_dataset(root / "images", 24, seed=0)
    source = write_list(root / "images")
    done = embed(source, root / "derived", config())
    shard(root / "derived", root / "shards")
    return SimpleNamespace(source=source, derived=root / "derived", shards=root / "shards", records=done.used)


def hidden(text):
    return WORDS.encode([text])[0].hidden.numpy().astype(np.float16)


# --- what is stored ---


def test_each_caption_is_stored_at_its_true_length_in_the_folder_and_in_the_shards(made):
    store, shards = FeatureStore(made.derived), ShardSet.open(made.shards)
    assert [len(record.captions) for record in made.records].count(2) == 6  # each fourth has no tags
    refs = {ref.id: ref for ref in shards.samples}
    for record in made.records:
        assert record.caption == record.captions[0][1] and record.captions[0][0] == "short"
        ref = refs[record.id]
        assert list(text_members(ref.members).values()) == [kind for kind, _ in record.captions]
        assert TEXT.member not in ref.members
        for kind, text in record.captions:
            wanted = hidden(text)
            assert (np.load(store.folder / f"t5_hidden/{record.id}.{kind}.npy") == wanted).all()
            assert (shards.read_array(ref, f"t5h.{kind}.npy") == wanted).all()
        assert (shards.read(ref).text == hidden(record.caption)).all()
        assert shards.read_record(ref).captions == record.captions


def test_card_index_and_statistics_say_so_and_an_older_program_refuses_the_set_by_its_version(made):
    card, index = read_json(made.derived / "identity.json"), read_json(made.shards / "index.json")
    assert card["version"] == index["version"] == index["identity"]["version"] == 2
    assert card["captions"] == list(KINDS)
    tokens, lengths = index["statistics"]["text_tokens"], {kind: [] for kind in KINDS}
    for record in made.records:
        for kind, text in record.captions:
            lengths[kind].append(len(hidden(text)))
    assert tokens["kinds"] == {
        kind: [len(some), pytest.approx(np.mean(some)), max(some)] for kind, some in sorted(lengths.items())
    }
    assert tokens["mean"] == pytest.approx(np.mean([length for some in lengths.values() for length in some]))
    # what version 0.1 and 0.2 compared before they read anything else
    with pytest.raises(BadDataError, match="version 3, this program reads 1 and 2"):
        IdentityCard.from_json({**card, "version": 3}, "card")
    with pytest.raises(BadDataError, match="captions"):
        IdentityCard.from_json({**card, "version": 1}, "card")


def test_a_set_of_one_caption_is_of_version_1_and_has_no_word_of_kinds(tiny_shards):
    index = read_json(tiny_shards.folder / "index.json")
    assert index["version"] == index["identity"]["version"] == 1
    assert "captions" not in index["identity"] and "kinds" not in index["statistics"]["text_tokens"]
    assert all(TEXT.member in ref.members for ref in ShardSet.open(tiny_shards.folder).samples)


def test_straight_into_shards_gives_the_same_bytes(made, tmp_path):
    embed_into_shards(made.source, tmp_path / "shards", config())
    tars = sorted(path.relative_to(made.shards) for path in made.shards.glob("**/*.tar"))
    assert tars and all((made.shards / tar).read_bytes() == (tmp_path / "shards" / tar).read_bytes() for tar in tars)
    ours, theirs = (read_json(folder / "index.json") for folder in (made.shards, tmp_path / "shards"))
    assert ours["statistics"] == theirs["statistics"] and ours["identity"] == theirs["identity"]


def test_both_ways_of_storing_verify_and_see_a_damaged_caption(made, tmp_path):
    assert verify(made.shards) == [] and verify_features(made.derived).faults == []
    assert verify_features(made.derived).strays == 0
    derived = shutil.copytree(made.derived, tmp_path / "derived")
    path = next((derived / "t5_hidden").glob("*.long.npy"))
    np.save(path, np.load(path)[:-1])
    assert {fault.stage for fault in verify_features(derived).faults} == {"t5"}
    with pytest.raises(BadDataError, match="its digest is"):
        shard(derived, tmp_path / "shards")
    path.unlink()
    again = embed(made.source, derived, config())
    assert again.made == {"dinov3": 0, "vae": 0, "t5": 1} and verify_features(derived).faults == []


def test_an_edited_caption_is_encoded_again_and_no_other(made, tmp_path):
    images = shutil.copytree(made.source.parent, tmp_path / "images")
    derived = shutil.copytree(made.derived, tmp_path / "derived")
    table = images / "captions.csv"
    table.write_text(table.read_text().replace("seen from the left side", "seen from the right side", 1))
    assert embed(table, derived, config()).made == {"dinov3": 0, "vae": 0, "t5": 1}


def test_a_folder_of_one_caption_takes_several_only_when_its_texts_are_made_again(made, tmp_path):
    one = config("data.caption_column=short", "data.caption_weights={}")
    derived = tmp_path / "derived"
    assert embed(made.source, derived, one, ["t5"]).made["t5"] == 24
    with pytest.raises(BadDataError, match="captions"):
        embed(made.source, derived, config(), ["t5"])
    assert embed(made.source, derived, config(), ["t5"], rebuild=True).made["t5"] == 24
    assert not verify_features(derived, ["t5"]).faults


def test_a_lost_index_is_made_again(made, tmp_path):
    shards = shutil.copytree(made.shards, tmp_path / "shards")
    (shards / "index.json").unlink()
    index_again(shards, made.derived, None, 0)
    assert read_json(shards / "index.json") == read_json(made.shards / "index.json")


def test_other_loops_get_the_first_caption_and_all_by_kind(made):
    pytest.importorskip("webdataset")
    records = {record.id: record for record in made.records}
    for sample in as_webdataset(made.shards, "train"):
        record = records[sample["__key__"]]
        assert (sample["text"].numpy() == hidden(record.caption)).all()
        assert {kind: len(some) for kind, some in sample["texts"].items()} == Counter(
            kind for kind, _ in record.captions
        )


# --- what is drawn ---


def ref(*members, key="a"):
    return SampleRef(key, "64x64", "train", "x.tar", dict.fromkeys(members, (0, 1)))


def test_a_caption_is_drawn_by_seed_pass_and_id_in_the_shares_of_the_weights():
    members = ("t5h.short.npy", "t5h.long.npy", "t5h.long.1.npy", "t5h.tags.npy")
    weights = {"long": 2.0, "tags": 0.0}
    drawn = Counter(drawn_caption(ref(*members, key=str(key)), weights, 0, 0) for key in range(6000))
    assert drawn["t5h.tags.npy"] == 0
    for member, share in (("t5h.short.npy", 1 / 3), ("t5h.long.npy", 1 / 3), ("t5h.long.1.npy", 1 / 3)):
        assert drawn[member] / 6000 == pytest.approx(share, abs=0.025)
    passes = {drawn_caption(ref(*members), weights, 0, passes) for passes in range(40)}
    assert len(passes) == 3  # over the passes one sample meets all that may be drawn
    assert [drawn_caption(ref(*members), {}, seed, 0) for seed in range(8)] != [
        drawn_caption(ref(*members), {}, 0, 0)
    ] * 8


def test_a_sample_of_nothing_but_weight_0_uses_what_it_has():
    assert drawn_caption(ref("t5h.tags.npy", "t5h.tags.1.npy"), {"tags": 0.0}, 0, 0).startswith("t5h.tags")
    assert drawn_caption(ref("t5h.npy"), {"tags": 0.0}, 0, 0) == "t5h.npy"
    assert shares_drawn([ref("t5h.npy")], {}, 0) == {}


def test_a_weight_of_an_unknown_kind_is_named():
    with pytest.raises(UsageError) as caught:
        require_known_kinds({"lnog": 1.0}, KINDS, "data/shards")
    assert "short, long, tags" in caught.value.message and "did you mean long?" in caught.value.hint
    with pytest.raises(UsageError, match="they keep one caption of an image"):
        require_known_kinds({"long": 1.0}, (), "data/shards")


def opened(made, *overrides):
    chosen = config(*overrides)
    return family_of(chosen).open_data(chosen, made.shards, Ranks(0, 1, torch.device("cpu")))


def test_batches_hold_the_drawn_captions_and_two_processes_draw_the_same(made):
    data = opened(made)
    shards, seen = ShardSet.open(made.shards), Counter()
    refs = {one.id: one for one in shards.samples}
    for number in range(24):
        batch = data.stream[number]
        for row, (key, passes) in enumerate(zip(batch.ids, data.stream.plan.passes(number), strict=True)):
            member = drawn_caption(refs[key], {"long": 3.0, "tags": 0.5}, 0, passes)
            text = shards.read_array(refs[key], member)
            assert (batch.conditions.text[row, : len(text)].numpy() == text).all()
            assert not batch.conditions.text[row, len(text) :].any()
            seen[text_members(refs[key].members)[member]] += 1
    assert seen["long"] > seen["short"] > seen["tags"] > 0
    assert max(data.stream.plan.passes(23)) > 2
    weights = {"long": 3.0, "tags": 0.5}
    half_of = partial(BatchStream, shards, data.refs, data.provenance.norm, 4, 0, ranks=2, caption_weights=weights)
    halves = [half_of(rank=rank)[5] for rank in range(2)]
    ids = [key for half in halves for key in half.ids]
    assert ids == data.stream[5].ids
    rows = [row for half in halves for row in half.conditions.text]
    for mine, whole in zip(rows, data.stream[5].conditions.text, strict=True):
        count = min(len(mine), len(whole))
        assert (mine[:count] == whole[:count]).all()


def test_the_largest_batch_is_told_by_the_longest_caption_of_all_kinds(made):
    largest = opened(made).stream.largest_batch
    short = opened(made, "data.caption_weights={long=0, tags=0}").stream
    assert largest == short.largest_batch  # a batch may hold any of them
    assert largest[0] >= max(batch_bytes(opened(made).stream[number]) for number in range(8))


def batch_bytes(batch):
    tensors = [batch.latents, batch.noise, batch.conditions.text, batch.conditions.cls, batch.conditions.patches]
    return sum(tensor.numel() * 4 for tensor in tensors if tensor is not None)


def test_evaluation_and_hold_out_read_the_first_caption(made, monkeypatch):
    read = []
    real = ShardSet.read

    def noted(self, ref, patches=True, text=""):
        read.append(text)
        return real(self, ref, patches, text)

    monkeypatch.setattr(ShardSet, "read", noted)
    data = opened(made, "train.eval_every=4")
    assert data.evaluation is not None and read and set(read) == {""}


# --- a run ---


def test_a_run_says_the_shares_and_stopped_and_resumed_it_ends_with_the_same_bits(made, tmp_path, listener):
    train(config(), made.shards, tmp_path / "whole", talk=listener)
    told = next(note for note in listener.notes if "captions drawn in the first pass" in note)
    rows = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    shares = {key: value for row in rows for key, value in row.items() if key.startswith("captions_")}
    assert set(shares) == {f"captions_{kind}" for kind in KINDS} and sum(shares.values()) == pytest.approx(1)
    assert shares["captions_long"] > 0.5 and f"long {shares['captions_long']:.1%}" in told
    run = stopped_at(tmp_path / "whole", 3, tmp_path / "stopped")
    (run / "checkpoints/checkpoint_final.pt").unlink(missing_ok=True)
    train(config(), made.shards, run, resume=True)
    assert_same_bits(final_state(tmp_path / "whole"), final_state(run))


def test_control_a_draw_that_forgets_the_pass_changes_the_bits(made, tmp_path, monkeypatch):
    train(config(), made.shards, tmp_path / "whole")
    monkeypatch.setattr(
        "dittool.data.shards.stream.drawn_caption",
        lambda ref, weights, seed, passes: caption_draw.drawn_caption(ref, weights, seed, passes + 1),
    )
    train(config(), made.shards, tmp_path / "other")
    with pytest.raises(AssertionError):
        assert_same_bits(final_state(tmp_path / "whole"), final_state(tmp_path / "other"))


# --- the audit ---


def judged(data):
    return {finding.evidence.partition(":")[0]: finding for finding in D8_captions.check(SimpleNamespace(opened=data))}


def test_D8_judges_each_kind(made, tmp_path):
    for data in (open_shards(made.shards), open_derived(made.derived)):
        found = judged(data)
        assert set(found) == set(KINDS) and {finding.status for finding in found.values()} <= {"pass", "warn"}
    derived = shutil.copytree(made.derived, tmp_path / "derived")
    for path in (derived / "t5_hidden").glob("*.tags.npy"):  # as an encoder that pads would leave them
        np.save(path, np.concatenate([np.load(path), np.zeros((7, 64), np.float16)]))
    found = judged(open_derived(derived))
    assert found["tags"].status == "fail" and "padding" in found["tags"].evidence
    assert found["short"].status != "fail" and found["long"].status != "fail"
