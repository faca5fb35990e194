"""Where a Rerun recording goes: a growing file, bytes that become a file at the end, or a viewer on the screen."""

from __future__ import annotations

import os
import sys
import threading
import warnings
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

import rerun as rr

from sanawm_env.datasets.atomic import appearing
from sanawm_env.errors import ConfigError, StorageError

APPLICATION = "sanawm_env"
SECONDS = 10.0  # that a flush waits at most, for a disk or for the viewer


class Sink(ABC):
    """Takes what is logged to `stream`."""

    def __init__(self, name: str) -> None:
        self.stream = rr.RecordingStream(APPLICATION)
        self._open = True
        self._attach()
        self.stream.send_recording_name(name)

    @abstractmethod
    def _attach(self) -> None:
        """Leads the stream where it goes."""

    @abstractmethod
    def flush(self) -> None:
        """Waits until what was logged has left this process, `SECONDS` at most."""

    def close(self) -> None:
        """Hands over the rest; may be called again."""
        if self._open:
            self._open = False
            self.stream.disconnect()


class GrowingFile(Sink):
    """An .rrd file that can be opened at any time, also after the process was killed. Replaces an older one.

    Rerun's own file writer only prints what fails, and waits for ever after a full disk. Here it writes into a pipe,
    from which a thread of ours fills the file.
    """

    def __init__(self, path: Path | str, name: str = "") -> None:
        self.path = Path(path)
        self._failed: OSError | None = None
        super().__init__(name or self.path.stem)

    def _attach(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("wb", buffering=0)
        except OSError as error:
            raise self._refusal(error) from error
        end, start = os.pipe()
        self._copier = threading.Thread(target=self._copy, args=(end,), daemon=True)
        self._copier.start()
        self.stream.save(f"/dev/fd/{start}")
        os.close(start)  # Rerun has opened it for itself

    def _copy(self, end: int) -> None:
        with self._file, open(end, "rb", buffering=0) as pipe:
            while piece := pipe.read(2**16):
                try:
                    while self._failed is None and piece:
                        piece = piece[self._file.write(piece) :]
                except OSError as error:
                    self._failed = error

    def flush(self) -> None:
        """StorageError where the file could not be written; it then ends with what was written before."""
        self.stream.flush(timeout_sec=SECONDS)
        self._check()

    def close(self) -> None:
        if self._open:
            self._open = False
            self.stream.disconnect()
            self._copier.join()
            self._check()

    def _check(self) -> None:
        if self._failed is not None:
            raise self._refusal(self._failed)

    def _refusal(self, error: OSError) -> StorageError:
        return StorageError(f"cannot write {self.path}: {error.strerror}; free space, or choose another place")


class WholeFile(Sink):
    """An .rrd file that appears, complete, when the recording is closed; until then it is in memory."""

    def __init__(self, path: Path | str, name: str = "") -> None:
        self.path = Path(path)
        super().__init__(name or self.path.stem)

    def _attach(self) -> None:
        # Rerun's own file writer runs in a thread and only prints what fails there, so the bytes come to us first.
        self._content = rr.binary_stream(self.stream)

    def flush(self) -> None:
        """Nothing leaves before the end."""

    def close(self) -> None:
        if self._open:
            self._open = False
            content = self._content.read() or b""
            self.stream.disconnect()
            with appearing(self.path) as draft:
                draft.write_bytes(content)


class Viewer(Sink):
    """A window of the Rerun viewer. ConfigError where there is no screen.

    memory: what the viewer may take, as "2GB" or "25%"; it forgets the oldest beyond that.
    """

    def __init__(self, name: str = "rollout", *, memory: str = "2GB") -> None:
        check_screen()
        self.memory = memory
        super().__init__(name)

    def _attach(self) -> None:
        self.stream.spawn(memory_limit=self.memory)

    def flush(self) -> None:
        """A viewer that was closed is a warning, once: what it should show must not stop."""
        if not self._open:
            return
        try:
            self.stream.flush(timeout_sec=SECONDS)
        except (RuntimeError, ValueError) as error:
            self._open = False
            warnings.warn(
                f"the Rerun viewer takes nothing any more ({error}); it is left out from now on", stacklevel=2
            )
            self.stream.disconnect()


def check_screen(environment: Any = os.environ) -> None:
    """ConfigError on a machine without a screen."""
    if sys.platform.startswith("linux") and not (environment.get("DISPLAY") or environment.get("WAYLAND_DISPLAY")):
        raise ConfigError(
            "there is no screen here (DISPLAY and WAYLAND_DISPLAY are not set) and the viewer needs one; write a file "
            "(--save FILE.rrd, or a path) and open it with `rerun FILE.rrd` where there is a screen, or here with "
            "`rerun FILE.rrd --web-viewer` for a browser."
        )
