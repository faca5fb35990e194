"""Fidelity of a world model to its ground truth. `evaluate` is what `sanawm eval rooms` prints."""

from sanawm_env.evaluation.rooms import evaluate

__all__ = ["evaluate"]
