"""The released SANA-WM put together: checkpoint, refiner and prompt reader; `sanawm_env/SanaWM-v0` is made here."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sanawm_env.adapters import Adapter
from sanawm_env.env import SanaWMEnv
from sanawm_env.errors import BundleError, ConfigError, SceneError
from sanawm_env.hub import Files, missing, open_files, revision_in
from sanawm_env.layouts import HUB_AUTOENCODER
from sanawm_env.model.checkpoint import differences, shapes_of
from sanawm_env.model.lora import merging, read_lora
from sanawm_env.model.offload import Offload, offload_part
from sanawm_env.model.public_keys import Variant
from sanawm_env.model.refiner import Refiner
from sanawm_env.model.refiner_state import RefinerConfig
from sanawm_env.placement import Placement, Precision, fill_placed, find_offload, place
from sanawm_env.planned_env import PlannedEnv
from sanawm_env.pretrained import from_pretrained, open_saved, plan
from sanawm_env.prompt_cache import PromptCache
from sanawm_env.prompts import PromptReader, negative_source, refiner_source, stage1_source
from sanawm_env.released import SIZE
from sanawm_env.scene import Scene, load_scene, prepare_image
from sanawm_env.spaces import check_choice
from sanawm_env.world import WorldModel

STREAMING = "Efficient-Large-Model/SANA-WM_streaming"
# Where each variant is released.
SOURCES: dict[Variant, str] = {
    "distilled": STREAMING,
    "bidirectional": HUB_AUTOENCODER["bidirectional"],
    "teacher": "Efficient-Large-Model/SANA-WM_chunk_causal",
}
TEXT_ENCODER = "Efficient-Large-Model/gemma-2-2b-it"
# Refiner and its text encoder below a checkpoint. The two releases carry different refiner weights under different
# names, so a refiner is never taken to latents of the other one (spec rollout.md 8 and 14).
REFINERS = {
    "distilled": ("refiner_diffusers", "gemma3_12b"),
    "bidirectional": ("refiner", "refiner/text_encoder"),
}


def make_env(
    source: str | Path | None = None,
    *,
    variant: Variant = "distilled",
    refiner: bool = False,
    refiner_lora: str | Path | None = None,
    image: Any = None,
    prompt: str | None = None,
    intrinsics: Sequence[float] | str | None = None,
    scene: str | Path | Scene | None = None,
    text_encoder: str | Path = TEXT_ENCODER,
    instruction: str | Path | None = None,
    prompt_cache: str | Path | None = None,
    autoencoder: str | Path | None = None,
    revision: str | None = None,
    device: str | None = None,
    precision: Precision = "auto",
    refiner_precision: Precision | None = None,
    offload: Offload | None = None,
    captured: bool | None = None,
    size: tuple[int, int] = SIZE,
    adapter: Adapter | Mapping[str, Any] | str | Path | None = None,
    render_mode: str | None = None,
    **options: Any,
) -> SanaWMEnv:
    """The environment of a released checkpoint; everything is downloaded and every prompt of its scene embedded here,
    nothing in reset or step.

    source: a Hub id or folder of the checkpoint; that of `SOURCES` if None. variant: "distilled" gives a `SanaWMEnv`.
    "bidirectional" and "teacher" denoise whole trajectories; they give a `PlannedEnv`, which plans a clip first and
    replays it, so that its steps cannot steer. autoencoder: of `from_pretrained`, for a checkpoint that has none.
    image: a picture or its path, with prompt and intrinsics (fx, fy, cx, cy in its pixels; the usual ones of 64 degrees
    if None); or scene: a `Scene` or a scene.yaml. refiner: whether the checkpoint's refiner runs too; refiner_lora: its
    low-rank weights, where they are kept apart. text_encoder: Gemma 2, a folder or Hub id. instruction: folder or file
    with the instruction that stands before prompts; the checkpoint's own if None. precision: of denoiser and refiner;
    refiner_precision: of the refiner alone, where it is to have another. `model.execution` says what runs of each.
    offload: "parts" or "blocks" for a card that is smaller than the model: its weights stay in host memory and are
    moved to the device only while they compute, a part or a transformer block at a time. captured: of `SanaWMEnv`.
    size: of frames. adapter: of `from_pretrained`. options: the rest of the environment's; the task is free driving
    unless one is named. ConfigError, SceneError or BundleError says what does not fit.
    """
    start = _start(image, prompt, intrinsics, scene, size)
    model, prompts = open_sana_wm(
        source,
        variant=variant,
        refiner=refiner,
        refiner_lora=refiner_lora,
        text_encoder=text_encoder,
        instruction=instruction,
        prompt_cache=prompt_cache,
        autoencoder=autoencoder,
        revision=revision,
        device=device,
        precision=precision,
        refiner_precision=refiner_precision,
        offload=offload,
        captured=captured,
        size=size,
        adapter=adapter,
    )
    if prompts is not None:
        prompts([start.prompt or "" if start is not None else ""])
        prompts.read_negative(1)
    given: dict[str, Any] = {"task": "drive", "scene": start, "prompts": prompts, **options}
    kind = SanaWMEnv if variant == "distilled" else PlannedEnv
    return kind(model, render_mode=render_mode, **given)


def open_sana_wm(
    source: str | Path | None = None,
    *,
    variant: Variant = "distilled",
    refiner: bool = False,
    refiner_lora: str | Path | None = None,
    text_encoder: str | Path = TEXT_ENCODER,
    instruction: str | Path | None = None,
    prompt_cache: str | Path | None = None,
    autoencoder: str | Path | None = None,
    revision: str | None = None,
    device: str | None = None,
    precision: Precision = "auto",
    refiner_precision: Precision | None = None,
    offload: Offload | None = None,
    captured: bool | None = None,
    size: tuple[int, int] = SIZE,
    adapter: Adapter | Mapping[str, Any] | str | Path | None = None,
) -> tuple[WorldModel, PromptReader | None]:
    """A released checkpoint of any variant, with its refiner if asked for, and what reads prompts for it (None for a
    model that reads none). Says on stderr what it is about to download. Arguments as in `make_env`; revision: of
    `source`, and of text encoder and autoencoder where those are the same repository.
    """
    check_choice("variant", variant, tuple(SOURCES))
    if refiner_precision is not None:
        _check_refiner_precision(refiner_precision, refiner, device, offload)
    if source is None:
        source = SOURCES[variant]
        # The teacher is released without an autoencoder.
        autoencoder = HUB_AUTOENCODER[variant] if autoencoder is None and variant == "teacher" else autoencoder
    files, parts = _find_refiner(source, variant, revision) if refiner else (None, ())
    _announce(plan(source, variant=variant, revision=revision, autoencoder=autoencoder))
    _announce([] if files is None else missing((files, name) for part in parts for name in files.model(part)))
    model = from_pretrained(
        source,
        variant=variant,
        revision=revision,
        device=device,
        precision=precision,
        offload=offload,
        captured=captured,
        autoencoder=autoencoder,
        size=size,
        adapter=adapter,
    )
    refined_text = None
    if files is not None:
        transformer, connectors, encoder = (files.fetch_model(part) for part in parts)
        refined = load_refiner(transformer, model, lora=refiner_lora, precision=refiner_precision, offload=offload)
        refined_text = refiner_source(encoder, connectors, positions=model.config.refiner_caption_length, device=device)
        model = model.with_refiner(refined)
    stage1 = None
    if model.config.denoiser.caption_channels is not None:
        at = revision_in(text_encoder, source, revision)
        read = open_files(text_encoder, at)
        _announce(missing((read, name) for name in read.model()))
        stage1 = stage1_source(
            text_encoder,
            _instruction_of(source, revision, instruction),
            positions=model.config.denoiser.caption_length,
            revision=at,
            device=device,
        )
    if stage1 is None and refined_text is None:
        return model, None
    guided = variant != "distilled" and model.config.schedule.guidance > 1
    negative = negative_source(stage1) if guided and stage1 is not None else None
    return model, PromptReader(
        cache=PromptCache(prompt_cache), denoiser=stage1, refiner=refined_text, negative=negative
    )


def load_refiner(
    folder: str | Path,
    model: WorldModel,
    *,
    lora: str | Path | None = None,
    precision: Precision | None = None,
    offload: Offload | None = None,
) -> Refiner:
    """The refiner whose transformer diffusers has saved in `folder`, for the worlds of `model` and on its device.

    lora: a file of low-rank weights that are kept apart, merged on loading. precision: as of `bundle.load`; None for
    what the denoiser of `model` has. offload: of `bundle.load`. BundleError lists tensors that are missing, unexpected
    or of a wrong shape, those of the audio half included, though it is never read.
    """
    own = Placement(
        device=model.device,
        dtype=model.dtype,
        offload=find_offload(offload, model.device),
        quantisation=model.denoiser.quantisation,
    )
    placement = own if precision is None else place(model.device, precision, offload)
    from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMLTX2RefinerTransformer3DModel

    told, stored = open_saved(Path(folder))
    with torch.device("meta"):
        transformer = SanaWMLTX2RefinerTransformer3DModel.from_config(told)
    wrong = differences(shapes_of(transformer), stored.shapes)
    if wrong:
        raise BundleError(f"refiner {folder} does not fit its config ({wrong}); download it again.")
    whole = dict(transformer.named_modules())
    world = model.config
    config = RefinerConfig(
        block_latents=world.chunk_latents,
        fps=world.fps,
        temporal_stride=world.temporal_stride,
        spatial_stride=world.spatial_stride,
    )
    refiner = Refiner(config, transformer)
    read = stored.read
    if lora is not None:
        gone = whole.keys() - dict(transformer.named_modules()).keys()
        read = merging(transformer, read, read_lora(lora), model.device, dropped=gone)
    # Only now is anything read, and nothing of the audio half, which the refiner has dropped.
    fill_placed(refiner, lambda name: read(name.removeprefix("transformer.")), placement)
    offload_part(refiner, placement.offload, model.device)
    return refiner


def _check_refiner_precision(precision: Precision, refiner: bool, device: str | None, offload: Offload | None) -> None:
    """Before anything is downloaded. ConfigError: there is no refiner. BackendError: the device cannot run it."""
    if not refiner:
        raise ConfigError(
            f"refiner_precision is {precision!r}, but no refiner is asked for; pass refiner=True too, or leave it out."
        )
    place(device, precision, offload)


def _find_refiner(source: str | Path, variant: Variant, revision: str | None) -> tuple[Files, tuple[str, str, str]]:
    """Where the refiner of the variant's latents is: folders of its transformer, its connectors, its text encoder."""
    if variant not in REFINERS:
        raise ConfigError(
            f"variant {variant!r} has no refiner of its own, only {', '.join(REFINERS)} have; pass one of them, "
            "or refiner=False."
        )
    refiner, encoder = REFINERS[variant]
    files = open_files(source, revision)
    if not files.directly_in(f"{refiner}/transformer"):
        other = [name for name, (folder, _) in REFINERS.items() if files.directly_in(f"{folder}/transformer")]
        hint = f"it holds that of a {other[0]} checkpoint, whose weights are others" if other else "it holds none"
        raise BundleError(
            f"{source} has no {refiner}/transformer, the refiner of {variant} latents: {hint}; take the release that "
            "carries both, or refiner=False."
        )
    return files, (f"{refiner}/transformer", f"{refiner}/connectors", encoder)


