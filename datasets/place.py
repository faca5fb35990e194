"""Where the files of a store lie, to read them: a folder, or an object store behind a URL."""

from __future__ import annotations

import contextlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sanawm_env.datasets.recent import Recent
from sanawm_env.errors import MissingExtraError, StorageError

HANDLES = 256  # files that a process holds open at a time
GAP = 2**16  # bytes read along between two parts of a remote file, because a request costs more than they do
SEPARATOR = "://"


class Part(NamedTuple):
    """Bytes of the file `name`: `length` of them from `start`, or up to its end; from -n on, the last n."""

    name: str
    start: int = 0
    length: int | None = None


class Place(ABC):
    """Names are relative to the store. May be used by several threads, after a fork, and sent to other processes.

    Every method raises StorageError where the place as a whole cannot be reached.
    """

    def read(self, name: str) -> bytes | None:
        """A whole file, None if it is not there."""
        return self.read_parts([Part(name)])[0]

    @abstractmethod
    def read_parts(self, parts: Sequence[Part]) -> list[bytes | None]:
        """The bytes of each part, None where the file is not there. What a file lacks at its end is left out."""

    @abstractmethod
    def sizes(self) -> dict[str, int]:
        """Bytes of every file there, by name."""


class Folder(Place):
    """Files of a folder. Those that are read in parts, which never change, are held open while they are in use."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._mark = object()  # another store may come to lie at the same path, with other files

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path,)

    def __str__(self) -> str:
        return str(self.path)

    def read_parts(self, parts: Sequence[Part]) -> list[bytes | None]:
        return [self._read_part(*part) for part in parts]

    def sizes(self) -> dict[str, int]:
        sizes = {}
        for folder, _, names in os.walk(self.path):
            for path in (Path(folder, name) for name in names):
                with contextlib.suppress(FileNotFoundError):  # a writer has just moved it
                    sizes[path.relative_to(self.path).as_posix()] = path.stat().st_size
        return sizes

    def _read_part(self, name: str, start: int, length: int | None) -> bytes | None:
        try:
            if start == 0 and length is None:
                return (self.path / name).read_bytes()
            file = _open.get((self._mark, name))
            if file is None:
                file = _open.put((self._mark, name), _File(f"{self.path}/{name}"))
            return file.read(start, length)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise _unreadable(f"{self.path / name}", error) from error


class _File:
    """An open file that is closed when nobody holds it: a thread may still read it while it is being forgotten."""

    def __init__(self, path: str) -> None:
        self._handle = -1
        self._handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def read(self, start: int, length: int | None) -> bytes:
        if start < 0 or length is None:
            size = os.fstat(self._handle).st_size
            start = max(0, size + start) if start < 0 else start
            length = size - start if length is None else length
        return os.pread(self._handle, length, start)

    def __del__(self) -> None:
        if self._handle >= 0:
            os.close(self._handle)


_open: Recent[tuple[object, str], _File] = Recent(HANDLES)


class Remote(Place):
    """Objects below a URL that fsspec knows ("s3://bucket/x.zarr", "memory://x.zarr"); parts are fetched together.

    options: what fsspec's file system of that protocol takes, for example {"endpoint_url": ...}.
    """

    def __init__(self, url: str, options: Mapping[str, Any] | None = None) -> None:
        self.url, self.options = url.rstrip("/"), dict(options or {})
        self._system()

    def __str__(self) -> str:
        return self.url

    def read_parts(self, parts: Sequence[Part]) -> list[bytes | None]:
        system, base = self._system()
        requests, owners = _joined(parts)
        if not requests:
            return []
        try:
            found = system.cat_ranges(
                [f"{base}/{name}" for name, _, _ in requests],
                [start for _, start, _ in requests],
                [None if length is None else start + length for _, start, length in requests],
                on_error="return",
            )
        except Exception as error:  # what a file system raises is its own affair
            raise _unreadable(self.url, error) from error
        contents = [self._content(request, what) for request, what in zip(requests, found)]
        return [_cut(contents[owners[part]], requests[owners[part]], part) for part in parts]

    def sizes(self) -> dict[str, int]:
        system, base = self._system()
        try:
            found = system.find(base, detail=True)
        except Exception as error:
            raise _unreadable(self.url, error) from error
        return {name.split(f"{base.strip('/')}/", 1)[1]: int(told["size"]) for name, told in found.items()}

    def _content(self, part: Part, found: Any) -> bytes | None:
        if isinstance(found, FileNotFoundError):
            return None
        if isinstance(found, Exception):
            raise _unreadable(f"{self.url}/{part.name}", found) from found
        return bytes(found)

    def _system(self) -> tuple[Any, str]:
        """The file system, which fsspec keeps for each process, and the folder in it."""
        import fsspec

        try:
            return fsspec.url_to_fs(self.url, **self.options)
        except ImportError as error:
            protocol = self.url.partition(SEPARATOR)[0]
            extra = "pip install 'sanawm-env[s3]'" if protocol in ("s3", "s3a") else f"install what {error.name} is in"
            raise MissingExtraError(f"reading {self.url} needs a package that is missing ({error}); {extra}") from error
        except ValueError as error:
            raise StorageError(f"{self.url} cannot be opened ({error}); give a folder or a URL of fsspec") from error


def open_place(source: Path | str, options: Mapping[str, Any] | None = None) -> Place:
    """The place that a path or URL names. options: of the file system behind a URL."""
    if SEPARATOR in str(source) and isinstance(source, str):
        return Remote(source, options)
    if options:
        raise StorageError(f"{source} is a folder, which takes no options; {sorted(options)} were given, drop them")
    return Folder(Path(source))


def _joined(parts: Sequence[Part]) -> tuple[list[Part], dict[Part, int]]:
    """Requests that cover the parts, those near each other in one file as one, and which of them covers each."""
    requests: list[Part] = []
    owners: dict[Part, int] = {}
    for part in sorted(set(parts), key=lambda part: (part.name, part.start)):
        joined = _join(requests[-1], part) if requests else None
        if joined is not None:
            requests[-1] = joined
        else:
            requests.append(part)
        owners[part] = len(requests) - 1
    return requests, owners


def _join(first: Part, second: Part) -> Part | None:
    if first.name != second.name or first.length is None or second.length is None or first.start < 0:
        return None
    if second.start > first.start + first.length + GAP:
        return None
    end = max(first.start + first.length, second.start + second.length)
    return Part(first.name, first.start, end - first.start)


def _cut(content: bytes | None, request: Part, part: Part) -> bytes | None:
    if content is None or request == part:
        return content
    assert part.length is not None
    return content[part.start - request.start : part.start - request.start + part.length]


def _unreadable(name: str, error: BaseException) -> StorageError:
    return StorageError(f"cannot read {name}: {error}; check the disk or the connection and read again")
