"""Which latent frames of a call lie in which chunk, from the lengths of its chunks."""

from __future__ import annotations

from functools import lru_cache
from itertools import accumulate

import torch
from torch import Tensor


def chunk_ends(lengths: tuple[int, ...]) -> tuple[int, ...]:
    """For each chunk, the frame after its last."""
    return tuple(accumulate(lengths))


def same_chunk(lengths: tuple[int, ...], shift: int) -> tuple[bool, ...]:
    """For each frame t, whether frame t + shift exists and lies in the same chunk."""
    owner = [chunk for chunk, length in enumerate(lengths) for _ in range(length)]
    return tuple(0 <= t + shift < len(owner) and owner[t + shift] == owner[t] for t in range(len(owner)))


def masked(x: Tensor, frames: tuple[bool, ...]) -> Tensor:
    """x [B, T, S, C] with the frames that are not marked set to zero."""
    return torch.where(_mask(frames, x.device), x, 0)


@lru_cache(maxsize=256)
def _mask(frames: tuple[bool, ...], device: torch.device) -> Tensor:
    # Kept on the device: building it anew would stop the host at every call.
    return torch.tensor(frames, device=device)[None, :, None, None]


@lru_cache(maxsize=256)
def frame_index(rows: tuple[tuple[int, ...], ...], device: torch.device) -> Tensor:
    """Frames by number, as an index of that shape on the device."""
    return torch.tensor(rows, device=device)


@lru_cache(maxsize=256)
def frame_table(lengths: tuple[int, ...], device: torch.device) -> Tensor:
    """For each frame: first frame of its chunk, frame after the last, and index of its chunk; int32 [3, T]."""
    ends = chunk_ends(lengths)
    rows = [(end - length, end, chunk) for chunk, (length, end) in enumerate(zip(lengths, ends)) for _ in range(length)]
    return torch.tensor(rows, dtype=torch.int32).T.contiguous().to(device)
