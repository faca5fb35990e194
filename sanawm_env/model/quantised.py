"""Denoisers and refiners whose large layers keep their weights as FP8 or NVFP4 (spec rollout.md 11).

Layers are replaced under their own names while the model is still empty; the weights are quantised as they are read, or
come from a bundle that holds them so. Names of the stored tensors are those of nvidia-modelopt's exports.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeAlias, get_args

import torch
from torch import Tensor, nn

from sanawm_env.errors import BundleError, ConfigError, nearest
from sanawm_env.kernels import fp8, nvfp4
from sanawm_env.kernels.backend import resolve
from sanawm_env.model.checkpoint import bytes_of, listed
from sanawm_env.model.config import DenoiserConfig
from sanawm_env.model.feed_forward import token_matrix
from sanawm_env.model.offload import device_of

if TYPE_CHECKING:
    from sanawm_env.model.denoiser import Denoiser
    from sanawm_env.model.refiner import Refiner

Model: TypeAlias = "Denoiser | Refiner"
LowPrecision = Literal["fp8", "nvfp4"]
LayerList = Literal["default", "max"]
Read = Callable[[str], Tensor]

# Of each block of a denoiser. The gates of the recurrence, the camera's ray arithmetic, scans, norms, short and
# depthwise convolutions, embeddings and the final layer stay high in both lists.
_DENOISER = (
    "attn.qkv",
    "attn.output_gate",
    "attn.proj",
    "cross_attn.q_linear",
    "cross_attn.kv_linear",
    "cross_attn.proj",
    "mlp.inverted_conv.conv",
    "mlp.point_conv.conv",
)
_CAMERA = ("attn.q_proj_cam", "attn.k_proj_cam", "attn.v_proj_cam", "attn.out_proj_cam", "plucker_proj")
# Of each block of a refiner, all that multiplies but its gates; what is before and behind the blocks stays high.
_REFINER = (
    *(f"{attention}.{name}" for attention in ("attn1", "attn2") for name in ("to_q", "to_k", "to_v", "to_out.0")),
    *("ff.net.0.proj", "ff.net.2"),
)
_DEFAULT = (*_DENOISER, *_REFINER)
# No name is one of both models.
LAYERS: dict[str, tuple[str, ...]] = {"default": _DEFAULT, "max": (*_DEFAULT, *_CAMERA, "mlp.t_conv")}
# Matrix units and blocks of scales want whole groups of this many rows and columns.
SIDE = 16
AGAIN = "make the bundle again with `sanawm quantize`."


@dataclass(frozen=True, kw_only=True)
class Quantisation:
    """Which layers have which precision. simulated: FP8 by its reference, for devices without such a product."""

    precision: LowPrecision
    layers: LayerList = "default"
    simulated: bool = False

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("precision", self.precision, get_args(LowPrecision)),
            ("layers", self.layers, get_args(LayerList)),
        ):
            if value not in allowed:
                raise ConfigError(f"{name} is {value!r}; {nearest(str(value), allowed)}")
        if self.simulated and self.precision != "fp8":
            raise ConfigError(f"simulate is True with {self.precision!r}, which runs on every device; leave it out.")

    def check_runs(self, device: torch.device) -> None:
        """BackendError where the device cannot run it."""
        if self.precision == "fp8" and not self.simulated:
            fp8.check_scaled(device)

    def execution(self, device: torch.device) -> str:
        """What multiplies on a device that can run it."""
        if self.precision == "fp8":
            return "fp8 simulated (reference)" if self.simulated else "fp8 scaled matmul"
        return f"nvfp4 weight-only ({resolve('auto', device, op='nvfp4')})"


class QuantisedLinear(nn.Module, ABC):
    """A linear layer [N, K] whose weight is stored in few bits; called as the layer that it stands for."""

    bias: Tensor | None
    exact: ClassVar[tuple[str, ...]]  # tensors that are stored as they are, whatever the precision of the others

    def __init__(self, stored: Mapping[str, Tensor], bias: Tensor | None, backend: str) -> None:
        super().__init__()
        self.backend = backend
        for name, x in stored.items():
            self.register_parameter(name, nn.Parameter(x, requires_grad=False))
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))

    @classmethod
    @abstractmethod
    def empty(cls, rows: int, width: int) -> dict[str, Tensor]:
        """Tensors of the right shapes and formats."""

    @classmethod
    @abstractmethod
    def quantise(cls, weight: Tensor, moments: Tensor | None = None) -> dict[str, Tensor]:
        """The stored tensors of a matrix [N, K]."""

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> QuantisedLinear:
        """Moves with its module; what is stored in few bits keeps its format when the module's dtype changes."""
        kept = {name: self.get_parameter(name).data for name in self.exact}
        super()._apply(fn, recurse)
        for name, x in kept.items():
            parameter = self.get_parameter(name)
            parameter.data = x.to(parameter.device)
        return self


