"""Bundles: a folder with one world model's configuration, weights and provenance, every file under its SHA-256."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from sanawm_env.bundle_files import (
    AGAIN,
    DENOISER,
    DESCRIPTION,
    DIFFERENCE,
    PLAIN,
    QUANTISED,
    Beside,
    placed,
    read_description,
    told_of,
    verify,
    weights_of,
)
from sanawm_env.config import from_mapping
from sanawm_env.errors import BundleError, ConfigError, StorageError, nearest
from sanawm_env.model import causal_video
from sanawm_env.model.autoencoder import Autoencoder
from sanawm_env.model.checkpoint import (
    SHARD_BYTES,
    differences,
    fill,
    is_matrix,
    shapes_of,
    write_weights,
)
from sanawm_env.model.config import Variant, WorldConfig
from sanawm_env.model.denoiser import Denoiser
from sanawm_env.model.offload import Offload, home, offload_part
from sanawm_env.model.quantised import LayerList, check_layers, described, read_described, replace_layers
from sanawm_env.placement import Placement, Precision, fill_placed, find_device, place
from sanawm_env.refiner_bundle import load_small_refiner
from sanawm_env.world import WorldModel

EMBEDDED = Path(__file__).parent / "bundles"
LICENCE = "Apache-2.0"

_loaded: dict[tuple[str, str, Placement, bool], WorldModel] = {}
_lock = threading.Lock()


def load(
    name_or_path: str | Path = "rooms",
    *,
    device: torch.device | str | None = None,
    precision: Precision = "auto",
    offload: Offload | None = None,
    layers: LayerList | None = None,
    simulate: bool = False,
    captured: bool | None = None,
    variant: Variant | None = None,
    refiner: bool = False,
) -> WorldModel:
    """The world model of an embedded bundle's name or of a bundle's folder; loaded once a process, then shared.

    variant: of the bundle: that in the folder beside it whose name ends in the variant's ("rooms" and "rooms-teacher"),
    or the folder itself where it is one. refiner: whether the bundle's refiner, in "rooms-refiner", runs too. device:
    see `placement.find_device`. precision: "auto" is bf16 where the device multiplies it natively, fp32 elsewhere, and
    what a quantised bundle holds; "fp32" computes worlds of a batch one after another; "fp8" (weights and products in 8
    bits, NVIDIA from capability 8.9) and "nvfp4" (weights in 4.5 bits) quantise the denoiser's large layers while they
    are read. offload: see `placement.find_offload`. layers: which of them, "default" if None, or "max" for the camera's
    projections and the temporal convolutions too. simulate: FP8 where there is no such product, slowly, by one that
    rounds the same; `model.execution` says so. captured: see `placement.find_captured`; `model.captured` says it.
    BundleError: an unknown name, a missing or damaged file, a bundle of another format. BackendError: a device that
    cannot run the precision.
    """
    folder = folder_of(name_or_path, variant)
    told, fingerprint = read_description(folder)
    precision, layers = _as_stored(folder, told, precision, layers)
    wanted = place(device, precision, offload, layers, simulate=simulate, captured=captured)
    key = (str(folder), fingerprint, wanted, refiner)
    with _lock:
        if key not in _loaded:
            model = _build(folder, told, fingerprint, wanted)
            _loaded[key] = _refined(folder, told, model) if refiner else model
        return _loaded[key]


def open_model(
    bundle: str | Path | WorldModel,
    device: str | torch.device | None,
    precision: Precision,
    offload: Offload | None = None,
    captured: bool | None = None,
    variant: Variant | None = None,
    refiner: bool = False,
) -> WorldModel:
    """The model itself, or the one that this process shares for the bundle's name or folder."""
    if not isinstance(bundle, WorldModel):
        told: dict[str, Any] = {"offload": offload, "captured": captured, "variant": variant, "refiner": refiner}
        return load(bundle, device=device, precision=precision, **told)
    for name, value in (
        ("offload", offload),
        ("captured", captured),
        ("variant", variant),
        ("refiner", refiner or None),
    ):
        if value is not None:
            raise ConfigError(f"{name} is {value!r}, but the model is loaded already; say it to what loads the model.")
    if device is not None:
        asked = find_device(device)
        if asked.type != bundle.device.type or asked.index not in (None, bundle.device.index):
            raise ConfigError(
                f"device is {str(device)!r}, the given model is on {str(bundle.device)!r}; leave device out, or move "
                "the model."
            )
    return bundle


def check_target(directory: str | Path, replace: bool) -> Path:
    """The folder in which a bundle may be written. BundleError when something is there already."""
    target = Path(directory)
    if target.exists() and not (replace and (target / DESCRIPTION).exists()):
        raise BundleError(f"{target} exists already; choose another folder, or replace=True where it holds a bundle.")
    return target


