"""The released SANA-WM checkpoints: found on the Hub or in a folder, listed, downloaded, checked, loaded, converted.

Nothing is built before every name and shape of the weights fits (spec rollout.md 1; key tables in spec dit.md 2).
"""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sanawm_env import bundle
from sanawm_env.bundle import Precision
from sanawm_env.errors import BundleError, ConfigError, StorageError, nearest
from sanawm_env.model.autoencoder import AutoencoderConfig
from sanawm_env.model.checkpoint import (
    StoredWeights,
    differences,
    listed,
    open_pickled,
    open_safetensors,
    shapes_of,
)
from sanawm_env.model.config import DenoiserConfig, Schedule, WorldConfig
from sanawm_env.model.denoiser import Denoiser
from sanawm_env.model.offload import Offload
from sanawm_env.model.public_keys import (
    STREAMING_ENTRY,
    Variant,
    autoencoder_config,
    autoencoder_names,
    caption_length,
    denoiser_config,
    denoiser_names,
)
from sanawm_env.probe import check_camera
from sanawm_env.scene import USUAL_FOCAL
from sanawm_env.world import WorldModel

FPS = 16.0
SIZE = (704, 1280)
# Noise levels of the distilled model; the others never take few steps (spec rollout.md 6.1).
TIMESTEPS = {"distilled": (1000, 960, 889, 727)}
SHARD_BYTES = 2 * 2**30
WEIGHTS = (".safetensors", ".pt")
STREAMING_WEIGHTS = "sana_dit/model.pt"
ORIGINAL_CONFIG = "config.yaml"
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
WHOLE_WEIGHTS = "diffusion_pytorch_model.safetensors"
AUTOENCODERS = ("vae", "ltx2_causal_vae")
HUB_AUTOENCODER = {
    "teacher": "Efficient-Large-Model/SANA-WM_bidirectional",
    "distilled": "Efficient-Large-Model/SANA-WM_streaming",
    "bidirectional": "Efficient-Large-Model/SANA-WM_bidirectional",
}
LAYOUTS = (
    "dit/*.safetensors with config.yaml (original)",
    "transformer/*.safetensors (diffusers)",
    f"{STREAMING_WEIGHTS} (streaming)",
    f"{bundle.DESCRIPTION} (our own bundle)",
)

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_SHARD = re.compile(r"(.*)-(\d{5})-of-(\d{5})\.safetensors")


def from_pretrained(
    source: str | Path,
    *,
    variant: Variant,
    revision: str | None = None,
    device: torch.device | str | None = None,
    precision: Precision = "auto",
    offload: Offload | None = None,
    autoencoder: str | Path | None = None,
    size: tuple[int, int] = SIZE,
) -> WorldModel:
    """The world model of a released checkpoint; every call reads it anew.

    source: a Hub id such as "Efficient-Large-Model/SANA-WM_streaming", or a folder in one of the public layouts
    (`LAYOUTS`). variant: what its weights were trained as. revision: branch, tag or commit of a Hub id. device,
    precision, offload: of `bundle.load`. autoencoder: where the autoencoder comes from, for a source that has none (the
    chunk-causal teacher) or in place of its own: a Hub id, a folder with one inside, or its own folder. size: height
    and width of frames in pixels; the released weights are trained for 704x1280. A bundle of ours has both of its own.
    What is missing is downloaded; `plan` tells it beforehand. BundleError: nothing is found, or tensors are missing,
    unexpected, of a wrong shape or not finite. Spec rollout.md 1 and 4, dit.md 1 and 2.
    """
    target = bundle.find_device(device)
    dtype = bundle.find_dtype(precision, target)
    moved = bundle.find_offload(offload, target)
    chosen = _choose(source, variant, revision, autoencoder)
    if chosen.layout.kind == "bundle":
        return _our_bundle(chosen, target, precision, size, moved)
    return _build(chosen, target, dtype, size, moved)


