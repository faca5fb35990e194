"""Groups of a batch that are computed one after another, wherever the batch lies."""

from __future__ import annotations

import torch

from sanawm_env.state import StepOutput, WorldState
from sanawm_env.visits import Rows, together
from sanawm_env.world import WorldModel, initial


def test_a_device_is_the_same_with_and_without_its_number(tiny_model: WorldModel) -> None:
    config = tiny_model.config
    pictures = torch.zeros(3, config.height, config.width, 3, dtype=torch.uint8)
    state, _ = initial(tiny_model, pictures, seeds=[0, 1, 2])

    def moved(part: WorldState, rows: Rows) -> tuple[WorldState, StepOutput]:
        part.chunk = part.chunk + 1
        return part, StepOutput(None, part.first_latent[:, None], part.pose[:, None])

    groups = [torch.tensor([0, 2]), torch.tensor([1])]
    for device in (torch.device("cpu"), torch.device("cpu", 0)):
        after, output = together(groups, state.clone(), device, moved)
        assert after.chunk.tolist() == [1, 1, 1]
        assert torch.equal(output.latents[:, 0], state.first_latent)
