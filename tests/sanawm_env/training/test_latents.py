"""The bank of clips: what the model saw of a clip is kept with it and goes with it."""

import torch

from sanawm_env.training.latents import ClipBank, ClipSource
from sanawm_env.training.paths import PathPlanner
from sanawm_env.world import WorldModel


def test_a_bank_remembers_what_the_model_saw(tiny_model: WorldModel) -> None:
    config = tiny_model.config
    planner = PathPlanner(batch=2, frames=8, fps=config.fps, first_seed=1, workers=0)
    bank = ClipBank(ClipSource(config, tiny_model.autoencoder, planner, torch.device("cpu")), 4)
    drawn = bank.draw(3)
    assert len(set(drawn.rows.tolist())) == 3
    assert torch.equal(drawn.history, drawn.latents) and drawn.poses.shape == (3, 9, 4, 4)
    bank.remember(drawn.rows, drawn.latents + 1)
    everything = bank.draw(4)
    changed = (everything.history != everything.latents).flatten(1).all(1)
    assert sorted(everything.rows[changed].tolist()) == sorted(drawn.rows.tolist())
    bank.refresh()  # the two oldest go, with what was seen of them
    everything = bank.draw(4)
    fresh = everything.rows < 2
    assert torch.equal(everything.history[fresh], everything.latents[fresh])
