"""Frame-wise gated delta rule: chunk scan with state in and state out."""

from sanawm_env.kernels.gated_delta.reference import delta_scan, gated_delta, key_scale, normalised_gated_delta

__all__ = ["delta_scan", "gated_delta", "key_scale", "normalised_gated_delta"]