def plan(
    source: str | Path, *, variant: Variant, revision: str | None = None, autoencoder: str | Path | None = None
) -> list[tuple[str, int]]:
    """What `from_pretrained` with these arguments would download: names ("organisation/name/file") and bytes.

    Empty for folders and for what is in the Hub's cache already. Downloads nothing itself.
    """
    chosen = _choose(source, variant, revision, autoencoder)
    return [(f"{place.name}/{name}", place.sizes[name]) for place, name in chosen.needed if not place.has(name)]


def convert(
    source: str | Path,
    target: str | Path,
    *,
    variant: Variant,
    revision: str | None = None,
    autoencoder: str | Path | None = None,
    size: tuple[int, int] = SIZE,
    replace: bool = False,
) -> Path:
    """Writes a released checkpoint as a bundle in bf16, which `bundle.load` reads; returns its folder.

    The arguments are those of `from_pretrained`. replace: whether a bundle in `target` may be replaced. The bundle is
    there whole or not at all. BundleError when something is in `target` already, or as `from_pretrained`.
    """
    bundle.check_target(target, replace)
    chosen = _choose(source, variant, revision, autoencoder)
    if chosen.layout.kind == "bundle":
        raise BundleError(f"{chosen.place.name} is a bundle already; load it with sanawm_env.load, or copy its folder.")
    model = _build(chosen, torch.device("cpu"), torch.bfloat16, size)
    provenance = {
        "source": chosen.place.name,
        "commit": chosen.place.commit,
        "variant": variant,
        "autoencoder": {"source": chosen.autoencoder_place.name, "commit": chosen.autoencoder_place.commit},
        "weights_sha256": model.fingerprint,
    }
    licence = f"that of {chosen.place.name} and of {chosen.autoencoder_place.name}; read both before passing this on"
    return bundle.save(target, model, provenance, bits=16, replace=replace, shard_bytes=SHARD_BYTES, licence=licence)


def open_saved(folder: Path) -> tuple[dict[str, Any], StoredWeights]:
    """config.json and weights of a module as diffusers saves it in a folder. BundleError: one is missing or damaged."""
    place = _folder(folder, str(folder), None)
    weights = _weights_in(place, "")
    if "config.json" not in place.sizes or not weights:
        raise BundleError(
            f"{folder} holds {listed(sorted(place.sizes)) or 'no files'}, expected config.json and *.safetensors; copy "
            "or download it again."
        )
    return _read_mapping(place.path("config.json")), open_safetensors(place.path(name) for name in weights)


@dataclass(frozen=True)
class _Place:
    """Files at hand or to be had: sizes by name, and the path of each, downloaded first where it must be.

    commit: of a Hub id, None for a folder.
    """

    name: str
    sizes: Mapping[str, int]
    commit: str | None
    has: Callable[[str], bool]
    path: Callable[[str], Path]


@dataclass(frozen=True)
class _Layout:
    """kind: of the four layouts. weights: files of the denoiser. config: what is known about it."""

    kind: Literal["original", "diffusers", "streaming", "bundle"]
    weights: tuple[str, ...]
    config: tuple[str, ...]


@dataclass(frozen=True)
class _Chosen:
    """Everything that a checkpoint's loading reads."""

    variant: Variant
    place: _Place
    layout: _Layout
    autoencoder_place: _Place
    autoencoder_config: str
    autoencoder_weights: tuple[str, ...]

    @property
    def needed(self) -> list[tuple[_Place, str]]:
        """Every file, the small ones first, so that what they can say is said before a long download."""
        if self.layout.kind == "bundle":
            return [(self.place, name) for name in (*self.layout.config, *self.layout.weights)]
        return [
            *((self.place, name) for name in self.layout.config),
            (self.autoencoder_place, self.autoencoder_config),
            *((self.autoencoder_place, name) for name in self.autoencoder_weights),
            *((self.place, name) for name in self.layout.weights),
        ]


