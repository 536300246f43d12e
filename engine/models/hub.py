"""Fetching from a hub. The endpoint and the token are the user's: HF_ENDPOINT (a mirror), HF_TOKEN, HF_HUB_CACHE."""

from __future__ import annotations

from pathlib import Path

from engine.protocol.messages import Problem, ProblemError


def pull(repository: str) -> Path:
    """Download `org/name` into the hub cache and return its folder. Goes on where an earlier attempt stopped; progress on stderr.

    Raises ProblemError.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

    try:
        # One weight format is enough: safetensors where there are any; the others are the same numbers again.
        return Path(
            snapshot_download(repository, ignore_patterns=["*.gguf", "*.onnx", "*.h5", "*.msgpack", "original/*"])
        )
    except GatedRepoError as error:
        hint = "accept its licence on its page, then set HF_TOKEN"
        raise ProblemError(Problem(title=f"{repository} is gated", cause=_first_line(error), hint=hint))
    except RepositoryNotFoundError as error:
        hint = "check the spelling; a private one needs HF_TOKEN"
        raise ProblemError(
            Problem(title=f"There is no model {repository} on the hub", cause=_first_line(error), hint=hint)
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        hint = "pull again to go on; a mirror is named with HF_ENDPOINT"
        raise ProblemError(Problem(title=f"{repository} could not be fetched", cause=_first_line(error), hint=hint))


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
