"""Behaviour cloning: a policy from the demonstrations of an episode store. `sanawm train cloning data=store.zarr`.

On a machine without the command line's packages:
`PYTHONPATH=. python3 -m sanawm_env.policies.cloning_train data=store.zarr out=policy ...`.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sanawm_env.bare import run_bare
from sanawm_env.config import from_mapping
from sanawm_env.errors import ConfigError
from sanawm_env.policies.cloning import ClonedPolicy, check_fits
from sanawm_env.policies.cloning_augment import Augment, augmented, check_mirror
from sanawm_env.policies.cloning_data import Demonstrations, read_demonstrations
from sanawm_env.policies.cloning_network import NetworkConfig
from sanawm_env.training.loop import (
    Ema,
    Log,
    WallClock,
    load_checkpoint,
    make_optimisers,
    rate_factor,
    save_checkpoint,
    set_rate,
)

POLICY, CHECKPOINT = "policy", "checkpoint.pt"
_MEASURED = 1024  # instants of those learned from whose error is measured
_HUBER = 0.1  # of the largest action: beyond it an error counts linearly, so that rare detours do not pull the mean


@dataclass(frozen=True, kw_only=True)
class CloningTraining:
    """How to train.

    data: a store, or several. out: folder that gets the policy and the checkpoint. episodes: takes only the first ones.
    minutes, steps: of the whole training, over all runs; it ends with the first that is reached, and one may be None.
    batch: instants a step. lr, weight_decay, warmup (steps), clip (of the gradient's norm), ema: of AdamW and of the
    averaged weights, which become the policy. validation: part of the episodes that is kept for validation, 0 for none.
    validate_every: steps; the policy is that of the best validation. device: the best there is if None.
    """

    data: tuple[str, ...] | str
    out: Path
    episodes: int | None = None
    network: NetworkConfig = field(default_factory=NetworkConfig)
    augment: Augment = field(default_factory=Augment)
    minutes: float | None = 5.0
    steps: int | None = 6000
    batch: int = 256
    lr: float = 1e-3
    weight_decay: float = 0.05
    warmup: int = 100
    clip: float = 1.0
    ema: float = 0.998
    validation: float = 0.1
    validate_every: int = 200
    seed: int = 0
    device: str | None = None
    log_seconds: float = 10.0

    def __post_init__(self) -> None:
        if self.minutes is None and self.steps is None:
            raise ConfigError("minutes and steps are None, allowed is None for one of them; say when to end.")
        counts = {"steps": self.steps, "episodes": self.episodes, "batch": self.batch, "minutes": self.minutes}
        for name, value in {**counts, "validate_every": self.validate_every, "lr": self.lr}.items():
            if value is not None and value <= 0:
                raise ConfigError(f"{name} is {value}, allowed > 0; change it.")
        if not 0 <= self.validation < 1:
            raise ConfigError(f"validation is {self.validation}, allowed is a part of 1, 0 <= validation < 1.")


def train(config: CloningTraining) -> dict[str, Any]:
    """Trains until the end that the config names, or goes on from the checkpoint in `config.out`; returns the figures.

    Interrupted, it leaves a checkpoint. ConfigError, StorageError, SpaceError: as of `read_demonstrations`.
    """
    from sanawm_env.placement import find_device

    device = find_device(config.device)
    chosen = None if config.episodes is None else range(config.episodes)
    data = [config.data] if isinstance(config.data, str) else list(config.data)
    demonstrations, fit = read_demonstrations(data, config.network, device, episodes=chosen)
    torch.manual_seed(config.seed)
    policy = ClonedPolicy(fit, config.network, device=device)
    check_mirror(config.augment, policy.action_space, fit.action_map)
    return Cloning(config, policy, demonstrations).run()


class Cloning:
    """One training: everything that changes in it is in the checkpoint, so that one that was cut off and went on ends
    with the same weights (on a CPU, with `steps`) as one that was not."""

    def __init__(self, config: CloningTraining, policy: ClonedPolicy, demonstrations: Demonstrations) -> None:
        self.config, self.policy, self.device = config, policy, policy.device
        self.learned, self.kept = _split(demonstrations, config)
        self.network = policy.network
        self.path = config.out / CHECKPOINT
        saved = load_checkpoint(self.path, self.device) or {}
        if saved:
            self._check(saved)
            self.network.load_state_dict(saved["network"])
        self.ema = Ema(self.network, config.ema)
        self.optimisers = make_optimisers(self.network, lr=config.lr, muon_lr=None, weight_decay=config.weight_decay)
        if saved:
            self.ema.state, self.ema.updates = saved["ema"], saved["step"]
            self.optimisers[0].load_state_dict(saved["optimiser"])
        self.step, self.best = int(saved.get("step", 0)), float(saved.get("best", float("inf")))
        self.clock = WallClock(config.minutes or float("inf"), None, float(saved.get("seconds", 0.0)))
        self.errors: dict[str, float] = dict(saved.get("errors", {}))
        self._order: tuple[int, np.ndarray] = (-1, np.zeros(0, np.int64))

    def run(self) -> dict[str, Any]:
        """Trains to the end."""
        log, config = Log(self.config.log_seconds), self.config
        try:
            while not self.over:
                loss = self._descend()
                log(self.step, self.progress, loss=loss)
                if self.step % config.validate_every == 0:
                    self._validate()
        finally:
            self._save()
        if self.step % config.validate_every or not self.errors:
            self._validate()
            self._save()
        parts = {"instants": len(self.learned), "validation_instants": len(self.kept), "parameters": self._size}
        minutes = round(self.clock.seconds / 60, 2)
        return {"steps": self.step, "minutes": minutes, **self.errors, **parts, "policy": str(config.out / POLICY)}

    @property
    def over(self) -> bool:
        """Whether it has come to its end."""
        return self.clock.expired or (self.config.steps is not None and self.step >= self.config.steps)

    @property
    def progress(self) -> float:
        """Part of the schedule that is done."""
        by_step = 0.0 if self.config.steps is None else self.step / self.config.steps
        return min(1.0, max(by_step, 0.0 if self.config.minutes is None else self.clock.progress))

    @property
    def _size(self) -> int:
        return sum(parameter.numel() for parameter in self.network.parameters())

    def _descend(self) -> Tensor:
        """One step of the optimiser."""
        config = self.config
        dice = torch.Generator(self.device).manual_seed(config.seed * 2**32 + self.step)
        torch.manual_seed(config.seed * 2**32 + self.step)  # of the dropout
        batch = augmented(self.learned.rows(self._next()), config.augment, self.policy.fit.action_map, dice)
        self.network.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            planned = self.network(batch.pictures, batch.goal, batch.velocity)
        loss = self._loss(planned.float(), batch)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), config.clip)
        set_rate(self.optimisers, rate_factor(self.progress, self.step, config.warmup, decay_from=0.0))
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self.ema.update(self.network)
        self.step += 1
        return loss

    def _loss(self, planned: Tensor, batch: Demonstrations) -> Tensor:
        """Huber loss of planned actions [B, K, A], in units of the largest, over those before the end."""
        wanted = batch.actions / self.network.scale
        error = nn.functional.huber_loss(planned, wanted, reduction="none", delta=_HUBER).mean(dim=-1) / _HUBER
        return (error * batch.valid).sum() / batch.valid.sum()

    def _next(self) -> Tensor:
        """Numbers of the coming batch: every epoch is a new order, which follows from seed and epoch alone."""
        count = min(self.config.batch, len(self.learned))
        epoch, number = divmod(self.step, len(self.learned) // count)
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.config.seed, epoch]).permutation(len(self.learned))
        return torch.from_numpy(self._order[1][number * count : (number + 1) * count]).to(self.device)

    def _validate(self) -> None:
        """Measures the averaged weights, and keeps them as the policy unless earlier ones were better."""
        current = {name: x.clone() for name, x in self.network.state_dict().items()}
        self.ema.copy_to(self.network)
        self.network.eval()
        try:
            some = torch.arange(0, len(self.learned), max(1, len(self.learned) // _MEASURED), device=self.device)
            told = {"train_error": self._error(self.learned.rows(some))}
            told |= {"validation_error": self._error(self.kept)} if len(self.kept) else {}
            judged = told.get("validation_error", told["train_error"])
            if not np.isfinite(judged):
                raise ConfigError(
                    f"the error is {judged} at step {self.step}, allowed are finite numbers; begin anew with a smaller "
                    f"lr than {self.config.lr:g} and another out=."
                )
            if judged < self.best:
                self.best, self.errors = judged, {**told, "best_step": self.step}
                self.policy.provenance = self._provenance()
                self.policy.save(self.config.out / POLICY)
        finally:
            self.network.load_state_dict(current)
        text = "  ".join(f"{name} {value:.4f}" for name, value in told.items())
        print(f"step {self.step}  {text}", flush=True)

    @torch.inference_mode()
    def _error(self, data: Demonstrations) -> float:
        """Mean distance of the next action from the expert's, in units of the largest."""
        total = torch.zeros((), dtype=torch.float64, device=self.device)
        for index in torch.arange(len(data), device=self.device).split(1024):
            rows = data.rows(index)
            planned = self.network(rows.pictures, rows.goal, rows.velocity)[:, 0]
            total += (planned - rows.actions[:, 0] / self.network.scale).abs().mean(dim=-1).sum()
        return float(total) / len(data)

    def _save(self) -> None:
        save_checkpoint(
            self.path,
            network=self.network.state_dict(),
            ema=self.ema.state,
            optimiser=self.optimisers[0].state_dict(),
            step=self.step,
            best=self.best,
            errors=self.errors,
            seconds=self.clock.seconds,
            made_for=[json.dumps(dataclasses.asdict(one)) for one in (self.policy.fit, self.config.network)],
        )

    def _check(self, saved: dict[str, Any]) -> None:
        fit, network = (json.loads(text) for text in saved["made_for"])
        check_fits(from_mapping(type(self.policy.fit), fit), self.policy.fit, "data")
        if network != json.loads(json.dumps(dataclasses.asdict(self.config.network))):
            raise ConfigError(f"{self.path} is of a network {network}; give the same network, or choose another out=.")

    def _provenance(self) -> dict[str, Any]:
        told = {name: str(x) if isinstance(x, Path) else x for name, x in dataclasses.asdict(self.config).items()}
        minutes = round(self.clock.seconds / 60, 2)
        return {"steps": self.step, "minutes": minutes, "torch": torch.__version__, **self.errors, "settings": told}


def _split(data: Demonstrations, config: CloningTraining) -> tuple[Demonstrations, Demonstrations]:
    """Instants to learn from and instants of other episodes to validate with."""
    episodes = data.episode.unique().cpu().numpy()
    count = round(config.validation * len(episodes))
    kept = np.random.default_rng([config.seed]).permutation(episodes)[:count]
    mask = torch.isin(data.episode, torch.from_numpy(kept).to(data.episode))
    if mask.all():
        raise ConfigError(f"{len(episodes)} episodes leave none to learn from with validation={config.validation}.")
    return data.rows(~mask), data.rows(mask)


def main(arguments: Sequence[str]) -> int:
    """Trains what `key=value` arguments describe; see `run_bare`."""
    return run_bare(CloningTraining, train, arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