def _choose(source: str | Path, variant: Variant, revision: str | None, autoencoder: str | Path | None) -> _Chosen:
    if variant not in get_args(Variant):
        raise ConfigError(f"variant is {variant!r}; {nearest(str(variant), get_args(Variant))}")
    place = _open(source, revision)
    layout = _layout(place)
    if layout.kind == "bundle":
        if autoencoder is not None:
            raise ConfigError(
                f"autoencoder is {str(autoencoder)!r}, but {place.name} is a bundle with its own; drop it."
            )
        return _Chosen(variant, place, layout, place, bundle.DESCRIPTION, ())
    if layout.kind == "streaming" and variant != "distilled":
        raise ConfigError(f"variant is {variant!r}, but {place.name} holds the streaming model; pass 'distilled'.")
    home = place if autoencoder is None else _open(autoencoder, None)
    # A folder given as the autoencoder may be the autoencoder's own.
    folders = AUTOENCODERS if autoencoder is None else (*AUTOENCODERS, "")
    for folder in folders if variant != "distilled" else ("ltx2_causal_vae", *folders):
        config, weights = _below(folder, "config.json"), _weights_in(home, folder)
        if config in home.sizes and weights:
            return _Chosen(variant, place, layout, home, config, weights)
    raise BundleError(
        f"{home.name} holds no autoencoder (config.json and *.safetensors in one of {', '.join(AUTOENCODERS)}); pass "
        f"autoencoder={HUB_AUTOENCODER[variant]!r}, or a folder that holds one."
    )


def _layout(place: _Place) -> _Layout:
    if bundle.DESCRIPTION in place.sizes:
        return _Layout("bundle", tuple(_directly_in(place, "")), (bundle.DESCRIPTION,))
    if STREAMING_WEIGHTS in place.sizes:
        return _Layout("streaming", (STREAMING_WEIGHTS,), _those_of(place, ORIGINAL_CONFIG))
    if weights := _weights_in(place, "transformer"):
        return _Layout("diffusers", weights, _those_of(place, "transformer/config.json", SCHEDULER_CONFIG))
    if weights := _weights_in(place, "dit"):
        if ORIGINAL_CONFIG not in place.sizes:
            raise BundleError(f"{place.name} has weights in dit/ but no {ORIGINAL_CONFIG}; take it from the original.")
        return _Layout("original", weights, (ORIGINAL_CONFIG,))
    raise BundleError(
        f"{place.name} is no SANA-WM checkpoint: allowed is {'; '.join(LAYOUTS)}; found are "
        f"{listed(sorted(place.sizes)) or 'no files'}. Give the folder that holds one, or connect to the Hub once if "
        "its download was cut short."
    )


def _those_of(place: _Place, *names: str) -> tuple[str, ...]:
    return tuple(name for name in names if name in place.sizes)


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _directly_in(place: _Place, folder: str) -> list[str]:
    """The safetensors files of a folder itself, sorted."""
    start = _below(folder, "")
    names = [name for name in place.sizes if name.startswith(start) and name.endswith(".safetensors")]
    return sorted(name for name in names if "/" not in name.removeprefix(start))


def _weights_in(place: _Place, folder: str) -> tuple[str, ...]:
    """The weight files of a folder: diffusers' whole or sharded ones, else all. BundleError names a missing shard."""
    names = _directly_in(place, folder)
    if _below(folder, WHOLE_WEIGHTS) in names:
        return (_below(folder, WHOLE_WEIGHTS),)
    shards = [name for name in names if _SHARD.fullmatch(name)]
    # Copies in other number formats carry their format before the shard's number.
    plain = [name for name in shards if name.startswith(_below(folder, WHOLE_WEIGHTS).replace(".safetensors", "-"))]
    for name in plain or shards:
        match = _SHARD.fullmatch(name)
        assert match is not None
        wanted = (f"{match[1]}-{index:05d}-of-{match[3]}.safetensors" for index in range(1, int(match[3]) + 1))
        missing = [shard for shard in wanted if shard not in names]
        if missing:
            raise BundleError(
                f"{place.name} lacks {len(missing)} of {int(match[3])} weight files ({listed(missing)}); "
                "copy or download them again."
            )
    return tuple(plain or shards or names)


