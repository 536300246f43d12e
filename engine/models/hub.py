"""Fetching from a hub. The endpoint and the token are the user's: HF_ENDPOINT (a mirror), HF_TOKEN, HF_HUB_CACHE.

The hub's library begins every unfinished file anew (huggingface_hub 2.4: a temporary name for each download). A shard
is gigabytes, so large files are fetched here, into the place where the library keeps its blobs, and go on where they
were.
"""

from __future__ import annotations

import fcntl
import hashlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from engine.protocol.messages import Problem, ProblemError

LARGE = 10_000_000
"""Bytes from which a file is worth going on with."""
AT_ONCE = 4
UNWANTED = ["*.gguf", "*.onnx", "*.h5", "*.msgpack", "original/*"]
"""One weight format is enough: safetensors where there are any; the others are the same numbers again."""


def pull(repository: str) -> Path:
    """Download `org/name` into the hub cache and return its folder. Goes on where an earlier attempt stopped; progress
    on stderr.

    Raises ProblemError.
    """
    import httpx2
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        commit = _fetch_large_files(repository)
        return Path(snapshot_download(repository, revision=commit, ignore_patterns=UNWANTED))
    except GatedRepoError as error:
        hint = "accept its licence on its page, then set HF_TOKEN"
        raise ProblemError(Problem(title=f"{repository} is gated", cause=_first_line(error), hint=hint))
    except RepositoryNotFoundError as error:
        hint = "check the spelling; a private one needs HF_TOKEN"
        raise ProblemError(
            Problem(title=f"There is no model {repository} on the hub", cause=_first_line(error), hint=hint)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx2.TransportError, OSError) as error:
        hint = "pull again to go on; a mirror is named with HF_ENDPOINT"
        raise ProblemError(Problem(title=f"{repository} could not be fetched", cause=_first_line(error), hint=hint))


def _fetch_large_files(repository: str) -> str | None:
    """Make the large files' blobs present in the cache; returns the commit that they belong to."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_CACHE, HF_HUB_OFFLINE
    from huggingface_hub.file_download import repo_folder_name
    from huggingface_hub.utils._paths import filter_repo_objects

    if HF_HUB_OFFLINE:
        return None
    info = HfApi().model_info(repository)
    files = HfApi().list_repo_tree(repository, revision=info.sha, recursive=True)
    large = [file for file in files if (getattr(file, "size", 0) or 0) >= LARGE]
    wanted = filter_repo_objects([file.path for file in large], ignore_patterns=UNWANTED)
    blobs = Path(HF_HUB_CACHE, repo_folder_name(repo_id=repository, repo_type="model"), "blobs")
    blobs.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda name: _fetch(repository, name, info.sha, blobs), wanted))
    return info.sha


def _fetch(repository: str, name: str, commit: str | None, blobs: Path) -> None:
    """One file into `blobs`, under its etag. Two pulls at once take turns. Raises what the hub's library and httpx
    raise."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    url = hf_hub_url(repository, name, revision=commit)
    told = get_hf_file_metadata(url)
    if not told.etag or not told.size or (blobs / told.etag).exists():
        return
    partial = blobs / f"{told.etag}.partial"
    with partial.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if (blobs / told.etag).exists():
            partial.unlink(missing_ok=True)
            return
        # From the hub itself, which sends on to where the file lies: a token must not be sent there by us.
        http_get(
            url,
            file,
            resume_size=file.tell(),
            headers=build_hf_headers(),
            expected_size=told.size,
            displayed_filename=name,
        )
        file.flush()
        _check(partial, told, name)
        partial.rename(blobs / told.etag)


def _check(partial: Path, told: Any, name: str) -> None:
    """A large file's etag is its SHA-256. One that was put together wrongly must not be gone on with."""
    if len(told.etag) != 64:
        return
    with partial.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != told.etag:
        partial.unlink()
        raise OSError(f"{name} arrived changed: its SHA-256 is {found}, the hub says {told.etag}")


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
