"""The streaming check passes on the real class and notices a stream that forgets."""

from __future__ import annotations

import pytest
import torch

from sanawm_env.evaluation import streaming
from sanawm_env.evaluation.rollout import dream, reconstruction
from sanawm_env.model.config import tiny_config
from sanawm_env.world import WorldModel

CHUNKS = 4


@pytest.fixture(scope="module")
def model() -> WorldModel:
    return WorldModel.random(tiny_config())


def drive(batch: int, frames: int) -> torch.Tensor:
    """Straight ahead at 0.05 m a frame, each world from its own place."""
    poses = torch.eye(4, dtype=torch.float64).repeat(batch, 1 + frames, 1, 1)
    poses[..., 2, 3] = 0.05 * torch.arange(1 + frames)
    poses[..., 0, 3] = torch.arange(batch)[:, None]
    return poses


def pictures(batch: int) -> torch.Tensor:
    return torch.randint(0, 256, (batch, 32, 40, 3), generator=torch.Generator().manual_seed(1)).to(torch.uint8)


def test_streamed_equals_one_pass(model: WorldModel) -> None:
    poses = drive(2, CHUNKS * 8)
    made = dream(model, pictures(2), [1, 2], poses, [0], lambda frames: None)
    intrinsics = torch.tensor(model.config.intrinsics).expand(2, 4)
    assert streaming.streaming_error(model, made.latents, poses[:, 0], poses[:, 1:], intrinsics) < 1e-5


def test_a_forgetful_stream_is_noticed(model: WorldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        streaming, "last_memory", lambda after: [{name: x[:, -1] * 0 for name, x in block.items()} for block in after]
    )
    poses = drive(1, CHUNKS * 8)
    latents = torch.randn(1, 1 + 2 * CHUNKS, 8, 4, 5, generator=torch.Generator().manual_seed(2))
    intrinsics = torch.tensor(model.config.intrinsics).expand(1, 4)
    assert streaming.streaming_error(model, latents, poses[:, 0], poses[:, 1:], intrinsics) > 1e-3


def test_dream_keeps_the_frames_asked_for(model: WorldModel) -> None:
    poses, counted = drive(2, 16), []
    every = dream(model, pictures(2), [1, 2], poses, range(17), counted.append)
    some = dream(model, pictures(2), [1, 2], poses, [1, 8, 16], lambda frames: None)
    assert torch.equal(some.frames, every.frames[:, [1, 8, 16]])
    assert every.made == 32
    assert counted == [16, 16]
    assert every.latents.shape[1] == 1 + 2 * model.config.chunk_latents


def test_ceiling_of_the_first_frame_is_what_a_dream_begins_with(model: WorldModel) -> None:
    video = pictures(2)[:, None].expand(-1, 17, -1, -1, -1)
    made = dream(model, video[:, 0], [1, 2], drive(2, 8), [0], lambda frames: None)
    rebuilt = reconstruction(model, video)
    assert rebuilt.shape == video.shape
    assert (rebuilt[:, 0].int() - made.frames[:, 0]).abs().max() <= 1  # encoded in a clip and alone
