"""Low-rank adapters in files: which model each belongs to, and models with one added to their weights."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sanawm_env.config import from_mapping
from sanawm_env.datasets.atomic import appearing
from sanawm_env.errors import BundleError, ConfigError
from sanawm_env.model.lora import LowRank, merging, read_lora
from sanawm_env.model.offload import is_offloaded
from sanawm_env.world import WorldModel

NAME, FINGERPRINT = "base", "base_sha256"  # of the model that it was trained beside, in the file's metadata


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """path: a .safetensors file of `sanawm train adapt`, or with PEFT's or diffusers' names. scale: of what it adds.
    any_base: take it although its file names another model, as a student that came from the named one; what it then
    does is for you to judge.
    """

    path: Path
    scale: float = 1.0
    any_base: bool = False

    def check_name(self, name: str) -> None:
        """BundleError where the file says that it was trained beside a model of another name."""
        theirs = self.base.get(NAME, name)
        if theirs != name:
            self._refuse(theirs, name)

    def check_fingerprint(self, name: str, fingerprint: str) -> None:
        """BundleError where the file says that it was trained beside other weights or another frame size."""
        theirs = self.base.get(FINGERPRINT, fingerprint)
        if theirs != fingerprint:
            self._refuse(f"{self.base.get(NAME)} {theirs[:12]}", f"{name} {fingerprint[:12] or '(made in memory)'}")

    @property
    def base(self) -> dict[str, str]:
        """What the file says of the model that it was trained beside; empty for a foreign one."""
        try:
            with safe_open(self.path, "pt") as file:
                return dict(file.metadata() or {})
        except (OSError, SafetensorError) as error:
            raise BundleError(f"adapter {self.path} cannot be read ({error}); give a .safetensors file.") from error

    def fingerprint(self, base: str) -> str:
        """That of a model with this added, "" for one made in memory."""
        if not base:
            return ""
        told = [base, hashlib.sha256(self.path.read_bytes()).hexdigest(), self.scale]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()

    def _refuse(self, theirs: str, mine: str) -> None:
        if not self.any_base:
            raise BundleError(
                f"adapter {self.path} was trained beside {theirs}, the model is {mine}; give the adapter of this "
                "model, or any_base=True where that is meant."
            )


def find_adapter(given: Adapter | Mapping[str, Any] | str | Path | None) -> Adapter | None:
    """The adapter of a path, or of a mapping of its fields."""
    if given is None or isinstance(given, Adapter):
        return given
    told = given if isinstance(given, Mapping) else {"path": given}
    return from_mapping(Adapter, {**told, "path": Path(told["path"]).expanduser()} if "path" in told else told)


def write_adapter(path: Path, trained: LowRank, base: WorldModel, provenance: Mapping[str, Any]) -> None:
    """The file of adapters that were trained beside `base`, whole or not at all. provenance: plain JSON."""
    told = {NAME: base.config.name, FINGERPRINT: base.fingerprint, "provenance": json.dumps(provenance)}
    with appearing(path) as draft:
        save_file(trained.tensors(), draft, metadata=told)
        draft.chmod(0o644)  # safetensors writes files that only their owner can read


def adapted(model: WorldModel, given: Adapter | str | Path) -> WorldModel:
    """A copy of a model with an adapter added to its denoiser's weights; they share the autoencoder. BundleError: the
    adapter does not fit. ConfigError: the weights are offloaded.
    """
    adapter = find_adapter(given)
    assert adapter is not None
    adapter.check_name(model.config.name)
    adapter.check_fingerprint(model.config.name, model.fingerprint)
    if is_offloaded(model.denoiser):
        raise ConfigError("an adapter cannot be added to offloaded weights; load the model with offload=None.")
    plain = model.denoiser.state_dict().__getitem__
    tensors = read_lora(adapter.path)
    made = with_weights(model, merging(model.denoiser, plain, tensors, model.device, adapter.scale))
    made.fingerprint = adapter.fingerprint(model.fingerprint)
    return made


def with_weights(model: WorldModel, read: Callable[[str], Tensor]) -> WorldModel:
    """A copy of a model whose denoiser has the weights that `read` returns by name."""
    denoiser = copy.deepcopy(model.denoiser)
    denoiser.load_state_dict({name: read(name) for name in denoiser.state_dict()})
    return WorldModel(model.config, denoiser, model.autoencoder, licence=model.licence, captured=model.captured)
