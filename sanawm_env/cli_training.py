"""Subcommands of `sanawm` that train."""

from __future__ import annotations

import argparse
import json
from typing import Any

from sanawm_env.cli_parts import build, command, compose, flags, subjects


def add_training(commands: Any) -> None:
    """Adds the subcommands to those of `sanawm`."""
    train = subjects(commands, "train", "train a world or a policy")
    command(train, "rooms-autoencoder", _train, "pictures to latents and back")
    command(train, "rooms-denoiser", _train, "the world in latents; writes a bundle")
    command(train, "rooms-bidirectional", _train, "a model of whole clips; writes a bundle")
    command(train, "rooms-teacher", _train, "a chunk-causal model of many steps; writes a bundle")
    command(train, "rooms-ode", _train, "a student of few steps from its teacher's trajectories; writes a bundle")
    command(train, "rooms-distill", _train, "that student on its own rollouts, by matching scores; writes a bundle")
    command(train, "rooms-refiner", _train, "a small refiner of a world's latents; writes it beside a bundle")
    command(train, "estimate", _train, "the memory in which a denoiser trains, on one GPU or several")
    command(train, "adapt", _train, "a bundle or a released model on episodes of your own; whole or by adapters")
    command(train, "ablation", _train, "a small denoiser with a part missing or another; one line of figures")
    command(train, "recipe", _train, "every stage from nothing to the bundles that ship; goes on where it was stopped")
    cloning = command(train, "cloning", _train_cloning, "a policy from the demonstrations of an episode store")
    flags(cloning, device=str, out=str)
    ppo = command(train, "ppo", _train_ppo, "a policy, by PPO in the dream or in the truth")
    flags(ppo, environment=str, minutes=float, steps=int, num_envs=int, device=str, bundle=str, out=str)


def _train(options: argparse.Namespace) -> None:
    from sanawm_env.training import run_stage

    figures = run_stage(options.name, compose(f"train_{options.name.replace('-', '_')}", options.overrides))
    print(json.dumps(figures))


def _train_cloning(options: argparse.Namespace) -> None:
    from sanawm_env.policies.cloning_train import CloningTraining, train

    print(json.dumps(train(build(CloningTraining, "train_cloning", options))))


def _train_ppo(options: argparse.Namespace) -> None:
    from sanawm_env.training.ppo import PpoTraining, run

    print(json.dumps(run(build(PpoTraining, "train_ppo", options))))
