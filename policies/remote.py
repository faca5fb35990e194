"""A policy in another process or on another machine: a server that puts one behind HTTP, and what asks it.

The wire format is HTTP with NumPy archives (`.npz`, no pickle) as bodies:

GET /spaces answers with the arrays "observation.low", "observation.high" (of a dictionary's entries:
"observation.NAME.low", ...) and "action.low", "action.high", whose shapes, types and values are those of the boxes.

POST /act with header X-Session (any word; each session has a state of its own) takes "observation" [B, ...] (of a
dictionary: "observation.NAME") and "begun" bool [B], the worlds whose episodes have begun since the last call. It
answers with "actions" [B, T, ...], of the coming T steps. Errors are answered with status 400 or 500 and plain text.
"""

from __future__ import annotations

import http.client
import io
import threading
import urllib.parse
import uuid
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import numpy as np
from gymnasium import spaces

from sanawm_env.errors import ConfigError, PolicyError
from sanawm_env.policies.base import Policy
from sanawm_env.policies.chunks import ChunkedPolicy

SESSIONS = 64  # that a server keeps; one more takes the place of that which has not been used for longest
LARGEST = 2**30  # bytes of a body
KIND = "application/x-npz"


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Arrays as a body."""
    body = io.BytesIO()
    np.savez(body, **arrays)  # type: ignore[arg-type]
    return body.getvalue()


def unpack(body: bytes) -> dict[str, np.ndarray]:
    """The arrays of a body. ValueError where it is none."""
    try:
        with np.load(io.BytesIO(body), allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, EOFError, zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{len(body)} bytes are no NumPy archive ({error})") from error


def flatten(name: str, value: Any) -> dict[str, np.ndarray]:
    """An observation under `name`, or the entries of a dictionary under `name.KEY`."""
    if isinstance(value, Mapping):
        return {f"{name}.{key}": np.asarray(part) for key, part in value.items()}
    return {name: np.asarray(value)}


def unflatten(name: str, arrays: Mapping[str, np.ndarray]) -> Any:
    """What `flatten` was given. ValueError where nothing has that name."""
    if name in arrays:
        return arrays[name]
    parts = {key.removeprefix(f"{name}."): x for key, x in arrays.items() if key.startswith(f"{name}.")}
    if not parts:
        raise ValueError(f"there is no {name!r} among {sorted(arrays)}")
    return parts


class PolicyServer(ThreadingHTTPServer):
    """Answers for a policy: `serve_forever()` in this thread, `url` to reach it, `close` when done.

    policy: of whole steps, or of action chunks [B, T, ...]. host: the address it listens at, this machine alone by
    default; whoever can reach it can use the policy. port: 0 for any that is free.
    """

    daemon_threads = True

    def __init__(self, policy: Policy[Any], host: str = "127.0.0.1", port: int = 0) -> None:
        self.policy = policy
        self.told = pack(_limits("observation", policy.observation_space) | _limits("action", policy.action_space))
        self._states: OrderedDict[str, tuple[int, Any]] = OrderedDict()
        self._lock = threading.Lock()
        super().__init__((host, port), _Handler)

    @property
    def url(self) -> str:
        return f"http://{self.server_address[0]!s}:{self.server_address[1]}"

    def close(self) -> None:
        """Stops serving; may be called from another thread."""
        self.shutdown()
        self.server_close()

    def act(self, session: str, arrays: Mapping[str, np.ndarray]) -> np.ndarray:
        """Actions [B, T, ...] for a session's worlds. ValueError for arrays that are no question."""
        observation, begun = unflatten("observation", arrays), arrays.get("begun")
        if begun is None or begun.dtype != bool or begun.ndim != 1:
            raise ValueError("'begun' is missing or not bool [B]")
        with self._lock:
            worlds, state = self._states.pop(session, (-1, None))
            if worlds == len(begun):
                state = self.policy.reset(state, begun) if begun.any() else state
            elif begun.all():
                state = self.policy.initial_state(len(begun))
            else:
                raise ValueError(f"session {session!r} is not known with {len(begun)} worlds; begin all of them")
            actions, state = self.policy.act(observation, state)
            self._states[session] = (len(begun), state)
            while len(self._states) > SESSIONS:
                self._states.popitem(last=False)
        actions = np.asarray(actions, np.float32)
        single = len(self.policy.action_space.shape)
        return actions[:, None] if actions.ndim == single + 1 else actions


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: PolicyServer

    def do_GET(self) -> None:
        if self.path != "/spaces":
            self._answer(404, f"{self.path} is not known; allowed are GET /spaces and POST /act".encode(), "text/plain")
            return
        self._answer(200, self.server.told, KIND)

    def do_POST(self) -> None:
        length = int(self.headers.get("Content-Length", -1))
        if self.path != "/act" or not 0 <= length <= LARGEST:
            self.close_connection = True
            self._answer(400, f"POST /act takes a body of at most {LARGEST} bytes".encode(), "text/plain")
            return
        body = self.rfile.read(length)
        try:
            actions = self.server.act(self.headers.get("X-Session", ""), unpack(body))
        except ValueError as error:
            self._answer(400, str(error).encode(), "text/plain")
        except Exception as error:  # the policy's own; whoever asked is told
            self._answer(500, f"the policy failed: {type(error).__name__}: {error}".encode(), "text/plain")
        else:
            self._answer(200, pack({"actions": actions}), KIND)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a line for every step is no news."""

    def _answer(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


class Client:
    """Asks a policy server; a source of `ChunkedPolicy`. timeout: seconds that an answer may take."""

    def __init__(self, url: str, timeout: float) -> None:
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.path not in ("", "/"):
            raise ConfigError(f"url of a policy server is {url!r}, allowed is http(s)://HOST[:PORT].")
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        self.url, self.timeout = url, timeout
        self._connection = kind(parts.hostname, parts.port, timeout=timeout)
        self._session = uuid.uuid4().hex

    def __call__(self, observation: Any, begun: np.ndarray) -> np.ndarray:
        answer = self._ask("POST", "/act", pack(flatten("observation", observation) | {"begun": begun}))
        if "actions" not in answer:
            raise PolicyError(f"the policy server at {self.url} answered with {sorted(answer)}, expected 'actions'.")
        return answer["actions"]

    def spaces(self) -> tuple[Any, Any]:
        """Observation and action space that the server's policy was made for."""
        told = self._ask("GET", "/spaces")
        try:
            return _space(unflatten("observation", told)), _space(unflatten("action", told))
        except (ValueError, KeyError, AssertionError) as error:
            raise PolicyError(f"the policy server at {self.url} describes no spaces ({error}).") from error

    def _ask(self, method: str, path: str, body: bytes | None = None) -> dict[str, np.ndarray]:
        try:
            self._connection.request(method, path, body, {"X-Session": self._session, "Content-Type": KIND})
            answer = self._connection.getresponse()
            content = answer.read()
        except TimeoutError as error:
            self._connection.close()
            raise PolicyError(
                f"the policy server at {self.url} has not answered within {self.timeout:g} s; use a longer timeout, or "
                "see whether it still runs."
            ) from error
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            raise PolicyError(
                f"no policy server answers at {self.url} ({error}); start it, or correct the url."
            ) from error
        if answer.status != 200:
            raise PolicyError(
                f"the policy server at {self.url} answered {answer.status}: {content.decode(errors='replace')[:300]}"
            )
        try:
            return unpack(content)
        except ValueError as error:
            raise PolicyError(f"the policy server at {self.url} answered with {error}; is it one of ours?") from error


