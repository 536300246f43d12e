"""Fetches models from a hub. The user chooses the endpoint and the token: HF_ENDPOINT (a mirror), HF_TOKEN,
HF_HUB_CACHE.

The hub's library starts every unfinished file again (huggingface_hub 2.4 uses a new temporary name for each download).
A shard has gigabytes, so large files are fetched here, into the folder of the library's blobs, and resumed.
"""

from __future__ import annotations

import fcntl
import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from engine.protocol.messages import Problem, ProblemError
from engine.protocol.text import first_line

LARGE = 10_000_000
"""Bytes from which a file's download is resumed."""
AT_ONCE = 4
UNWANTED = ["*.gguf", "*.onnx", "*.h5", "*.msgpack", "original/*"]
"""Files that are not fetched: the same weights in other formats than safetensors."""


def pull(repository: str) -> Path:
    """Download `org/name` into the hub's cache and return its folder. An interrupted download is resumed; progress goes
    to stderr. Raises ProblemError."""
    from huggingface_hub import snapshot_download

    with explain_failures(repository):
        commit = _fetch_large_files(repository)
        return Path(snapshot_download(repository, revision=commit, ignore_patterns=UNWANTED))


@contextmanager
def explain_failures(repository: str) -> Iterator[None]:
    """Context in which what the hub and its library refuse becomes a ProblemError."""
    import httpx2
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        yield
    except GatedRepoError as error:
        hint = "accept its licence on its page, then set HF_TOKEN"
        raise ProblemError(
            Problem(code="model.gated", title=f"{repository} is gated", cause=first_line(error), hint=hint)
        )
    except RepositoryNotFoundError as error:
        hint = "check the spelling; a private one needs HF_TOKEN"
        raise ProblemError(
            Problem(
                code="model.not_found",
                title=f"There is no model {repository} on the hub",
                cause=first_line(error),
                hint=hint,
            )
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, httpx2.TransportError, OSError) as error:
        hint = "pull again to resume; HF_ENDPOINT names a mirror"
        raise ProblemError(
            Problem(
                code="model.fetch_failed",
                title=f"{repository} could not be fetched",
                cause=first_line(error),
                hint=hint,
            )
        )


def _fetch_large_files(repository: str) -> str | None:
    """Download the large files into the cache, and return the commit that they belong to."""
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
    """Download a file into `blobs` under its etag. Of two processes, one waits for the other. Raises errors of the
    hub's library and of httpx."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils._headers import build_hf_headers

    url = hf_hub_url(repository, name, revision=commit)
    metadata = get_hf_file_metadata(url)
    if not metadata.etag or not metadata.size or (blobs / metadata.etag).exists():
        return
    partial = blobs / f"{metadata.etag}.partial"
    with partial.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if (blobs / metadata.etag).exists():
            partial.unlink(missing_ok=True)
            return
        # From the hub's own URL, which redirects to the file's place: the token must not be sent there.
        http_get(
            url,
            file,
            resume_size=file.tell(),
            headers=build_hf_headers(),
            expected_size=metadata.size,
            displayed_filename=name,
        )
        file.flush()
        _check(partial, metadata, name)
        partial.rename(blobs / metadata.etag)


def _check(partial: Path, metadata: Any, name: str) -> None:
    """Check the SHA-256, which is the etag of a large file. Raises OSError, and removes the file so that it is not
    resumed."""
    if len(metadata.etag) != 64:
        return
    with partial.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != metadata.etag:
        partial.unlink()
        raise OSError(f"{name} is damaged: its SHA-256 is {found}, that of the hub is {metadata.etag}")
