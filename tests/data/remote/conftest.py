"""The tiny set behind servers, and a cache that is the test's own."""

from __future__ import annotations

import shutil

import pytest

from dittool.data.remote import requests
from tests.data.remote.servers import http_server


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """The folder of fetched shards."""
    monkeypatch.setenv("DIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(requests, "_FIRST_WAIT", 0.01)
    return tmp_path / "cache"


@pytest.fixture
def served(tiny_shards, tmp_path):
    """Address of the tiny set behind HTTP, the server's faults, and the folder that it serves."""
    folder = shutil.copytree(tiny_shards.folder, tmp_path / "served" / "set")
    with http_server(tmp_path / "served") as (address, faults):
        yield f"{address}/set", faults, folder
