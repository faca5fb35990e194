"""Our environments under torchrl's own `GymWrapper`: its checker, and partial resets of a batch. No adapter is needed."""

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
    run = batch.rollout(5, policy=_still_or_ahead, break_when_any_done=False)
    over = run["next", "done"][..., 0]
    assert over[:2].tolist() == [[False, True, False, True, False]] * 2, "these stand still until the horizon"
    begins = run["velocity"][1, :, 0] == 0
    assert begins.tolist() == [True] * 5
    assert torch.equal(run["pose"][0, 0], run["pose"][0, 1]) and not torch.equal(run["pose"][0, 1], run["pose"][0, 2])


def test_the_only_autoreset_mode_it_takes_besides_is_refused_by_itself() -> None:
    batch = RoomsTruthVectorEnv(2, small_truth(), device="cpu", autoreset_mode="NextStep")
    with pytest.raises(RuntimeError, match="auto-reset mode must be one of SAME_STEP or DISABLED"):
        GymWrapper(batch)


def _still_or_ahead(data: Any) -> Any:
    data["action"] = torch.tensor([[0.0, 0.0], [0.0, 0.0], [0.5, 0.0]])
    return data
