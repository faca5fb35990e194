"""The public layouts of SANA-WM's checkpoints in miniature, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import AutoencoderKLLTX2Video, SanaWMTransformer3DModel
from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMLTX2RefinerTransformer3DModel
from safetensors.torch import save_file
from tests.tiny_text import make_connectors, make_gemma2, make_gemma3, save_encoder
from transformers import Gemma2Model

from sanawm_env.model.public_keys import Variant
from sanawm_env.pretrained import from_pretrained
from sanawm_env.world import WorldModel

Weights = dict[str, torch.Tensor]
SIZE = (64, 96)
NAMES: dict[str, Variant] = {
    "original": "bidirectional",
    "diffusers": "bidirectional",
    "teacher": "teacher",
    "streaming": "distilled",
}
# The text encoders' width is what the denoiser and the refiner of these layouts read.
TEXT: dict[str, Any] = {"hidden_size": 12, "num_hidden_layers": 2, "head_dim": 8, "intermediate_size": 16}


def random_transformer() -> SanaWMTransformer3DModel:
    torch.manual_seed(0)
    transformer = SanaWMTransformer3DModel(
        in_channels=16,
        num_layers=4,
        hidden_size=32,
        num_attention_heads=2,
        linear_head_dim=16,
        chunk_plucker_post_attn_blocks=4,
        caption_channels=12,
    )
    for name, x in transformer.state_dict().items():
        x.normal_(0.0, 0.2).add_(0.0 if x.ndim > 1 else 0.1)
        if name.endswith("recall_gate"):
            x.zero_()
    return transformer


def random_autoencoder(*, causal: bool) -> AutoencoderKLLTX2Video:
    torch.manual_seed(1)
    autoencoder = AutoencoderKLLTX2Video(
        latent_channels=16,
        block_out_channels=(16, 32, 64, 64),
        decoder_block_out_channels=(16, 32, 64),
        layers_per_block=(1, 1, 1, 1, 1),
        decoder_layers_per_block=(1, 1, 1, 1),
        decoder_causal=causal,
    )
    autoencoder.latents_mean.normal_()
    autoencoder.latents_std.uniform_(0.5, 1.5)
    return autoencoder


def original_names(weights: Weights) -> Weights:
    """As the original release stores them: two layers under other names and two tensors more."""
    renamed = {name.replace("linear_1", "mlp.0").replace("linear_2", "mlp.2"): x for name, x in weights.items()}
    return renamed | {"pos_embed": torch.zeros(1, 4, 32), "y_embedder.y_embedding": torch.randn(7, 12)}


def original_config(attention: str) -> str:
    model = {"camctrl_type": attention, "linear_head_dim": 16, "softmax_every_n": 4, "conv_kernel_size": 4}
    fixed = {"ffn_type": "GLUMBConvTemp", "mlp_acts": ["silu", "silu", None], "t_kernel_size": 3, "qk_norm": True}
    chunk = {"chunk_size": 3, "chunk_split_strategy": "first_chunk_plus_one"}
    scheduler = {"flow_shift": 9.95, "inference_flow_shift": 9.5, "pred_sigma": False}
    text = {"y_norm": True, "model_max_length": 7, "chi_prompt": ["User Prompt: "]}
    return yaml.safe_dump({"model": model | fixed | chunk, "scheduler": scheduler, "text_encoder": text})


def write_layouts(root: Path) -> Path:
    """Makes `root` a folder with one checkpoint in each public layout, all with the same denoiser; returns it."""
    transformer = random_transformer()
    transformer.save_pretrained(root / "diffusers" / "transformer", max_shard_size="200KB")
    assert len(list((root / "diffusers" / "transformer").glob("*-of-*.safetensors"))) > 1
    (root / "diffusers" / "model_index.json").write_text('{"_class_name": "SanaWMPipeline"}')
    (root / "diffusers" / "scheduler").mkdir()
    (root / "diffusers" / "scheduler" / "scheduler_config.json").write_text('{"shift": 8.0}')
    for name, attention in (("original", "BidirectionalGDN"), ("teacher", "ChunkCausalGDN")):
        write_original(root / name, name, attention)
    looking_ahead = random_autoencoder(causal=False)
    for name in ("original", "diffusers"):
        looking_ahead.save_pretrained(root / name / "vae")
    write_streaming(root / "streaming")
    return root


def write_streaming(root: Path) -> None:
    """The streaming layout's denoiser, among other things that its training kept, and its autoencoder."""
    (root / "sana_dit").mkdir(parents=True)
    weights = original_names({name: x.clone() for name, x in random_transformer().state_dict().items()})
    other = {"critic": {"model.x": torch.zeros(3)}, "step": 1000}
    group = {f"model.{name}": x for name, x in weights.items()}
    torch.save({"generator": group, **other}, root / "sana_dit" / "model.pt")
    random_autoencoder(causal=True).save_pretrained(root / "ltx2_causal_vae")


