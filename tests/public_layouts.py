"""The public layouts of SANA-WM's checkpoints in miniature, with random weights."""

from __future__ import annotations

import torch
import yaml
from diffusers import AutoencoderKLLTX2Video, SanaWMTransformer3DModel

Weights = dict[str, torch.Tensor]
SIZE = (64, 96)


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
