"""Loads tokenizers: with transformers, or with our own code for families that it lacks."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from engine.models import libraries, template_guard
from engine.models.files import find_special_files, read_json
from engine.models.glm.generations import Generation, Unsupported, recognise
from engine.models.weights import DamagedFile
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.text import first_lines

_FIRST = "ChatGLM1Tokenizer"

_without_torch = False
"""Whether this process has called `leave_out_torch`."""


def leave_out_torch() -> None:
    """Have `load` import transformers without torch, which takes two thirds of the time until a tokenizer is there.

    For processes that load no model after their first tokenizer: transformers cannot load one from then on.
    """
    global _without_torch
    _without_torch = True


def _import_without_torch() -> None:
    """Import transformers as on a host without torch, unless one of the two is imported already.

    transformers asks once whether torch is there, and remembers the answer. Only meanwhile torch cannot be imported.
    """
    if "torch" in sys.modules or "transformers" in sys.modules:
        return
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")  # it would warn that there are no models
    sys.modules["torch"] = None  # type: ignore[assignment]  # Python's own way to say that there is no such module
    try:
        libraries.import_transformers()
        from transformers.utils import is_torch_available

        is_torch_available()
    finally:
        del sys.modules["torch"]


def find_fast_class() -> Any:
    """transformers' class of the tokenizers that need no code of their own."""
    if _without_torch:
        _import_without_torch()
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast


def load(name: str | Path, trust_remote_code: bool = False) -> Any:
    """The tokenizer of a folder or hub id, with its own chat template.

    The tokenizer of a GLM folder in its original layout is built from its sentencepiece file. The code in the folder is
    never run, whatever `trust_remote_code` says. Raises ProblemError when it cannot be built, and for a chat template
    that does not end by itself; for a hub id also transformers' errors.
    """
    folder = Path(name)
    if not folder.is_dir():
        found = _load(folder, name, trust_remote_code)
    elif special := find_special_files(folder):
        raise _damaged(folder, "; ".join(special))
    else:
        try:
            found = _load(folder, name, trust_remote_code)
        except (ProblemError, KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            raise _damaged(folder, first_lines(error)) from error
    template_guard.check(getattr(found, "chat_template", None), str(name))
    return found


def _load(folder: Path, name: str | Path, trust_remote_code: bool) -> Any:
    if _without_torch and not trust_remote_code:  # the code of a folder may well need torch
        _import_without_torch()
    if folder.is_dir():
        if _read_json_object(folder, "tokenizer_config.json").get("tokenizer_class") == _FIRST:
            from engine.models.glm.tokenizer_first import ChatGLM1Tokenizer

            return ChatGLM1Tokenizer.from_pretrained(folder)
        generation = _detect_generation(folder)
        if generation:
            return _load_original(folder, generation)
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(name, trust_remote_code=trust_remote_code)


def _load_original(folder: Path, generation: Generation) -> Any:
    """The tokenizer of a GLM folder in its original layout."""
    from engine.models.glm import encoder, tokenizer_second
    from engine.models.glm.conversations import read_template

    match generation.number:
        case 1:
            from engine.models.glm.tokenizer_first import ChatGLM1Tokenizer

            if _read_json_object(folder, "tokenizer_config.json").get("num_image_tokens"):
                raise _unusable(
                    folder,
                    generation,
                    "its ids are shifted by num_image_tokens, as in the earliest published files",
                    "use the files that are published today, weights included",
                )
            found = ChatGLM1Tokenizer(str(folder / encoder.FILE))
            found.chat_template = read_template(1)
            return found
        case 2 | 3 if (folder / tokenizer_second.FILE).exists() or not (folder / "tokenizer.json").is_file():
            return tokenizer_second.build(folder, generation.number)
    if not (folder / "tokenizer.json").is_file():
        raise _unusable(
            folder,
            generation,
            "its tokenizer.model is a list of byte sequences that only the code beside it reads",
            "copy tokenizer.json and tokenizer_config.json from the folder of the same model whose name ends in -hf",
        )
    return find_fast_class().from_pretrained(folder)


def _detect_generation(folder: Path) -> Generation | None:
    try:
        return recognise(_read_json_object(folder, "config.json"))
    except Unsupported as error:
        raise ProblemError(
            Problem(code="model.unloadable", title=f"{folder} cannot be loaded", cause=str(error))
        ) from None


def _read_json_object(folder: Path, name: str) -> dict[str, Any]:
    """The content of a JSON file, empty when it is absent. Raises ProblemError for a damaged file."""
    if not (folder / name).exists():
        return {}
    try:
        found = read_json(folder / name)
    except DamagedFile as error:
        raise _damaged(folder, str(error), f"copy {name} again from where the model came from") from None
    return found if isinstance(found, dict) else {}


def _damaged(folder: Path, cause: str, hint: str = "") -> ProblemError:
    return ProblemError(
        Problem(
            code="tokenizer.unusable",
            title=f"The tokenizer in {folder} cannot be loaded",
            cause=cause,
            hint=hint or f"look with: cockpit model verify {folder}",
        )
    )


def _unusable(folder: Path, generation: Generation, cause: str, hint: str) -> ProblemError:
    return ProblemError(
        Problem(
            code="tokenizer.unusable",
            title=f"The tokenizer of {generation.name} in {folder} cannot be used",
            cause=cause,
            hint=hint,
        )
    )
