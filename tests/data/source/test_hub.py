"""Data sets of the hub as a source, from a server on this machine that answers as the hub does."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from huggingface_hub import constants

from dittool.data.source import hub
from dittool.errors import StorageError, UsageError
from tests.data.source.layouts import CAPTIONS, CAT, DOG, image_bytes, parquet, put, read

COMMIT = "c" * 40


@pytest.fixture
def served(tmp_path, monkeypatch):
    """The folder of the data set owner/name, and the paths that were asked for."""
    folder, asked = tmp_path / "served", []
    folder.mkdir()

    class Hub(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self):
            self.do_GET()

        def do_GET(self):
            path = unquote(urlsplit(self.path).path)
            asked.append(path)
            files = [file for file in folder.rglob("*") if file.is_file()]
            if path.startswith("/api/datasets/owner/name/tree/"):
                rows = [(file, file.relative_to(folder).as_posix()) for file in files]
                tree = [
                    {"type": "file", "path": name, "size": file.stat().st_size, "oid": "0" * 40} for file, name in rows
                ]
                return self._answer(json.dumps(tree).encode())
            if path.startswith("/api/datasets/owner/name"):
                siblings = [{"rfilename": file.relative_to(folder).as_posix()} for file in files]
                return self._answer(json.dumps({"id": "owner/name", "sha": COMMIT, "siblings": siblings}).encode())
            place = folder / path.partition(f"/resolve/{COMMIT}/")[2]
            if path.startswith("/datasets/owner/name/resolve/") and place.is_file():
                return self._answer(place.read_bytes())
            return self._answer(b"", 404, {"X-Error-Code": "RepoNotFound"})

        def _answer(self, data, code=200, more=None):
            self.send_response(code)
            headers = {"Content-Length": str(len(data)), "ETag": f'"{hashlib.sha1(data).hexdigest()}"'}
            for key, value in {**headers, "X-Repo-Commit": COMMIT, **(more or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(data)

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield folder, asked
    server.shutdown()
    server.server_close()


def source_at(text):
    return hub.source_at(Path(text))  # as the command line gives it: with one slash


def test_a_data_set_is_fetched_once_and_read(served):
    folder, asked = served
    row = {"image": {"bytes": image_bytes(DOG, "png"), "path": "a.png"}, "text": CAPTIONS[DOG]}
    parquet(folder / "data/train-0.parquet", [row])
    put(folder, {"README.md": "a card", "model.bin": "x"})
    source = source_at("hf://datasets/owner/name")
    assert read(source) == {"data/train-0/00000000": (CAPTIONS[DOG], DOG)}
    assert not [path for path in asked if path.endswith((".md", ".bin"))]
    before = len([path for path in asked if path.endswith(".parquet")])
    assert source_at("hf://datasets/owner/name@main") == source
    assert len([path for path in asked if path.endswith(".parquet")]) == before


def test_a_path_behind_the_name_is_all_that_is_fetched(served):
    folder, asked = served
    put(folder, {"train/a.png": DOG, "train/a.txt": CAPTIONS[DOG], "test/b.png": CAT, "test/b.txt": CAPTIONS[CAT]})
    assert read(source_at("hf://datasets/owner/name/train")) == {"a": (CAPTIONS[DOG], DOG)}
    assert source_at("hf://datasets/owner/name@refs/convert/parquet/test/b.png").name == "b.png"
    assert any("refs/convert/parquet" in path for path in asked)
    with pytest.raises(UsageError, match="no such file or folder in the data set"):
        source_at("hf://datasets/owner/name/other")


def test_what_is_no_data_set_is_said(served, tmp_path):
    for text in ("hf://datasets/owner", "hf://owner/name"):
        with pytest.raises(UsageError, match="no data set of the hub"):
            source_at(text)
    with pytest.raises(UsageError, match="no such public data set"):
        source_at("hf://datasets/owner/other")
    assert source_at(tmp_path) == tmp_path


def test_a_hub_that_is_not_there_is_said_with_what_fetches(served, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(StorageError) as caught:
        source_at("hf://datasets/owner/name")
    assert "hf download --repo-type dataset owner/name" in caught.value.hint
