"""Depthwise filter of the keys over time, causal across chunks and its mirror image inside one (spec dit.md 3.6).

A part of `main_scan` and `camera_scan`: `reference` is the filter, `fused` the filter and the norms of queries and keys
in one pass over a token's channels.
"""

from sanawm_env.kernels.short_convolution.reference import short_convolution

__all__ = ["short_convolution"]
