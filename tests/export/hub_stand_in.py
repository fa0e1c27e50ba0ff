"""A hub of one's own: as much of its HTTP interface as an upload asks for, on 127.0.0.1."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_tokenOfTheStandIn"


class Hub:
    """What was sent to it, and what it refuses."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.repositories: dict[str, bool] = {}  # name → private
        self.commits: list[str] = []
        self.requests: list[str] = []
        self.refused: dict[str, int] = {}  # part of a path → the status that it is answered with
        self.objects: dict[str, bytes] = {}
        self.endpoint = ""

    def answer(self, method: str, path: str, token: str | None, body: bytes) -> tuple[int, object]:
        self.requests.append(f"{method} {path}")
        for part, status in self.refused.items():
            if part in path:
                return status, {"error": f"refused; your token was {token}"}
        if path.startswith("/objects/"):
            self.objects[path.removeprefix("/objects/")] = body
            return 200, {}
        if token != TOKEN:
            return 401, {"error": f"Invalid token {token}"}
        if path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            name = name if "/" in name else f"me/{name}"
            self.repositories[name] = asked.get("private") or asked.get("visibility") == "private"
            return 200, {"url": f"{self.endpoint}/{name}", "name": name, "id": "1"}
        if method == "GET" and path.startswith("/api/models/"):
            name = "/".join(path.split("/")[3:5])
            there = name in self.repositories
            return (200, {"id": name, "sha": "0" * 40, "private": True}) if there else (404, {"error": "not found"})
        if "/preupload/" in path:
            files = [file["path"] for file in json.loads(body)["files"]]
            modes = {True: "lfs", False: "regular"}
            told = [{"path": file, "uploadMode": modes[file.endswith((".safetensors", ".png"))]} for file in files]
            return 200, {"files": [{**file, "shouldIgnore": False} for file in told]}
        if path.endswith("/info/lfs/objects/batch"):
            wanted = json.loads(body)["objects"]
            objects = [
                {**one, "actions": {"upload": {"href": f"{self.endpoint}/objects/{one['oid']}"}}} for one in wanted
            ]
            return 200, {"transfer": "basic", "objects": objects}
        if "/commit/" in path:
            return 200, self._commit(body)
        return 200, {}

    def _commit(self, body: bytes) -> dict[str, str]:
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "header":
                self.commits.append(value["summary"])
            elif line["key"] == "file":
                self.files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                self.files[value["path"]] = self.objects[value["oid"]]
        return {"commitUrl": f"{self.endpoint}/me/model/commit/{'1' * 40}", "commitOid": "1" * 40}


@contextmanager
def hub() -> Iterator[Hub]:
    """A hub that runs while the block does."""
    held = Hub()

    class Handler(BaseHTTPRequestHandler):
        def _any(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
            status, answer = held.answer(self.command, self.path.partition("?")[0], token, body)
            raw = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        do_GET = do_POST = do_PUT = do_HEAD = _any

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    held.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield held
    finally:
        server.shutdown()
        server.server_close()
