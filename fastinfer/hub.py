"""Models by their names on the hub: from the cache that other tools share, else downloaded. Imports huggingface_hub when it is asked.

A name is org/name, or org/name@revision with a branch, a tag or a commit. What the hub's own library does with its environment
variables, tokens and progress bars holds here, too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .checkpoint import refusals
from .checkpoint.read import ADAPTERS, WEIGHTS, weights_file
from .errors import CheckpointError, CheckpointWarning, FastinferError, short, warn
from .strict_json import read_json

__all__ = ["NAME", "find", "snapshot_in"]

NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95})(@(?P<revision>[\w./-]{1,200}))?", re.ASCII)
COMMIT = re.compile(r"[0-9a-f]{40}")
# Endings of files that are not weights: settings, vocabularies, sentencepiece models, the settings of ColBERT.
SETTINGS = (".json", ".txt", ".model", "artifact.metadata")
# Names of the errors of a connection, in huggingface_hub and in the packages that it uses for it.
UNREACHABLE = {"LocalEntryNotFoundError", "ConnectionError", "ConnectError", "TimeoutException", "Timeout", "ProxyError", "NetworkError"}


def find(name: str) -> Path:
    """The folder in the local hub cache with a whole copy of the model `name`, downloaded if needed.

    A copy that the cache's own list of files shows to be whole is used without asking the hub. Only files that load() reads are
    downloaded, a .bin where there are no safetensors, and weights only once config.json has shown a model that can run.

    Raises CheckpointError where the repository or the revision does not exist or may not be read, where the hub cannot be reached and
    the cache has no copy, and where the repository holds something else.
    """
    found = NAME.fullmatch(name)
    if found is None:
        raise CheckpointError(f"{short(name)} is no name on the hub, expected org/name or org/name@revision")
    repo, revision = found["repo"], found["revision"] or "main"
    try:
        import huggingface_hub
        from huggingface_hub import constants
    except ImportError as error:
        raise CheckpointError(f"{name} is a name on the hub, which needs huggingface_hub: pip install huggingface_hub ({error})") from None
    cached = _cached(huggingface_hub, repo, revision)
    if cached is not None and _is_whole(cached):
        return cached
    try:
        return _download(huggingface_hub, repo, revision)
    except FastinferError:
        raise
    except Exception as error:
        said, is_offline = _explained(error, repo, revision, constants.ENDPOINT)
        if not is_offline:
            raise CheckpointError(said) from error
        if cached is None or not (cached / "config.json").exists() or weights_file(cached) is None:
            raise CheckpointError(f"{said}, and the cache {constants.HF_HUB_CACHE} has no whole copy of it") from error
    if not (cached / "modules.json").exists() and not _is_known_absent(huggingface_hub, repo, revision, "modules.json"):
        warn(CheckpointWarning(f"{said}; {cached} is used, where files such as modules.json, which says how to pool, may be missing"))
    return cached


def snapshot_in(folder: Path) -> Path | None:
    """The snapshot that refs/main of a repository in a hub cache names; None for another folder, and where it does not exist."""
    try:
        commit = (folder / "refs" / "main").read_text("ascii")[:80].strip()
    except (OSError, ValueError):
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if COMMIT.fullmatch(commit) and snapshot.is_dir() else None


# --- the cache -------------------------------------------------------------------------------------


def _cached(hub: Any, repo: str, revision: str) -> Path | None:
    """The snapshot of this revision in the cache, which may lack files; None where it lacks config.json and modules.json."""
    for file in ("config.json", "modules.json"):
        path = hub.try_to_load_from_cache(repo, file, revision=revision)
        if isinstance(path, str):
            return Path(path).parent
    return None


def _is_known_absent(hub: Any, repo: str, revision: str, file: str) -> bool:
    """Whether the cache has noted that the repository lacks this file."""
    found = hub.try_to_load_from_cache(repo, file, revision=revision)
    return found is not None and not isinstance(found, str)


def _is_whole(snapshot: Path) -> bool:
    """Whether a snapshot has all files that load() reads, by the list of files that newer releases of the library keep for a commit."""
    try:
        names = list(read_json(snapshot.parents[1] / "trees" / f"{snapshot.name}.json")["files"])
        folders = ["", *_module_folders(snapshot)]
        return all((snapshot / name).exists() for name in [*_settings(names, folders), *_weights(names, folders)])
    except (FastinferError, KeyError, TypeError):
        return False


# --- what is downloaded ----------------------------------------------------------------------------


def _download(hub: Any, repo: str, revision: str) -> Path:
    """The snapshot of this revision with all files that load() reads. Raises FastinferError where it holds no model that runs here."""
    names = [file.rfilename for file in hub.HfApi().model_info(repo, revision=revision).siblings or ()]
    snapshot = _fetch(hub, repo, revision, _settings(names, [""]))
    refusals.refuse_folder(snapshot, names)
    body, *others = _module_folders(snapshot)
    folders = ["", body, *others]
    settings = _settings(names, folders)
    if any(folders):
        _fetch(hub, repo, revision, settings)
    if f"{body}config.json" not in names:
        raise CheckpointError(f"{repo} on the hub has no {body}config.json, expected a model in safetensors or a .bin")
    data = read_json(snapshot / body / "config.json")
    if not (isinstance(data, dict) and "format_version" in data):
        from .checkpoint import layouts

        layouts.look(data, snapshot / body, snapshot)
    refusals.refuse_without_weights(snapshot / body, [name.removeprefix(body) for name in names if name.startswith(body)])
    return _fetch(hub, repo, revision, settings + _weights(names, folders))


def _fetch(hub: Any, repo: str, revision: str, names: list[str]) -> Path:
    """Download these files, unless they are in the cache. The folder of the snapshot."""
    patterns = [re.sub(r"([*?[])", r"[\1]", name) for name in names]
    return Path(hub.snapshot_download(repo, revision=revision, allow_patterns=patterns))


def _module_folders(snapshot: Path) -> list[str]:
    """The folders of the modules in its modules.json, in their order: such as "1_Pooling/", and "" for the snapshot itself."""
    from .checkpoint import layouts

    paths = [module.folder.relative_to(snapshot).as_posix() for module in layouts.read_modules(snapshot)]
    return ["" if path == "." else f"{path}/" for path in paths] or [""]


def _settings(names: Iterable[str], folders: list[str]) -> list[str]:
    """The files of settings and vocabularies in these folders."""
    return [name for name in names if name.endswith(SETTINGS) and name[: name.rfind("/") + 1] in folders]


def _weights(names: Iterable[str], folders: list[str]) -> list[str]:
    """The files of weights in these folders: of the model and of an adapter, each in the preferred format alone."""
    found = []
    for folder in dict.fromkeys(folders):
        inside = [name for name in names if name[: name.rfind("/") + 1] == folder]
        for formats in (WEIGHTS, ADAPTERS):
            single = next((folder + name for name in formats if {folder + name, f"{folder}{name}.index.json"} & set(inside)), None)
            if single in inside:
                found.append(single)
            elif single is not None:
                stem, _, ending = single.rpartition(".")
                found += [name for name in inside if name.startswith(f"{stem}-") and name.endswith(f".{ending}")]
    return found


# --- what went wrong -------------------------------------------------------------------------------


def _explained(error: Exception, repo: str, revision: str, site: str) -> tuple[str, bool]:
    """(what an error of the library means, whether the hub could not be reached).

    Classes are told by their names, because releases of the library take them from different modules, and some from other packages.
    """
    kinds = {kind.__name__ for kind in type(error).__mro__}
    if "GatedRepoError" in kinds:
        return f"{repo} on the hub is gated: accept its terms at {site}/{repo}, then set HF_TOKEN or run `hf auth login`", False
    if "RepositoryNotFoundError" in kinds:
        missing = "is neither a folder, nor a model inside fastinfer, nor a repository on the hub that you may read"
        return f"{repo} {missing}: check the name; a private repository needs HF_TOKEN", False
    if "RevisionNotFoundError" in kinds:
        return f"{repo} on the hub has no branch, tag or commit {short(revision)}", False
    if "OfflineModeIsEnabled" in kinds:
        return f"HF_HUB_OFFLINE is set, so {repo} is not downloaded", True
    status = getattr(getattr(error, "response", None), "status_code", None)
    if kinds & UNREACHABLE or (isinstance(status, int) and status >= 500):
        return f"{site} cannot be reached for {repo} ({type(error).__name__}: {error})", True
    return f"{repo} cannot be downloaded from the hub: {type(error).__name__}: {error}", False