def save(
    directory: str | Path,
    model: WorldModel,
    provenance: dict[str, Any],
    *,
    bits: int = 8,
    replace: bool = False,
    shard_bytes: int = SHARD_BYTES,
    licence: str = LICENCE,
    shared: str | Path | None = None,
) -> Path:
    """Writes a bundle, whole or not at all, and returns its folder.

    provenance: where the weights come from, as JSON. bits: of large matrices, 2 to 8, 16 or 32 (checkpoint.py), those
    of quantised layers apart, which stay as they are. replace:
    whether a bundle in `directory` may be replaced. shard_bytes: size of a weight file. licence: of the weights.
    shared: a bundle in a folder beside it, whose files of the autoencoder it reads instead of files of its own. With 8
    bits or fewer the denoiser's matrices are differences to that bundle's: what was trained from it a little further
    is told by few bits.
    BundleError when something is there already or that autoencoder or denoiser is of another kind, StorageError when
    the disk refuses.
    """
    target = check_target(directory, replace)
    stem, weights, lent = DENOISER, model.denoiser.state_dict(), {}
    if shared is not None:
        beside = Beside(Path(shared), target)
        lent = beside.autoencoder(model.autoencoder)
        if bits <= 8:
            base, files = beside.denoiser(model.denoiser)
            stem, lent = DIFFERENCE, lent | files
            weights = {name: x.float().cpu() - base[name] if is_matrix(x) else x for name, x in weights.items()}
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as scratch:
            partial = Path(scratch) / target.name
            partial.mkdir()
            names = write_weights(partial, stem, weights, bits=bits, shard_bytes=shard_bytes)
            if shared is None:
                names += write_weights(
                    partial, "autoencoder", model.autoencoder.state_dict(), bits=bits, shard_bytes=shard_bytes
                )
            # In few bits a difference is told well, the weights themselves are not: who writes them whole takes 8.
            kept = {"bits": 8, "difference_bits": bits} if stem == DIFFERENCE else {"bits": bits}
            told = _described(partial, names, model) | kept | {"licence": licence, "provenance": provenance}
            told["files"] |= lent
            (partial / DESCRIPTION).write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
            _put_in_place(partial, target)
    except (OSError, SafetensorError) as error:
        raise StorageError(f"bundle {target} cannot be written ({error}); choose a folder with space.") from error
    return target


def description(name_or_path: str | Path = "rooms") -> dict[str, Any]:
    """What bundle.json says: config, rates, strides, files, units, licence, provenance."""
    return read_description(folder_of(name_or_path))[0]


def fingerprint(name_or_path: str | Path = "rooms") -> str:
    """SHA-256 of what decides a bundle's frames, as `WorldModel.fingerprint` has it."""
    return read_description(folder_of(name_or_path))[1]


