"""Our environments under torchrl's own `GymWrapper`: its checker, partial resets of a batch. No adapter is needed."""

from __future__ import annotations

from typing import Any

import gymnasium
import pytest
import torch
from tests.sanawm_env.wrappers.small_truth import small_truth

from sanawm_env.truth import RoomsTruthVectorEnv
from sanawm_env.vector_env import SanaWMVectorEnv
from sanawm_env.world import WorldModel

pytest.importorskip("torchrl", reason="torchrl is not installed")

from torchrl.envs.libs.gym import GymWrapper
from torchrl.envs.utils import check_env_specs


@pytest.mark.parametrize("kind", ["last", "dict"])
@pytest.mark.parametrize("name", ["Rooms-v0", "RoomsTruth-v0"])
def test_single_environments_pass_its_checker(name: str, kind: str, tiny_model: WorldModel) -> None:
    check_env_specs(GymWrapper(gymnasium.make(f"sanawm_env/{name}", bundle=tiny_model, observation=kind)), seed=0)


def test_a_batch_passes_and_is_reset_in_part(tiny_model: WorldModel) -> None:
    options: dict[str, Any] = {"observation": "dict", "horizon": 16, "task": "drive"}
    check_env_specs(GymWrapper(SanaWMVectorEnv(2, tiny_model, **options)), seed=0)
    batch = GymWrapper(RoomsTruthVectorEnv(3, small_truth(), device="cpu", **options))
    check_env_specs(batch, seed=0)
    batch.set_seed(0)
    actions, over, poses = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.2, 0.0]]), [], []
    data = batch.reset()
    for _ in range(4):
        stepped, data = batch.step_and_maybe_reset(data.set("action", actions))
        over.append(stepped["next", "done"][:2, 0].tolist())
        poses.append((stepped["pose"][0], stepped["next", "pose"][0], data["pose"][0]))
    assert over == [[False] * 2, [True] * 2] * 2, "the horizon ends every second step"
    for (before, after, following), (ended, _) in zip(poses, over):
        assert torch.equal(before, after), "it stands still"
        assert torch.equal(after, following) != ended, "and is elsewhere in the next episode"


def test_the_only_autoreset_mode_it_takes_besides_is_refused_by_itself() -> None:
    batch = RoomsTruthVectorEnv(2, small_truth(), device="cpu", autoreset_mode="NextStep")
    with pytest.raises(RuntimeError, match="auto-reset mode must be one of SAME_STEP or DISABLED"):
        GymWrapper(batch)
