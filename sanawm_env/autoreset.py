"""Gymnasium's autoreset modes over a batch of episodes: which worlds begin again at a step, and what `info` then says.

`info` is put together as Gymnasium's own vector environments do it: every key has beside it, with an underscore in
front, the mask of worlds that have it; "final_obs" and "final_info" hold what a world showed before it began again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from gymnasium.vector import AutoresetMode

from sanawm_env.episodes import Episodes, Outcome
from sanawm_env.errors import ConfigError
from sanawm_env.running import next_in_line
from sanawm_env.start import ResetOptions


def read_mode(given: Any) -> AutoresetMode:
    """The mode itself or by its value ("Disabled", "NextStep", "SameStep"); ConfigError for any other."""
    try:
        return AutoresetMode(given)
    except ValueError as error:
        known = ", ".join(repr(mode.value) for mode in AutoresetMode)
        raise ConfigError(f"autoreset_mode is {given!r}, allowed is an AutoresetMode or one of {known}.") from error


def step(episodes: Episodes, actions: Any, mode: AutoresetMode) -> tuple[Outcome, dict[str, Any]]:
    """Every world moved by one chunk or begun again, and the `info` of it.

    An interrupt while worlds begin again leaves them ended and the others where the step took them.
    """
    due = episodes.now.over if mode is AutoresetMode.NEXT_STEP else np.zeros(episodes.batch, bool)
    outcome = episodes.advance(actions)
    ended = outcome.terminated | outcome.truncated
    fresh = due if mode is not AutoresetMode.SAME_STEP else ended
    if not fresh.any():
        return outcome, masked(outcome.info, ~fresh)
    final: dict[str, Any] = {}
    if mode is AutoresetMode.SAME_STEP:
        seen, known = _rows(episodes.observation(), fresh), {name: _copy(rows) for name, rows in outcome.info.items()}
        final = {"final_obs": seen, "_final_obs": fresh.copy(), "final_info": masked(known, fresh)}
        final["_final_info"] = fresh.copy()
    else:
        outcome.terminated[due] = outcome.truncated[due] = False
    return outcome, _joined(outcome.info, begin_again(episodes, fresh), fresh) | final


def begin_again(episodes: Episodes, fresh: np.ndarray) -> dict[str, Any]:
    """New episodes in the worlds of a mask, each with the next seed of its own line, which no other world changes."""
    slots = np.flatnonzero(fresh).tolist()
    following = [next_in_line(episodes.now.rows["line"][slot]) for slot in slots]
    lines = np.stack([line for _, line in following])
    return episodes.start([seed for seed, _ in following], ResetOptions(), slots, lines)


def masked(facts: Mapping[str, Any], mask: np.ndarray) -> dict[str, Any]:
    """Facts with the mask of worlds that have each beside it, under the key with an underscore in front."""
    return {key: value for name, rows in facts.items() for key, value in ((name, rows), (f"_{name}", mask.copy()))}


def _joined(stepped: Mapping[str, Any], begun: Mapping[str, Any], fresh: np.ndarray) -> dict[str, Any]:
    """Facts of worlds that stepped and of worlds that began; the single row of a beginning stands for a whole chunk."""
    slots, whole = np.flatnonzero(fresh).tolist(), np.ones_like(fresh)
    joined = masked({name: rows for name, rows in stepped.items() if name not in begun}, ~fresh)
    joined |= masked({name: rows for name, rows in begun.items() if name not in stepped}, fresh)
    for name in stepped.keys() & begun.keys():
        rows = _copy(stepped[name])
        rows[slots] = begun[name][slots]
        joined |= masked({name: rows}, whole)
    return joined


def _rows(observations: Any, mask: np.ndarray) -> np.ndarray:
    """[B] objects: the observation of each world of the mask, None for the others."""
    rows = np.full(len(mask), None, dtype=object)
    for world in np.flatnonzero(mask):
        if isinstance(observations, Mapping):
            rows[world] = {name: part[world] for name, part in observations.items()}
        elif observations is not None:
            rows[world] = observations[world]
    return rows


def _copy(rows: Any) -> Any:
    return rows.copy() if isinstance(rows, np.ndarray) else rows.clone()