def _open(source: str | Path, revision: str | None) -> _Place:
    folder = Path(source).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ConfigError(f"revision is {revision!r}, but {folder} is a folder; drop it, or give a Hub id.")
        return _folder(folder, str(folder), None)
    name = str(source)
    if isinstance(source, Path) or not _HUB_ID.fullmatch(name):
        raise BundleError(
            f"{name!r} is neither a folder nor a Hub id (organisation/name, such as "
            f"{HUB_AUTOENCODER['distilled']!r}); give one of the two."
        )
    return _repository(name, revision)


def _folder(folder: Path, name: str, commit: str | None) -> _Place:
    """The files of a folder and of those directly below it; nothing else is ever read."""
    files = [path for pattern in ("*", "*/*") for path in folder.glob(pattern) if path.is_file()]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    return _Place(name, sizes, commit, sizes.__contains__, folder.joinpath)


def _repository(name: str, revision: str | None) -> _Place:
    """A repository of the Hub as the Hub lists it, or as it lies in the cache where the Hub cannot be asked."""
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

    at = f"{name} at revision {revision!r}" if revision else name
    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise BundleError(
            f"{at} is not on the Hub, not for everybody, or no folder here; check the name and the revision, or log in "
            "with the Hub's own command line."
        ) from error
    except (HTTPError, OSError) as error:
        return _cached(name, revision, error)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}

    def path(file: str) -> Path:
        try:
            if not file.endswith(WEIGHTS):
                # Asked for by the name of its revision, a file makes the cache remember which commit that is: offline,
                # nothing else tells. The commit itself is what is read, should the revision move on meanwhile.
                hf_hub_download(name, file, revision=revision)
            return Path(hf_hub_download(name, file, revision=info.sha))
        except (HTTPError, OSError) as error:
            reason = " ".join(str(error).split())
            raise StorageError(
                f"{file} of {at} cannot be downloaded ({reason:.200}); check the connection and the space on the disk "
                "and start again: it goes on where it stopped."
            ) from error

    def has(file: str) -> bool:
        return isinstance(try_to_load_from_cache(name, file, revision=info.sha), str)

    return _Place(name, sizes, info.sha, has, path)


def _cached(name: str, revision: str | None, reason: Exception) -> _Place:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    cache = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")
    asked = revision or constants.DEFAULT_REVISION
    branch = cache / "refs" / asked
    commit = branch.read_text().strip() if branch.is_file() else asked
    snapshot = cache / "snapshots" / commit
    if snapshot.is_dir():
        return _folder(snapshot, name, commit)
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{' '.join(str(reason).split()):.200}"
    raise BundleError(
        f"{name} (revision {asked!r}) is not in the cache {constants.HF_HUB_CACHE}, and the Hub cannot be asked "
        f"({why}); connect once without HF_HUB_OFFLINE to download it, or give a folder that holds it."
    ) from reason


def _our_bundle(
    chosen: _Chosen, device: torch.device, precision: Precision, size: tuple[int, int], offload: Offload | None
) -> WorldModel:
    paths = [place.path(name) for place, name in chosen.needed]
    model = bundle.load(paths[0].parent, device=device, precision=precision, offload=offload)
    config = model.config
    if config.variant != chosen.variant:
        raise ConfigError(
            f"variant is {chosen.variant!r}, but {chosen.place.name} is a bundle of a {config.variant} model; "
            f"pass {config.variant!r}."
        )
    if size not in (SIZE, (config.height, config.width)):
        raise ConfigError(
            f"size is {size}, but {chosen.place.name} is a bundle of {config.height}x{config.width} frames; drop it, "
            "or convert the checkpoint again with this size."
        )
    return model


