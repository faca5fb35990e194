"""Scores that need the weights of other networks: taken where these lie on the machine, and never downloaded.

LPIPS by torchmetrics (extra `metrics`) on torchvision's AlexNet; CLIP-IQA, a learned quality of single pictures, by
torchmetrics on openai/clip-vit-base-patch16.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from torch import Tensor

NOT_AVAILABLE = "not available"
QUALITY_MODEL: Final = "openai/clip-vit-base-patch16"


@dataclass(frozen=True, kw_only=True)
class Perceptual:
    """lpips: distance [T] of pictures uint8 [T, H, W, 3] from as many others. quality: 0 .. 1 [T] of pictures. Each is
    None where its weights or packages are missing."""

    lpips: Callable[[Tensor, Tensor], Tensor] | None = None
    quality: Callable[[Tensor], Tensor] | None = None


def find_perceptual(device: torch.device) -> Perceptual:
    """What this machine has."""
    return Perceptual(lpips=_lpips(device), quality=_quality(device))


def _lpips(device: torch.device) -> Callable[[Tensor, Tensor], Tensor] | None:
    try:
        from torchmetrics.functional.image.lpips import _LPIPS
        from torchvision.models import AlexNet_Weights
    except ImportError:
        return None
    weights = Path(torch.hub.get_dir()) / "checkpoints" / Path(AlexNet_Weights.DEFAULT.url).name
    if not weights.exists():
        return None
    network = _LPIPS(net="alex").to(device).eval()

    @torch.no_grad()
    def distance(pictures: Tensor, others: Tensor) -> Tensor:
        found: Tensor = network(*(_planes(x, device) * 2 - 1 for x in (pictures, others))).flatten()
        return found

    return distance


def _quality(device: torch.device) -> Callable[[Tensor], Tensor] | None:
    try:
        from huggingface_hub import try_to_load_from_cache
        from torchmetrics.multimodal import CLIPImageQualityAssessment
    except ImportError:
        return None
    if not isinstance(try_to_load_from_cache(QUALITY_MODEL, "preprocessor_config.json"), str):
        return None
    network = CLIPImageQualityAssessment(model_name_or_path=QUALITY_MODEL, data_range=1.0).to(device)

    @torch.no_grad()
    def quality(pictures: Tensor) -> Tensor:
        found: Tensor = network(_planes(pictures, device)).reshape(-1)
        network.reset()
        return found

    return quality


def _planes(pictures: Tensor, device: torch.device) -> Tensor:
    """float [T, 3, H, W], 0 .. 1."""
    return pictures.to(device).movedim(-1, 1).float() / 255
