"""The chunk grid: which latent frames are generated together and which keys each chunk may read (spec dit.md 4)."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from sanawm_env.errors import ConfigError
from sanawm_env.kernels.chunk_frames import chunk_ends


@dataclass(frozen=True)
class ChunkGrid:
    """The chunks of one call of the denoiser.

    lengths: latent frames of consecutive chunks. opening: the first of them is chunk 0 of its world. filled: for a call
    that continues worlds, how many previous-chunk slots of each world's window are in use, on the host.

    A streaming call holds one chunk; a one-pass call opens the world and holds all chunks of a clip; a bidirectional
    call is one long opening chunk.
    """

    lengths: tuple[int, ...]
    opening: bool
    filled: tuple[int, ...] = ()

    @property
    def ends(self) -> tuple[int, ...]:
        return chunk_ends(self.lengths)

    @property
    def starts(self) -> tuple[int, ...]:
        return (0, *self.ends[:-1])

    @property
    def frames(self) -> int:
        return self.ends[-1]

    def frames_of(self, chunk: int) -> list[int]:
        return list(range(self.starts[chunk], self.ends[chunk]))


def clip_chunks(frames: int, chunk_latents: int) -> ChunkGrid:
    """Chunks of a clip of `frames` latents: 1 + n, then n each. Raises ConfigError when they do not fit."""
    later, rest = divmod(frames - 1, chunk_latents)
    if rest or later < 1:
        raise ConfigError(
            f"clip has {frames} latent frames, allowed are 1 + {chunk_latents} k with k >= 1; "
            "cut or extend the trajectory."
        )
    return ChunkGrid((chunk_latents + 1, *(chunk_latents,) * (later - 1)), opening=True)


def next_chunk(chunk_latents: int, index: tuple[int, ...], slots: int) -> ChunkGrid:
    """The grid of one streamed chunk of worlds that all open (index 0) or all continue (index >= 1 each)."""
    if all(chunk == 0 for chunk in index):
        return ChunkGrid((chunk_latents + 1,), opening=True)
    return ChunkGrid((chunk_latents,), opening=False, filled=tuple(min(chunk - 1, slots) for chunk in index))


def previous_chunks(chunk: int, slots: int | None) -> tuple[int, ...]:
    """Chunks that `chunk` reads beside the sink and itself, in slot order; all of 1 .. chunk - 1 when slots is None.

    Slot s holds the newest chunk c >= 1 with (c - 1) % slots == s, so the slots fill from the front (spec dit.md 4.5).
    """
    if slots is None:
        return tuple(range(1, chunk))
    return tuple(sorted(range(max(1, chunk - slots), chunk), key=lambda index: (index - 1) % slots))


def take(x: Tensor, frames: list[int]) -> Tensor:
    """Frames of x [B, T, ...]; consecutive ones as a view."""
    if frames == list(range(frames[0], frames[0] + len(frames))):
        return x[:, frames[0] : frames[0] + len(frames)]
    return x[:, frames]
