"""Low-rank adapters: trained beside the layers that they adapt, merged into their weights while these are read."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle

from sanawm_env.errors import BundleError, ConfigError, nearest
from sanawm_env.model.feed_forward import TokenConv, token_matrix

DOWN, UP, ALPHA = ".lora_A.weight", ".lora_B.weight", ".alpha"
PREFIXES = ("base_model.model.", "transformer.", "diffusion_model.")
# Layers of a denoiser's block that are adapted (spec training.md 7). Gates, short convolutions, the camera's branch and
# the embedders stay as they are.
LAYERS = (
    "attn.qkv",
    "attn.proj",
    "cross_attn.q_linear",
    "cross_attn.kv_linear",
    "cross_attn.proj",
    "mlp.inverted_conv.conv",
    "mlp.point_conv.conv",
)


class LowRank(nn.Module):
    """Adapters of layers of `module`, each adding alpha / rank * up (down x) to what its layer gives.

    names: of layers that multiply tokens by one matrix. They are adapted from now on, and are no part of this module:
    its parameters are the adapters alone, at first without effect. ConfigError for a rank that is not >= 1.
    """

    def __init__(self, module: nn.Module, names: Sequence[str], rank: int, alpha: float) -> None:
        super().__init__()
        if rank < 1 or alpha <= 0:
            raise ConfigError(f"rank is {rank}, alpha {alpha:g}; allowed are rank >= 1 and alpha > 0.")
        self.names, self.alpha, self.scale = tuple(names), alpha, alpha / rank
        self._hooks: list[RemovableHandle] = []
        self.down, self.up = nn.ParameterList(), nn.ParameterList()
        for index, name in enumerate(self.names):
            layer = module.get_submodule(name)
            weight = layer.get_parameter("weight")
            rows, width = token_matrix(weight).shape
            down = torch.empty(rank, width, device=weight.device)
            nn.init.kaiming_uniform_(down, a=math.sqrt(5))
            self.down.append(nn.Parameter(down))
            self.up.append(nn.Parameter(torch.zeros(rows, rank, device=weight.device)))
            self._hooks.append(layer.register_forward_hook(functools.partial(self._add, index)))

    def detach(self) -> None:
        """Gives the layers back as they were."""
        for hook in self._hooks:
            hook.remove()
        self._hooks.clear()

    def _add(self, index: int, layer: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> Tensor:
        x = given[0]
        inner = functional.linear(x, self.down[index].to(x.dtype))
        return out + self.scale * functional.linear(inner, self.up[index].to(inner.dtype)).to(out.dtype)

    def tensors(self) -> dict[str, Tensor]:
        """On the CPU, by the names that PEFT gives them and `merging` reads."""
        told: dict[str, Tensor] = {}
        for name, down, up in zip(self.names, self.down, self.up, strict=True):
            parts = {DOWN: down, UP: up, ALPHA: torch.tensor(float(self.alpha))}
            told |= {f"{PREFIXES[0]}{name}{part}": x.detach().cpu().contiguous() for part, x in parts.items()}
        return told


def adapted_layers(module: nn.Module, kinds: Sequence[str] = LAYERS) -> list[str]:
    """Names of the layers of every block of a denoiser that end in one of `kinds`, as far as it has them. ConfigError:
    a kind that is no such layer, or none is there."""
    unknown = [kind for kind in kinds if kind not in LAYERS]
    if unknown:
        raise ConfigError(f"layers hold {unknown[0]!r}; {nearest(unknown[0], LAYERS)}")
    found = [
        name
        for name, layer in module.named_modules()
        if isinstance(layer, nn.Linear | TokenConv) and name.startswith("blocks.") and name.split(".", 2)[2] in kinds
    ]
    if not found:
        raise ConfigError(f"the model has none of the layers {list(kinds)}; name some of {list(LAYERS)}.")
    return found


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
    """A reader of the weights of `module`, which may be empty, with an adapter added to its linear layers and 1x1
    convolutions of tokens, on top of one that returns them plain, by name: W + scale * B A. Sums are made on `device`,
    and given in fp32.

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
        if not isinstance(layer, nn.Linear | TokenConv) or down is None or up is None or not _fits(layer, down, up):
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
        plain = read(name).to(device).float()
        return plain + (weight * up @ down).reshape(plain.shape)

    return read_merged


def _plain(name: str) -> str:
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name


def _layer(name: str) -> str:
    return name.removesuffix(DOWN).removesuffix(UP).removesuffix(ALPHA)


def _fits(layer: nn.Linear | TokenConv, down: Tensor, up: Tensor) -> bool:
    single = all(taps == 1 for taps in layer.weight.shape[2:])
    return (
        (single and down.ndim == up.ndim == 2)
        and down.shape[0] == up.shape[1]
        and (up.shape[0], down.shape[1]) == tuple(layer.weight.shape[:2])
    )
