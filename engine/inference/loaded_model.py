"""Load what a target names: a base once, and adapters on it that are changed without loading it again."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from engine.inference.adapters import Adapters
from engine.inference.constrained import Constraining
from engine.inference.detokenizer import behind_thinking
from engine.inference.generate import BATCH, Piece, Reply, context_length, reply_batch, stream
from engine.inference.request import Asked
from engine.inference.sampling import Grammar, Row, Sampling, opened
from engine.models import folders, gguf, placement, targets, template_lock, tokenizers
from engine.models.base import keep_nf4_trainable
from engine.models.devices import Device, choose_cpu_dtype
from engine.models.embedded import Progress
from engine.models.loading import load_model
from engine.models.memory import is_out_of_memory
from engine.models.quantization import QUANTIZATIONS, quantization_config, read_stored_dtype
from engine.models.targets import Target
from engine.models.template_metadata import read_metadata
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.text import first_lines

GREEDY = Sampling()

_TOKENIZER_FILES = (
    "tokenizer*",
    "chat_template*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab*",
    "merges.txt",
    "ice_text.model",
    "config.json",
)


def load(
    target: str | Target,
    *,
    home: Home | None = None,
    dtype: str | None = None,
    quantization: str | None = None,
    device: str | None = None,
    directory: Path | None = None,
    trust_remote_code: bool = False,
    progress: Progress = lambda *_: None,
) -> Loaded:
    """Load a model for inference: a run, RUN@STEP, an adapter, a checkpoint or model folder, a catalogue name, a hub id, a GGUF file.

    `dtype` (`bfloat16 float16 float32`) and `quantization` (`none nf4 int8`) default to those the checkpoint was trained with, else to the
    stored dtype, unquantised. `device` defaults to the one with most free memory. A relative folder is meant from `directory`, the working
    directory by default. A catalogue model that is missing is pulled, and a GGUF file dequantised, with `progress`. Code that lies with
    the base runs when `trust_remote_code` says so, or the profile of the target's run. Raises ProblemError, and ValueError for a dtype or
    quantisation that there is not.
    """
    if dtype is not None and dtype not in placement.BYTES.keys() - QUANTIZATIONS:
        raise ValueError(f"dtype must be float32, bfloat16 or float16, not {dtype!r}")
    if quantization is not None and quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization must be {', '.join(QUANTIZATIONS)}, not {quantization!r}")
    home = home or Home.locate()
    if isinstance(target, str):
        target = targets.resolve(target, home, directory or Path.cwd())
    target = replace(
        targets.fetch(target, home, progress), trust_remote_code=target.trust_remote_code or trust_remote_code
    )
    targets.check_generates_text(target)
    targets.check(target, folders.find_weights_problems)
    return Loaded(target, dtype or target.dtype, quantization or target.quantization or "none", device)


class Loaded:
    """A model in memory with its tokenizer. `swap` puts another target of the same base in place."""

    def __init__(self, target: Target, dtype: str | None, quantization: str, device: str | None) -> None:
        self.dtype, self.quantization = dtype or read_stored_dtype(target), quantization
        kind = self.dtype if quantization == "none" else quantization
        self.needed = 0 if target.on_hub else placement.estimate_bytes(Path(target.base), kind)
        """Bytes that the model is thought to take; 0 when nothing tells."""
        self.device = device or placement.choose(self.needed)
        self._tokenizers: dict[str, Any] = {}
        self._constraining: tuple[object, Constraining] | None = None
        """For the tokenizer and stop tokens that it was made for."""
        self._adapters = Adapters(_load_base(target, self.dtype, quantization, self.device, self.needed))
        self._enter(target)

    def _enter(self, target: Target) -> None:
        """Tokenizer, lock and adapter of `target`. When it fails, all is as before."""
        tokenizer = self._tokenizer(target)
        recorded = json.loads(target.lock.read_text()) if target.lock else None
        if recorded and target.lock and tokenizer:
            template_lock.check(recorded, tokenizer, target.lock.parent)
        self._read(lambda: self._adapters.put(target.adapter), str(target.adapter))
        self.tokenizer, self.target = tokenizer, target
        self.stop_ids = template_lock.find_stop_ids(recorded, self._adapters.base, tokenizer)

    @property
    def model(self) -> Any:
        """The base, or a PeftModel around it; in eval mode."""
        return self._adapters.model

    def serves(self, target: Target, dtype: str | None, quantization: str | None) -> bool:
        """Whether `swap` is enough to get to `target` in this dtype and quantisation (None: as for `load`)."""
        dtype = dtype or target.dtype or read_stored_dtype(target)
        wanted = (target.base, dtype, quantization or target.quantization or "none")
        return wanted == (self.target.base, self.dtype, self.quantization)

    def swap(self, target: Target) -> None:
        """Change to another adapter of the loaded base, or to the base alone. Raises ProblemError, and then nothing has changed."""
        targets.check_generates_text(target)
        targets.check(target, folders.find_weights_problems)
        self._enter(target)

    @property
    def templated(self) -> bool:
        """Without a chat template a conversation is only text to be continued. No template is ever borrowed."""
        return bool(self.tokenizer and self.tokenizer.chat_template)

    @property
    def note(self) -> str:
        """What was dequantised, of a GGUF file; else empty."""
        return "" if self.target.on_hub else gguf.describe_source(Path(self.target.base))

    @property
    def context(self) -> int:
        """The most tokens that prompt and reply may have together."""
        return context_length(self._adapters.base)

    def prompt(self, asked: Asked) -> list[int]:
        """Token ids that the model is to continue: of a text as it stands; of a conversation by the model's own template, and without one
        of its texts, a line each. Raises ValueError when the template refuses the conversation, ProblemError without a tokenizer."""
        if self.tokenizer is None:
            raise ProblemError(speechless(self.target))
        if isinstance(asked, str) or not self.templated:
            text = asked if isinstance(asked, str) else "\n".join(message["content"] for message in asked)
            opening = read_metadata(self.tokenizer.chat_template).get("text")
            ids: list[int] = self.tokenizer((opening or "") + text, add_special_tokens=opening is None).input_ids
            return ids
        from jinja2 import TemplateError

        try:
            return template_lock.render(self.tokenizer, asked, reply_follows=True)
        except TemplateError as error:
            raise ValueError(f"the model's chat template refuses this conversation: {error}") from None

    def stream(
        self, asked: Asked, sampling: Sampling = GREEDY, cancelled: Callable[[], bool] = lambda: False
    ) -> Iterator[Piece]:
        """The reply in pieces as it comes; the last piece has the whole `Reply`. Raises ValueError for a prompt that does not fit."""
        prompt, grammar = self.prompt(asked), self.grammar(sampling)
        return stream(self.model, self.tokenizer, prompt, sampling, self.stop_ids, cancelled, grammar)

    def generate(self, asked: Asked, sampling: Sampling = GREEDY) -> Reply:
        """The reply, whole. A text is continued as it stands, without any template; a list of messages is a conversation."""
        *_, last = self.stream(asked, sampling)
        assert last.reply is not None
        return last.reply

    def chat(self, said: Asked, sampling: Sampling = GREEDY) -> Reply:
        """The reply to what a user says, or to a conversation. A model without a chat template continues it (see `templated`)."""
        return self.generate([{"role": "user", "content": said}] if isinstance(said, str) else said, sampling)

    def batch(
        self,
        asked: Sequence[Asked],
        sampling: Sampling | Sequence[Sampling] = GREEDY,
        told: Callable[[int, Reply], None] = lambda index, reply: None,
        cancelled: Callable[[], bool] = lambda: False,
        size: int = BATCH,
    ) -> list[Reply]:
        """The replies to many prompts, in their order, at most `size` decoded together: by one `sampling`, or one each. `told` hears each
        reply with its place as soon as it is there. Raises ValueError for a prompt that does not fit, before anything is generated."""
        prompts = [self.prompt(each) for each in asked]
        samplings = [sampling] * len(prompts) if isinstance(sampling, Sampling) else sampling
        rows = [self.row(prompt, each) for prompt, each in zip(prompts, samplings, strict=True)]
        return reply_batch(self.model, self.tokenizer, rows, self.stop_ids, told, cancelled, size)

    def row(self, prompt: Sequence[int], sampling: Sampling) -> Row:
        """A reply before its first token, for a batch. Raises ValueError for a schema that cannot be kept to."""
        grammar = self.grammar(sampling)
        after = behind_thinking(self.tokenizer, prompt) if grammar else ()
        return opened(sampling, prompt, self.model.device, grammar, after)

    def grammar(self, sampling: Sampling) -> Grammar | None:
        """What keeps one reply to the schema of `sampling`. Raises ValueError."""
        if sampling.schema is None:
            return None
        key = (id(self.tokenizer), self.stop_ids)
        if self._constraining is None or self._constraining[0] != key:
            size = self._adapters.base.get_output_embeddings().weight.shape[0]
            self._constraining = key, Constraining(self.tokenizer, size, self.stop_ids)
        return self._constraining[1].schema(sampling.schema)

    def _tokenizer(self, target: Target) -> Any:
        """The one that lies with the adapter, else the base's; None where there is none. Checkpoints of a run share theirs: equal
        files are read once."""
        if target.on_hub and not (target.adapter and folders.has_tokenizer(target.adapter)):
            return self._read(lambda: tokenizers.load(target.base, target.trust_remote_code), target.base)
        folder = target.folder if folders.has_tokenizer(target.folder) else Path(target.base)
        if not folders.has_tokenizer(folder):
            return None
        key = _digest(folder)
        if key not in self._tokenizers:
            self._tokenizers[key] = self._read(lambda: tokenizers.load(folder, target.trust_remote_code), str(folder))
        return self._tokenizers[key]

    @staticmethod
    def _read(reader: Callable[[], Any], name: str) -> Any:
        try:
            return reader()
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise ProblemError(
                Problem(code="model.unloadable", title=f"{name} cannot be loaded", cause=first_lines(error))
            )


def _load_base(target: Target, dtype: str | None, quantization: str, device: str, needed: int) -> Any:
    import peft  # noqa: F401 - takes a second, which the first adapter would wait for
    import torch

    try:
        model = load_model(
            target.base,
            dtype=getattr(torch, dtype) if dtype else "auto",
            quantization_config=quantization_config(quantization, dtype),
            trust_remote_code=target.trust_remote_code,
            device_map={"": device},
        )
    except (MemoryError, OSError, ValueError, RuntimeError, ImportError) as error:
        if is_out_of_memory(error):
            raise ProblemError(out_of_memory(device, needed, first_lines(error)))
        raise ProblemError(
            Problem(
                code="model.unloadable",
                title=f"{target.base} cannot be loaded",
                cause=first_lines(error),
                hint="`cockpit model verify` looks a folder over; a hub id needs the network once",
            )
        )
    if device == "cpu":
        _quicken(model, quantization)
    return model.eval()


def _quicken(model: Any, quantization: str) -> None:
    """As training does on a CPU: compute in float32 where that is quicker than 16 bits (most CPUs only emulate bfloat16), and
    unpack NF4 once when memory allows. No weight changes its value."""
    import torch

    compute = choose_cpu_dtype(model.dtype)
    if quantization == "nf4":
        keep_nf4_trainable(model, Device("cpu", compute, "CPU"))
    if compute == torch.float32:
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dtype in (torch.bfloat16, torch.float16):
                tensor.data = tensor.data.float()


def speechless(target: Target) -> Problem:
    """Of a model whose folder has no tokenizer."""
    return Problem(
        code="tokenizer.missing",
        title=f"{target.label} cannot chat",
        cause="the model is loaded, but its folder has no tokenizer",
        hint=f"copy the tokenizer's files from where the model came from into {target.base}",
    )


def out_of_memory(device: str, needed: int, error: str) -> Problem:
    """In numbers: what it takes and what there is."""
    import psutil
    import torch

    free = torch.cuda.mem_get_info(device)[0] if device.startswith("cuda") else psutil.virtual_memory().available
    return Problem(
        code="memory.exhausted",
        title=f"Out of memory on {device}",
        cause=f"about {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free. {error}",
        hint="quantization nf4 takes about a third of bfloat16; else stop what holds the memory, or shorten the conversation",
    )


def _digest(folder: Path) -> str:
    """Over all files that make a tokenizer what it is."""
    paths = sorted({path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()})
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in paths)).hexdigest()
