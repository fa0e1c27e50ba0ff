"""Getting weights: from a folder, from what the hub left on this disk, or not at all; in each case whole, and in
each case said clearly.
"""

from __future__ import annotations

import errno
import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from dittool.encoders.image import load_image_encoder
from dittool.encoders.pretrained import load_pretrained, weights_hash
from dittool.encoders.text import load_text_encoder
from dittool.encoders.vae import load_codec
from dittool.errors import BadDataError, DitError, WeightsMissingError

LOADERS = {
    "image": lambda name: load_image_encoder(str(name), "fp32"),
    "text": lambda name: load_text_encoder(str(name), "fp32", 8),
    "vae": lambda name: load_codec(str(name)),
}
FOLDERS = {"image": "dinov3", "text": "t5", "vae": "flux"}
WEIGHTS = {"image": "model.safetensors", "text": "model.safetensors", "vae": "vae/diffusion_pytorch_model.safetensors"}


@pytest.fixture(params=LOADERS)
def kind(request) -> str:
    return request.param


@pytest.fixture
def copy(kind, folders, tmp_path):
    """A copy of this kind's folder, to damage."""
    import shutil

    return shutil.copytree(folders / FOLDERS[kind], tmp_path / "copy")


# Row 61: missing


@pytest.mark.parametrize("name", ["models/no/folder", "/no/folder", "~/no-folder", "models/ae.safetensors"])
def test_what_can_only_be_a_path_is_not_looked_for_on_the_hub(kind, name):
    with pytest.raises(WeightsMissingError, match=f"{name}: no such folder or file") as missing:
        LOADERS[kind](name)
    assert "hf download" not in missing.value.hint


@pytest.mark.row(61)
@pytest.mark.parametrize("name", ["nobody/has-this", "./no/such/folder"])
def test_missing_weights_are_named_with_what_to_do(kind, name):
    with pytest.raises(WeightsMissingError, match=name) as missing:
        LOADERS[kind](name)
    assert f"encoders.{kind}" in missing.value.message and missing.value.exit_code == 7


def test_for_a_hub_id_the_hint_says_how_to_fetch_it_and_what_serves_meanwhile(kind):
    with pytest.raises(WeightsMissingError) as missing:
        LOADERS[kind]("nobody/has-this")
    substitute = {"image": "facebook/dinov2-large", "text": "google/t5-v1_1-base", "vae": "madebyollin/taef1"}[kind]
    stand_in = {"image": "builtin:dinov3", "text": "builtin:words", "vae": "builtin:dct"}[kind]
    hint = missing.value.hint
    assert (
        "hf download nobody/has-this" in hint
        and f"-s encoders.{kind}={substitute}" in hint
        and f"-s encoders.{kind}={stand_in}" in hint
    )


def test_of_a_whole_pipeline_only_the_vae_is_to_be_fetched():
    with pytest.raises(WeightsMissingError) as missing:
        load_codec("black-forest-labs/FLUX.1-schnell")
    assert "hf download black-forest-labs/FLUX.1-schnell --include 'vae/*'" in missing.value.hint


def test_the_substitute_is_not_offered_for_itself():
    with pytest.raises(WeightsMissingError) as missing:
        load_image_encoder("facebook/dinov2-large", "fp32")
    assert "encoders.image=facebook" not in missing.value.hint and "builtin:dinov3" in missing.value.hint


def test_an_empty_folder_says_what_belongs_into_it(kind, tmp_path):
    with pytest.raises(WeightsMissingError, match=str(tmp_path)) as missing:
        LOADERS[kind](tmp_path)
    assert "config.json" in missing.value.hint


def test_a_folder_without_its_weights_is_missing_weights(kind, copy):
    (copy / WEIGHTS[kind]).unlink()
    with pytest.raises(WeightsMissingError, match="copy"):
        LOADERS[kind](copy)


# Damaged


@pytest.mark.row(61)
@pytest.mark.parametrize("keep", [0, 5, 0.01, 0.5, -1])
def test_weights_cut_short_are_named_as_a_file(kind, copy, keep):
    path = copy / WEIGHTS[kind]
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content)) if isinstance(keep, float) else keep])
    with pytest.raises(BadDataError, match=str(path)) as damaged:
        LOADERS[kind](copy)
    assert damaged.value.exit_code == 3 and damaged.value.hint


def test_a_git_lfs_pointer_is_called_one(kind, copy):
    (copy / WEIGHTS[kind]).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")
    with pytest.raises(BadDataError, match="git-lfs pointer"):
        LOADERS[kind](copy)


def test_a_tensor_that_the_file_lacks_is_not_drawn_at_random(kind, copy):
    path = copy / WEIGHTS[kind]
    state = load_file(path)
    name = next(name for name in sorted(state) if name.endswith("weight") and "norm" in name)
    del state[name]
    save_file(state, path, {"format": "pt"})
    with pytest.raises(WeightsMissingError, match="lacks 1 of the model's tensors") as missing:
        LOADERS[kind](copy)
    assert name.split(".")[-2] in missing.value.message


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", "\x00\x01"])
def test_a_damaged_config_is_one_clear_error(kind, copy, content):
    path = copy / WEIGHTS[kind].replace(WEIGHTS[kind].split("/")[-1], "config.json")
    path.write_text(content)
    with pytest.raises(DitError, match=str(copy)) as damaged:
        LOADERS[kind](copy)
    assert damaged.value.exit_code in (2, 3, 7) and damaged.value.hint


