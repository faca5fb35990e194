"""Softmax attention over sink, window and current chunk."""

from sanawm_env.kernels.window_attention.reference import window_attention

__all__ = ["window_attention"]
