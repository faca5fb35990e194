"""A hub on this machine, for tests that download."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest


class Hub(ThreadingHTTPServer):
    """Serves one folder as one repository, the same at every revision; notes the files it sent and what was asked for.

    Revisions are "main", "v1" and the commit.
    """

    def __init__(self, folder: Path, repository: str) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.folder, self.repository, self.commit = folder, repository, "0123456789" * 4
        self.sent: list[str] = []
        self.asked: set[str] = set()


class _Handler(BaseHTTPRequestHandler):
    server: Hub

    def do_GET(self) -> None:
        self._answer(body=True)

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def _answer(self, *, body: bool) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        head, _, named = path.partition("/resolve/")
        revision, _, name = named.partition("/")
        if path.startswith("/api/"):
            revision = path.partition("/revision/")[2] or "main"
        hub.asked.add(revision)
        if path in (f"/api/models/{hub.repository}", f"/api/models/{hub.repository}/revision/v1"):
            files = [file for file in hub.folder.rglob("*") if file.is_file()]
            listed = [{"rfilename": str(f.relative_to(hub.folder)), "size": f.stat().st_size} for f in files]
            told = {"id": hub.repository, "sha": hub.commit, "siblings": listed}
            self._send(json.dumps(told).encode(), {"Content-Type": "application/json"}, body)
        elif head == f"/{hub.repository}" and revision in (hub.commit, "v1", "main") and (hub.folder / name).is_file():
            content = (hub.folder / name).read_bytes()
            if body:
                hub.sent.append(name)
            tag = hashlib.sha256(content).hexdigest()
            self._send(content, {"ETag": f'"{tag}"', "X-Repo-Commit": hub.commit}, body)
        else:
            self.send_response(404)
            self.send_header("X-Error-Code", "RepoNotFound")
            self.send_header("Content-Length", "0")
            self.end_headers()

    def _send(self, content: bytes, headers: dict[str, str], body: bool) -> None:
        self.send_response(200)
        for name, value in (headers | {"Content-Length": str(len(content))}).items():
            self.send_header(name, value)
        self.end_headers()
        if body:
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Nothing: pytest has no use for the requests."""


@contextmanager
def serving(folder: Path, repository: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A folder as a repository of the only hub there is, with a cache of its own."""
    from huggingface_hub import constants

    server = Hub(folder, repository)
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
