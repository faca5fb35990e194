"""Frames as a causal video convolution reads them: activated, after the frames before them, mirrored at their borders.

Spec rollout.md 9. On a GPU the fused form writes the convolution's input in one pass over what came before.
"""

from __future__ import annotations

from torch import Tensor

from sanawm_env.errors import BackendError
from sanawm_env.kernels.backend import needs_gradients, resolve
from sanawm_env.kernels.conv_frames import reference

# Largest difference between the backends in fp32, for values of unit size: the order of a sum and two forms of SiLU.
TOLERANCE = 1e-5


def conv_frames(
    x: Tensor,
    before: Tensor | None,
    past: int,
    *,
    ahead: int = 0,
    border: tuple[int, int] = (0, 0),
    epsilon: float | None = None,
    backend: str = "auto",
) -> Tensor:
    """[B, past + T, H + 2 border[0], W + 2 border[1], C] in x's dtype.

    x: [B, T, H, W, C]; with an epsilon it is activated: SiLU of x / sqrt(mean over C of x^2 + epsilon). past: frames to
    add; the last `ahead` of them repeat the last frame, the others come first: before [B, past - ahead, H, W, C], as an
    earlier call returned them (activated, without border), or, where it is None, the first frame repeated. border: rows
    and columns mirrored at each side, fewer than H and W. The reference rounds to x's dtype after the norm too, the
    fused form once, at the end. BackendError where the border does not fit or "fused" cannot run; it has no gradients.
    """
    height, width = x.shape[2:4]
    if border[0] >= height or border[1] >= width:
        raise BackendError(
            f"a border of {border[0]} rows and {border[1]} columns cannot be mirrored from frames of {height}x{width}; "
            "take larger pictures."
        )
    given = (x,) if before is None else (x, before)
    if resolve(backend, x.device, op="conv_frames", gradients=needs_gradients(*given)) == "fused":
        from sanawm_env.kernels.conv_frames import fused

        return fused.conv_frames(x, before, past, ahead, border, epsilon)
    return reference.conv_frames(x, before, past, ahead, border, epsilon)
