"""WorldState: everything that outlives a step, for a batch of worlds. Computes no frames."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sanawm_env.errors import SpentStateError, StateError, StorageError
from sanawm_env.model.feed_forward import Memory
from sanawm_env.model.refiner_state import RefinerState

if TYPE_CHECKING:
    from sanawm_env.model.config import WorldConfig
    from sanawm_env.source import WorldSource

FORMAT = "sanawm-world-state-1"
HOST_FIELDS = ("chunk", "seed", "horizon", "origin", "pose", "intrinsics", "units")
ON_HOST = (*HOST_FIELDS, "refiner.position")


@dataclass
class StepOutput:
    """What one step gives: frames uint8 [B, F, H, W, 3] or None, latents [B, n, channels, h, w] of the denoiser, poses
    [B, F, 4, 4] float64, and what the refiner made of the latents, in their shape, or None.
    """

    frames: Tensor | None
    latents: Tensor
    poses: Tensor
    refined: Tensor | None = None

    @property
    def decoded(self) -> Tensor:
        """The latents that the frames are decoded from."""
        return self.latents if self.refined is None else self.refined


@dataclass(kw_only=True)
class WorldState:
    """A batch of running worlds, one row each; every tensor has a shape fixed by the bundle and the tier.

    chunk: [B] chunks done, int64. seed: [B] int64. horizon: [B] frames after which an episode is cut, -1 for none.
    origin, pose: [B, 4, 4] float64, first and latest camera-to-world in the caller's world. intrinsics: [B, 4] in
    frame pixels. units: [B] float64, model units a metre, NaN where unknown (one then counts as a metre). These
    seven live on the host. first_latent: [B, channels, h, w]. text: hidden [B, L, C] and mask [B, L] (True =
    attend) of the prompt, refiner_hidden and refiner_mask where there is a refiner; empty for a model without text.
    memory: one dict a denoiser block. decoder: the decode cache, refiner: the refiner's window; both None in the
    "plan" tier, the latter also without a refiner. fingerprint: of the bundle that made the state.
    """

    chunk: Tensor
    seed: Tensor
    horizon: Tensor
    origin: Tensor
    pose: Tensor
    intrinsics: Tensor
    units: Tensor
    first_latent: Tensor
    text: dict[str, Tensor]
    memory: list[Memory]
    decoder: Memory | None
    refiner: RefinerState | None
    fingerprint: str
    frames_per_chunk: int
    _spent: bool = field(default=False, repr=False)

    @property
    def batch_size(self) -> int:
        return self.chunk.shape[0]

    @property
    def device(self) -> torch.device:
        return self.first_latent.device

    @property
    def tier(self) -> str:
        return "plan" if self.decoder is None else "full"

    @property
    def frame(self) -> Tensor:
        """[B] index of the latest frame; the first picture is frame 0."""
        return self.chunk * self.frames_per_chunk

    def check_usable(self) -> None:
        """Raises SpentStateError when an earlier step has advanced this state."""
        if self._spent:
            raise SpentStateError(
                "this WorldState was advanced by an earlier step and is spent; use the state that step returned, "
                "or take state.clone() before stepping to keep this instant."
            )

    def spend(self) -> None:
        """Marks the state as advanced; only `world.step` and `rollout` do so."""
        self._spent = True

    def tensors(self) -> dict[str, Tensor]:
        """All tensors under flat names, batch first."""
        flat = {name: getattr(self, name) for name in (*HOST_FIELDS, "first_latent")}
        flat |= {f"text.{name}": x for name, x in self.text.items()}
        flat |= {f"memory.{index}.{name}": x for index, block in enumerate(self.memory) for name, x in block.items()}
        flat |= {f"decoder.{name}": x for name, x in (self.decoder or {}).items()}
        return flat | {f"refiner.{name}": x for name, x in (self.refiner.tensors() if self.refiner else {}).items()}

    def map(self, change: Callable[[str, Tensor], Tensor]) -> WorldState:
        """A new state whose tensors are `change(flat name, tensor)`."""
        self.check_usable()
        return self._with({name: change(name, x) for name, x in self.tensors().items()})

    def _with(self, flat: dict[str, Tensor]) -> WorldState:
        memory = [{name: flat[f"memory.{index}.{name}"] for name in block} for index, block in enumerate(self.memory)]
        decoder = None if self.decoder is None else {name: flat[f"decoder.{name}"] for name in self.decoder}
        refiner = self.refiner and self.refiner.map(lambda name, _: flat[f"refiner.{name}"])
        text = {name: flat[f"text.{name}"] for name in self.text}
        plain: dict[str, Any] = {name: flat[name] for name in (*HOST_FIELDS, "first_latent")}
        return replace(self, text=text, memory=memory, decoder=decoder, refiner=refiner, **plain)

    def clone(self) -> WorldState:
        """An independent copy."""
        return self.map(lambda _, x: x.clone())

    def to(self, device: torch.device | str) -> WorldState:
        """The state with its large tensors on another device."""
        return self.map(lambda name, x: x if name in ON_HOST else x.to(device))

    def plan(self) -> WorldState:
        """A copy without decode cache and refiner window: enough to plan, a step of it gives no frames."""
        kept = self.clone()
        kept.decoder = kept.refiner = None
        return kept

    def fork(self, n: int) -> WorldState:
        """n copies of every world, row-major: rows 0 .. n-1 are copies of world 0. Each keeps its seed."""
        if n < 1:
            raise StateError(f"fork got n = {n}, allowed n >= 1.")
        return self.map(lambda _, x: x.repeat_interleave(n, dim=0))

    def select(self, rows: Tensor | Sequence[int] | Sequence[bool]) -> WorldState:
        """A copy of the given worlds, by indices or by a mask of length B."""
        index = self._rows(rows)
        return self.map(lambda _, x: x[index.to(x.device)])

    def write(self, slots: Tensor | Sequence[int] | Sequence[bool], other: WorldState) -> WorldState:
        """This state with worlds `slots` replaced by the rows of `other`; no other world is touched. Neither input
        is changed.
        """
        other.check_usable()
        index = self._rows(slots)
        mine, theirs = self.tensors(), other.tensors()
        if other.fingerprint != self.fingerprint or mine.keys() != theirs.keys():
            raise StateError(
                f"write got a state of bundle {other.fingerprint[:12]!r}, tier {other.tier}; allowed is bundle "
                f"{self.fingerprint[:12]!r}, tier {self.tier}; make it with the same model and tier."
            )
        if other.batch_size != index.numel():
            raise StateError(f"write got {other.batch_size} worlds for {index.numel()} slots; pass one world a slot.")

        def written(name: str, x: Tensor) -> Tensor:
            # Memory that is quick to copy to a device stays so.
            kept = torch.empty_like(x, pin_memory=x.is_pinned()).copy_(x)
            return kept.index_copy_(0, index.to(x.device), theirs[name].to(x.device, x.dtype))

        return self.map(written)

    def _rows(self, rows: Tensor | Sequence[int] | Sequence[bool]) -> Tensor:
        index = torch.as_tensor(rows)
        if index.dtype == torch.bool:
            if index.shape != (self.batch_size,):
                raise StateError(
                    f"mask has shape {tuple(index.shape)}, allowed is ({self.batch_size},): one entry a world."
                )
            index = index.nonzero()[:, 0]
        outside = index.numel() and not bool(((index >= 0) & (index < self.batch_size)).all())
        if outside or index.ndim != 1:
            raise StateError(f"rows are {index.tolist()}, allowed are indices 0 .. {self.batch_size - 1}.")
        return index.long().cpu()

    def nbytes(self) -> dict[str, int]:
        """Bytes by part: recurrent state, convolution tails, softmax window, decode cache, refiner, the rest, total."""
        parts = dict.fromkeys(("recurrent", "tails", "window", "decoder", "refiner", "other"), 0)
        for name, x in self.tensors().items():
            parts[_part(name)] += x.numel() * x.element_size()
        return parts | {"total": sum(parts.values())}

    def save(self, path: str | Path) -> None:
        """Writes the state to one safetensors file, complete or not at all."""
        self.check_usable()
        target = Path(path)
        partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
        metadata = {"format": FORMAT, "fingerprint": self.fingerprint, "tier": self.tier}
        try:
            save_file({name: x.detach().cpu().contiguous() for name, x in self.tensors().items()}, partial, metadata)
            partial.replace(target)
        except (OSError, SafetensorError) as error:
            partial.unlink(missing_ok=True)
            raise StorageError(
                f"state cannot be written to {target}: {error}; choose a writable folder with free space."
            ) from error

    @staticmethod
    def load(path: str | Path, model: WorldSource) -> WorldState:
        """The state saved at `path`, on the model's device. Raises StateError when it is not of this model."""
        try:
            with safe_open(str(path), framework="pt") as file:
                metadata = file.metadata() or {}
                flat = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        except (OSError, SafetensorError) as error:
            raise StorageError(
                f"{path} is not a readable world state: {error}; save it again with state.save(path)."
            ) from error
        if metadata.get("format") != FORMAT:
            raise StateError(
                f"{path} has format {metadata.get('format')!r}, allowed is {FORMAT!r}; save it with this version."
            )
        if metadata["fingerprint"] != model.fingerprint:
            raise StateError(
                f"{path} was saved by bundle {metadata['fingerprint'][:12]!r}, the loaded one is "
                f"{model.fingerprint[:12]!r}; load the bundle that made it."
            )
        template = model.empty_state(flat["chunk"].shape[0], decoder=metadata["tier"] == "full")
        _check_shapes(path, flat, template.tensors())
        return template._with(flat).to(model.device)


