"""A hub on the loopback: the part of the Hugging Face hub's HTTP interface that fetching a model or a data set uses."""

from __future__ import annotations

import hashlib
import json
import re
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """Serves the files of `folder` as the model or data set `org/name`, at `pace` bytes a second.

    What is `gated`, and any other name, is refused as the hub does.
    """

    def __init__(self, folder: Path, pace: float = 1e9) -> None:
        self.folder, self.pace, self.gated = folder, pace, False
        self.asked: list[tuple[str, str, str]] = []
        """(method, path, Range header) of each request."""
        self.sent = 0
        """Bytes of files, bodies only."""
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, body: bool) -> None:
        path = unquote(self.path.partition("?")[0])
        self.hub.asked.append((self.command, path, self.headers.get("Range", "")))
        if "/org/name" not in path:
            self._refuse(404, "RepoNotFound", "Repository not found")
        elif self.hub.gated:
            self._refuse(403, "GatedRepo", "Access to model org/name is restricted")
        elif found := re.fullmatch(r"/api/(?:models|datasets)/org/name/tree/[^/]+/?(.*)", path):
            self._json([self._entry(each) for each in sorted((self.hub.folder / found[1]).iterdir())])
        elif re.match(r"/api/(?:models|datasets)/org/name", path):
            siblings = [{"rfilename": each.name} for each in sorted(self.hub.folder.iterdir()) if each.is_file()]
            self._json({"id": "org/name", "modelId": "org/name", "sha": COMMIT, "siblings": siblings, "tags": []})
        elif found := re.fullmatch(r"(?:/datasets)?/org/name/resolve/[^/]+/(.+)", path):
            self._file(self.hub.folder / found[1], body)
        else:
            self._refuse(404, "EntryNotFound", "No such entry")

    def _entry(self, path: Path) -> dict[str, Any]:
        name = str(path.relative_to(self.hub.folder))
        if path.is_dir():
            return {"type": "directory", "path": name, "oid": COMMIT}
        return {"type": "file", "path": name, "size": path.stat().st_size, "oid": _etag(path)}

    def _file(self, path: Path, body: bool) -> None:
        if not path.is_file():
            self._refuse(404, "EntryNotFound", "No such entry")
            return
        content = path.read_bytes()
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        start = int(asked[1]) if asked else 0
        part = content[start : int(asked[2]) + 1 if asked and asked[2] else None]
        self.send_response(206 if asked else 200)
        self.send_header("Content-Length", str(len(part)))
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(content)}")
        self.send_header("ETag", f'"{_etag(path)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.end_headers()
        for at in range(0, len(part) if body else 0, 2**16):
            try:
                self.wfile.write(part[at : at + 2**16])
            except OSError:
                return  # the other side is gone
            self.hub.sent += len(part[at : at + 2**16])
            time.sleep(2**16 / self.hub.pace)

    def _json(self, document: Any) -> None:
        content = json.dumps(document).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _refuse(self, status: int, code: str, message: str) -> None:
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", message)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def _etag(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
