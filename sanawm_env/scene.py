"""Scenes: a picture to start from, what is known of its camera and its scale, where it comes from; also as a file,
`scene.yaml`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from sanawm_env.errors import PoseError, SceneError, nearest

if TYPE_CHECKING:
    from PIL.Image import Image

FILE = "scene.yaml"
POSE_CONVENTIONS = ("opencv", "opengl")
ESTIMATE = "estimate"
# Focal length in longer sides of the picture where nothing is known: 64 degrees across (spec rollout.md 2.2).
USUAL_FOCAL = 0.8
EXIF_SECTION, FOCAL_35MM = 0x8769, 0xA405
FILM_DIAGONAL = math.hypot(36.0, 24.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A picture to start from, and what is known of it.

    image: uint8 [H, W, 3] RGB of the bundle's frame size (`prepare_image` makes one). intrinsics: (fx, fy, cx, cy) in
    its pixels, the bundle's if None; intrinsics_from: how they were found, "given", "exif" or "usual". pose: [4, 4]
    camera-to-world of the picture in the caller's world, identity if None. fps: frames a second the scene is meant for;
    another one than the bundle's is refused. prompt: what the picture shows, without a word about the camera, for
    models that read text. units_per_metre: model units a metre, the bundle's if None; units_from: "known" or
    "estimated". source, licence: of the picture, for the records of what is made from it.
    """

    image: np.ndarray
    intrinsics: Sequence[float] | None = None
    intrinsics_from: Literal["given", "exif", "usual"] = "given"
    pose: np.ndarray | None = None
    fps: float | None = None
    prompt: str | None = None
    units_per_metre: float | None = None
    units_from: Literal["known", "estimated"] = "known"
    source: str | None = None
    licence: str | None = None

    def __post_init__(self) -> None:
        units = self.units_per_metre
        if units is not None and not (isinstance(units, int | float) and math.isfinite(units) and units > 0):
            raise SceneError(f"units_per_metre is {units!r}, allowed is a number above 0, or None where it is unknown.")
        for name, allowed in (("intrinsics_from", ("given", "exif", "usual")), ("units_from", ("known", "estimated"))):
            if getattr(self, name) not in allowed:
                raise SceneError(f"{name} is {getattr(self, name)!r}; {nearest(str(getattr(self, name)), allowed)}")


def read_scene(given: Mapping[str, Any]) -> Scene:
    """The scene of a mapping of its fields. SceneError names an unknown key or a missing picture."""
    known = [field.name for field in fields(Scene)]
    for key in given:
        if key not in known:
            raise SceneError(f"unknown key {key!r} of a scene; {nearest(str(key), known)}")
    if "image" not in given:
        raise SceneError("the scene has no 'image'; pass one, or the whole-number seed of a room as the scene.")
    return Scene(**given)


def load_scene(path: str | Path, height: int, width: int) -> Scene:
    """The scene of a file, or of the file `scene.yaml` in a folder, its picture covering height x width pixels.

    The file is YAML with the fields of `Scene`, where image is a path beside the file, intrinsics are in pixels of that
    picture (or "estimate": from the focal length in its EXIF data, else 64 degrees across), and pose_convention says
    which axes the pose has: "opencv" (default; x right, y down, z forward) or "opengl" (y up, z backward).
    SceneError or PoseError names what is wrong and where.
    """
    from PIL import Image, UnidentifiedImageError

    file = Path(path).expanduser()
    file = file / FILE if file.is_dir() else file
    told = _read_yaml(file)
    picture_path = file.parent / str(told.get("image", ""))
    if not told.get("image") or not picture_path.is_file():
        raise SceneError(f"{file}: its image {told.get('image')!r} is no file beside it; name the picture there.")
    try:
        with Image.open(picture_path) as picture:
            lens, origin = _intrinsics(file, told.get("intrinsics"), picture)
            image, ready = prepare_image(picture, height, width, lens)
    except (UnidentifiedImageError, OSError) as error:
        raise SceneError(f"{file}: {picture_path} cannot be read as a picture ({error}); convert it.") from error
    convention = told.pop("pose_convention", "opencv")
    return read_scene(
        told
        | {"image": image, "intrinsics": ready, "intrinsics_from": origin}
        | {"pose": _pose(file, told.get("pose"), convention)}
    )


def _read_yaml(file: Path) -> dict[str, Any]:
    import yaml

    try:
        told = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SceneError(
            f"scene {str(file)!r} cannot be read ({' '.join(str(error).split())}); pass the seed of a room, a "
            "scene.yaml, or a folder that holds one."
        ) from error
    if not isinstance(told, dict):
        raise SceneError(f"{file} holds {type(told).__name__}, allowed is a mapping with at least 'image'.")
    known = [*(field.name for field in fields(Scene) if field.name != "intrinsics_from"), "pose_convention"]
    for key in told:
        if key not in known:
            raise SceneError(f"{file}: unknown key {key!r}; {nearest(str(key), known)}")
    return told