def _build(
    chosen: _Chosen, device: torch.device, dtype: torch.dtype, size: tuple[int, int], offload: Offload | None = None
) -> WorldModel:
    told = _told(chosen)
    read_config = autoencoder_config(_read_mapping(chosen.autoencoder_place.path(chosen.autoencoder_config)))
    if chosen.variant == "distilled" and not read_config.decoder_causal:
        raise BundleError(
            f"the autoencoder of {chosen.autoencoder_place.name} looks ahead (decoder_causal is false), but a "
            f"distilled model decodes as a stream; pass autoencoder={HUB_AUTOENCODER['distilled']!r}."
        )
    encoded = open_safetensors(chosen.autoencoder_place.path(name) for name in chosen.autoencoder_weights)
    paths = [chosen.place.path(name) for name in chosen.layout.weights]
    if chosen.layout.kind == "streaming":
        raw = open_pickled(paths[0], STREAMING_ENTRY)
    else:
        raw = open_safetensors(paths)
    stored = {
        "denoiser": raw.renamed(denoiser_names(raw.shapes)),
        "autoencoder": encoded.renamed(autoencoder_names(encoded.shapes)),
    }
    denoiser = denoiser_config(
        stored["denoiser"].shapes, told, variant=chosen.variant, length=caption_length(raw.shapes)
    )
    config = _world_config(chosen, denoiser, read_config, told, size)
    parts = bundle.empty_parts(config)
    wrong = {part: differences(shapes_of(module), stored[part].shapes) for part, module in parts.items()}
    if any(wrong.values()):
        said = "; ".join(f"{part}: {problem}" for part, problem in wrong.items() if problem)
        raise BundleError(
            f"the weights of {chosen.place.name} do not fit: {said}. Nothing was loaded; download the checkpoint "
            "again, with the config files that belong to it."
        )
    inspected = _Inspected(config, stored)
    model = bundle.assemble(config, parts, inspected.readers, device, dtype, "", offload)
    if inspected.not_finite:
        raise BundleError(
            f"{len(inspected.not_finite)} tensors of {chosen.place.name} hold NaN or infinity "
            f"({listed(inspected.not_finite)}), allowed are finite numbers; download the checkpoint again."
        )
    model.fingerprint = inspected.fingerprint
    check_camera(model)
    return model


class _Inspected:
    """Readers that look at every tensor that passes: whether it is finite, and what the fingerprint makes of it.

    The fingerprint is SHA-256 over configuration, names and values as stored, so that it does not depend on files,
    precision or device.
    """

    def __init__(self, config: WorldConfig, stored: Mapping[str, StoredWeights]) -> None:
        self._digest = hashlib.sha256(json.dumps(dataclasses.asdict(config), sort_keys=True).encode())
        self.not_finite: list[str] = []
        self.readers = {part: self._reader(part, weights) for part, weights in stored.items()}

    @property
    def fingerprint(self) -> str:
        return self._digest.hexdigest()

    def _reader(self, part: str, weights: StoredWeights) -> Callable[[str], Tensor]:
        def read(name: str) -> Tensor:
            x = weights.read(name)
            if not bool(torch.isfinite(x).all()):
                self.not_finite.append(f"{part}.{name}")
            self._digest.update(f"{part}.{name} {x.dtype} {tuple(x.shape)}".encode())
            self._digest.update(x.reshape(-1).view(torch.uint8).numpy().data)
            return x

        return read


def world_config(
    variant: Variant,
    denoiser: DenoiserConfig,
    autoencoder: AutoencoderConfig,
    size: tuple[int, int] = SIZE,
    shift: float | None = None,
) -> WorldConfig:
    """The world of a released variant from its parts: clock, noise levels, a usual lens where a scene names none.

    shift: of the many-step sampler, the released one where None.
    """
    height, width = size
    focal = USUAL_FOCAL * max(height, width)
    return WorldConfig(
        name=f"sana-wm-{variant}",
        fps=FPS,
        height=height,
        width=width,
        # camera.py counts pixels at their centres, so the middle of the frame lies half a pixel before size / 2.
        intrinsics=(focal, focal, (width - 1) / 2, (height - 1) / 2),
        variant=variant,
        timesteps=TIMESTEPS.get(variant, (1000,)),
        schedule=Schedule() if shift is None else Schedule(shift=shift),
        units_per_metre=None,
        denoiser=denoiser,
        autoencoder=autoencoder,
    )


