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


@pytest.fixture
def bucket(monkeypatch, tmp_path_factory):
    """Address of a new bucket of a real S3 server, with keys in the environment."""
    server_module = pytest.importorskip("moto.server")
    import s3fs

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ACCESS_KEY_ID": "KEYOFTEST",
        "AWS_SECRET_ACCESS_KEY": "SECRETOFTEST",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():
        monkeypatch.setenv(name, value)
    requests._opened.cache_clear()
    name = f"bucket-{tmp_path_factory.mktemp('bucket').name}"  # its buckets outlive a server of the same process
    s3fs.S3FileSystem(skip_instance_cache=True).mkdir(name)
    yield f"s3://{name}"
    requests._opened.cache_clear()
    server.stop()
