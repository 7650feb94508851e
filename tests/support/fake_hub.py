"""A hub on loopback that behaves as Hugging Face does, and badly when asked to."""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

COMMIT = "c0ffee" * 6 + "c0ff"


@dataclass
class FakeHub:
    """What the hub publishes, how it misbehaves, and what it was asked."""

    url: str = ""
    repositories: dict[str, dict[str, bytes]] = field(default_factory=dict)
    """Files by their paths."""
    license: str = "apache-2.0"
    gated: bool = False
    """Files are refused until a token comes."""
    cut_at: int | None = None
    """The connection of the next file ends before this byte of it."""
    flipped: set[str] = field(default_factory=set)
    """Files of which the last byte is wrong, once."""
    ranges: list[str | None] = field(default_factory=list)
    """The Range header of each request for a file's bytes."""
    searches: list[str] = field(default_factory=list)
    tokens: list[str | None] = field(default_factory=list)

    def listing(self, repository: str) -> dict[str, Any]:
        """Describe a repository as ``/api/models/OWNER/REPO?blobs=true`` does."""
        siblings = [
            {
                "rfilename": path,
                "size": len(data),
                "lfs": {
                    "size": len(data),
                    "sha256": hashlib.sha256(data).hexdigest(),
                    "pointerSize": 134,
                },
            }
            for path, data in self.repositories[repository].items()
        ]
        card = {"license": self.license}
        return {"id": repository, "sha": COMMIT, "siblings": siblings, "cardData": card}


class _Handler(BaseHTTPRequestHandler):
    hub: FakeHub

    def do_GET(self) -> None:
        """Answer as the hub does."""
        split = urlsplit(self.path)
        self.hub.tokens.append(self.headers.get("authorization"))
        if split.path == "/api/models":
            search = parse_qs(split.query)["search"][0]
            self.hub.searches.append(search)
            names = [name for name in self.hub.repositories if search in name.lower()]
            self._json([{"id": name} for name in names])
        elif found := re.fullmatch("/api/models/(.+/.+)", split.path):
            if found[1] in self.hub.repositories:
                self._json(self.hub.listing(found[1]))
            else:  # to strangers the hub does not say what is private and what does not exist
                self._refuse(401, "RepoNotFound")
        elif found := re.fullmatch(f"/([^/]+/[^/]+)/resolve/{COMMIT}/(.+)", split.path):
            self._file(self.hub.repositories[found[1]][found[2]], found[2])
        else:
            self._refuse(404, "EntryNotFound")

    def _file(self, data: bytes, path: str) -> None:
        if self.hub.gated and not self.headers.get("authorization"):
            self._refuse(401, "GatedRepo")
            return
        asked = self.headers.get("range")
        self.hub.ranges.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if path in self.hub.flipped:
            self.hub.flipped.remove(path)
            data = data[:-1] + bytes([data[-1] ^ 1])
        self.send_response(206 if asked else 200)
        self.send_header("content-length", str(len(data) - start))
        if asked:
            self.send_header("content-range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        end, self.hub.cut_at = self.hub.cut_at, None
        self.wfile.write(data[start:end])

    def _json(self, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _refuse(self, status: int, code: str) -> None:
        self.send_response(status)
        self.send_header("x-error-code", code)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        """Print nothing."""


@contextmanager
def fake_hub() -> Iterator[FakeHub]:
    """Run a hub on a port of its own."""
    hub = FakeHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        thread.join()
        server.server_close()
