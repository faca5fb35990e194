"""The recipe: every stage in order, from nothing to the bundles that ship, going on where it was stopped."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
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
    "rolled": 18.0,
    "bidirectional": 12.0,
    "teacher": 7.0,
    "ode": 4.0,
    "distill": 18.0,
    "average": 0.0,  # of weights: nothing is trained
    "again": 7.0,
    "settled": 7.0,
    "refiner": 11.0,
}
KINDS = {"rolled": "denoiser", "again": "denoiser", "settled": "denoiser"}  # stages that are another's command
# What each stage starts from, and whose score is the real one of distillation, None where it has none. The paper's
# order is {teacher: bidirectional, distill: ode, real: bidirectional}.
STARTS = {
    "rolled": "denoiser",
    "bidirectional": "denoiser",
    "teacher": "denoiser",
    "ode": "teacher",
    "distill": "denoiser",
    "real": None,
    "again": "average",
    "settled": "average",
}
ROLLED: dict[str, Any] = {
    "long_share": 0.0,
    "mixture_share": 0.0,
    "imagined_from": 0.0,
    "rolled": 64,
    "rolled_steps": 1,
    "context_noise": 0.1,
    "levels": {"full_share": 0.95},
    "latents": 33,
    "batch": 8,
    "bank": 384,
    "fresh_every": 16,
    "warmup": 30,
    "ema": 0.998,
}
SETTINGS: dict[str, dict[str, Any]] = {
    "rolled": ROLLED | {"lr": 6e-4, "muon_lr": 0.012},
    "again": ROLLED | {"lr": 4e-4, "muon_lr": 0.008, "first_seed": 254_000_000},
    "settled": ROLLED | {"lr": 2e-4, "muon_lr": 0.004, "first_seed": 256_000_000},
    "teacher": {"mixture_share": 1.0, "rolled": 0, "latents": 33, "batch": 8, "bank": 384},
    "distill": {"every": 1, "latents": 33, "batch": 8, "bank": 256, "fresh_every": 8, "ema": 0.99},
    "refiner": {
        "sigmas": [0.25, 0.15, 0.07, 0.0],
        "deployed": [0.06, 0.0],
        "lr": 1e-3,
        "bank": 256,
        "fresh_every": 32,
    },
}
JUDGED = {"adversary": 0.2, "matching": 0.0}  # of distillation without a real score
AVERAGE = {"denoiser": 0.6, "rolled": 0.25, "distill": 0.15}
ROOMS = {"average": 0.5, "again": 0.25, "settled": 0.25}
GAINED = ROOMS | {"average": ROOMS["average"] - 1}  # what "rooms" is more than the average
DISTILLED = {"distill": 1.05, "rolled": 0.25, "denoiser": -0.3} | GAINED  # what was learned, a little further
TEACHER = {"teacher": 1.0} | GAINED
STEPPED = ("denoiser", "rolled", "ode", "distill", "average", "again", "settled")  # stages of worlds that step
BITS = {"rooms": 8, "rooms-distilled": 3, "rooms-teacher": 5}
DONE = "done.json"
Stage = Callable[[str, dict[str, Any]], dict[str, Any]]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """out: a folder a stage, and `bundles` as the package ships them. minutes: of each stage, over all its runs.
    settings: more of a stage's, by its name. starts: stages that others go on from, in place of `STARTS`; stages that
    nothing which ships comes from are left out. average, rooms, distilled, teacher: shares of the stages whose averaged
    weights are the stage "average", and ship as "rooms", "rooms-distilled" and "rooms-teacher": models that went apart
    from one start are better together. bits: of the bundles' large matrices. limit: MiB of all bundles. smoke: tiny
    sizes, seconds a stage on a CPU.
    """

    out: Path = Path("outputs/recipe")
    minutes: dict[str, float] = field(default_factory=dict)
    settings: dict[str, dict[str, Any]] = field(default_factory=dict)
    starts: dict[str, str | None] = field(default_factory=dict)
    average: dict[str, float] = field(default_factory=lambda: dict(AVERAGE))
    rooms: dict[str, float] = field(default_factory=lambda: dict(ROOMS))
    distilled: dict[str, float] = field(default_factory=lambda: dict(DISTILLED))
    teacher: dict[str, float] = field(default_factory=lambda: dict(TEACHER))
    bits: dict[str, int] = field(default_factory=dict)
    limit: float = 40.0
    smoke: bool = False

    def __post_init__(self) -> None:
        trained = [stage for stage in MINUTES if stage != "average"]
        for what, given, known in (
            ("minutes", self.minutes, trained),
            ("settings", self.settings, trained),
            ("starts", self.starts, STARTS),
            ("bits", self.bits, BITS),
        ):
            for name in given:
                if name not in known:
                    raise ConfigError(f"{what} holds {name!r}; {nearest(name, known)}")
        order = list(MINUTES)
        for name, start in self.starts.items():
            earlier = order[1 : order.index("distill" if name == "real" else name)]
            if start not in earlier and not (name == "real" and start is None):
                raise ConfigError(f"starts has {name} from {start!r}, allowed are the stages before it, {earlier}.")
        for what, shares, averaged in (
            ("average", self.average, STEPPED[: STEPPED.index("average")]),
            ("rooms", self.rooms, STEPPED),
            ("distilled", self.distilled, STEPPED),
            ("teacher", self.teacher, ("teacher", *STEPPED)),
        ):
            if not shares.keys() <= set(averaged) or abs(sum(shares.values()) - 1) > 1e-6:
                raise ConfigError(f"{what} is {shares}, allowed are shares of {', '.join(averaged)} that sum to 1.")

    @property
    def stages(self) -> list[str]:
        """Those that what ships comes from, in order."""
        wanted, needed = [*self.rooms, *self.distilled, *self.teacher, "refiner"], {"autoencoder"}
        while wanted:
            name = wanted.pop()
            if name not in needed:
                needed.add(name)
                wanted += [one for one in self._before(name) if one]
        return [name for name in MINUTES if name in needed]

    def given(self, stage: str) -> dict[str, Any]:
        """Settings of a stage, but for `out`."""
        if stage == "average":
            return {"shares": self.average}
        told: dict[str, Any] = {"smoke": self.smoke}
        if not self.smoke:
            minutes = (MINUTES | self.minutes)[stage]
            told |= {"minutes": minutes, "total_minutes": minutes} | SETTINGS.get(stage, {})
        if stage == "denoiser":
            told["autoencoder"] = str(self.out / "autoencoder")
        elif stage == "refiner":
            told["start"] = str(self.out / "bundles" / "rooms")
        elif stage != "autoencoder":
            told["start"] = self._bundle(self._before(stage)[0])
        if stage == "distill":
            real = self._before(stage)[1]
            told |= {"real": self._bundle(real)} if real else {"real": None} | JUDGED
        return told | self.settings.get(stage, {})

    def bundles(self, shares: Mapping[str, float]) -> dict[Path, float]:
        """Shares by the folders of the stages' bundles."""
        return {Path(self._bundle(stage)): share for stage, share in shares.items()}

    def _before(self, stage: str) -> list[str | None]:
        """The stages that one comes from."""
        if stage == "average":
            return [*self.average]
        starts = STARTS | self.starts
        return [starts[name] for name in ((stage, "real") if stage == "distill" else (stage,)) if name in starts]

    def _bundle(self, stage: str | None) -> str:
        return str(self.out / str(stage) / "bundle")