def released_config(
    variant: Variant,
    shape: DenoiserConfig | None = None,
    autoencoder: AutoencoderConfig | None = None,
    size: tuple[int, int] = SIZE,
) -> WorldConfig:
    """The world of a released variant as the shapes of its checkpoint tell it, without a checkpoint (spec dit.md 1.1,
    rollout.md 4).

    shape, autoencoder, size: others in place of the released ones, to try out in miniature.
    """
    from diffusers.models.autoencoders.autoencoder_kl_ltx2 import AutoencoderKLLTX2Video

    if autoencoder is None:
        # The released autoencoder is diffusers' class as it stands.
        arguments = inspect.signature(AutoencoderKLLTX2Video).parameters.values()
        given = {x.name: list(x.default) if isinstance(x.default, tuple) else x.default for x in arguments}
        autoencoder = autoencoder_config(given)
    shape = DenoiserConfig() if shape is None else shape
    with torch.device("meta"):
        shapes = shapes_of(Denoiser(shape))
    denoiser = denoiser_config(shapes, {}, variant=variant, length=shape.caption_length)
    return world_config(variant, denoiser, autoencoder, size)


def _world_config(
    chosen: _Chosen,
    denoiser: DenoiserConfig,
    autoencoder: AutoencoderConfig,
    told: Mapping[str, Any],
    size: tuple[int, int],
) -> WorldConfig:
    if autoencoder.latent_channels != denoiser.in_channels:
        raise BundleError(
            f"the autoencoder of {chosen.autoencoder_place.name} has {autoencoder.latent_channels} latent channels, "
            f"the denoiser of {chosen.place.name} reads {denoiser.in_channels}; pass the one it was trained with."
        )
    if denoiser.plucker_channels != 6 * autoencoder.temporal_stride:
        raise BundleError(
            f"the denoiser of {chosen.place.name} reads {denoiser.plucker_channels} ray channels, expected 6 for each "
            f"of the {autoencoder.temporal_stride} frames of a latent; pass the autoencoder that it was trained with."
        )
    shift = told.get("inference_flow_shift")
    return world_config(chosen.variant, denoiser, autoencoder, size, None if shift is None else float(shift))


def _told(chosen: _Chosen) -> dict[str, Any]:
    """Settings of the config files that matter, in one mapping. ConfigError when they are of another variant."""
    place, told = chosen.place, dict[str, Any]()
    for name in chosen.layout.config:
        content = _read_mapping(place.path(name))
        if name == ORIGINAL_CONFIG:
            for section, wanted in (("scheduler", ("inference_flow_shift", "pred_sigma")), ("text_encoder", None)):
                group = _section(content, section, place.name)
                told |= {key: value for key, value in group.items() if wanted is None or key in wanted}
            told |= _section(content, "model", place.name)
        elif name == SCHEDULER_CONFIG:
            told |= {"inference_flow_shift": content["shift"]} if "shift" in content else {}
        else:
            told |= content
    _check_variant(chosen, str(told.get("camctrl_type", "")))
    return told


def _check_variant(chosen: _Chosen, attention: str) -> None:
    # The streaming config names the bidirectional attention too and ignores it (spec dit.md 1.2).
    if chosen.layout.kind != "original":
        return
    written = "teacher" if attention.startswith("ChunkCausal") else "bidirectional"
    if attention and chosen.variant != written:
        raise ConfigError(
            f"variant is {chosen.variant!r}, but {ORIGINAL_CONFIG} of {chosen.place.name} describes a {written} model "
            f"(camctrl_type {attention}); pass {written!r}."
        )


def _section(content: Mapping[str, Any], name: str, place: str) -> dict[str, Any]:
    group = content.get(name, {})
    if not isinstance(group, dict):
        raise BundleError(f"{ORIGINAL_CONFIG} of {place}: {name} is {group!r:.80}, expected a group of settings.")
    return group


def _read_mapping(path: Path) -> dict[str, Any]:
    """A YAML or JSON file that holds one group of settings."""
    import yaml

    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text) if path.suffix == ".json" else yaml.safe_load(text)
    except (OSError, ValueError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise BundleError(f"{path} cannot be read ({reason:.200}); copy or download it again.") from error
    if not isinstance(content, dict):
        raise BundleError(f"{path} holds {content!r:.80}, expected a group of settings; copy or download it again.")
    return content