def _announce(files: list[tuple[str, int]]) -> None:
    for name, size in files:
        print(f"downloading {name} ({size / 2**30:.2f} GiB)", file=sys.stderr)


def _instruction_of(source: str | Path, revision: str | None, given: str | Path | None) -> str | Path | None:
    """Where the instruction is told: where the caller says, in the checkpoint, or (None) in diffusers' pipeline."""
    if given is not None:
        return given
    files = open_files(source, revision)
    told = [name for name in ("config.yaml", "model_index.json") if name in files.sizes]
    return files.path(told[0]).parent if told else None


def _start(
    image: Any, prompt: str | None, intrinsics: Sequence[float] | str | None, scene: Any, size: tuple[int, int]
) -> Scene | None:
    from PIL import Image

    if scene is not None:
        if image is not None or prompt is not None or intrinsics is not None:
            raise SceneError("scene is given beside image, prompt or intrinsics; put them into the scene.")
        return scene if isinstance(scene, Scene) else load_scene(scene, *size)
    if image is None:
        return None
    if isinstance(intrinsics, str):
        raise SceneError(f"intrinsics are {intrinsics!r}, allowed is (fx, fy, cx, cy); estimates belong in scene.yaml.")
    try:
        picture = Image.open(image) if isinstance(image, str | Path) else image
    except OSError as error:
        raise SceneError(f"image {str(image)!r} cannot be read ({error}); pass the path of a picture.") from error
    ready, lens = prepare_image(picture, *size, intrinsics)
    return Scene(image=ready, intrinsics=lens, prompt=prompt)
