"""What the large layers of a denoiser multiply while worlds run: second moments of their inputs.

Rounding a weight to few bits moves what its layer gives by as much as the inputs that meet it are large, and alike
inputs can make up for one another (Frantar et al., "GPTQ", 2023); the moments say both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from sanawm_env.model.denoiser import Denoiser

# fp32 [K, K] by name of layer: sum of x x^T over all rows x that the layer has multiplied.
Moments = dict[str, Tensor]


def input_moments(denoiser: Denoiser, names: Iterable[str], work: Callable[[], object]) -> Moments:
    """Moments of the named layers' inputs during `work`."""
    layers, moments = dict(denoiser.named_modules()), Moments()

    def watch(name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def add(_: nn.Module, given: tuple[Tensor, ...]) -> None:
            rows = given[0].detach().flatten(0, -2).float()
            moments[name] = moments.get(name, torch.zeros((), device=rows.device)) + rows.T @ rows

        return add

    hooks = [layers[name].register_forward_pre_hook(watch(name)) for name in names]
    try:
        work()
    finally:
        for hook in hooks:
            hook.remove()
    return moments
