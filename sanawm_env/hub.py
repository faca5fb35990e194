"""Files of a folder or a Hub repository: found, listed with their sizes, downloaded; offline from the Hub's cache."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from sanawm_env.errors import BundleError, ConfigError, StorageError
from sanawm_env.model.checkpoint import listed

WEIGHTS = (".safetensors", ".pt")
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)
# A release keeps its refiner's parts two folders deep; nothing deeper is ever read.
DEPTH = 3

_HUB_ID = re.compile(r"\w[\w.-]*/\w[\w.-]*")


@dataclass(frozen=True)
class Files:
    """Files at hand or to be had.

    name: the folder or the Hub id. sizes: bytes by name, such as "vae/config.json". commit: of a Hub id, None for a
    folder. has: whether a file is at hand. path: where it is, downloaded first where it must be.
    """

    name: str
    sizes: Mapping[str, int]
    commit: str | None
    has: Callable[[str], bool]
    path: Callable[[str], Path]

    def directly_in(self, folder: str) -> list[str]:
        """Names of the files of a folder itself, sorted; "" is the top level."""
        start = below(folder, "")
        return sorted(name for name in self.sizes if name.startswith(start) and "/" not in name[len(start) :])

    def model(self, folder: str = "") -> list[str]:
        """What loads a model that diffusers or transformers has saved in a folder: config, weights, tokenizer.

        BundleError: config.json or weights are not there.
        """
        names = [name for name in self.directly_in(folder) if _is_of_model(name.rpartition("/")[2])]
        if below(folder, "config.json") not in names or not any(name.endswith(".safetensors") for name in names):
            raise BundleError(
                f"{self.name} holds no model{f' in {folder}/' if folder else ''}: it lacks config.json or "
                f"*.safetensors; found are {listed(sorted(self.sizes)) or 'no files'}. Download it again, or connect "
                "to the Hub once if its download was cut short."
            )
        # The small files first, so that what they can say is said before a long download.
        return sorted(names, key=lambda name: name.endswith(WEIGHTS))

    def fetch_model(self, folder: str = "") -> Path:
        """The folder with the files of `model`, all of them at hand."""
        paths = [self.path(name) for name in self.model(folder)]
        return paths[0].parent


def open_files(source: str | Path, revision: str | None = None) -> Files:
    """The files of a folder, or of a Hub id as the Hub lists it or, where it cannot be asked, as the cache holds it.

    revision: branch, tag or commit of a Hub id. ConfigError: a revision for a folder. BundleError: neither a folder nor
    a repository that can be had. StorageError comes from `path`, when a download fails.
    """
    folder = Path(source).expanduser()
    if folder.is_dir():
        if revision is not None:
            raise ConfigError(f"revision is {revision!r}, but {folder} is a folder; drop it, or give a Hub id.")
        return _folder(folder, str(folder), None)
    name = str(source)
    if isinstance(source, Path) or not _HUB_ID.fullmatch(name):
        raise BundleError(
            f"{name!r} is neither a folder nor a Hub id (organisation/name, such as "
            "'Efficient-Large-Model/SANA-WM_streaming'); give one of the two."
        )
    return _repository(name, revision)


def missing(wanted: Iterable[tuple[Files, str]]) -> list[tuple[str, int]]:
    """Name ("organisation/name/file") and bytes of every wanted file that is not at hand."""
    return [(f"{files.name}/{name}", files.sizes[name]) for files, name in wanted if not files.has(name)]


def revision_in(other: str | Path, source: str | Path, revision: str | None) -> str | None:
    """The revision at which `other` is read: that of `source` where both are the same repository, else its newest."""
    return revision if str(other) == str(source) else None


def below(folder: str, name: str) -> str:
    """The name of a file in a folder; "" is the top level."""
    return f"{folder}/{name}" if folder else name


def cached_repository(name: str) -> Path:
    """Where the Hub's cache keeps a repository, whether or not it does."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=name, repo_type="model")


def cached_snapshot(name: str, revision: str | None = None) -> Path | None:
    """The files of a revision (the usual one if None) in the Hub's cache; None where there are none."""
    from huggingface_hub import constants

    folder, asked = cached_repository(name), revision or constants.DEFAULT_REVISION
    branch = folder / "refs" / asked
    snapshot = folder / "snapshots" / (branch.read_text().strip() if branch.is_file() else asked)
    return snapshot if snapshot.is_dir() else None


def _is_of_model(name: str) -> bool:
    return name in ("config.json", *TOKENIZER_FILES) or name.endswith((".safetensors", ".safetensors.index.json"))


def _folder(folder: Path, name: str, commit: str | None) -> Files:
    patterns = ["/".join("*" * depth) for depth in range(1, DEPTH + 1)]
    files = [path for pattern in patterns for path in folder.glob(pattern) if path.is_file()]
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    return Files(name, sizes, commit, sizes.__contains__, folder.joinpath)


def _repository(name: str, revision: str | None) -> Files:
    from huggingface_hub import HfApi, hf_hub_download, try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError, HTTPError, RepositoryNotFoundError, RevisionNotFoundError

    at = f"{name} at revision {revision!r}" if revision else name
    try:
        info = HfApi().model_info(name, revision=revision, files_metadata=True)
    except (RepositoryNotFoundError, RevisionNotFoundError, HFValidationError) as error:
        raise BundleError(
            f"{at} is not on the Hub, not for everybody, or no folder here; check the name and the revision, or log in "
            "with the Hub's own command line."
        ) from error
    except (HTTPError, OSError) as error:
        return _cached(name, revision, error)
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}

    def path(file: str) -> Path:
        try:
            if not file.endswith(WEIGHTS):
                # Asked for by the name of its revision, a file makes the cache remember which commit that is: offline,
                # nothing else tells. The commit itself is what is read, should the revision move on meanwhile.
                hf_hub_download(name, file, revision=revision)
            return Path(hf_hub_download(name, file, revision=info.sha))
        except (HTTPError, OSError) as error:
            reason = " ".join(str(error).split())
            raise StorageError(
                f"{file} of {at} cannot be downloaded ({reason:.200}); check the connection and the space on the disk "
                "and start again: it goes on where it stopped."
            ) from error

    def has(file: str) -> bool:
        return isinstance(try_to_load_from_cache(name, file, revision=info.sha), str)

    return Files(name, sizes, info.sha, has, path)


def _cached(name: str, revision: str | None, reason: Exception) -> Files:
    from huggingface_hub import constants

    snapshot = cached_snapshot(name, revision)
    if snapshot is not None:
        return _folder(snapshot, name, snapshot.name)
    why = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{' '.join(str(reason).split()):.200}"
    raise BundleError(
        f"{name} (revision {revision or constants.DEFAULT_REVISION!r}) is not in the cache {constants.HF_HUB_CACHE}, "
        f"and the Hub cannot be asked ({why}); connect once without HF_HUB_OFFLINE to download it, or give a folder "
        "that holds it."
    ) from reason