@pytest.mark.parametrize("kind", ["image", "text"], indirect=True)
def test_of_weights_in_parts_each_must_be_there_and_whole(kind, copy):
    from transformers import AutoModel, T5EncoderModel

    (AutoModel if kind == "image" else T5EncoderModel).from_pretrained(copy).save_pretrained(
        copy, max_shard_size="40KB"
    )
    (copy / "model.safetensors").unlink(missing_ok=True)
    parts = sorted(copy.glob("model-*.safetensors"))
    assert len(parts) > 1
    LOADERS[kind](copy)
    content = parts[-1].read_bytes()
    parts[-1].write_bytes(content[:-8])
    with pytest.raises(BadDataError, match=parts[-1].name):
        LOADERS[kind](copy)
    parts[-1].unlink()
    with pytest.raises(
        WeightsMissingError, match=f"1 of {len(parts)} parts are missing, the first is {parts[-1].name}"
    ):
        LOADERS[kind](copy)


@pytest.mark.parametrize("weight_map", [{}, [], {"a": 3}, {"a": "../elsewhere.safetensors"}, None])
def test_an_index_of_parts_that_is_none_is_refused(folders, tmp_path, weight_map):
    (tmp_path / "config.json").write_text((folders / "dinov3" / "config.json").read_text())
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(BadDataError, match="weight_map"):
        load_image_encoder(str(tmp_path), "fp32")


def test_a_full_disk_while_fetching_is_not_called_missing_weights():
    def fetch(local_only: bool):
        raise OSError(errno.ENOSPC, "No space left on device", "/cache/blob")

    with pytest.raises(OSError, match="No space left"):
        load_pretrained("image", "org/model", fetch)


# What the hub left on this disk


def test_a_fetched_encoder_is_used_without_a_network_and_its_commit_is_recorded(kind, folders, hub_cache):
    hub_cache("org/model", folders / FOLDERS[kind])
    card = LOADERS[kind]("org/model").card
    assert (card.id, card.revision) == ("org/model", "0123456789abcdef0123456789abcdef01234567")
    assert card.weights == LOADERS[kind](folders / FOLDERS[kind]).card.weights


def test_an_autoencoder_with_a_repository_of_its_own_lies_at_the_top(folders, hub_cache):
    hub_cache("org/taef1", folders / "tiny")
    assert load_codec("org/taef1").card.revision.startswith("0123")


@pytest.mark.row(61)
def test_a_damaged_copy_on_this_disk_is_not_called_absent(kind, folders, hub_cache):
    path = hub_cache("org/model", folders / FOLDERS[kind]) / WEIGHTS[kind]
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(
        WeightsMissingError, match=f"'org/model' on this disk is damaged: .*{path.name}: cut short"
    ) as damaged:
        LOADERS[kind]("org/model")
    assert "--force-download" in damaged.value.hint


def test_a_download_that_lacks_its_weights_is_to_be_fetched_again(kind, folders, hub_cache):
    (hub_cache("org/model", folders / FOLDERS[kind]) / WEIGHTS[kind]).unlink()
    with pytest.raises(WeightsMissingError, match="HF_HUB_OFFLINE") as missing:
        LOADERS[kind]("org/model")
    assert "hf download org/model" in missing.value.hint


def test_a_name_that_can_be_neither_folder_nor_hub_id_is_said_to_be_so(kind):
    with pytest.raises(WeightsMissingError, match="a b/c"):
        LOADERS[kind]("a b/c")


def test_a_home_folder_may_be_written_with_a_tilde(kind, folders, monkeypatch):
    monkeypatch.setenv("HOME", str(folders))
    assert LOADERS[kind](f"~/{FOLDERS[kind]}").card.revision == "local"


# The hash


def test_the_hash_of_weights_depends_on_names_shapes_dtypes_and_bytes():
    def hashed(**tensors: torch.Tensor) -> str:
        module = torch.nn.Module()
        for name, tensor in tensors.items():
            module.register_buffer(name, tensor)
        return weights_hash(module)

    zeros = torch.zeros(2, 3)
    different = [
        hashed(a=zeros),
        hashed(b=zeros),
        hashed(a=zeros.reshape(3, 2)),
        hashed(a=zeros.int()),
        hashed(a=zeros + 1e-45),
    ]
    assert len(set(different)) == 5
    assert hashed(a=zeros, b=zeros + 1) == hashed(b=zeros + 1, a=zeros)
    assert hashed(a=torch.arange(6.0).reshape(2, 3).T) == hashed(a=torch.arange(6.0).reshape(2, 3).T.contiguous())
    assert len(hashed(a=torch.ones(3, dtype=torch.bfloat16))) == 64
