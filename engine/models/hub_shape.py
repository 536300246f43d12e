"""What a forecast needs of a model on a hub: its configuration, its tokenizer, and the sizes of its files of weights.

These are kept in the home, in a folder of their own for each commit. No weights are fetched, so nothing but a forecast
may take such a folder for a model.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
import time
from pathlib import Path

from engine.models import hub
from engine.protocol.home import make_private, restrict, write_private
from engine.protocol.messages import ProblemError
from engine.storage.cache import TOKENIZER_FILES

SIZES = "weights.sizes.json"
"""The file with the bytes of each safetensors file, by its name on the hub."""
LARGEST = 200_000_000
"""Bytes that are fetched of a model at most. The largest tokenizers have some tens of megabytes."""
SECONDS = 10.0
"""How long an answer of the hub is waited for."""
REMEMBERED = 60.0
"""Seconds in which a process does not ask again: the Profile screen makes a forecast after each change."""
_WANTED = re.compile(
    rf"config\.json|{'|'.join(map(re.escape, TOKENIZER_FILES))}|spiece\.model|sentencepiece\.bpe\.model"
    r"|additional_chat_templates/[^/]+\.jinja"
)
_asked: dict[tuple[str, Path, bool], tuple[float, Path | None]] = {}


def fetch(repository: str, place: Path, *, code: bool = False) -> Path | None:
    """The folder in `place` with what a forecast needs of `org/name`, fetched unless it is there; with the model's own
    Python files if `code`. None where the hub cannot be reached and nothing was fetched before. Raises ProblemError for
    a model that the hub does not give."""
    key = (repository, place, code)
    when, found = _asked.get(key, (0.0, None))
    if time.monotonic() - when < REMEMBERED and (found is None or found.is_dir()) and when:
        return found
    own = place / repository.replace("/", "--")
    try:
        found = _fetch(repository, own, code)
    except ProblemError as error:
        if error.problem.code != "model.fetch_failed":
            raise
        found = _find_newest(own, code)
    _asked[key] = time.monotonic(), found
    return found


def read_sizes(folder: Path) -> list[int] | None:
    """The bytes of each file of weights on the hub; None for a folder that was not fetched for a forecast."""
    try:
        return list(json.loads((folder / SIZES).read_bytes()).values())
    except (OSError, ValueError, AttributeError):
        return None


def _is_code(name: str) -> bool:
    return name.endswith(".py") and not name.startswith("/") and ".." not in Path(name).parts


def _name(commit: str, code: bool) -> str:
    return f"{commit}-code" if code else commit


def _find_newest(own: Path, code: bool) -> Path | None:
    found = [path.parent for path in own.glob(f"*/{SIZES}") if path.parent.name.endswith("-code") == code]
    return max(found, key=lambda folder: folder.stat().st_mtime, default=None)


def _fetch(repository: str, own: Path, code: bool) -> Path:
    """Raises ProblemError; `model.fetch_failed` also where nothing may be fetched."""
    from huggingface_hub import HfApi

    with hub.explain_failures(repository):
        api = HfApi()
        commit = api.model_info(repository, timeout=SECONDS).sha or "main"
        folder = own / _name(commit, code)
        if folder.is_dir():
            return folder
        listed = api.list_repo_tree(repository, revision=commit, recursive=True)
        sizes = {file.path: file.size for file in listed if hasattr(file, "size")}
        wanted = [name for name in sizes if _WANTED.fullmatch(name) or (code and _is_code(name))]
        if sum(sizes[name] for name in wanted) > LARGEST:
            raise OSError("its configuration and tokenizer are too large")
        make_private(own)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=own))
        try:
            for name in wanted:
                (partial / name).parent.mkdir(exist_ok=True, parents=True)
                (partial / name).write_bytes(_read(repository, name, commit, sizes[name]))
            weights = {name: size for name, size in sizes.items() if name.endswith(".safetensors") and "/" not in name}
            write_private(partial / SIZES, json.dumps(weights).encode())
            restrict(partial)
            if not folder.is_dir():
                partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        return folder


def _read(repository: str, name: str, commit: str, size: int) -> bytes:
    """The content of a small file. It is asked for once: a forecast does not wait for a hub to come back. Raises errors
    of the hub's library and of httpx, and OSError for a file that was cut off."""
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils._headers import build_hf_headers
    from huggingface_hub.utils._http import get_session, hf_raise_for_status

    url = hf_hub_url(repository, name, revision=commit)
    # It may redirect to another host, to which httpx does not send the token.
    response = get_session().get(url, headers=build_hf_headers(), timeout=SECONDS, follow_redirects=True)
    hf_raise_for_status(response)
    if len(response.content) != size:
        raise OSError(f"{name} has {len(response.content)} bytes of {size}")
    return response.content
