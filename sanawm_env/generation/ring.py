"""What a batch shows at its latest steps, in memory that a worker shares with the processes that write it."""

from __future__ import annotations

import math
import mmap
import os
import tempfile
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sanawm_env.errors import StorageError
from sanawm_env.generation.filters import Measured, measures

LINE = 64  # bytes: every array begins at a multiple


@dataclass(frozen=True, kw_only=True)
class Layout:
    """blocks: steps that are held. A step is of so many worlds and frames of height x width; channels: of latents."""

    blocks: int
    worlds: int
    frames: int
    height: int
    width: int
    channels: int

    @property
    def places(self) -> tuple[int, int, int, int]:
        """Where pictures, measures and statistics of a block begin, and where it ends, in bytes."""
        each = self.worlds * self.frames
        sizes = (each * self.height * self.width * 3, 16 * each, 16 * self.worlds * self.channels)
        ends = [0]
        for size in sizes:
            ends.append(-(-(ends[-1] + size) // LINE) * LINE)
        return ends[0], ends[1], ends[2], ends[3]


class Ring:
    """Memory of this layout; new, or that behind the handle of another process.

    It has no name: it is gone when the last process that has it ends, however that ends.
    """

    def __init__(self, layout: Layout, handle: int | None = None) -> None:
        self.layout = layout
        size = layout.blocks * layout.places[-1]
        self.handle = _new(size) if handle is None else handle
        self._memory = mmap.mmap(self.handle, size)
        self._bytes = np.frombuffer(self._memory, np.uint8)

    def close(self) -> None:
        """Lets go of the handle; the memory goes with the last array of it."""
        os.close(self.handle)

    def pictures(self, block: int, worlds: int, frames: int) -> np.ndarray:
        """uint8 [worlds, frames, H, W, 3]."""
        shape = (worlds, frames, self.layout.height, self.layout.width, 3)
        return self._part(block, 0, math.prod(shape)).reshape(shape)

    def measured(self, block: int, worlds: int, frames: int) -> Measured:
        """What was measured of the step."""
        shown = self._part(block, 1, 16 * worlds * frames).view(np.float64).reshape(2, worlds, frames)
        told = self._part(block, 2, 16 * worlds * self.layout.channels).view(np.float64)
        return Measured(contrast=shown[0], sharpness=shown[1], latents=told.reshape(worlds, -1, 2))

    def whole(self) -> np.ndarray:
        """All its bytes."""
        return self._bytes

    def _part(self, block: int, part: int, size: int) -> np.ndarray:
        start = block * self.layout.places[-1] + self.layout.places[part]
        return self._bytes[start : start + size]


class Filler:
    """Puts what lies on a device into a ring, without waiting for the device: the copy runs beside the next step."""

    def __init__(self, ring: Ring, device: torch.device) -> None:
        self.ring, self.device = ring, device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        if self._stream is not None:  # else a copy to the host would wait
            whole = ring.whole()
            torch.cuda.check_error(torch.cuda.cudart().cudaHostRegister(whole.ctypes.data, whole.nbytes, 0))

    def fill(self, block: int, frames: Tensor, latents: Tensor | None) -> torch.cuda.Event | None:
        """frames: uint8 [B, T, H, W, 3]. latents: [B, n, C, h, w]; without them nothing is measured. Returns what says
        when it is there, None where it is already."""
        if self._stream is None:
            self._copy(block, frames, latents)
            return None
        self._stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._stream):
            self._copy(block, frames, latents)
            for used in (frames, latents):
                if used is not None:
                    used.record_stream(self._stream)
            return self._stream.record_event()

    def close(self) -> None:
        """Waits for copies and gives the memory back."""
        if self._stream is not None:
            self._stream.synchronize()
            torch.cuda.check_error(torch.cuda.cudart().cudaHostUnregister(self.ring.whole().ctypes.data))
            self._stream = None

    def _copy(self, block: int, frames: Tensor, latents: Tensor | None) -> None:
        worlds, count = frames.shape[:2]
        _put(self.ring.pictures(block, worlds, count), frames)
        if latents is not None:
            shown, told = measures(frames, latents)
            into = self.ring.measured(block, worlds, count)
            for target, source in ((into.contrast, shown[0]), (into.sharpness, shown[1]), (into.latents, told)):
                _put(target, source)


def _put(target: np.ndarray, source: Tensor) -> None:
    # Contiguous on both sides, or it would go through memory that is not pinned.
    torch.from_numpy(target).copy_(source.contiguous(), non_blocking=True)


def _new(size: int) -> int:
    try:
        if hasattr(os, "memfd_create"):  # unlike /dev/shm, it has no size of its own in a container
            handle = os.memfd_create("sanawm-steps")
        else:
            with tempfile.TemporaryFile() as file:
                handle = os.dup(file.fileno())
        os.ftruncate(handle, size)
    except OSError as error:
        raise StorageError(
            f"{size} bytes to hand steps to writers cannot be had ({error.strerror}); set writers=0, or a smaller "
            "queue or batch"
        ) from error
    return handle
