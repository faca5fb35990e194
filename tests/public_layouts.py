"""The public layouts of SANA-WM's checkpoints in miniature, with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import yaml
from diffusers import AutoencoderKLLTX2Video, SanaWMTransformer3DModel
from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMLTX2RefinerTransformer3DModel
from diffusers.pipelines.ltx2 import LTX2TextConnectors
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import Gemma2Config, Gemma2Model, Gemma3TextConfig, Gemma3TextModel, PreTrainedTokenizerFast

Weights = dict[str, torch.Tensor]
SIZE = (64, 96)
WORDS = ["a", "kitchen", "with", "red", "chairs", "User", "Prompt", ":"]
GEMMA: dict[str, Any] = {
    "vocab_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "intermediate_size": 16,
}


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


def write_release(root: Path) -> Path:
    """Makes `root` a folder like the streaming release, refiner and both text encoders included; returns it."""
    (root / "sana_dit").mkdir(parents=True)
    weights = original_names({name: x.clone() for name, x in random_transformer().state_dict().items()})
    torch.save({"generator": {f"model.{name}": x for name, x in weights.items()}}, root / "sana_dit" / "model.pt")
    random_autoencoder(causal=True).save_pretrained(root / "ltx2_causal_vae")
    write_encoders(root, refiner="refiner_diffusers", refiner_text="gemma3_12b")
    return root


def write_many_step_release(root: Path, attention: str) -> Path:
    """Makes `root` a folder like the bidirectional release, refiner and both text encoders included; returns it."""
    write_original(root, "bidirectional", attention)
    random_autoencoder(causal=False).save_pretrained(root / "vae")
    write_encoders(root, refiner="refiner", refiner_text="refiner/text_encoder")
    return root


def write_original(root: Path, name: str, attention: str) -> None:
    """Denoiser and config.yaml as the original releases of many-step models have them."""
    (root / "dit").mkdir(parents=True)
    weights = {key: x.clone() for key, x in random_transformer().state_dict().items()}
    save_file(original_names(weights), root / "dit" / f"sana_wm_{name}.safetensors")
    (root / "config.yaml").write_text(original_config(f"{attention}UCPESinglePathLiteLABothTriton"))


def write_encoders(root: Path, *, refiner: str, refiner_text: str) -> None:
    """Both text encoders and the refiner with its connectors, in these folders below `root`."""
    torch.manual_seed(2)
    Gemma2Model(Gemma2Config(hidden_size=12, **GEMMA)).save_pretrained(root / "gemma2")
    Gemma3TextModel(Gemma3TextConfig(hidden_size=12, **GEMMA)).save_pretrained(root / refiner_text)
    for name in ("gemma2", refiner_text):
        save_tokenizer(root / name)
    connectors: dict[str, Any] = {"caption_channels": 12, "text_proj_in_factor": 3, "rope_type": "split"}
    for stream in ("video", "audio"):
        connectors |= {f"{stream}_connector_num_attention_heads": 2, f"{stream}_connector_attention_head_dim": 6}
        connectors |= {f"{stream}_connector_num_layers": 1, f"{stream}_connector_num_learnable_registers": 8}
    LTX2TextConnectors(**connectors).save_pretrained(root / refiner / "connectors")
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


def save_tokenizer(folder: Path) -> None:
    special = ["<pad>", "<eos>", "<bos>", "<unk>"]
    vocabulary = {word: index for index, word in enumerate([*special, *WORDS])}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    names = dict(zip(("pad_token", "eos_token", "bos_token", "unk_token"), special, strict=True))
    PreTrainedTokenizerFast(tokenizer_object=words, **names).save_pretrained(folder)
