"""RecordEpisodes: one MP4 file an episode, with every frame of every chunk at the world's own rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from sanawm_env.errors import ConfigError


class RecordEpisodes(gymnasium.Wrapper[Any, Any, Any, Any], gymnasium.utils.RecordConstructorArgs):
    """Writes folder/name-0000.mp4, name-0001.mp4, ..., one for each episode.

    Gymnasium's RecordVideo sees one frame a step; here a step has F of them, and all are kept, up to the end of the
    episode. A file appears whole, when its episode is over: at the next reset, or at close. Until then its frames are
    held in memory (61 kB a frame at 128x160). every: records every so many episodes, the first one included. scale: how
    many pixels of the video one pixel of the frame becomes along each side.
    """

    def __init__(
        self, env: gymnasium.Env[Any, Any], folder: str | Path, *, name: str = "episode", every: int = 1, scale: int = 1
    ) -> None:
        gymnasium.utils.RecordConstructorArgs.__init__(self, folder=folder, name=name, every=every, scale=scale)
        gymnasium.Wrapper.__init__(self, env)
        for option, value in (("every", every), ("scale", scale)):
            if value < 1:
                raise ConfigError(f"{option} of RecordEpisodes is {value!r}, allowed >= 1; change it.")
        self.folder, self.name, self.every, self.scale = Path(folder), name, every, scale
        self.episode = -1
        self.written: list[Path] = []
        self._frames: list[np.ndarray] = []

    @property
    def recording(self) -> bool:
        """Whether the running episode is one that is kept."""
        return self.episode >= 0 and self.episode % self.every == 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Writes the episode that ends with this call, and starts the next."""
        observation, info = self.env.reset(seed=seed, options=options)
        self.flush()
        self.episode += 1
        self._keep(info, 1)
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """A step of the environment, whose frames are kept."""
        observation, reward, terminated, truncated, info = self.env.step(action)
        self._keep(info, info.get("valid_frames", 0))
        return observation, reward, terminated, truncated, info

    def flush(self) -> Path | None:
        """Writes what has been recorded of the running episode and returns the file; None when there is nothing."""
        from sanawm_env.wrappers.video import write_mp4

        if not self._frames:
            return None
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self.folder / f"{self.name}-{self.episode:04d}.mp4"
        write_mp4(path, np.concatenate(self._frames), self.env.get_wrapper_attr("fps"), scale=self.scale)
        self._frames = []
        self.written.append(path)
        return path

    def close(self) -> None:
        """Writes the last episode and closes the environment."""
        try:
            self.flush()
        finally:
            super().close()

    def _keep(self, info: dict[str, Any], valid: int) -> None:
        if not self.recording:
            return
        if "frames" not in info:
            raise ConfigError("RecordEpisodes needs all frames in info; build the environment with frames='all'.")
        if valid:
            self._frames.append(np.array(info["frames"][:valid]))