class NVFP4Linear(QuantisedLinear):
    """Weight-only: what it multiplies keeps its precision."""

    exact = ("weight", "weight_scale", "weight_scale_2")
    weight: Tensor
    weight_scale: Tensor
    weight_scale_2: Tensor

    @classmethod
    def empty(cls, rows: int, width: int) -> dict[str, Tensor]:
        codes = torch.empty(rows, width // 2, dtype=torch.uint8)
        scales = torch.empty(rows, width // nvfp4.BLOCK, dtype=torch.float8_e4m3fn)
        return dict(zip(cls.exact, (codes, scales, torch.empty(())), strict=True))

    @classmethod
    def quantise(cls, weight: Tensor, moments: Tensor | None = None) -> dict[str, Tensor]:
        return dict(zip(cls.exact, nvfp4.quantise(weight, fitted=True, moments=moments), strict=True))

    def forward(self, x: Tensor) -> Tensor:
        return nvfp4.linear(x, self.weight, self.weight_scale, self.weight_scale_2, self.bias, backend=self.backend)


class FP8Linear(QuantisedLinear):
    """Weight and input in 8 bits."""

    exact = ("weight", "weight_scale")
    weight: Tensor
    weight_scale: Tensor

    @classmethod
    def empty(cls, rows: int, width: int) -> dict[str, Tensor]:
        return {"weight": torch.empty(rows, width, dtype=torch.float8_e4m3fn), "weight_scale": torch.empty(rows)}

    @classmethod
    def quantise(cls, weight: Tensor, moments: Tensor | None = None) -> dict[str, Tensor]:
        # Eight bits lose too little for the inputs to matter.
        return dict(zip(cls.exact, fp8.quantise(weight), strict=True))

    def forward(self, x: Tensor, *, gelu: bool = False) -> Tensor:
        """gelu: of x's GELU instead, applied while x is rounded."""
        return fp8.linear(x, self.weight, self.weight_scale, self.bias, gelu=gelu, backend=self.backend)


KINDS: dict[str, type[QuantisedLinear]] = {"fp8": FP8Linear, "nvfp4": NVFP4Linear}


def layer_names(model: Model, layers: LayerList) -> list[str]:
    """Names of the layers of a list that this model has; those with a side that is no multiple of 16 stay high."""
    found = dict(model.named_modules())
    place = next(name for name, module in found.items() if module is model.blocks)
    names = [f"{place}.{index}.{name}" for index in range(len(model.blocks)) for name in LAYERS[layers]]
    return [name for name in names if name in found and not any(n % SIDE for n in _matrix_of(found[name]).shape)]


def replace_layers(model: Model, quantisation: Quantisation) -> None:
    """Puts layers without weights in the places of those that `quantisation` names, in place, on the same device.

    ConfigError when the model is quantised already, or has none of these layers.
    """
    what = type(model).__name__.lower()
    if model.quantisation is not None:
        raise ConfigError(
            f"the {what} is {model.quantisation.precision} already; quantise the one that it was made from."
        )
    names = layer_names(model, quantisation.layers)
    if not names:
        raise ConfigError(
            f"the {what} has no layer of the list {quantisation.layers!r} whose sides are multiples of {SIDE}, so that "
            f"nothing of it would be {quantisation.precision}; load it in 'bf16'."
        )
    kind = KINDS[quantisation.precision]
    for name in names:
        layer: Any = model.get_submodule(name)
        with layer.weight.device:
            stored = kind.empty(*_matrix_of(layer).shape)
            bias = None if layer.bias is None else torch.empty_like(layer.bias)
        model.set_submodule(name, kind(stored, bias, "reference" if quantisation.simulated else "auto"))
    model.quantisation = quantisation


def execution(model: Model) -> str:
    """What multiplies a model's large matrices where it computes: "bf16", "fp32", or `Quantisation.execution`."""
    if model.quantisation is not None:
        return model.quantisation.execution(device_of(model))
    return {torch.bfloat16: "bf16", torch.float32: "fp32"}.get(model.dtype, str(model.dtype))


def weight_bytes(config: DenoiserConfig, quantisation: Quantisation | None = None) -> int:
    """Bytes of a denoiser's weights: in bf16 all that `quantisation` does not name. Nothing is allocated."""
    from sanawm_env.model.denoiser import Denoiser

    with torch.device("meta"):
        denoiser = Denoiser(config).bfloat16()
    if quantisation is not None:
        replace_layers(denoiser, quantisation)
    return bytes_of(denoiser)


def exact_names(model: nn.Module) -> set[str]:
    """Names of the tensors that are stored in few bits, with their scales."""
    layers = ((name, x) for name, x in model.named_modules() if isinstance(x, QuantisedLinear))
    return {f"{name}.{tensor}" for name, layer in layers for tensor in layer.exact}


def quantising(model: Model, read: Read, device: torch.device, moments: Mapping[str, Tensor] | None = None) -> Read:
    """A reader for a model of `replace_layers` on top of one that returns plain weights by name. moments: of the
    layers' inputs, by name (calibration.py).

    Each plain tensor is read once, as long as a layer's tensors are asked for one after another, and is quantised on
    `device`.
    """
    kinds = {name: x for name, x in model.named_modules() if isinstance(x, QuantisedLinear)}
    latest: dict[str, dict[str, Tensor]] = {}

    def read_quantised(name: str) -> Tensor:
        layer, _, tensor = name.rpartition(".")
        if layer not in kinds or tensor not in kinds[layer].exact:
            return read(name)
        if layer not in latest:
            latest.clear()
            known = None if moments is None else moments[layer].to(device)
            latest[layer] = kinds[layer].quantise(token_matrix(read(f"{layer}.weight").to(device)), known)
        return latest[layer][tensor]

    return read_quantised


def described(denoiser: Denoiser) -> dict[str, Any] | None:
    """What bundle.json says of a quantised denoiser; None of another."""
    chosen = denoiser.quantisation
    if chosen is None:
        return None
    names = [name for name, layer in denoiser.named_modules() if isinstance(layer, QuantisedLinear)]
    return {"precision": chosen.precision, "list": chosen.layers, "layers": names}


def read_described(told: Any, place: str) -> Quantisation:
    """The quantisation that bundle.json describes; BundleError when it describes none. place: the file's name."""
    try:
        names = told["layers"]
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"layers is {names!r:.80}, expected a list of names")
        return Quantisation(precision=told["precision"], layers=told["list"])
    except (TypeError, KeyError, ConfigError) as error:
        said = f"{type(error).__name__}: {error}"
        raise BundleError(f"{place} describes no quantisation ({said}); {AGAIN}") from error


def check_layers(names: list[str], denoiser: Denoiser, quantisation: Quantisation, place: str) -> None:
    """BundleError unless `names` are the layers that `quantisation` names in this denoiser, which is plain yet."""
    expected = layer_names(denoiser, quantisation.layers)
    missing, unexpected = ([x for x in a if x not in set(b)] for a, b in ((expected, names), (names, expected)))
    if missing or unexpected or len(names) != len(expected):
        raise BundleError(
            f"{place} names {len(names)} {quantisation.precision} layers, its list {quantisation.layers!r} has "
            f"{len(expected)}; missing: {listed(missing) or 'none'}; unexpected: {listed(unexpected) or 'none'}; "
            f"{AGAIN}"
        )


def _matrix_of(layer: Any) -> Tensor:
    return token_matrix(layer.weight)
