"""What the training stages share: the clock, the optimiser, averaged weights, checkpoints and the log.

API: `WallClock(minutes, spent)` gives `.progress` (0 .. 1), `.seconds`, `.compiling`, `.expired`, `.begin()`;
`make_optimisers(module, lr, muon_lr)` gives a list of optimisers, `set_rate(optimisers, factor)` scales them;
`rate_factor(progress, step, warmup)`;
`Ema(module, decay)` with `.update(module)`, `.copy_to(module)`, `.state`; `save_checkpoint(path, **parts)` and
`load_checkpoint(path, device)`; `Log(seconds)`.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sanawm_env.training.compiling import compiling_seconds


class WallClock:
    """Progress of a schedule measured in minutes of work, over one or more runs. Compiling is no work: it takes as
    long in a short run as in a long one.

    minutes: of this run. total_minutes: of the schedule. spent, compiled: seconds of earlier runs, of work and of
    compiling.
    """

    def __init__(
        self, minutes: float, total_minutes: float | None = None, spent: float = 0.0, compiled: float = 0.0
    ) -> None:
        self.minutes, self.total = minutes, total_minutes or minutes
        self.spent, self.compiled = spent, compiled
        self._started, self._compiled_before = time.monotonic(), compiling_seconds()

    @property
    def seconds(self) -> float:
        return self.spent + self._worked

    @property
    def compiling(self) -> float:
        """Seconds of compiling, over all runs."""
        return self.compiled + compiling_seconds() - self._compiled_before

    def begin(self) -> None:
        """Counts from now on: what this run did until here was no work."""
        self._started += self._worked

    @property
    def _worked(self) -> float:
        return time.monotonic() - self._started - (compiling_seconds() - self._compiled_before)

    @property
    def progress(self) -> float:
        return min(1.0, self.seconds / (60 * self.total))

    @property
    def expired(self) -> bool:
        return self._worked >= 60 * self.minutes or self.seconds >= 60 * self.total


class Muon(torch.optim.Optimizer):
    """Momentum whose update is orthogonalised, for matrices (Jordan et al., 2024: "Muon"); tensors of more
    dimensions act as matrices of their first dimension against the others.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], lr: float, momentum: float = 0.95, weight_decay: float = 0.0
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        for group in self.param_groups:
            for shape, parameters in _by_shape(group["params"]).items():
                self._update(parameters, shape, group)

    def _update(self, parameters: list[nn.Parameter], shape: tuple[int, int], group: dict[str, Any]) -> None:
        grads = torch.stack([p.grad.reshape(shape) for p in parameters if p.grad is not None])
        state = self.state[parameters[0]]
        if "momentum" not in state:
            state["momentum"] = torch.zeros_like(grads)
        momentum = state["momentum"].lerp_(grads, 1 - group["momentum"])
        update = orthogonalised(grads.lerp(momentum, group["momentum"])) * max(1.0, shape[0] / shape[1]) ** 0.5
        for parameter, change in zip(parameters, update, strict=True):
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(change.reshape(parameter.shape).to(parameter.dtype), alpha=-group["lr"])


def orthogonalised(matrices: Tensor, steps: int = 5) -> Tensor:
    """Nearest semi-orthogonal matrices of a batch [B, m, n], to within Muon's quintic Newton-Schulz iteration, in
    bf16.
    """
    x = matrices.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return (x.mT if tall else x).to(matrices.dtype)


def _by_shape(parameters: list[nn.Parameter]) -> dict[tuple[int, int], list[nn.Parameter]]:
    shapes: dict[tuple[int, int], list[nn.Parameter]] = {}
    for parameter in parameters:
        if parameter.grad is not None:
            shapes.setdefault((parameter.shape[0], parameter[0].numel()), []).append(parameter)
    return shapes


def make_optimisers(
    module: nn.Module,
    *,
    lr: float,
    muon_lr: float | None,
    plain: Callable[[str], bool] = lambda _: False,
    betas: tuple[float, float] = (0.9, 0.98),
    weight_decay: float = 0.0,
) -> list[torch.optim.Optimizer]:
    """Muon for the matrices and convolutions of `module`, AdamW with these betas for vectors and for what
    `plain(name)` names.

    muon_lr None gives AdamW alone.
    """
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            is_matrix = muon_lr is not None and parameter.ndim >= 2 and min(parameter.shape[:2]) > 1 and not plain(name)
            (matrices if is_matrix else others).append(parameter)
    fused = next(module.parameters()).is_cuda
    optimisers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=lr, betas=betas, weight_decay=weight_decay, fused=fused)
    ]
    if matrices and muon_lr is not None:
        optimisers.append(Muon(matrices, lr=muon_lr, weight_decay=weight_decay))
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["base_lr"] = group["lr"]
    return optimisers


def set_rate(optimisers: list[torch.optim.Optimizer], factor: float) -> None:
    """Learning rates at `factor` times their base."""
    for optimiser in optimisers:
        for group in optimiser.param_groups:
            group["lr"] = factor * group["base_lr"]


def rate_factor(progress: float, steps_since_start: int, warmup: int, decay_from: float = 0.4) -> float:
    """Warm-up by steps (anew after a resume, as the optimiser starts anew), constant, then a cosine to 2 % by the
    clock.
    """
    warm = min(1.0, (steps_since_start + 1) / max(1, warmup))
    if progress <= decay_from:
        return warm
    phase = (progress - decay_from) / (1 - decay_from)
    return warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * phase)))


class Ema:
    """Exponential average of a module's parameters and buffers, with a shorter memory in the first steps."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.decay, self.updates = decay, 0
        self.state = {name: x.detach().clone() for name, x in module.state_dict().items()}

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        current = module.state_dict()
        moving = [name for name, x in current.items() if x.is_floating_point()]
        torch._foreach_lerp_([self.state[name] for name in moving], [current[name] for name in moving], 1 - decay)

    def copy_to(self, module: nn.Module) -> None:
        module.load_state_dict(self.state)


def save_checkpoint(path: Path, **parts: Any) -> None:
    """Writes a training checkpoint, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    torch.save(parts, partial)
    partial.replace(path)


def load_checkpoint(path: Path, device: torch.device | str) -> dict[str, Any] | None:
    """The parts saved at `path`, None when there is no such file."""
    if not path.exists():
        return None
    parts: dict[str, Any] = torch.load(path, map_location=device, weights_only=True)
    return parts


class Log:
    """Prints a line of averaged numbers every few seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.last, self.sums, self.count = seconds, time.monotonic(), {}, 0  # type: ignore[var-annotated]

    def __call__(self, step: int, progress: float, **values: Tensor | float) -> None:
        """Adds one step's numbers; tensors stay on the device until a line is due."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + (value.detach() if isinstance(value, Tensor) else value)
        self.count += 1
        elapsed = time.monotonic() - self.last
        if elapsed >= self.seconds:
            means = "  ".join(f"{name} {float(total) / self.count:.5f}" for name, total in self.sums.items())
            print(
                f"step {step}  {100 * progress:.0f} %  {means}  {1000 * elapsed / self.count:.0f} ms a step", flush=True
            )
            self.last, self.sums, self.count = time.monotonic(), {}, 0
