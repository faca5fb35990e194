"""The recipe: every stage in order, from nothing to the bundles that ship, going on where it was stopped."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from sanawm_env import bundle
from sanawm_env.datasets.atomic import appearing
from sanawm_env.errors import BundleError, ConfigError, nearest
from sanawm_env.evaluation.recipe_stages import folder_bytes
from sanawm_env.refiner_bundle import DESCRIPTION, load_small_refiner, save_refiner
from sanawm_env.training.ranks import Ranks
from sanawm_env.world import WorldModel

MINUTES = {
    "autoencoder": 13.0,
    "denoiser": 60.0,
    "bidirectional": 12.0,
    "teacher": 20.0,
    "ode": 4.0,
    "distill": 8.0,
    "refiner": 10.0,
}
# What each stage starts from, and whose score is the real one of distillation; the refiner is of what ships as "rooms".
STARTS = {
    "bidirectional": "denoiser",
    "teacher": "bidirectional",
    "ode": "teacher",
    "distill": "ode",
    "real": "bidirectional",
}
BITS = {"rooms": 8, "rooms-teacher": 6}
DONE = "done.json"
Stage = Callable[[str, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """out: a folder a stage, and `bundles` as the package ships them. minutes: of each stage, over all its runs.
    settings: more of a stage's, by its name. starts: stages that others go on from, in place of `STARTS`. rooms: the
    stage whose result ships as "rooms". bits: of the bundles' large matrices. limit: MiB of all bundles. smoke: tiny
    sizes, seconds a stage on a CPU.
    """

    out: Path = Path("outputs/recipe")
    minutes: dict[str, float] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    starts: dict[str, str] = field(default_factory=dict)
    rooms: str = "distill"
    bits: dict[str, int] = field(default_factory=dict)
    limit: float = 40.0
    smoke: bool = False

    def __post_init__(self) -> None:
        for what, given, known in (
            ("minutes", self.minutes, MINUTES),
            ("settings", self.settings, MINUTES),
            ("starts", self.starts, STARTS),
            ("bits", self.bits, BITS),
        ):
            for name in given:
                if name not in known:
                    raise ConfigError(f"{what} holds {name!r}; {nearest(name, known)}")
        order = list(MINUTES)
        for name, start in self.starts.items():
            earlier = order[1 : order.index("distill" if name == "real" else name)]
            if start not in earlier:
                raise ConfigError(f"starts has {name} from {start!r}, allowed are the stages before it, {earlier}.")
        if self.rooms not in ("denoiser", "distill"):
            raise ConfigError(
                f"rooms is {self.rooms!r}, allowed are 'denoiser' and 'distill', which make a world step."
            )

    def given(self, stage: str) -> dict[str, Any]:
        """Settings of a stage, but for `out`."""
        told: dict[str, Any] = {"smoke": self.smoke}
        if not self.smoke:
            minutes = (MINUTES | self.minutes)[stage]
            told |= {"minutes": minutes, "total_minutes": minutes}
        if stage == "denoiser":
            told["autoencoder"] = str(self.out / "autoencoder")
        elif stage != "autoencoder":
            told["start"] = self._bundle(stage)
        if stage == "distill":
            told["real"] = self._bundle("real")
        return told | self.settings.get(stage, {})

    def _bundle(self, stage: str) -> str:
        """The bundle that a stage goes on from."""
        return str(self.out / (STARTS | self.starts).get(stage, self.rooms) / "bundle")


def follow(config: Recipe, run: Stage, ranks: Ranks) -> dict[str, Any]:
    """Runs the stages that are not done by their own record, then writes the bundles; returns the figures of each, on
    rank 0. run: a stage of stages.py, by name, with its settings. ConfigError: a stage was done with other settings.
    BundleError: the bundles together are larger than the limit.
    """
    figures: dict[str, Any] = {}
    for stage in MINUTES:
        given, record = config.given(stage), config.out / stage / DONE
        known = _done(record, given)
        if known is None:
            if ranks.is_first:
                print(f"recipe: {stage}", flush=True)
            known = run(f"rooms-{stage}", given | {"out": str(config.out / stage)})
            if ranks.is_first:
                with appearing(record) as draft:
                    draft.write_text(json.dumps({"settings": given, "figures": known}, indent=1) + "\n")
        figures[stage] = known
    return figures | {"bundles": _ship(config)} if ranks.is_first else {}


def _done(record: Path, given: Mapping[str, Any]) -> dict[str, Any] | None:
    """Figures of a stage that is done, None of another. ConfigError."""
    if not record.exists():
        return None
    told = json.loads(record.read_text(encoding="utf-8"))
    if told["settings"] != given:
        other = {name for name in {*given, *told["settings"]} if given.get(name) != told["settings"].get(name)}
        raise ConfigError(
            f"{record.parent} was done with other {', '.join(sorted(other))}; choose another out=, or remove the "
            "folders of this stage and of those after it."
        )
    figures: dict[str, Any] = told["figures"]
    return figures


def _ship(config: Recipe) -> dict[str, float]:
    """Writes the bundles of the stages, and returns their sizes in MiB. BundleError."""
    shipped = config.out / "bundles"
    first = shipped / "rooms"
    bits = BITS | config.bits
    bundle.save(first, *_of(config.out / config.rooms / "bundle"), bits=bits["rooms"], replace=True)
    # The others read the autoencoder as it lies there.
    lent = bundle.load(first, device="cpu", precision="fp32").autoencoder
    teacher, provenance = _of(config.out / "teacher" / "bundle")
    teacher = WorldModel(teacher.config, teacher.denoiser, lent)
    beside = shipped / "rooms-teacher"
    bundle.save(beside, teacher, provenance, bits=bits["rooms-teacher"], replace=True, shared=first)
    _ship_refiner(config.out / "refiner", first)
    sizes = {path.name: folder_bytes(path) / 2**20 for path in sorted(shipped.iterdir()) if path.is_dir()}
    if sum(sizes.values()) > config.limit:
        raise BundleError(
            f"the bundles in {shipped} hold {sum(sizes.values()):.1f} MiB ({sizes}), allowed are {config.limit:g}; "
            "set fewer bits (6 or 8), or a smaller model."
        )
    return {name: round(size, 3) for name, size in sizes.items()}


def _of(folder: Path) -> tuple[WorldModel, dict[str, Any]]:
    """Model and provenance of a stage's bundle."""
    return bundle.load(folder, device="cpu", precision="fp32"), bundle.description(folder)["provenance"]


def _ship_refiner(stage: Path, first: Path) -> None:
    """The refiner of a stage, as one of the latents of the bundle `first`, which are those that it learned."""
    made = stage / "bundle-refiner"
    sums = bundle.latents_of(bundle.description(stage / "bundle"))
    refiner = load_small_refiner(made, sums, torch.device("cpu"), torch.float32)
    provenance = json.loads((made / DESCRIPTION).read_text(encoding="utf-8"))["provenance"]
    save_refiner(
        first.with_name(f"{first.name}-refiner"), refiner, bundle.latents_of(bundle.description(first)), provenance
    )
