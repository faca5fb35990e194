"""Self-attention of the denoiser: main and camera branch, as recurrent (GDN) or softmax block (spec dit.md 3.6 - 3.9).

Letters: B worlds, T latent frames, S tokens a frame, N heads, D head width, C = N D, K chunks of the call.
A block's memory is a dict of tensors with the batch first; `after` dicts carry one more axis, the chunks: [B, K, ...].
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sanawm_env.kernels.camera_scan import camera_scan
from sanawm_env.kernels.frame_gates import frame_gates
from sanawm_env.kernels.main_scan import main_scan
from sanawm_env.kernels.output_gate import output_gate
from sanawm_env.model.chunks import ChunkGrid
from sanawm_env.model.config import DenoiserConfig
from sanawm_env.model.embeddings import RayEncoding, RMSNorm, Rotation
from sanawm_env.model.feed_forward import Memory
from sanawm_env.model.window import WindowReader


@dataclass(frozen=True, eq=False)
class Geometry:
    """Positions and rays of one call, shared by its blocks.

    rotation, rays: of the call's own tokens. still_rotation, still_rays: the same with temporal angle 0, for keys that
    are stored before their temporal rotation. position: [B, T] absolute latent index.
    """

    position: Tensor
    rotation: Rotation
    rays: RayEncoding
    still_rotation: Rotation
    still_rays: RayEncoding


class SelfAttention(nn.Module, ABC):
    """Parameters and output path that recurrent and softmax blocks share; subclasses say how tokens mix."""

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__()
        width, heads = config.hidden_size, config.heads
        self.config, self.heads = config, heads
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.q_norm, self.k_norm = RMSNorm(width, 1e-5), RMSNorm(width, 1e-5)
        self.beta_proj, self.gate_proj = nn.Linear(width, heads), nn.Linear(width, heads)
        self.A_log, self.dt_bias = nn.Parameter(torch.zeros(heads)), nn.Parameter(torch.zeros(heads))
        self.register_buffer("recall_gate", torch.zeros(1))  # in every public checkpoint, read by nobody
        self.output_gate, self.proj = nn.Linear(width, width), nn.Linear(width, width)
        self.q_proj_cam, self.k_proj_cam = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj_cam, self.out_proj_cam = nn.Linear(width, width), nn.Linear(width, width)
        self.q_norm_cam, self.k_norm_cam = RMSNorm(width, 1e-5), RMSNorm(width, 1e-5)

    def forward(
        self, u: Tensor, geometry: Geometry, chunks: ChunkGrid, memory: Memory, kept: Memory, *, collect: bool
    ) -> tuple[Tensor, Memory]:
        """u [B, T, S, C] modulated tokens; kept: what passes over the same chunks share. Returns the block's output
        and, if asked for, its memory after each chunk.
        """
        main, camera, after = self.mix(u, geometry, chunks, memory, kept, collect=collect)
        camera = self.out_proj_cam(camera.flatten(-2).to(u.dtype))
        return self.proj(output_gate(main.flatten(-2), camera, self.output_gate(u), u.dtype)), after

    @abstractmethod
    def mix(
        self, u: Tensor, geometry: Geometry, chunks: ChunkGrid, memory: Memory, kept: Memory, *, collect: bool
    ) -> tuple[Tensor, Tensor, Memory]:
        """Main and camera outputs [B, T, S, N, D] before their projections, and the memory after each chunk."""

    def split_heads(self, x: Tensor) -> Tensor:
        return x.unflatten(-1, (self.heads, -1))


class ShortConvolution(nn.Module):
    """Weight of the depthwise filter over time (spec dit.md 3.6); `kernels/short_convolution` applies it."""

    def __init__(self, width: int, taps: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(width, 1, taps))


class GatedDeltaAttention(SelfAttention):
    """Frame-wise gated delta rule with carried state (spec dit.md 3.8).

    Memory: state [B, N, D, D], normaliser [B, N, D], camera_state [B, N, D, D], fp32; k_tail, k_cam_tail [B, taps - 1,
    S, C].
    """

    def __init__(self, config: DenoiserConfig) -> None:
        super().__init__(config)
        self.conv_k = ShortConvolution(config.hidden_size, config.conv_kernel)
        self.conv_k_cam = ShortConvolution(config.hidden_size, config.conv_kernel)

    def mix(
        self, u: Tensor, geometry: Geometry, chunks: ChunkGrid, memory: Memory, kept: Memory, *, collect: bool
    ) -> tuple[Tensor, Tensor, Memory]:
        gates = frame_gates(
            u,
            self.beta_proj.weight,
            self.beta_proj.bias,
            self.gate_proj.weight,
            self.gate_proj.bias,
            self.A_log,
            self.dt_bias,
        )
        main, after = self._main(u, gates, geometry, chunks, memory, collect=collect)
        camera, camera_after = self._camera(u, gates, geometry, chunks, memory, collect=collect)
        return main, camera, after | camera_after

    def _main(
        self,
        u: Tensor,
        gates: tuple[Tensor, Tensor],
        geometry: Geometry,
        chunks: ChunkGrid,
        memory: Memory,
        *,
        collect: bool,
    ) -> tuple[Tensor, Memory]:
        rotation = geometry.rotation if self.config.gdn_time_rope else geometry.still_rotation
        qkv = self.qkv(u)
        out, state, normaliser = main_scan(
            qkv,
            memory["k_tail"],
            self.q_norm.weight,
            self.k_norm.weight,
            self.conv_k.weight,
            rotation.cos,
            rotation.sin,
            *gates,
            memory["state"],
            memory["normaliser"],
            chunks.lengths,
            norm_eps=self.q_norm.eps,
            dtype=u.dtype,
        )
        if not collect:
            return out, {}
        tails = _tails(qkv.chunk(3, dim=-1)[1], memory["k_tail"], chunks)
        return out, {"state": state, "normaliser": normaliser, "k_tail": tails}

    def _camera(
        self,
        u: Tensor,
        gates: tuple[Tensor, Tensor],
        geometry: Geometry,
        chunks: ChunkGrid,
        memory: Memory,
        *,
        collect: bool,
    ) -> tuple[Tensor, Memory]:
        rays = geometry.rays if self.config.gdn_time_rope else geometry.still_rays
        k = self.k_proj_cam(u)
        out, state = camera_scan(
            self.q_proj_cam(u),
            k,
            self.v_proj_cam(u),
            memory["k_cam_tail"],
            self.q_norm_cam.weight,
            self.k_norm_cam.weight,
            self.conv_k_cam.weight,
            rays.to_ray,
            rays.from_ray,
            rays.rotation.cos,
            rays.rotation.sin,
            *gates,
            memory["camera_state"],
            chunks.lengths,
            crossing=self.config.switches.camera_conv_cached,
            downscaled=self.config.switches.downscale_gdn,
            norm_eps=self.q_norm_cam.eps,
            dtype=u.dtype,
        )
        if not collect:
            return out, {}
        return out, {"camera_state": state, "k_cam_tail": _tails(k, memory["k_cam_tail"], chunks)}


class SoftmaxAttention(SelfAttention):
    """Softmax over the current chunk, the sink and the previous chunks (spec dit.md 3.9 and 4.5).

    Memory: sink_<x> [B, 1 + n, S, N, D] and previous_<x> [B, slots n, S, N, D] for x in k, v (main), ke, ve (camera).
    With a sink span the sink's k, ke, ve are stored before their temporal rotation and turned on reading.
    """

    def mix(
        self, u: Tensor, geometry: Geometry, chunks: ChunkGrid, memory: Memory, kept: Memory, *, collect: bool
    ) -> tuple[Tensor, Tensor, Memory]:
        q, k, v = self.qkv(u).chunk(3, dim=-1)
        kc, vc = self.k_norm_cam(self.k_proj_cam(u)), self.v_proj_cam(u)
        queries = {
            "q": self.split_heads(self.q_norm(q, geometry.rotation)),
            "qe": geometry.rays.query(self.split_heads(self.q_norm_cam(self.q_proj_cam(u))), shrink=self._shrink),
        }
        keys = self._keys(k, v, kc, vc, geometry.rotation, geometry.rays)
        sink = memory
        if chunks.opening:
            stored = keys
            if self.config.sink_span is not None:
                stored = self._keys(k, v, kc, vc, geometry.still_rotation, geometry.still_rays)
            sink = self.opened_sink(stored, chunks)
        reader = WindowReader(self.config, geometry.position, chunks, keys, sink, memory, kept)
        scale = {"head": self.config.head_dim**-0.5, "pad128": (-(-self.config.head_dim // 128) * 128) ** -0.5}
        scales = [scale[name] for name in (self.config.switches.scale_main, self.config.switches.scale_camera)]
        if scales[0] == scales[1]:
            both = torch.cat([queries["q"], queries["qe"]], dim=3)
            main, camera = reader.attend(both, ("k", "ke"), ("v", "ve"), scales[0]).chunk(2, dim=3)
        else:
            main = reader.attend(queries["q"], ("k",), ("v",), scales[0])
            camera = reader.attend(queries["qe"], ("ke",), ("ve",), scales[1])
        return main, geometry.rays.output(camera), reader.after() if collect else {}

    def opened_sink(self, stored: dict[str, Tensor], chunks: ChunkGrid) -> Memory:
        """The sink of worlds that a call opens, of its keys and values [B, T, S, N, D]: their first chunk."""
        return {f"sink_{name}": x[:, : chunks.lengths[0]] for name, x in stored.items()}

    def _keys(
        self, k: Tensor, v: Tensor, kc: Tensor, vc: Tensor, rotation: Rotation, rays: RayEncoding
    ) -> dict[str, Tensor]:
        """Keys and values [B, T, S, N, D] of both branches, of main keys before their norm and camera keys after it."""
        k, v, kc, vc = (self.split_heads(x) for x in (self.k_norm(k, rotation), v, kc, vc))
        return {"k": k, "v": v, "ke": rays.key(kc, shrink=self._shrink), "ve": rays.key(vc, shrink=self._shrink)}

    @property
    def _shrink(self) -> bool:
        return self.config.switches.downscale_softmax


def _tails(x: Tensor, tail: Tensor, chunks: ChunkGrid) -> Tensor:
    """Last frames of [old tail; x] at the end of each chunk, [B, K, taps - 1, S, C]."""
    length = tail.shape[1]
    if len(chunks.ends) == 1 and x.shape[1] >= length:
        return x[:, -length:].contiguous()[:, None]
    extended = torch.cat([tail.to(x.dtype), x], dim=1)
    return torch.stack([extended[:, end : end + length] for end in chunks.ends], dim=1)