def follow(config: Recipe, run: Stage, ranks: Ranks) -> dict[str, Any]:
    """Runs the stages that are not done by their own record, and writes the bundles; returns the figures of each, on
    rank 0. run: a stage of stages.py, by name, with its settings. ConfigError: a stage was done with other settings.
    BundleError: the bundles together are larger than the limit.
    """
    figures: dict[str, Any] = {}
    for stage in config.stages:
        if stage == "refiner":  # it learns from what ships
            if ranks.is_first:
                ship(config)
            ranks.agree(0.0)  # the others wait
        given, record = config.given(stage), config.out / stage / DONE
        known = _done(record, given)
        if known is None:
            if ranks.is_first:
                print(f"recipe: {stage}", flush=True)
            if stage == "average":
                known = _average(config, ranks)
            else:
                known = run(f"rooms-{KINDS.get(stage, stage)}", given | {"out": str(config.out / stage)})
            if ranks.is_first:
                with appearing(record) as draft:
                    draft.write_text(json.dumps({"settings": given, "figures": known}, indent=1) + "\n")
        figures[stage] = known
    if not ranks.is_first:
        return {}
    _ship_refiner(config.out)
    return figures | {"bundles": _sizes(config)}


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


def _average(config: Recipe, ranks: Ranks) -> dict[str, Any]:
    """Writes the bundle of the stage "average"."""
    folder = config.out / "average" / "bundle"
    if ranks.is_first:
        model, provenance = mixed(config.bundles(config.average))
        bundle.save(folder, model, provenance, bits=32, replace=True)
    ranks.agree(0.0)  # the others wait
    return {"bundle": str(folder)}


