"""Servers that tests start: an S3-compatible one, and an HTTP server with ranges that can be made to fail."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit


class Faults:
    """What the server does wrong, for paths that end as given."""

    def __init__(self) -> None:
        self.delay = 0.0  # seconds of each answer
        self.dropped = Counter[str]()  # by ending: so many answers break off in their middle
        self.refused = ""  # a query without which nothing is given
        self.changed: dict[str, Callable[[bytes], bytes]] = {}  # by ending: what is served instead
        self.asked: list[str] = []

    def content(self, path: Path) -> bytes:
        data = path.read_bytes()
        for ending, change in self.changed.items():
            data = change(data) if path.name.endswith(ending) else data
        return data

    def drops(self, path: Path) -> bool:
        for ending in [ending for ending, left in self.dropped.items() if left and path.name.endswith(ending)]:
            self.dropped[ending] -= 1
            return True
        return False


def _handler(folder: Path, faults: Faults) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            parts, path = urlsplit(self.path), folder / urlsplit(self.path).path.lstrip("/")
            faults.asked.append(parts.path)
            time.sleep(faults.delay)
            if faults.refused and parts.query != faults.refused:
                return self._answer(403, b"")
            if not path.is_file():
                return self._answer(404, b"")
            data, code = faults.content(path), 200
            if found := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", "")):
                data, code = data[int(found[1]) : int(found[2]) + 1 if found[2] else None], 206
            return self._answer(code, data, faults.drops(path))

        def _answer(self, code: int, data: bytes, drop: bool = False) -> None:
            self.send_response(code)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2] if drop else data)
            self.close_connection = drop

        def log_message(self, *_: object) -> None:
            pass

    return Handler


@contextmanager
def http_server(folder: Path) -> Iterator[tuple[str, Faults]]:
    """Serves a folder; gives the address and what can be made to fail."""
    faults = Faults()
    server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(folder, faults))
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", faults
    finally:
        server.shutdown()
        server.server_close()