def connect(url: str, *, ahead: int = 0, share: float = 1.0, timeout: float = 10.0) -> ChunkedPolicy:
    """The policy behind a server, to be used like any other; ahead and share as of `ChunkedPolicy`, timeout in seconds.
    PolicyError where no server answers, in time or at all, or answers with an error."""
    client = Client(url, timeout)
    # The thread that asks gives up first, and its error says where.
    return ChunkedPolicy(client, *client.spaces(), ahead=ahead, share=share, timeout=timeout + 1.0)


def _limits(name: str, space: Any) -> dict[str, np.ndarray]:
    """The arrays that stand for a box, or for a dictionary of boxes."""
    parts = {name: space} if not isinstance(space, spaces.Dict) else {f"{name}.{key}": x for key, x in space.items()}
    if wrong := [part for part in parts.values() if not isinstance(part, spaces.Box)]:
        raise ConfigError(f"a policy server describes boxes and dictionaries of them, and the policy has {wrong[0]}.")
    return {f"{key}.{end}": getattr(part, end) for key, part in parts.items() for end in ("low", "high")}


def _space(limits: Mapping[str, np.ndarray]) -> Any:
    """The space of what `_limits` gave, its name taken off."""
    if limits.keys() == {"low", "high"}:
        return spaces.Box(limits["low"], limits["high"], dtype=limits["low"].dtype.type)
    names = dict.fromkeys(key.rpartition(".")[0] for key in limits)
    return spaces.Dict({name: _space({end: limits[f"{name}.{end}"] for end in ("low", "high")}) for name in names})
