"""Points of all frames of a shot and which of them match, in COLMAP's database; the keyframes that follow from them."""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sanawm_env.annotate.shots import Rejected
from sanawm_env.errors import MissingExtraError

Pairs = Iterable[tuple[int, int]]
Stage = Callable[[str, int, int], None]  # what is done, how much of it, of how much
BATCH = 8  # frames, or pairs, between two looks at the progress
NEIGHBOURS, LONGEST_JUMP = 8, 10  # keyframes matched with those after them: the next few, and those 2, 4, .. 2^10 on


def load_pycolmap() -> Any:
    """The package pycolmap, silent below errors. MissingExtraError without the extra.

    It brings libraries for pictures of its own: Pillow crashes unless it was loaded before it.
    """
    import imagecodecs  # noqa: F401
    from PIL import Image

    Image.init()
    try:
        import pycolmap
    except ImportError as error:
        raise MissingExtraError(
            "structure from motion needs pycolmap, which is not installed; pip install 'sanawm-env[annotate]'"
        ) from error
    pycolmap.logging.minloglevel = pycolmap.logging.Level.ERROR.value
    return pycolmap


class Features:
    """Grey pictures in `folder`/pictures, points and matches in `folder`/points.db. One camera takes all frames.

    intrinsics: (fx, fy, cx, cy) in pixels, counted from the centre of the upper left one, or None for one focal length
    and one radial distortion to be estimated. points: at most in a frame, about. threads: -1 for all cores.
    """

    def __init__(self, folder: Path, intrinsics: tuple[float, ...] | None, points: int, threads: int, stage: Stage):
        self.pycolmap = load_pycolmap()
        self.pictures, self.database = folder / "pictures", folder / "points.db"
        self.names: list[str] = []
        self.flow: np.ndarray = np.zeros(0)
        self._pairs, self._stage, self._matched = folder / "pairs.txt", stage, set[tuple[int, int]]()
        self._reader = self.pycolmap.ImageReaderOptions()
        self._reader.camera_model = "SIMPLE_RADIAL" if intrinsics is None else "PINHOLE"
        if intrinsics is not None:
            fx, fy, cx, cy = intrinsics
            self._reader.camera_params = f"{fx},{fy},{cx + 0.5},{cy + 0.5}"  # COLMAP counts from the corner
        self._extraction = self.pycolmap.FeatureExtractionOptions()
        self._matching = self.pycolmap.FeatureMatchingOptions()
        self._extraction.sift.max_num_features = points
        self._extraction.num_threads = self._matching.num_threads = threads
        self._geometry = self.pycolmap.TwoViewGeometryOptions()
        self._geometry.ransac.random_seed = 0

    def extract(self, frames: Iterator[np.ndarray], count: int) -> None:
        """Finds the points of all frames uint8 [H, W, 3]."""
        from PIL import Image

        self.pictures.mkdir()
        for number, frame in enumerate(frames):
            self.names.append(f"{number:06d}.png")
            Image.fromarray(frame).convert("L").save(self.pictures / self.names[-1], compress_level=1)
            if number % BATCH == BATCH - 1 or number == count - 1:
                self._extract(self.names[number - number % BATCH :])
                self._stage("points", number + 1, count)
        if len(self.names) != count:
            raise Rejected(f"{len(self.names)} of {count} frames could be read a second time")

    def choose(self, move: float) -> list[int]:
        """Numbers of the keyframes: a new one where points have moved by `move` of the picture's width since the last.

        Also sets flow [frames - 1], the median displacement from each frame to the next, pixels; NaN without a match.
        """
        steps = list(zip(range(len(self.names) - 1), range(1, len(self.names))))
        self.match(steps, "flow")
        self.flow = self._displacements(steps)
        with self.pycolmap.Database.open(self.database) as database:
            limit, since, keys = move * database.read_all_cameras()[0].width, 0.0, [0]
        for number, moved in enumerate(self.flow, start=1):
            since += limit if np.isnan(moved) else moved
            if since >= limit:
                keys.append(number)
                since = 0.0
        return keys if keys[-1] == len(self.names) - 1 else [*keys, len(self.names) - 1]

    def match_around(self, keys: list[int]) -> None:
        """Matches keyframes with one another, and every other frame with the two keyframes on either side."""
        jumps = [*range(1, NEIGHBOURS + 1), *(2**k for k in range(LONGEST_JUMP + 1))]
        pairs = {(key, keys[k + jump]) for k, key in enumerate(keys) for jump in jumps if k + jump < len(keys)}
        for number in sorted({*range(len(self.names))} - {*keys}):
            after = bisect.bisect(keys, number)
            near = keys[max(0, after - 2) : after + 2]
            pairs |= {(min(number, key), max(number, key)) for key in near}
        self.match(sorted(pairs), "matches")

    def match(self, pairs: Pairs, what: str) -> None:
        """Matches pairs of frames that were not matched before."""
        todo = [pair for pair in pairs if pair not in self._matched]
        for begin in range(0, len(todo), BATCH):
            part = todo[begin : begin + BATCH]
            self._pairs.write_text("\n".join(f"{self.names[one]} {self.names[other]}" for one, other in part))
            pairing = self.pycolmap.ImportedPairingOptions()
            pairing.match_list_path = self._pairs
            cpu = self.pycolmap.Device.cpu
            self.pycolmap.match_image_pairs(self.database, self._matching, pairing, self._geometry, cpu)
            self._matched.update(part)
            self._stage(what, begin + len(part), len(todo))

    def _extract(self, names: list[str]) -> None:
        pycolmap = self.pycolmap
        if self.database.exists():  # later frames were taken by the camera of the first ones
            self._reader.existing_camera_id = 1
        single, cpu = pycolmap.CameraMode.SINGLE, pycolmap.Device.cpu
        pycolmap.extract_features(self.database, self.pictures, names, single, self._reader, self._extraction, cpu)

    def _displacements(self, pairs: Pairs) -> np.ndarray:
        found = []
        with self.pycolmap.Database.open(self.database) as database:
            number = {image.name: image.image_id for image in database.read_all_images()}
            for pair in pairs:
                one, other = (number[self.names[k]] for k in pair)
                inliers = np.asarray(database.read_two_view_geometry(one, other).inlier_matches, np.int64).reshape(
                    -1, 2
                )
                before = np.asarray(database.read_keypoints(one))[inliers[:, 0], :2]
                after = np.asarray(database.read_keypoints(other))[inliers[:, 1], :2]
                found.append(np.median(np.linalg.norm(after - before, axis=1)) if len(inliers) else np.nan)
        return np.array(found, np.float64)