def ship(config: Recipe) -> None:
    """Writes the bundles of the stages, but for the refiner's."""
    shipped, bits = config.out / "bundles", BITS | config.bits
    first = shipped / "rooms"
    made = {"rooms": config.rooms, "rooms-distilled": config.distilled, "rooms-teacher": config.teacher}
    for name, shares in made.items():
        model, provenance = mixed(config.bundles(shares))
        if name == "rooms":
            bundle.save(first, model, provenance, bits=bits[name], replace=True)
            whole = bundle.load(first, device="cpu", precision="fp32")
            continue
        told = replace(model.config, name=f"{whole.config.name}-{name.removeprefix('rooms-')}")
        # The autoencoder as it lies beside them.
        model = WorldModel(told, model.denoiser, whole.autoencoder)
        bundle.save(first.with_name(name), model, provenance, bits=bits[name], replace=True, shared=first)


def mixed(shares: Mapping[Path, float]) -> tuple[WorldModel, dict[str, Any]]:
    """The model whose denoiser is the sum of bundles' weights times their shares, with the config of the first one, and
    where they all come from: every run once, and behind them the averages.
    """
    models = {folder: bundle.load(folder, device="cpu", precision="fp32") for folder in shares}
    told = [bundle.description(folder)["provenance"] for folder in shares]
    provenance = dict(told[0])
    runs = [run for one in told for run in one.get("denoiser", [])]
    provenance["denoiser"] = [run for place, run in enumerate(runs) if run not in runs[:place]]
    if len(shares) > 1:
        averaged = {"stage": "average", "shares": {folder.parent.name: share for folder, share in shares.items()}}
        provenance["denoiser"].append(averaged)
    first = next(iter(models.values()))
    denoiser = copy.deepcopy(first.denoiser)
    states = [(model.denoiser.state_dict(), shares[folder]) for folder, model in models.items()]
    denoiser.load_state_dict({name: sum(share * state[name] for state, share in states) for name in states[0][0]})
    return WorldModel(first.config, denoiser, first.autoencoder), provenance


def _sizes(config: Recipe) -> dict[str, float]:
    """MiB of each bundle. BundleError: more than the limit."""
    shipped = config.out / "bundles"
    sizes = {path.name: folder_bytes(path) / 2**20 for path in sorted(shipped.iterdir()) if path.is_dir()}
    if sum(sizes.values()) > config.limit:
        raise BundleError(
            f"the bundles in {shipped} hold {sum(sizes.values()):.1f} MiB ({sizes}), allowed are {config.limit:g}; "
            "set fewer bits (2 to 8), or a smaller model."
        )
    return {name: round(size, 3) for name, size in sizes.items()}


def _ship_refiner(out: Path) -> None:
    """The refiner of its stage, as one of the latents of the bundle "rooms", which are those that it learned."""
    made, first = out / "refiner" / "bundle-refiner", out / "bundles" / "rooms"
    sums = bundle.latents_of(bundle.description(out / "refiner" / "bundle"))
    refiner = load_small_refiner(made, sums, torch.device("cpu"), torch.float32)
    provenance = json.loads((made / DESCRIPTION).read_text(encoding="utf-8"))["provenance"]
    save_refiner(
        first.with_name(f"{first.name}-refiner"), refiner, bundle.latents_of(bundle.description(first)), provenance
    )
