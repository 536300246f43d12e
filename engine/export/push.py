"""Uploads a model folder to a hub: the Hugging Face hub, or ModelScope through its own library.

A repository is made private. A push that was interrupted goes on with the files that the hub does not have yet: each
large file is a commit of its own, and files that are there with the same content are not sent again.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from engine.models import files, folders
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.text import first_line

HUBS = ("huggingface", "modelscope")
LARGE = 10_000_000
"""Bytes from which a file is a commit of its own."""
_REPOSITORY = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_LEFT_OUT = ("trainer", "cache")
"""Folders of a checkpoint that only a resume needs."""
CARD = "README.md"
LOCK = "lock.json"
ADAPTER_BASE = "base_model_name_or_path"


@dataclass(frozen=True)
class Upload:
    """A file to send: its bytes are in `content` where they differ from those on the disk."""

    name: str
    path: Path
    content: bytes | None = None

    @property
    def size(self) -> int:
        return self.path.stat().st_size if self.content is None else len(self.content)

    def sha256(self) -> str:
        if self.content is not None:
            return hashlib.sha256(self.content).hexdigest()
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def blob(self) -> str:
        """git's own id of the content."""
        content = self.path.read_bytes() if self.content is None else self.content
        return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def list_uploads(folder: Path, base: str | None) -> list[Upload]:
    """The files of a model folder, hidden ones and the state of a training left out.

    An adapter names its base by the folder on this machine, which nobody else has: it gets `base`, a hub id, or the
    folder's last part. Raises ProblemError for a folder that is no model.
    """
    found = []
    for path in sorted(folder.rglob("*")):
        parts = path.relative_to(folder).parts
        if path.is_file() and not any(part.startswith(".") for part in parts) and parts[0] not in _LEFT_OUT:
            found.append(Upload("/".join(parts), path, _public(path, base)))
    names = {upload.name for upload in found}
    has_weights = any(name.endswith((".safetensors", ".gguf")) for name in names)
    if not names & {"config.json", folders.ADAPTER} or not has_weights:
        why = "it has no configuration or no weights"
        raise _problem(f"{folder} is no model folder", why, "export the model first", "request.invalid")
    return found


def _public(path: Path, base: str | None) -> bytes | None:
    """The content of an adapter's configuration or a lock without folders of this machine and without conversations
    that it was trained on; None for other files."""
    key = {folders.ADAPTER: ADAPTER_BASE, LOCK: "base"}.get(path.name)
    if key is None:
        return None
    document = files.read_json_object(path)
    changed = {name: value for name, value in document.items() if path.name != LOCK or name != "golden"}
    if isinstance(document.get(key), str) and Path(document[key]).is_absolute():
        changed[key] = base or Path(document[key]).name
    return json.dumps(changed, ensure_ascii=False, indent=1).encode() if changed != document else None


