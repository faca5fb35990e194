"""Low-rank adapters merged into the weights they adapt, while these are read: W + scale * B A."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from sanawm_env.errors import BundleError

DOWN, UP, ALPHA = ".lora_A.weight", ".lora_B.weight", ".alpha"
PREFIXES = ("base_model.model.", "transformer.", "diffusion_model.")


def read_lora(path: str | Path) -> dict[str, Tensor]:
    """Tensors of an adapter's safetensors file. BundleError when it cannot be read."""
    try:
        return load_file(Path(path).expanduser())
    except (OSError, SafetensorError) as error:
        raise BundleError(
            f"adapter {path} cannot be read ({error}); give a .safetensors file of lora_A and lora_B."
        ) from error


def merging(
    module: nn.Module,
    read: Callable[[str], Tensor],
    adapter: Mapping[str, Tensor],
    device: torch.device,
    scale: float = 1.0,
    *,
    dropped: Collection[str] = (),
) -> Callable[[str], Tensor]:
    """A reader of the weights of `module`, which may be empty, with an adapter added to its linear layers, on top of
    one that returns them plain, by name. Sums are made on `device`, and given in fp32.

    adapter: "<layer>.lora_A.weight" [rank, in] and "<layer>.lora_B.weight" [out, rank], with "<layer>.alpha" where the
    product is to be scaled by alpha / rank, names as PEFT and diffusers write them (with or without a prefix such as
    "transformer."). scale: of the whole adapter. dropped: names of layers that the module no longer has;
    what adapts them is left out. BundleError lists names that are no layer of the module, shapes that do not fit and
    half pairs, before anything is read.
    """
    layers = dict(module.named_modules())
    given = {name: x for full, x in adapter.items() if _layer(name := _plain(full)) not in dropped}
    pairs: dict[str, tuple[float, Tensor, Tensor]] = {}
    wrong = [name for name in given if not name.endswith((DOWN, UP, ALPHA))]
    for name in {_layer(name) for name in given if name.endswith((DOWN, UP))}:
        layer, down, up = layers.get(name), given.get(name + DOWN), given.get(name + UP)
        if not isinstance(layer, nn.Linear) or down is None or up is None or not _fits(layer, down, up):
            wrong.append(name)
            continue
        rank = down.shape[0]
        weight = scale * float(given.get(name + ALPHA, torch.tensor(float(rank)))) / rank
        pairs[f"{name}.weight"] = (weight, up, down)
    if wrong or not pairs:
        raise BundleError(
            f"the adapter does not fit: {len(wrong)} names are no linear layers of the module, half a pair or of "
            f"another shape ({', '.join(sorted(wrong)[:10]) or 'it holds none'}); take the adapter of this very model."
        )

    def read_merged(name: str) -> Tensor:
        if name not in pairs:
            return read(name)
        weight, *factors = pairs[name]
        up, down = (x.to(device).float() for x in factors)
        return read(name).to(device).float() + weight * up @ down

    return read_merged


def _plain(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _layer(name: str) -> str:
    return name.removesuffix(DOWN).removesuffix(UP).removesuffix(ALPHA)


def _fits(layer: nn.Linear, down: Tensor, up: Tensor) -> bool:
    return (
        down.ndim == up.ndim == 2
        and down.shape[0] == up.shape[1]
        and (up.shape[0], down.shape[1]) == tuple(layer.weight.shape)
    )
