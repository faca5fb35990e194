"""Bulk generation: `generate(config)` fills an episode store from a model, scenes and an explorer, by one process or
many; `replay` makes stored episodes again and says whether they are the same."""

from sanawm_env.generation.config import Filters, Generate, Scenes
from sanawm_env.generation.replay import Replayed, replay
from sanawm_env.generation.run import generate

__all__ = ["Filters", "Generate", "Replayed", "Scenes", "generate", "replay"]