def push(
    uploads: list[Upload],
    repository: str,
    *,
    hub: str,
    public: bool,
    message: str,
    progress: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Send what the hub does not have; returns `url private sent kept`. Raises ProblemError."""
    check(repository, hub)
    if hub == "modelscope":
        return _push_to_modelscope(uploads, repository, public, message)
    from huggingface_hub import HfApi

    try:
        return _push(HfApi(), uploads, repository, public, message, progress)
    except ProblemError:
        raise
    except Exception as error:  # noqa: BLE001 - its libraries for HTTP and for large files raise anything
        status = getattr(getattr(error, "response", None), "status_code", 0)
        hint = (
            "log in with `hf auth login`, or set HF_TOKEN to a token that may write there"
            if status in (401, 403)
            else "push again: what has arrived is not sent again; HF_ENDPOINT names another hub"
        )
        raise _problem(f"{repository} could not be pushed", first_line(error), hint) from None


def check(repository: str, hub: str) -> None:
    """Raises ProblemError for a name that is none, and for a hub whose library is not installed."""
    if not _REPOSITORY.fullmatch(repository):
        raise _problem(f"{repository!r} is no repository", "it is written as org/name", "", "request.invalid")
    if hub not in HUBS:
        raise _problem(f"there is no hub {hub!r}", f"they are {', '.join(HUBS)}", "", "request.invalid")
    if hub == "modelscope" and importlib.util.find_spec("modelscope") is None:
        raise ProblemError(
            Problem(
                code="package.missing",
                title="ModelScope needs the package modelscope",
                cause="it is not installed",
                hint="pip install modelscope",
            )
        )


def _push(
    api: Any, uploads: list[Upload], repository: str, public: bool, message: str, progress: Callable[[str], None]
) -> dict[str, Any]:
    from huggingface_hub import CommitOperationAdd

    made = api.create_repo(repository, private=not public, exist_ok=True)
    private = bool(api.model_info(repository).private)
    if not private and not public:
        raise _not_private(repository)
    there = {
        each.path: each.lfs.sha256 if each.lfs else each.blob_id
        for each in api.get_paths_info(repository, [upload.name for upload in uploads])
        if hasattr(each, "blob_id")
    }
    new = [upload for upload in uploads if upload.name not in there or there[upload.name] != _id(upload, there)]
    large = [upload for upload in new if upload.size >= LARGE]
    small = [upload for upload in new if upload.size < LARGE]
    for part in [*([upload] for upload in large), *([small] if small else [])]:
        progress(", ".join(upload.name for upload in part))
        operations = [CommitOperationAdd(upload.name, upload.content or str(upload.path)) for upload in part]
        api.create_commit(repository, operations, commit_message=message)
    sent = [upload.name for upload in new]
    kept = [upload.name for upload in uploads if upload not in new]
    return {"url": str(made), "private": private, "sent": sent, "kept": kept}


def _id(upload: Upload, there: dict[str, str]) -> str:
    """The id that the hub would give to the file's content: of large files the SHA-256, of others git's."""
    return upload.sha256() if len(there[upload.name]) == 64 else upload.blob()


def _push_to_modelscope(uploads: list[Upload], repository: str, public: bool, message: str) -> dict[str, Any]:
    token = os.environ.get("MODELSCOPE_API_TOKEN")
    with tempfile.TemporaryDirectory() as place:
        if token:
            # Read once, when the library is imported: it would keep the token and its session in a file of the user's.
            os.environ["MODELSCOPE_CREDENTIALS_PATH"] = str(Path(place, "credentials"))
        from modelscope.hub.api import HubApi
        from modelscope.hub.constants import ModelVisibility

        try:
            api = HubApi()
            if token:
                api.login(token)
            if not api.repo_exists(repository):
                api.create_model(repository, visibility=ModelVisibility.PUBLIC if public else ModelVisibility.PRIVATE)
            private = _find_visibility(api, repository) == ModelVisibility.PRIVATE
            if not private and not public:
                raise _not_private(repository)
            folder = Path(place, "model")
            for upload in uploads:
                link = folder / upload.name
                link.parent.mkdir(parents=True, exist_ok=True)
                if upload.content is None:
                    link.symlink_to(upload.path)
                else:
                    link.write_bytes(upload.content)
            api.upload_folder(repo_id=repository, folder_path=str(folder), commit_message=message)
        except ProblemError:
            raise
        except Exception as error:  # noqa: BLE001 - its library raises anything
            hint = "set MODELSCOPE_API_TOKEN to a token that may write there, and push again"
            raise _problem(f"{repository} could not be pushed", first_line(error), hint) from None
    return {
        "url": f"https://modelscope.cn/models/{repository}",
        "private": private,
        "sent": [upload.name for upload in uploads],
        "kept": [],
    }


def _find_visibility(api: Any, repository: str) -> object:
    """Who may read it; None where the service does not say."""
    told = api.get_model(repository)
    return told.get("Visibility") if isinstance(told, dict) else None


def _not_private(repository: str) -> ProblemError:
    return _problem(
        f"{repository} is public, or its hub does not say that it is private",
        "it exists, and everybody could read what is pushed",
        "say so with --public",
    )


def _problem(title: str, cause: str, hint: str, code: str = "push.failed") -> ProblemError:
    return ProblemError(Problem(code=code, title=title, cause=cause, hint=hint))
