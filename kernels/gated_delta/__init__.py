"""Frame-wise gated delta rule: chunk scan with state in and state out.

A part of `main_scan` and `camera_scan`; `fused` scans what their kernels sum over tokens.
"""

from sanawm_env.kernels.gated_delta.reference import delta_scan, gated_delta, key_scale, normalised_gated_delta

# Lanes of a head that the fused form takes: of more, the sums of a frame outgrow the registers.
MAX_WIDTH = 128

__all__ = ["MAX_WIDTH", "delta_scan", "gated_delta", "key_scale", "normalised_gated_delta", "width_obstacle"]


def width_obstacle(width: int) -> str:
    """Why the fused scans cannot take heads of `width` lanes; empty where they can."""
    return "" if width <= MAX_WIDTH else f"a head has {width} lanes, the most is {MAX_WIDTH}"