def empty_parts(config: WorldConfig) -> dict[str, nn.Module]:
    """The modules of a world, "denoiser" and "autoencoder", on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return {"denoiser": Denoiser(config.denoiser), "autoencoder": Autoencoder(config.autoencoder)}


def assemble(
    config: WorldConfig,
    parts: Mapping[str, nn.Module],
    read: Mapping[str, Callable[[str], Tensor]],
    placement: Placement,
    fingerprint: str,
) -> WorldModel:
    """The world of `empty_parts` filled with weights, which `read` returns by part and name; they are quantised on the
    way if `placement` says so and the denoiser's layers are not replaced already.
    """
    denoiser, autoencoder = parts["denoiser"], parts["autoencoder"]
    assert isinstance(denoiser, Denoiser)
    assert isinstance(autoencoder, Autoencoder)
    fill_placed(denoiser, read["denoiser"], placement)
    fill(autoencoder, read["autoencoder"], home(placement.offload, placement.device), placement.dtype)
    causal_video.lay_out(autoencoder.vae)
    for part in (denoiser, autoencoder):
        offload_part(part, placement.offload, placement.device)
    return WorldModel(config, denoiser, autoencoder, fingerprint, captured=placement.captured)


def known() -> list[str]:
    """Names of the embedded bundles."""
    return sorted(path.parent.name for path in EMBEDDED.glob(f"*/{DESCRIPTION}"))


def folder_of(name_or_path: str | Path, variant: Variant | None = None) -> Path:
    """The folder of an embedded bundle's name, or of a bundle, or of the variant of it that is asked for. BundleError
    where there is none."""
    folder = _named(name_or_path)
    if variant is None:
        return folder
    if variant not in get_args(Variant):
        raise ConfigError(f"variant is {variant!r}; {nearest(str(variant), get_args(Variant))}")
    other = folder.with_name(f"{folder.name}-{variant}")
    if (other / DESCRIPTION).is_file() and _variant(other) == variant:
        return other
    if _variant(folder) == variant:
        return folder
    beside = [path.parent for path in folder.parent.glob(f"{folder.name}-*/{DESCRIPTION}")]
    there = [_variant(path) for path in (folder, *sorted(beside))]
    raise BundleError(
        f"bundle {folder.name!r} has no variant {variant!r} ({other} holds none), only {', '.join(there)}; pass one of "
        f"these, or train it (sanawm train --help) and save it there."
    )


def _variant(folder: Path) -> str:
    return str(read_description(folder)[0]["config"].get("variant", "distilled"))


def _named(name_or_path: str | Path) -> Path:
    embedded = EMBEDDED / str(name_or_path)
    if isinstance(name_or_path, str) and "/" not in name_or_path and (embedded / DESCRIPTION).is_file():
        return embedded
    folder = Path(name_or_path).expanduser()
    if (folder / DESCRIPTION).is_file():
        return folder.resolve()
    if folder.is_dir():
        raise BundleError(f"folder {folder} is no bundle: it holds no {DESCRIPTION}; give the folder that holds one.")
    raise BundleError(f"bundle {str(name_or_path)!r} is unknown; {nearest(str(name_or_path), known())}")


def _as_stored(
    folder: Path, told: dict[str, Any], precision: Precision, layers: LayerList | None
) -> tuple[Precision, LayerList | None]:
    """The precision and list to load: those of a quantised bundle where it is one. ConfigError: others are asked for
    of it.
    """
    if "quantisation" not in told:
        return precision, layers
    stored = read_described(told["quantisation"], str(folder / DESCRIPTION))
    if precision not in ("auto", stored.precision) or layers not in (None, stored.layers):
        asked = f"precision {precision!r}" + ("" if layers is None else f" and layers {layers!r}")
        raise ConfigError(
            f"{folder} was asked for with {asked}, but holds {stored.precision} weights of the list {stored.layers!r}; "
            "pass 'auto', or load the bundle that it was made from."
        )
    return stored.precision, stored.layers


def _build(folder: Path, told: dict[str, Any], fingerprint: str, placement: Placement) -> WorldModel:
    config = _config(folder, told["config"])
    files = {name: placed(folder, name, expected) for name, expected in told["files"].items()}
    for name, expected in told["files"].items():
        verify(files[name], expected)
    parts = empty_parts(config)
    if "quantisation" in told:
        denoiser = parts["denoiser"]
        assert isinstance(denoiser, Denoiser) and placement.quantisation is not None
        check_layers(told["quantisation"]["layers"], denoiser, placement.quantisation, str(folder / DESCRIPTION))
        replace_layers(denoiser, placement.quantisation)
    read: dict[str, Callable[[str], Tensor]] = {}
    for stem, module in parts.items():
        weights = weights_of(files, stem)
        mismatch = differences(shapes_of(module), {name: tuple(x.shape) for name, x in weights.items()})
        if mismatch:
            raise BundleError(f"{folder}: the {stem}'s weights do not fit its config ({mismatch}); {AGAIN}")
        read[stem] = weights.__getitem__
    model = assemble(config, parts, read, placement, fingerprint)
    model.licence = str(told.get("licence", ""))
    return model


def latents_of(told: Mapping[str, Any]) -> dict[str, str]:
    """SHA-256 of the autoencoder's files, by name, of a bundle with this description."""
    return {name: x["sha256"] for name, x in told["files"].items() if name.startswith("autoencoder-")}


def _refined(folder: Path, told: dict[str, Any], model: WorldModel) -> WorldModel:
    base = folder.name.removesuffix(f"-{model.config.variant}")
    beside = folder.with_name(f"{base}-refiner")
    return model.with_refiner(load_small_refiner(beside, latents_of(told), model.device, model.dtype))


def _config(folder: Path, mapping: Any) -> WorldConfig:
    try:
        return from_mapping(WorldConfig, mapping)
    except ConfigError as error:
        raise BundleError(f"{folder / DESCRIPTION} describes a world this version cannot build: {error}") from error


def _described(folder: Path, names: list[str], model: WorldModel) -> dict[str, Any]:
    config, quantisation = model.config, described(model.denoiser)
    kind = {"format": PLAIN} if quantisation is None else {"format": QUANTISED, "quantisation": quantisation}
    return kind | {
        "name": config.name,
        "fps": config.fps,
        "frame": {"height": config.height, "width": config.width, "intrinsics": list(config.intrinsics)},
        "strides": {"temporal": config.temporal_stride, "spatial": config.spatial_stride},
        "timesteps": list(config.timesteps),
        "units": {"length": "metre", "time": "second", "units_per_metre": config.units_per_metre, "axes": "OpenCV"},
        "config": dataclasses.asdict(config),
        "files": {name: told_of(folder / name) for name in names},
    }


def _put_in_place(partial: Path, target: Path) -> None:
    """Renames the finished folder to `target`; an old bundle there goes only when the new one stands."""
    if not target.exists():
        partial.rename(target)
        return
    old = target.with_name(f".{target.name}.{os.getpid()}.old")
    target.rename(old)
    partial.rename(target)
    shutil.rmtree(old)
