"""Stage `rooms-refiner`: a small chunk-causal refiner of a world's latents, by truncated-sigma flow matching (spec
training.md 5.1, 5.2), run by the loop of the released one (model/refiner.py).
"""

from __future__ import annotations

import copy
import random
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sanawm_env import bundle
from sanawm_env.model.refiner import Refiner
from sanawm_env.model.refiner_state import RefinerConfig
from sanawm_env.refiner_bundle import save_refiner
from sanawm_env.training.clip_stage import ClipStage, ClipTraining
from sanawm_env.training.latents import ClipBank, Drawn
from sanawm_env.training.objective import noised
from sanawm_env.training.ranks import Ranks
from sanawm_env.training.rollouts import rolled
from sanawm_env.world import WorldModel

CAPTION = 16  # channels of the one blank word that a refiner without text reads


@dataclass(frozen=True, kw_only=True)
class RefinerTraining(ClipTraining):
    """Settings of the stage. layers, heads, head_dim: of its transformer. sigmas: noise levels of its steps, the first
    of them that at which it takes over. history: latents before a block that it reads, beside the first one. shift: of
    the noise levels in training. own_share: of blocks that lie in the history as the refiner made them, the others as
    the truth with up to `context_noise` of noise. deployed: noise levels of its steps afterwards, `sigmas` if None: one
    that takes over later than it learned to leaves more of the world's picture, and with it the camera, as it is.
    """

    lr: float = 5e-4
    muon_lr: float | None = None
    bank: int = 1024
    fresh_every: int = 16
    layers: int = 4
    heads: int = 4
    head_dim: int = 48
    sigmas: tuple[float, ...] = (0.6, 0.35, 0.15, 0.0)
    history: int = 4
    shift: float = 1.5
    own_share: float = 0.5
    context_noise: float = 0.1
    deployed: tuple[float, ...] | None = None


class RefinerStage(ClipStage):
    """The stage. Its bank holds the truth as latents, and as history what the world makes of the clips."""

    settings: RefinerTraining
    compiles = False

    def __init__(
        self, settings: RefinerTraining, start: str, model: WorldModel, ranks: Ranks, earlier: dict[str, Any]
    ) -> None:
        """start: name or folder of the bundle whose latents are refined; model: that bundle."""
        self.start = start
        torch.manual_seed(settings.seed)
        refiner = small_refiner(settings, model).to(ranks.device)
        super().__init__(settings, model, ranks, earlier, checkpoint="refiner.pt", trained=refiner)
        self.refiner = refiner
        self.stage1 = WorldModel(self.world, self.denoiser, self.autoencoder)

    def new_bank(self, is_long: bool = False) -> tuple[ClipBank, Tensor]:
        bank, weight = super().new_bank(is_long)
        for rows in torch.arange(bank.latents.shape[0], device=self.device).split(self.settings.source_batch):
            self._roll(bank, rows)
        return bank, weight

    def refresh(self, bank: ClipBank) -> None:
        bank.refresh()
        newest = torch.arange(-self.settings.source_batch, 0, device=self.device)
        self._roll(bank, (bank.oldest + newest) % bank.latents.shape[0])

    def _roll(self, bank: ClipBank, rows: Tensor) -> None:
        """Lays what the world makes of these clips beside them."""
        with self.run.autocast(), torch.no_grad():
            bank.remember(rows, rolled(self.stage1, bank.at(rows)))

    def step(self, bank: Any, clips: Drawn, weight: Tensor) -> tuple[Tensor, Tensor]:
        with self.run.autocast():
            loss = self._loss(clips)
        return loss.detach(), self.run.descend(loss)

    def _loss(self, clips: Drawn) -> Tensor:
        """Mean over all blocks, each behind a history of its own kind at a noise level of its own."""
        settings, n = self.settings, self.world.chunk_latents
        draw = random.Random(f"{settings.seed} {self.run.step}")
        high, low, first = clips.latents[:, 1:], clips.history[:, 1:], clips.latents[:, :1]
        with torch.no_grad():
            state = self.refiner.open(self.refiner.empty_state(first.shape[0], self.world.grid), first, None, None)
        losses = []
        for truth, rough in zip(high.split(n, dim=1), low.split(n, dim=1), strict=True):
            x, target, sigma = truncated(truth, rough, settings.sigmas[0], drawn_share(draw, settings.shift))
            velocity = self.refiner.velocity(state, x, sigma)
            losses.append((velocity.float() - target).square().mean())
            own = draw.random() < settings.own_share
            known = x - sigma * velocity.detach().float() if own else self._roughened(truth)
            with torch.no_grad():
                state = self.refiner.commit(state, known)
        return torch.stack(losses).mean()

    def _roughened(self, truth: Tensor) -> Tensor:
        level = 1000 * self.settings.context_noise * torch.rand(truth.shape[0], 1, device=truth.device)
        return noised(truth, level.expand(-1, truth.shape[1]))

    def averaged_model(self) -> WorldModel:
        return self.stage1.with_refiner(self.plain)

    def export(self, metrics: dict[str, float]) -> None:
        """Writes `out`/bundle, the world as it was, and `out`/bundle-refiner, the averaged weights."""
        folder = self.settings.out / "bundle"
        told = bundle.description(self.start)
        if not folder.exists():
            kept = bundle.load(self.start, device="cpu", precision="fp32")
            bundle.save(folder, kept, told["provenance"], bits=32, licence=told["licence"])
        made = copy.deepcopy(self.plain).cpu()
        sums = bundle.latents_of(bundle.description(folder))
        save_refiner(
            folder.with_name("bundle-refiner"), made, sums, self.run.provenance(self.validation_seeds, metrics)
        )


