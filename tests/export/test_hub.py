"""--push uploads what it was asked to, after asking, and says what is wrong without the token in it."""

from __future__ import annotations

import io
import logging
import sys

import pytest
from huggingface_hub import constants

from dittool.errors import StorageError, UsageError
from dittool.export.hub import push, require_pushable
from tests.export.hub_stand_in import TOKEN, hub


@pytest.fixture
def stand_in(monkeypatch):
    with hub() as running:
        monkeypatch.setattr(constants, "ENDPOINT", running.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield running


def yes(question):
    return True


def test_every_file_arrives_in_one_commit(stand_in, exported):
    asked = []
    address = push(exported, "me/model", True, lambda question: asked.append(question) or True, "Step 8")
    files = {path.relative_to(exported).as_posix(): path for path in exported.rglob("*") if path.is_file()}
    assert stand_in.files == {name: path.read_bytes() for name, path in files.items()}
    assert stand_in.commits == ["Step 8"] and stand_in.repositories == {"me/model": True}
    assert address == f"{stand_in.endpoint}/me/model"
    assert f"{len(files)} files" in asked[0] and address in asked[0]


def test_without_agreement_nothing_is_sent(stand_in, exported):
    assert push(exported, "me/model", False, lambda question: False, "Step 8") is None
    assert stand_in.requests == []


@pytest.mark.parametrize(
    ("part", "status", "kind", "said"),
    [
        ("/api/repos/create", 401, UsageError, "does not accept the token"),
        ("/api/repos/create", 403, UsageError, "may not write there"),
        ("/commit/", 403, UsageError, "may not write there"),
        ("/commit/", 418, StorageError, "the hub answers 418"),
    ],
)
def test_what_the_hub_refuses_is_said_without_the_token(stand_in, exported, caplog, part, status, kind, said):
    stand_in.refused[part] = status
    with caplog.at_level(logging.DEBUG), pytest.raises(kind, match=said) as raised:
        push(exported, "me/model", False, yes, "Step 8")
    shown = f"{raised.value.message} {raised.value.hint} {caplog.text}"
    assert TOKEN not in shown and raised.value.hint and stand_in.files == {}


def test_a_hub_that_is_not_there_is_an_error_with_the_folder_that_stays(stand_in, exported, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(StorageError, match="cannot be reached") as raised:
        push(exported, "me/model", False, yes, "Step 8")
    assert str(exported) in raised.value.hint


def test_without_a_token_the_work_does_not_begin(stand_in, monkeypatch, tmp_path):
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "none"))
    with pytest.raises(UsageError, match="no token") as raised:
        require_pushable("me/model")
    assert "hf auth login" in raised.value.hint


@pytest.mark.parametrize("name", ["model", "me/mo del", "me/model/more", "../model"])
def test_a_name_that_is_no_repository_is_a_usage_error(stand_in, name):
    with pytest.raises(UsageError, match="--push"):
        require_pushable(name)


def test_the_command_asks_and_pushes(dit, stand_in, checkpoint, tmp_path, monkeypatch):
    alone = dit("export", checkpoint, "--out", tmp_path / "out", "--push", "me/model")
    assert alone.code == 2 and "--yes" in alone.err and stand_in.requests == []

    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdin", Terminal("n\n"))
    refused = dit("export", checkpoint, "--out", tmp_path / "out", "--push", "me/model")
    assert refused.code == 0 and "can read them?" in refused.err and stand_in.requests == []
    agreed = dit("export", checkpoint, "--out", tmp_path / "out", "--push", "me/model", "--yes", "--force")
    assert agreed.code == 0, agreed.err
    assert "README.md" in stand_in.files and b"me/model" in stand_in.files["README.md"]
    assert TOKEN not in agreed.out + agreed.err