def fresh_fields(batch: int, config: WorldConfig) -> dict[str, Any]:
    """The fields on the host, of worlds in which nothing has happened yet."""
    identity = torch.eye(4, dtype=torch.float64).expand(batch, 4, 4)
    whole = torch.zeros(batch, dtype=torch.int64)
    return {
        "chunk": whole.clone(),
        "seed": whole.clone(),
        "horizon": whole - 1,
        "origin": identity.clone(),
        "pose": identity.clone(),
        "intrinsics": torch.tensor(config.intrinsics).expand(batch, 4).clone(),
        "units": torch.full((batch,), config.units_per_metre or math.nan, dtype=torch.float64),
    }


def _part(name: str) -> str:
    kind = name.split(".")[-1]
    if name.startswith(("decoder.", "refiner.")):
        return name.split(".")[0]
    if kind in ("state", "normaliser", "camera_state"):
        return "recurrent"
    if kind.endswith("_tail"):
        return "tails"
    return "window" if kind.startswith(("sink_", "previous_")) else "other"


def _check_shapes(path: str | Path, flat: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    wrong = sorted(flat.keys() ^ expected.keys())
    wrong += [name for name in flat.keys() & expected.keys() if flat[name].shape != expected[name].shape]
    wrong += [name for name in flat.keys() & expected.keys() if flat[name].dtype != expected[name].dtype]
    if wrong:
        raise StateError(
            f"{path} differs from the loaded model in {wrong[:3]} ({len(wrong)} tensors); "
            "load the bundle and precision that made it."
        )