def _intrinsics(file: Path, given: Any, picture: Image) -> tuple[tuple[float, ...], Literal["given", "exif", "usual"]]:
    """(fx, fy, cx, cy) in pixels of the upright picture, and how they were found."""
    from PIL import ImageOps

    if given is not None and given != ESTIMATE:
        try:
            values = tuple(float(value) for value in given)
        except (TypeError, ValueError):
            values = ()
        if len(values) != 4:
            raise SceneError(f"{file}: intrinsics are {given!r}, allowed is [fx, fy, cx, cy] in pixels, or 'estimate'.")
        return values, "given"
    width, height = ImageOps.exif_transpose(picture).size
    centre = ((width - 1) / 2, (height - 1) / 2)
    film = picture.getexif().get_ifd(EXIF_SECTION).get(FOCAL_35MM)
    if film:
        focal = float(film) * math.hypot(width, height) / FILM_DIAGONAL
        return (focal, focal, *centre), "exif"
    focal = USUAL_FOCAL * max(width, height)
    return (focal, focal, *centre), "usual"


def _pose(file: Path, given: Any, convention: Any) -> np.ndarray | None:
    if convention not in POSE_CONVENTIONS:
        raise SceneError(f"{file}: pose_convention is {convention!r}; {nearest(str(convention), POSE_CONVENTIONS)}")
    if given is None:
        return None
    try:
        pose = np.asarray(given, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise PoseError(f"{file}: pose is {given!r}, allowed are four rows of four numbers.") from error
    if pose.shape != (4, 4):
        raise PoseError(f"{file}: pose has shape {pose.shape}, allowed is [4, 4], camera-to-world.")
    return pose if convention == "opencv" else pose @ np.diag([1.0, -1.0, -1.0, 1.0])


def check_images(image: Any, height: int, width: int) -> np.ndarray:
    """uint8 RGB pictures [..., H, W, 3] of the right size; raises SceneError, whose remedy is `prepare_image`."""
    picture = np.asarray(image)
    if picture.dtype != np.uint8 or picture.ndim not in (3, 4) or picture.shape[-3:] != (height, width, 3):
        alpha = " (the fourth channel is alpha)" if picture.ndim >= 3 and picture.shape[-1] == 4 else ""
        raise SceneError(
            f"first picture is {picture.dtype} of shape {picture.shape}{alpha}, allowed is uint8 "
            f"({height}, {width}, 3); pass sanawm_env.prepare_image(image, {height}, {width})[0]."
        )
    return picture


def prepare_image(
    image: Image | np.ndarray, height: int, width: int, intrinsics: Sequence[float] | None = None
) -> tuple[np.ndarray, tuple[float, float, float, float] | None]:
    """A picture of any size covering height x width, and its intrinsics (spec rollout.md 2.1, 2.2).

    image: a Pillow image, or uint8 [h, w], [h, w, 3] or [h, w, 4]; alpha is laid over black, EXIF orientation is
    applied. intrinsics: (fx, fy, cx, cy) in pixels of the given picture. Returns uint8 [height, width, 3], enlarged or
    reduced without distortion and cropped in the middle, and the intrinsics in its pixels (None if None was given).
    """
    from PIL import Image, ImageOps

    given = ImageOps.exif_transpose(image) if isinstance(image, Image.Image) else _picture(image)
    flat = Image.new("RGB", given.size)
    flat.paste(given.convert("RGB"), mask=given.convert("RGBA").getchannel("A"))
    scale = max(width / flat.width, height / flat.height)
    across, down = max(width, round(flat.width * scale)), max(height, round(flat.height * scale))
    left, top = (across - width) // 2, (down - height) // 2
    resized = flat.resize((across, down), Image.Resampling.LANCZOS).crop((left, top, left + width, top + height))
    if intrinsics is None:
        return np.asarray(resized).copy(), None
    fx, fy, cx, cy = (float(value) for value in intrinsics)
    x, y = across / flat.width, down / flat.height
    return np.asarray(resized).copy(), (fx * x, fy * y, cx * x - left, cy * y - top)


def _picture(image: np.ndarray) -> Image:
    from PIL import Image

    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)) or not array.size:
        raise SceneError(
            f"picture is {array.dtype} of shape {array.shape}, allowed is uint8 [h, w], [h, w, 3] or [h, w, 4]; "
            "scale to 0 .. 255 and convert."
        )
    return Image.fromarray(array)
