"""The softmax blocks' window: what each chunk reads, and what is kept for the chunks that follow (spec dit.md 4.5
and 4.6).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sanawm_env.errors import ConfigError
from sanawm_env.kernels.chunk_frames import frame_index
from sanawm_env.kernels.window_attention import window_attention
from sanawm_env.model.chunks import ChunkGrid, previous_chunks, take
from sanawm_env.model.config import DenoiserConfig
from sanawm_env.model.embeddings import RotaryFrequencies

NAMES = ("k", "v", "ke", "ve")
Names = tuple[str, ...]


@dataclass(frozen=True, eq=False)
class WindowReader:
    """Keys and values that the chunks of one call read, laid out as [current | sink | previous].

    position: [B, T]. keys: this call's k, v, ke, ve, [B, T, S, N, D]. sink: sink_<x> of the world, from this call when
    it opens the world. memory: holds previous_<x> when the call continues the world. kept: what passes over the same
    chunk share: their windows, of which only the current part differs.
    """

    config: DenoiserConfig
    position: Tensor
    chunks: ChunkGrid
    keys: dict[str, Tensor]
    sink: dict[str, Tensor]
    memory: dict[str, Tensor]
    kept: dict[str, Tensor]

    @property
    def _slots(self) -> int | None:
        window = self.config.window_chunks
        return None if window is None else window - 1

    def attend(self, q: Tensor, keys: Names, values: Names, scale: float) -> Tensor:
        """Attention of each chunk's queries q [B, T, S, N, D] over its window; returns the same shape. keys, values:
        of one branch, or of several whose heads follow one another in q: more heads in one call fill a GPU better.
        """
        if not self.chunks.opening:
            return self._continue(q, keys, values, scale)
        parts = [self._group(q, keys, values, scale, group) for group in self._groups()]
        return _joined(parts, dim=1)

    def _continue(self, q: Tensor, keys: Names, values: Names, scale: float) -> Tensor:
        tokens = q.shape[2]
        k, v = self._laid_out(keys), self._laid_out(values)
        own = self.chunks.frames + self.sink[f"sink_{keys[0]}"].shape[1]
        lengths = tuple((own + filled * self.config.chunk_latents) * tokens for filled in self.chunks.filled)
        out = window_attention(q.flatten(1, 2), k.flatten(1, 2), v.flatten(1, 2), lengths, scale)
        return out.unflatten(1, (-1, tokens)).reshape(q.shape)

    def _laid_out(self, names: Names) -> Tensor:
        """[current | sink | previous] of the branches, their heads one after another, [B, frames, S, N, D]."""
        if torch.is_grad_enabled():
            return _joined([torch.cat([self.keys[name], *self._past(name)], dim=1) for name in names], dim=3)
        label, own = "+".join(names), self.keys[names[0]]
        sink, previous = (self.sink[f"sink_{names[0]}"], self.memory[f"previous_{names[0]}"])
        known = label in self.kept
        if not known:
            frames = own.shape[1] + sink.shape[1] + previous.shape[1]
            self.kept[label] = own.new_empty(
                own.shape[0], frames, own.shape[2], len(names) * own.shape[3], own.shape[4]
            )
        for part, name in zip(self.kept[label].chunk(len(names), dim=3), names, strict=True):
            current, first, rest = part.split([own.shape[1], sink.shape[1], previous.shape[1]], dim=1)
            current.copy_(self.keys[name])
            if not known:
                for place, past in zip((first, rest), self._past(name), strict=True):
                    place.copy_(past)
        return self.kept[label]

    def _past(self, name: str) -> tuple[Tensor, Tensor]:
        """The sink, as the chunk at hand sees it, and the previous frames."""
        return self._turned(name, self.sink[f"sink_{name}"], self.position[:, 0]), self.memory[f"previous_{name}"]

    def _groups(self) -> list[list[int]]:
        """Runs of chunks of this call with equally many queries and keys: each run is one attention call."""
        groups: list[list[int]] = []
        shapes: list[tuple[int, int]] = []
        for chunk, length in enumerate(self.chunks.lengths):
            shape = (length, len(self._previous_frames(chunk)) if chunk else -1)
            if shapes and shapes[-1] == shape:
                groups[-1].append(chunk)
            else:
                groups.append([chunk])
                shapes.append(shape)
        return groups

    def _previous_frames(self, chunk: int) -> list[int]:
        return [frame for index in previous_chunks(chunk, self._slots) for frame in self.chunks.frames_of(index)]

    def _group(self, q: Tensor, keys: Names, values: Names, scale: float, group: list[int]) -> Tensor:
        begin, end = self.chunks.starts[group[0]], self.chunks.ends[group[-1]]
        count = len(group)

        def folded(x: Tensor) -> Tensor:
            return x.unflatten(1, (count, -1)).flatten(0, 1).flatten(1, 2)

        k, v = (_joined([self._window(name, group, begin, end) for name in names], dim=2) for names in (keys, values))
        lengths = (k.shape[1],) * k.shape[0]
        out = window_attention(folded(q[:, begin:end]), k, v, lengths, scale)
        return out.reshape(q.shape[0], end - begin, *q.shape[2:])

    def _window(self, name: str, group: list[int], begin: int, end: int) -> Tensor:
        """Keys of a run of chunks, [B G, tokens, N, D]."""
        count = len(group)
        parts = [self.keys[name][:, begin:end].unflatten(1, (count, -1)).flatten(0, 1)]
        if group[0] > 0:
            start = self.position[:, begin : end : (end - begin) // count].flatten()
            sink = self.sink[f"sink_{name}"]
            parts.append(self._turned(name, sink[:, None].expand(-1, count, *sink.shape[1:]).flatten(0, 1), start))
            frames = [frame for chunk in group for frame in self._previous_frames(chunk)]
            if frames:
                parts.append(take(self.keys[name], frames).unflatten(1, (count, -1)).flatten(0, 1))
        return torch.cat(parts, dim=1).flatten(1, 2)

    def _turned(self, name: str, sink: Tensor, start: Tensor) -> Tensor:
        """Sink keys as a chunk starting at latent `start` [B] sees them: never farther than `sink_span` frames
        behind.
        """
        span = self.config.sink_span
        if span is None or name == "v":
            return sink
        camera = name in ("ke", "ve")
        frames = torch.arange(sink.shape[1], device=sink.device)
        position = frames[None] + (start - span).clamp_min(0)[:, None]
        rotation = RotaryFrequencies(self.config.head_dim).time_rotation(position, camera=camera)
        first = self.config.head_dim // 2 if camera else 0
        last = first + 2 * rotation.cos.shape[-1]
        return torch.cat([sink[..., :first], rotation(sink[..., first:last]).to(sink.dtype), sink[..., last:]], dim=-1)

    def after(self) -> dict[str, Tensor]:
        """Sink and previous slots as the next chunk will read them, after each chunk of the call: [B, K, frames, S,
        N, D].
        """
        kept = {}
        for name in NAMES:
            sink = self.sink[f"sink_{name}"]
            kept[f"sink_{name}"] = sink[:, None].expand(-1, len(self.chunks.lengths), *sink.shape[1:])
            kept[f"previous_{name}"] = self._previous_after(name)
        return kept

    def _previous_after(self, name: str) -> Tensor:
        keys, slots = self.keys[name], self._slots
        if slots is None:
            raise ConfigError(
                "window_chunks is None: only the one-pass execution can keep every chunk; set it to 2 or more."
            )
        length = self.config.chunk_latents
        if not self.chunks.opening:
            old = self.memory[f"previous_{name}"].unflatten(1, (slots, length))
            # From positions rather than from the host, so that chunks of every slot are one computation.
            slot = ((self.position[:, :1] - 1) // length - 1) % slots
            taken = (torch.arange(slots, device=slot.device) == slot)[..., None, None, None, None]
            return torch.where(taken, keys[:, None], old).flatten(1, 2)[:, None]
        blank = keys.shape[1]  # a frame of zeros behind the keys
        rows = []
        for chunk in range(len(self.chunks.lengths)):
            frames = [frame for index in previous_chunks(chunk + 1, slots) for frame in self.chunks.frames_of(index)]
            rows.append(tuple(frames) + (blank,) * (slots * length - len(frames)))
        return torch.cat([keys, torch.zeros_like(keys[:, :1])], dim=1)[:, frame_index(tuple(rows), keys.device)]


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    """The parts one after another; a single one as it is, without a copy."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=dim)