def write_original(root: Path, name: str, attention: str) -> None:
    """Denoiser and config.yaml as the original releases of many-step models have them."""
    (root / "dit").mkdir(parents=True)
    weights = {key: x.clone() for key, x in random_transformer().state_dict().items()}
    save_file(original_names(weights), root / "dit" / f"sana_wm_{name}.safetensors")
    (root / "config.yaml").write_text(original_config(f"{attention}UCPESinglePathLiteLABothTriton"))


def load(source: Path | str, layouts: Path, name: str, **options: Any) -> WorldModel:
    """The tiny world of a layout, on the CPU in fp32."""
    options = {"autoencoder": layouts / "original"} | options if name == "teacher" else options
    told: dict[str, Any] = {"variant": NAMES[name], "device": "cpu", "precision": "fp32", "size": SIZE}
    return from_pretrained(source, **(told | options))


def write_release(root: Path) -> Path:
    """Makes `root` a folder like the streaming release, refiner and both text encoders included; returns it."""
    write_streaming(root)
    write_encoders(root, refiner="refiner_diffusers", refiner_text="gemma3_12b")
    return root


def write_many_step_release(root: Path, attention: str) -> Path:
    """Makes `root` a folder like the bidirectional release, refiner and both text encoders included; returns it."""
    write_original(root, "bidirectional", attention)
    random_autoencoder(causal=False).save_pretrained(root / "vae")
    write_encoders(root, refiner="refiner", refiner_text="refiner/text_encoder")
    return root


def write_encoders(root: Path, *, refiner: str, refiner_text: str) -> None:
    """Both text encoders and the refiner with its connectors, in these folders below `root`."""
    save_encoder(root / "gemma2", make_gemma2(Gemma2Model, **TEXT))
    save_encoder(root / refiner_text, make_gemma3(**TEXT))
    # Of heads that are as wide together as the text.
    heads = {f"{stream}_connector_attention_head_dim": 6 for stream in ("video", "audio")}
    connectors = make_connectors(caption_channels=12, text_proj_in_factor=3, **heads)
    connectors.save_pretrained(root / refiner / "connectors")
    SanaWMLTX2RefinerTransformer3DModel(**tiny_refiner(16)).save_pretrained(root / refiner / "transformer")


def tiny_refiner(channels: int, **changes: Any) -> dict[str, Any]:
    """Config of a refiner's transformer of two layers that reads text of 12 channels.

    Its inner width of 32 is no multiple of 6, as the released 4,096 is not: some lanes never rotate.
    """
    sizes: dict[str, Any] = {"num_attention_heads": 2, "attention_head_dim": 16, "cross_attention_dim": 32}
    audio = {"num_attention_heads": 1, "attention_head_dim": 16, "cross_attention_dim": 16}
    heard = {f"audio_{name}": size for name, size in audio.items()}
    ends = {"in_channels": channels, "out_channels": channels, "audio_in_channels": 4, "audio_out_channels": 4}
    return sizes | heard | ends | {"num_layers": 2, "caption_channels": 12, "rope_type": "split"} | changes
