"""What is measured of other public implementations, on our weights and inputs: diffusers' and SGLang's."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sanawm_env.benchmarks.ours import Clip
from sanawm_env.benchmarks.rows import Bench
from sanawm_env.benchmarks.streaming import relative_difference
from sanawm_env.errors import BundleError
from sanawm_env.model.checkpoint import listed
from sanawm_env.model.config import DenoiserConfig
from sanawm_env.model.public_keys import DROPPED, RENAMED
from sanawm_env.world import WorldModel


def measure_diffusers(bench: Bench) -> None:
    """Diffusers' own model and decoder on our weights and inputs, and how far its results are from ours."""
    try:
        model_class = importlib.import_module("diffusers").SanaWMTransformer3DModel
    except (ImportError, AttributeError) as error:
        bench.absent("diffusers", error)
        return
    model = bench.world("bidirectional")
    shape = model.config.denoiser
    with torch.device("meta"):
        transformer = model_class(**diffusers_config(shape))
    autoencoder = model.autoencoder.to_diffusers()
    # The table of rotations is no weight, and on the meta device it holds nothing.
    rope = transformer.rope
    transformer.rope = type(rope)(rope.attention_head_dim, rope.patch_size, rope.max_seq_len)
    transformer.load_state_dict(model.denoiser.state_dict(), assign=True)
    # Its convolutions want another order in memory than ours.
    weights = {name: x.contiguous() for name, x in model.autoencoder.vae.state_dict().items()}
    autoencoder.load_state_dict(weights, assign=True)
    for public in (transformer, autoencoder):
        public.eval().requires_grad_(False)
    repeats = bench.config.public_repeats

    def forward(**given: Tensor) -> Tensor:
        out: Tensor = transformer(**given, return_dict=False)[0]
        return out

    def decode() -> dict[str, Any]:
        latents = bench.normal(1, 1 + model.config.chunk_latents, shape.in_channels, *model.config.grid)
        raw = latents.transpose(1, 2)

        def theirs() -> Tensor:
            pixels: Tensor = autoencoder.decode(raw, return_dict=False)[0]
            return pixels

        def ours() -> Tensor:
            return model.autoencoder.decode_clip(latents)

        difference = relative_difference(theirs(), ours())
        row = {**bench.repeated(theirs, repeats), "ours_ms": bench.repeated(ours, repeats)["ms"]}
        return row | {"latents": latents.shape[1], "difference": difference}

    for length in bench.config.lengths:
        bench.row(f"diffusers.{length}", partial(_compared, bench, model, forward, length))
    bench.row("diffusers.decode", decode)


def diffusers_config(shape: DenoiserConfig) -> dict[str, Any]:
    """Arguments of diffusers' `SanaWMTransformer3DModel` for a denoiser of the same weights."""
    return {
        "in_channels": shape.in_channels,
        "num_layers": shape.depth,
        "hidden_size": shape.hidden_size,
        "num_attention_heads": shape.cross_heads,
        "softmax_every_n": shape.softmax_every_n,
        "linear_head_dim": shape.head_dim,
        "conv_kernel_size": shape.conv_kernel,
        "chunk_plucker_channels": shape.plucker_channels,
        "chunk_plucker_post_attn_blocks": shape.depth,
        "caption_channels": shape.caption_channels,
        "mlp_ratio": shape.mlp_ratio,
    }


def measure_sglang(bench: Bench) -> None:
    """SGLang's model on our weights and inputs, where SGLang is installed."""
    try:
        importlib.import_module("sglang")
    except ImportError as error:
        bench.absent("sglang", error)
        return
    root = "sglang.multimodal_gen"
    # Importing it turns cuDNN's attention off for the whole process.
    cudnn = torch.backends.cuda.cudnn_sdp_enabled()
    configs = importlib.import_module(f"{root}.configs.models.dits.sana_wm")
    settings = importlib.import_module(f"{root}.runtime.server_args")
    context = importlib.import_module(f"{root}.runtime.managers.forward_context")
    dits = importlib.import_module(f"{root}.runtime.models.dits.sana_wm")
    model = bench.world("bidirectional", behaviour="sglang_dense")
    shape = model.config.denoiser
    architecture = configs.SanaWMArchConfig(
        in_channels=shape.in_channels,
        out_channels=shape.in_channels,
        num_layers=shape.depth,
        num_attention_heads=shape.heads,
        attention_head_dim=shape.head_dim,
        linear_head_dim=shape.head_dim,
        num_cross_attention_heads=shape.cross_heads,
        cross_attention_head_dim=shape.hidden_size // shape.cross_heads,
        cross_attention_dim=shape.hidden_size,
        caption_channels=shape.caption_channels,
        model_max_length=shape.caption_length,
        softmax_every_n=shape.softmax_every_n,
        chunk_plucker_channels=shape.plucker_channels,
        mlp_ratio=shape.mlp_ratio,
    )
    # Its layers read these settings of a server, of which there is none here.
    settings.set_global_server_args(
        SimpleNamespace(
            comfyui_mode=False, enable_cfg_parallel=False, enable_torch_compile=False, attention_backend=None
        )
    )
    with torch.device(bench.device):
        transformer = dits.SanaWMTransformer3DModel(configs.SanaWMConfig(arch_config=architecture))
    # It keeps the original release's names.
    weights = dict(model.denoiser.state_dict())
    for theirs, ours in RENAMED.items():
        weights = {name.replace(ours, theirs): x for name, x in weights.items()}
    # A cast of the whole would take its complex table of rotations for real numbers.
    missing, unexpected = transformer.load_state_dict(weights, assign=True, strict=False)
    if unexpected or set(missing) - set(DROPPED):
        raise BundleError(
            f"SGLang's model and ours differ in {listed([*missing, *unexpected])}; take its version 0.5.23."
        )
    transformer.eval().requires_grad_(False)

    def forward(**given: Tensor) -> Tensor:
        torch.backends.cuda.enable_cudnn_sdp(False)
        try:
            with context.set_forward_context(current_timestep=0, attn_metadata=None):
                out: Tensor = transformer(**given)
        finally:
            torch.backends.cuda.enable_cudnn_sdp(cudnn)
        return out

    for length in bench.config.lengths:
        bench.row(f"sglang.{length}", partial(_compared, bench, model, forward, length))


def _compared(bench: Bench, model: WorldModel, forward: Callable[..., Tensor], length: int) -> dict[str, Any]:
    """Times of a public model's `forward` over a clip, and how far its result is from ours."""
    clip = Clip(bench, model, length)
    work = partial(forward, **clip.public_arguments())
    difference = relative_difference(work().transpose(1, 2), clip.forward())
    return {**bench.repeated(work, bench.config.public_repeats), "latents": length, "difference": difference}
