"""Everything the denoiser is told about a stretch of latent frames: rays, positions, text. No weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

import torch
from torch import Tensor

from sanawm_env.camera import latent_intrinsics, pixel_rays, plucker_rays, ray_transforms


@dataclass(frozen=True, kw_only=True)
class Conditioning:
    """What one call of the denoiser is given, for B worlds, T latent frames and S tokens a frame.

    to_ray, from_ray: [B, T, S, 4, 4] world-to-ray transforms and their inverses, fp32, world = first camera of the
    world. plucker: [B, T, S, 6 r] Pluecker rays of the r frames of each latent frame, frame-major, fp32. position: [B,
    T] absolute latent frame index, int64. text, text_mask: [B, L, caption channels] and [B, L] (True = attend), or None
    for a world without text.
    """

    to_ray: Tensor
    from_ray: Tensor
    plucker: Tensor
    position: Tensor
    text: Tensor | None = None
    text_mask: Tensor | None = None

    def select(self, rows: Tensor) -> Conditioning:
        """The given worlds only."""
        return Conditioning(**{name: value[rows] for name, value in self.tensors().items()})

    def chunks(self, begin: int, length: int) -> Conditioning:
        """The frames from `begin` on as chunks of `length`, each with a row of its own, chunk by chunk: every world's
        first one, then every world's second one. The text of a world is that of its chunks.
        """
        count = (self.position.shape[1] - begin) // length
        told = {
            name: x.repeat(count, *(1,) * (x.ndim - 1)) if name.startswith("text") else rows_of(x, begin, length)
            for name, x in self.tensors().items()
        }
        return Conditioning(**told)

    def frames(self, begin: int, end: int) -> Conditioning:
        """Latent frames begin .. end - 1 only; the text stays whole."""
        return replace(
            self,
            to_ray=self.to_ray[:, begin:end],
            from_ray=self.from_ray[:, begin:end],
            plucker=self.plucker[:, begin:end],
            position=self.position[:, begin:end],
        )

    def twice(self, text: Tensor, mask: Tensor) -> Conditioning:
        """Every world twice: first with another text [B, L, C] and mask [B, L], then with its own."""
        doubled = {name: torch.cat([value, value]) for name, value in self.tensors().items()}
        assert self.text is not None and self.text_mask is not None
        doubled["text"] = torch.cat([text.to(self.text), self.text])
        doubled["text_mask"] = torch.cat([mask.to(self.text_mask), self.text_mask])
        return Conditioning(**doubled)

    def reading(self, text: Mapping[str, Tensor]) -> Conditioning:
        """The same with the text of `WorldState.text`; unchanged for a model without text."""
        return replace(self, text=text["hidden"], text_mask=text["mask"]) if "hidden" in text else self

    def tensors(self) -> dict[str, Tensor]:
        """What is given, by field name."""
        return {f.name: getattr(self, f.name) for f in fields(self) if getattr(self, f.name) is not None}


def rows_of(x: Tensor, begin: int, length: int) -> Tensor:
    """Frames of x [B, T, ...] from `begin` on as chunks in rows, chunk by chunk: [K B, length, ...]."""
    return x[:, begin:].unflatten(1, (-1, length)).transpose(0, 1).flatten(0, 1)


def condition(
    poses: Tensor,
    intrinsics: Tensor,
    position: Tensor,
    *,
    temporal_stride: int,
    spatial_stride: int,
    grid: tuple[int, int],
    first: bool,
) -> Conditioning:
    """Conditioning of consecutive latent frames from the poses of their frames.

    poses: [B, frames, 4, 4] relative to the world's first camera. With `first`, row 0 is the pose of the first picture,
    whose latent frame stands alone and looks at frames 0 .. r-1 (spec dit.md 5.4); else the rows are whole groups of r
    frames. intrinsics: [B, 4] in frame pixels. position: [B, T] absolute latent indices. grid: latent height, width.
    """
    stride = temporal_stride
    rays = pixel_rays(latent_intrinsics(intrinsics, spatial_stride), *grid)
    lines = plucker_rays(poses, rays)
    groups = lines[:, 1:] if first else lines
    batch, frames, tokens, _ = groups.shape
    plucker = (
        groups.unflatten(1, (frames // stride, stride))
        .transpose(2, 3)
        .reshape(batch, frames // stride, tokens, 6 * stride)
    )
    keyframes = (poses[:, 1:] if first else poses)[:, stride - 1 :: stride]
    if first:
        opening = lines[:, :stride].transpose(1, 2).reshape(batch, 1, tokens, 6 * stride)
        plucker = torch.cat([opening, plucker], dim=1)
        keyframes = torch.cat([poses[:, :1], keyframes], dim=1)
    to_ray, from_ray = ray_transforms(keyframes, rays)
    return Conditioning(to_ray=to_ray, from_ray=from_ray, plucker=plucker, position=position)
