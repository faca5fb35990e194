"""The public checkpoints in our names: tensors, and the configuration that their shapes and config files tell.

Three formats hold one set of tensors (spec dit.md 2.3): diffusers' names are ours; the original ones differ in two
layers and carry two tensors more; the streaming file adds a prefix. The autoencoder's names are diffusers' in all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from sanawm_env.errors import BundleError
from sanawm_env.model.autoencoder import AutoencoderConfig
from sanawm_env.model.checkpoint import Shape, listed
from sanawm_env.model.config import DenoiserConfig, Variant

STREAMING_ENTRY = "generator"  # of the streaming file's groups, the one that inference uses
PREFIXES = ("module.", "model.")
RENAMED = {"t_embedder.mlp.0.": "t_embedder.linear_1.", "t_embedder.mlp.2.": "t_embedder.linear_2."}
# A zero buffer of an unused position embedding, and the caption that training drops prompts to.
NULL_CAPTION = "y_embedder.y_embedding"
DROPPED = ("pos_embed", NULL_CAPTION)
AUTOENCODER_PREFIX = "vae."

# Settings of the public configs that change the arithmetic, and their values that the denoiser implements.
_IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "ffn_type": ("GLUMBConvTemp", "ChunkGLUMBConvTemp", "CachedGLUMBConvTemp"),
    "pos_embed_type": ("wan_rope", "casual_wan_rope"),
    "chunk_split_strategy": ("first_chunk_plus_one",),
    "mlp_acts": (["silu", "silu", None],),
    "patch_size": ([1, 1, 1],),
    "t_kernel_size": (3,),
    "cam_attn_compress": (1,),
    "k_conv_only": (True,),
    "qk_norm": (True,),
    "cross_norm": (True,),
    "y_norm": (True,),
    "use_chunk_plucker_post_attn": (True,),
    "use_chunk_plucker_input": (False,),
    "learn_sigma": (False,),
    "pred_sigma": (False,),
    "pack_latents": (False,),
}
_AUTOENCODER_IMPLEMENTED: dict[str, tuple[Any, ...]] = {
    "in_channels": (3,),
    "out_channels": (3,),
    "patch_size_t": (1,),
    "scaling_factor": (1.0,),
    "resnet_norm_eps": (1e-6,),
    "timestep_conditioning": (False,),
    "encoder_causal": (True,),
    "encoder_spatial_padding_mode": ("zeros", "reflect"),
    "decoder_spatial_padding_mode": ("zeros", "reflect"),
}
# Diffusers gives one value a level; these are the only ones implemented, the same for every level.
_AUTOENCODER_EVERY_LEVEL: dict[str, Any] = {
    "spatio_temporal_scaling": True,
    "decoder_spatio_temporal_scaling": True,
    "decoder_inject_noise": False,
}


def denoiser_names(stored: Iterable[str]) -> dict[str, str]:
    """Stored name of each denoiser tensor by its name in `Denoiser`; the two known extra tensors are left out.

    BundleError when two stored names stand for one tensor.
    """
    names: dict[str, str] = {}
    for name in stored:
        ours = plain_name(name)
        for theirs, renamed in RENAMED.items():
            if ours.startswith(theirs):
                ours = renamed + ours.removeprefix(theirs)
        if ours in DROPPED:
            continue
        if ours in names:
            raise BundleError(f"tensors {names[ours]} and {name} are both {ours}; keep one of the two.")
        names[ours] = name
    return names


def plain_name(stored: str) -> str:
    """A stored name without the prefixes that training wrappers and the streaming file add."""
    for prefix in PREFIXES:
        stored = stored.removeprefix(prefix)
    return stored


def autoencoder_names(stored: Iterable[str]) -> dict[str, str]:
    """Stored name of each autoencoder tensor by its name in `Autoencoder`."""
    return {AUTOENCODER_PREFIX + name: name for name in stored}


def caption_length(shapes: Mapping[str, Shape]) -> int | None:
    """Text positions of an original checkpoint, by the shape of its null caption; None where there is none."""
    lengths = [shape[0] for name, shape in shapes.items() if plain_name(name) == NULL_CAPTION and len(shape) == 2]
    return lengths[0] if lengths else None


def denoiser_config(
    shapes: Mapping[str, Shape], told: Mapping[str, Any], *, variant: Variant, length: int | None = None
) -> DenoiserConfig:
    """Configuration of a denoiser whose tensors have these shapes, by our names (spec dit.md 1, 2).

    told: settings of the checkpoint's config file, in the original's or diffusers' words (they agree); it decides where
    shapes cannot, and contradictions come out when the tensors are compared. length: text positions.
    BundleError: tensors without which no shape can be told are missing, or a setting that is not implemented.
    """
    _refuse_others("config", told, _IMPLEMENTED)
    width, channels, *_ = _shape(shapes, "x_embedder.proj.weight", 5)
    heads = _shape(shapes, "blocks.0.attn.A_log", 1)[0]
    hidden = _shape(shapes, "blocks.0.mlp.point_conv.conv.weight", 4)[1]
    depth = 1 + max(int(name.split(".")[1]) for name in shapes if _is_of_block(name))
    short = [shapes.get(f"blocks.{index}.attn.conv_k.weight") for index in range(depth)]
    caption = "y_embedder.y_proj.fc1.weight"
    return DenoiserConfig(
        in_channels=channels,
        hidden_size=width,
        depth=depth,
        head_dim=_setting(told, "linear_head_dim", int, width // heads),
        softmax_every_n=_setting(told, "softmax_every_n", int, _spacing([shape is None for shape in short])),
        conv_kernel=_setting(told, "conv_kernel_size", int, next((shape[-1] for shape in short if shape), 4)),
        mlp_ratio=_ratio(hidden, width),
        plucker_channels=_shape(shapes, "plucker_embedder.proj.weight", 5)[1],
        caption_channels=_shape(shapes, caption, 2)[1] if caption in shapes else None,
        caption_length=length or _setting(told, "model_max_length", int, 300),
        cross_heads=_setting(told, "num_attention_heads", int, heads),
        chunk_latents=_setting(told, "chunk_size", int, 3),
        window_chunks=_setting(told, "num_cached_blocks", int, 2) if variant == "distilled" else None,
        behaviour="diffusers" if variant == "bidirectional" else "nvlabs_train",
    )


def autoencoder_config(told: Mapping[str, Any]) -> AutoencoderConfig:
    """Configuration of an LTX-2 autoencoder from the words of its config.json (spec rollout.md 4).

    BundleError: a setting is missing or not implemented.
    """
    _refuse_others("autoencoder config", told, _AUTOENCODER_IMPLEMENTED)
    for name, only in _AUTOENCODER_EVERY_LEVEL.items():
        values = told.get(name, only)
        if any(value != only for value in (values if isinstance(values, list) else [values])):
            raise _not_implemented("autoencoder config", name, values, [only])
    decoder_widths = _several(told, "decoder_block_out_channels", int)
    residual = told.get("upsample_residual", True)
    upsampling = told.get("upsample_type") or told.get("decoder_upsample_type")
    return AutoencoderConfig(
        latent_channels=_setting(told, "latent_channels", int, 128),
        encoder_widths=_several(told, "block_out_channels", int),
        decoder_widths=decoder_widths,
        encoder_layers=_several(told, "layers_per_block", int),
        decoder_layers=_several(told, "decoder_layers_per_block", int),
        upsample_factors=_several(told, "upsample_factor", int),
        levels=_several(told, "downsample_type", str),
        # The streaming checkpoint's class does not name them: it doubles time and space at every level.
        decoder_levels=tuple(upsampling) if upsampling else ("spatiotemporal",) * len(decoder_widths),
        patch=_setting(told, "patch_size", int, 4),
        decoder_padding=told.get("decoder_spatial_padding_mode", "reflect"),
        encoder_padding=told.get("encoder_spatial_padding_mode", "zeros"),
        upsample_residual=tuple(residual) if isinstance(residual, list) else (bool(residual),) * len(decoder_widths),
        decoder_causal=_setting(told, "decoder_causal", bool, True),
    )


def _is_of_block(name: str) -> bool:
    first, _, rest = name.partition(".")
    return first == "blocks" and rest.partition(".")[0].isdecimal()


def _spacing(is_softmax: list[bool]) -> int:
    """The n for which "every n-th block is a softmax block" contradicts the fewest blocks; one beyond their number
    where none is.
    """

    def contradictions(n: int) -> int:
        return sum(((index + 1) % n == 0) != softmax for index, softmax in enumerate(is_softmax))

    return min(range(1, len(is_softmax) + 2), key=contradictions)


def _ratio(hidden: int, width: int) -> float:
    """A ratio whose product with the width, truncated, is the hidden width in spite of rounding."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def _shape(shapes: Mapping[str, Shape], name: str, dimensions: int) -> Shape:
    shape = shapes.get(name)
    if shape is None or len(shape) != dimensions or 0 in shape:
        found = f"missing (1): {name}" if shape is None else f"wrong shape (1): {name} has {shape}"
        raise BundleError(
            f"these are no weights of a SANA-WM denoiser ({found}, expected {dimensions} dimensions; the tensors found "
            f"are {listed(sorted(shapes)) or 'none'}); give the folder of one of its checkpoints."
        )
    return shape


def _setting(told: Mapping[str, Any], name: str, kind: type, default: Any) -> Any:
    value = told.get(name, default)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise BundleError(
            f"setting {name} is {value!r}, allowed is {kind.__name__}; correct the checkpoint's config file."
        )
    return value


def _several(told: Mapping[str, Any], name: str, kind: type) -> tuple[Any, ...]:
    values = told.get(name)
    if not isinstance(values, list) or not values or not all(isinstance(value, kind) for value in values):
        raise BundleError(
            f"autoencoder config: {name} is {values!r}, expected a list of {kind.__name__}, one value a level; "
            "download the autoencoder's config.json again."
        )
    return tuple(values)


def _refuse_others(what: str, told: Mapping[str, Any], implemented: Mapping[str, tuple[Any, ...]]) -> None:
    for name, allowed in implemented.items():
        if name in told and told[name] not in allowed:
            raise _not_implemented(what, name, told[name], list(allowed))


def _not_implemented(what: str, name: str, value: Any, allowed: list[Any]) -> BundleError:
    return BundleError(
        f"{what}: {name} is {value!r}, implemented is {' or '.join(map(repr, allowed))}; take a checkpoint of the "
        "released architecture."
    )
