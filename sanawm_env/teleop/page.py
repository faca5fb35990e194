"""The page of `sanawm teleop`: frames to a browser, keys from it, by the standard library's web server.

GET / is the page. GET /view?after=N waits for the view after number N and gives its frames as JPEG in JSON; the page
plays them at the world's rate. POST /keys, /restart and /stop take JSON, from the page itself only.
"""

from __future__ import annotations

import base64
import contextlib
import importlib.resources
import json
import threading
from collections.abc import Iterator
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

from sanawm_env.datasets.codec import encode
from sanawm_env.errors import ActionError, ConfigError
from sanawm_env.keys import CONTROLS
from sanawm_env.teleop.session import ARROWS, Session, View

WAIT = 10.0  # seconds that a request for a view waits at most
LARGEST = 10_000  # bytes of a request's body


@contextlib.contextmanager
def serve(session: Session, host: str, port: int) -> Iterator[str]:
    """Serves the page of a session from threads; gives its address. ConfigError where the port is taken."""
    try:
        server = ThreadingHTTPServer((host, port), type("Bound", (_Handler,), {"session": session}))
    except OSError as error:
        raise ConfigError(f"cannot listen at {host}:{port}: {error.strerror}; choose another with --port") from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="page", daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_port}/"
    finally:
        session.stop()
        server.shutdown()
        server.server_close()


def told(view: View) -> dict[str, Any]:
    """A view as the page takes it."""
    return {
        "number": view.number,
        "frames": [base64.b64encode(encode(frame)).decode() for frame in view.frames],
        "frame": view.frame,
        "position": view.position,
        "reason": view.reason,
        "stepSeconds": view.step_seconds,
    }


class _Handler(BaseHTTPRequestHandler):
    session: Session
    protocol_version = "HTTP/1.1"

    def handle(self) -> None:
        """All requests of a connection, until the browser leaves, in whatever way."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def do_GET(self) -> None:
        """The page, what it needs to know, or the next view."""
        address = urlsplit(self.path)
        if not self._from_page():
            return
        if address.path == "/":
            page = importlib.resources.files("sanawm_env.teleop").joinpath("page.html").read_bytes()
            self._answer(HTTPStatus.OK, page, "text/html; charset=utf-8")
        elif address.path == "/about":
            self._json(HTTPStatus.OK, self._about())
        elif address.path == "/view":
            self._view(parse_qs(address.query).get("after", ["0"])[0])
        else:
            self._json(HTTPStatus.NOT_FOUND, {"error": f"{address.path} is not here; open /"})

    def do_POST(self) -> None:
        """Keys that are down, a restart, or the end."""
        if not self._from_page():
            return
        length = self.headers.get("Content-Length", "")
        if not length.isdecimal() or int(length) > LARGEST:
            self.close_connection = True
            self._json(HTTPStatus.BAD_REQUEST, {"error": f"the body is not of 0 .. {LARGEST} bytes"})
            return
        body = self.rfile.read(int(length))
        try:
            self._do(json.loads(body or b"{}"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:  # ActionError is a ValueError
            known = isinstance(error, ActionError)
            self._json(HTTPStatus.BAD_REQUEST, {"error": str(error) if known else "not as the page sends it"})

    def _do(self, body: Any) -> None:
        if self.path == "/keys":
            self.session.hold(body["held"])
        elif self.path in ("/restart", "/stop"):
            getattr(self.session, self.path[1:])()
        else:
            self._json(HTTPStatus.NOT_FOUND, {"error": f"{self.path} is not here"})
            return
        self._json(HTTPStatus.OK, {})

    def _view(self, after: str) -> None:
        if not after.isdecimal():
            self._json(HTTPStatus.BAD_REQUEST, {"error": f"after is {after!r}, allowed is a number"})
            return
        view = self.session.view(int(after), WAIT)
        self._json(HTTPStatus.OK, {"stopped": self.session.stopped} | ({} if view is None else told(view)))

    def _about(self) -> dict[str, Any]:
        arrows = {control: arrow for arrow, control in ARROWS.items()}
        keys = [[control, self.session.keys[control], arrows.get(control, "")] for control in CONTROLS]
        return {"fps": self.session.fps, "keys": keys, "names": list(self.session.names)}

    def _from_page(self) -> bool:
        """Whether the page at this address asks. Another site that the browser has open must not drive the world, nor
        read it through a name of its own that leads here."""
        assert isinstance(self.server, ThreadingHTTPServer)
        bound, origin = str(self.server.server_address[0]), self.headers.get("Origin")
        own = {f"{name}:{self.server.server_port}" for name in (bound, "localhost", "127.0.0.1")}
        if bound == "0.0.0.0":  # asked for: reachable by every name of this machine
            own |= {self.headers.get("Host", "")}
        if self.headers.get("Host") in own and (origin is None or urlsplit(origin).netloc in own):
            return True
        self.close_connection = True
        self._json(HTTPStatus.FORBIDDEN, {"error": "only the page served here may ask"})
        return False

    def _json(self, status: HTTPStatus, content: dict[str, Any]) -> None:
        self._answer(status, json.dumps(content).encode(), "application/json")

    def _answer(self, status: HTTPStatus, content: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line for each request would bury what the terminal says."""