def small_refiner(settings: RefinerTraining, model: WorldModel) -> Refiner:
    """A refiner of random weights for a world without text, which begins by changing nothing of what it is given."""
    config, width = model.config, settings.heads * settings.head_dim
    channels = config.denoiser.in_channels
    strides = (config.temporal_stride, config.spatial_stride)
    refiner = Refiner(
        RefinerConfig(
            block_latents=config.chunk_latents,
            kv_max_frames=1 + settings.history,
            sigmas=settings.deployed or settings.sigmas,
            fps=config.fps,
            temporal_stride=strides[0],
            spatial_stride=strides[1],
            reads_text=False,
        ),
        {
            "in_channels": channels,
            "out_channels": channels,
            "num_layers": settings.layers,
            "num_attention_heads": settings.heads,
            "attention_head_dim": settings.head_dim,
            "cross_attention_dim": width,
            "caption_channels": CAPTION,
            "vae_scale_factors": [strides[0], strides[1], strides[1]],
            "base_height": config.height,
            "base_width": config.width,
            "rope_type": "split",
            # Sound, which the refiner drops at once.
            "audio_num_attention_heads": 1,
            "audio_attention_head_dim": 16,
            "audio_cross_attention_dim": 16,
            "audio_in_channels": 4,
            "audio_out_channels": 4,
        },
    )
    torch.nn.init.zeros_(refiner.transformer.proj_out.weight)
    torch.nn.init.zeros_(refiner.transformer.proj_out.bias)
    return refiner


def drawn_share(draw: random.Random, shift: float) -> float:
    """A share a in (0, 1] of the noise at which a refiner takes over: uniform, moved by a flow shift."""
    u = 1 - draw.random()
    return shift * u / (1 + (shift - 1) * u)


def truncated(high: Tensor, low: Tensor, start: float, share: float) -> tuple[Tensor, Tensor, float]:
    """Latents at the noise level sigma = share x start between the truth `high` and what the refiner is given, `low` at
    level `start`; their velocity; and sigma (spec training.md 5.1). At share 1 they are what `Refiner.refine` begins
    with.
    """
    begun = (1 - start) * low + start * torch.randn_like(low)
    return (1 - share) * high + share * begun, (begun - high) / start, share * start
