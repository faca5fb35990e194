"""The streaming release at its full size, with random weights, made on the GPU."""

from __future__ import annotations

from pathlib import Path

import torch
from tests.public_layouts import TEXT, original_names
from tests.tiny_text import make_gemma2, save_encoder
from transformers import Gemma2Model

from sanawm_env.bundle import empty_parts
from sanawm_env.model.autoencoder import Autoencoder
from sanawm_env.model.initialise import randomise
from sanawm_env.released import released_config


def write_full_release(root: Path, device: str = "cuda") -> Path:
    """Makes `root` a folder like the streaming release in bf16, with a text encoder of one thin layer; returns it."""
    config = released_config("distilled")
    parts = empty_parts(config)
    generator = torch.Generator(device).manual_seed(0)
    for part in parts.values():
        part.bfloat16().to_empty(device=device)
        randomise(part, generator)
    autoencoder = parts["autoencoder"]
    assert isinstance(autoencoder, Autoencoder)
    autoencoder.set_statistics(torch.zeros(()), torch.ones(()))
    (root / "sana_dit").mkdir(parents=True)
    weights = {name: x.cpu() for name, x in original_names(parts["denoiser"].state_dict()).items()}
    torch.save({"generator": {f"model.{name}": x for name, x in weights.items()}}, root / "sana_dit" / "model.pt")
    autoencoder.to_diffusers().save_pretrained(root / "ltx2_causal_vae")
    thin = TEXT | {"hidden_size": config.denoiser.caption_channels, "num_hidden_layers": 1}
    save_encoder(root / "gemma2", make_gemma2(Gemma2Model, **thin))
    return root
