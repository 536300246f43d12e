"""Loading the model that a target names: the base once, and adapters on it that are changed without loading it
again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Unpack

from engine.inference import llama_cpp_model
from engine.inference.adapters import Adapters
from engine.inference.compiled_step import Compilation
from engine.inference.constrained import SchemaCompiler
from engine.inference.decoder import make_decoder
from engine.inference.detokenizer import find_thinking_end, opens_thinking, thinking_marks
from engine.inference.generate import BATCH, Piece, Reply, context_length, reply_batch, stream
from engine.inference.request import Prompt
from engine.inference.sampling import Grammar, Row, Sampling, SamplingFields, change_sampling, open_row
from engine.models import accelerator, folders, gguf, placement, targets, template_lock, tokenizers
from engine.models.base import keep_nf4_trainable
from engine.models.devices import Device, choose_cpu_dtype
from engine.models.embedded import Progress
from engine.models.loading import load_model
from engine.models.memory import is_out_of_memory
from engine.models.quantization import QUANTIZATIONS, quantization_config, read_stored_dtype
from engine.models.targets import Target
from engine.models.template_metadata import choose_template, read_metadata
from engine.protocol.home import Home
from engine.protocol.messages import Problem, ProblemError
from engine.protocol.text import first_lines

GREEDY = Sampling()

_TOKENIZER_FILES = (
    "tokenizer*",
    "chat_template*",
    "additional_chat_templates/*",
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
    compiling: bool = False,
) -> LoadedModel:
    """Load a model for inference: a run, RUN@STEP, an adapter, a checkpoint or model folder, a catalogue name, a hub
    id, a GGUF file.

    `dtype` (`bfloat16 float16 float32`) and `quantization` (`none nf4 int8`) default to those that the checkpoint was
    trained with, else to the stored dtype, unquantised. `device` defaults to the one with the most free memory; a model
    that fits no GPU alone is spread over all of them. A relative folder is resolved against `directory`, by default the
    working directory. A missing catalogue model is pulled, and a GGUF file is dequantised, with `progress`. The base's
    own code runs only if `trust_remote_code` is set here or in the profile of the target's run. `compiling` allows
    single replies to be decoded by a faster step, which is tried or compiled in the background (see
    `engine.inference.compiled_step`). Where llama-cpp-python is installed and neither dtype nor quantisation is named,
    llama.cpp itself computes single replies of a GGUF file. Raises ProblemError, and ValueError for an unknown dtype or
    quantisation.
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
    targets.check_chats(target)
    targets.check(target, folders.find_weights_problems)
    loaded = LoadedModel(target, dtype or target.dtype, quantization or target.quantization or "none", device)
    if dtype is None and quantization is None and target.adapter is None:
        spread = placement.is_spread(loaded.model)
        found = llama_cpp_model.find(target.gguf, loaded.context, loaded.device, spread=spread)
        loaded.llama_cpp, loaded.llama_cpp_note = found
    if compiling and loaded.quantization == "none" and not target.on_hub:
        loaded.compilation = Compilation(home, str(target.base), lambda line: print(line, flush=True))
    return loaded


class LoadedModel:
    """A model in memory with its tokenizer. `swap` changes to another target of the same base."""

    def __init__(self, target: Target, dtype: str | None, quantization: str, device: str | None) -> None:
        self.dtype, self.quantization = dtype or read_stored_dtype(target), quantization
        kind = self.dtype if quantization == "none" else quantization
        self.needed = 0 if target.on_hub else placement.estimate_bytes(Path(target.base), kind)
        """Estimated bytes of the model; 0 when unknown."""
        spread = placement.Spread(device) if device else placement.spread(self.needed)
        self.device, self._spread = spread.device, spread.note
        accelerator.choose(self.device)
        self._tokenizers: dict[str, Any] = {}
        self._compiler: tuple[object, SchemaCompiler] | None = None
        """With the tokenizer and stop tokens that it was made for."""
        self._decoder: Any = None
        self.compilation: Compilation | None = None
        self.llama_cpp: llama_cpp_model.LlamaCppModel | None = None
        self.llama_cpp_note = ""
        self._adapters = Adapters(_load_base(target, self.dtype, quantization, spread, self.needed))
        self._enter(target)

    def _enter(self, target: Target) -> None:
        """Take tokenizer, lock and adapter of `target`. When it fails, nothing has changed."""
        tokenizer = self._load_tokenizer(target)
        recorded = targets.read_lock(target.lock) if target.lock else None
        if recorded and target.lock and tokenizer:
            template_lock.check(recorded, tokenizer, target.lock.parent)
        self.drop_decoder()  # its memory may be needed
        self._read(lambda: self._adapters.put(target.adapter), str(target.adapter))
        self.tokenizer, self.target = tokenizer, target
        self.stop_ids = template_lock.find_stop_ids(recorded, self._adapters.base, tokenizer)

    @property
    def model(self) -> Any:
        """The base, or a PeftModel around it; in eval mode."""
        return self._adapters.model

    @property
    def decoder(self) -> Any:
        """The model that replies are generated with; see `engine.inference.decoder`. Made at the first reply."""
        if self._decoder is None:
            self._decoder = make_decoder(self.model)
        return self._decoder

    def drop_decoder(self) -> None:
        """Free what replies are generated with, besides the model; it is made again at the next reply."""
        self._decoder = None
        if self.compilation is not None:
            self.compilation.drop_weights()

    def serves(self, target: Target, dtype: str | None, quantization: str | None) -> bool:
        """Whether `swap` can change to `target` in this dtype and quantisation (None: as for `load`)."""
        dtype = dtype or target.dtype or read_stored_dtype(target)
        requested = (target.base, dtype, quantization or target.quantization or "none")
        return requested == (self.target.base, self.dtype, self.quantization)

    def swap(self, target: Target) -> None:
        """Change to another adapter of the loaded base, or to the base alone. When it raises ProblemError, nothing has
        changed."""
        targets.check_chats(target)
        targets.check(target, folders.find_weights_problems)
        self._enter(target)

    @property
    def templated(self) -> bool:
        """Whether there is a chat template. Without one a conversation is text to be continued; no other template is
        used."""
        return bool(self.tokenizer and choose_template(self.tokenizer.chat_template))

    @property
    def note(self) -> str:
        """What was dequantised and what llama.cpp computes, for a GGUF file, and how the model is spread over several
        GPUs; else empty."""
        source = "" if self.target.on_hub else gguf.describe_source(Path(self.target.base))
        computed = self.llama_cpp_note if self.target.adapter is None else ""
        return "; ".join(filter(None, (source, self._spread, computed)))

    @property
    def context(self) -> int:
        """The greatest number of tokens of prompt and reply together."""
        return context_length(self._adapters.base)

    def prompt(self, prompt: Prompt) -> list[int]:
        """Token ids that the model is to continue: of a text as it stands, of a conversation by the model's own
        template.

        Without a template a conversation becomes its texts, a line each. Raises ValueError when the template refuses
        the conversation and for a token that the model does not know, ProblemError without a tokenizer.
        """
        if self.tokenizer is None:
            raise ProblemError(describe_no_tokenizer(self.target))
        if isinstance(prompt, str) or not self.templated:
            text = prompt if isinstance(prompt, str) else "\n".join(message["content"] for message in prompt)
            opening = read_metadata(self.tokenizer.chat_template).get("text")
            ids: list[int] = self.tokenizer((opening or "") + text, add_special_tokens=opening is None).input_ids
            return self._check_ids(ids)
        try:
            ids = template_lock.render(self.tokenizer, prompt, reply_follows=True)
        except Exception as error:  # noqa: BLE001 - a template is a program, and raises anything
            raise ValueError(f"the model's chat template refuses this conversation: {error}") from None
        return self._check_ids(ids)

    def encode_reply(self, prompt: Sequence[int], thinking: str, text: str) -> list[int]:
        """The tokens into which the tokenizer divides a reply to `prompt`, with its thinking between the model's marks.

        Raises ValueError for a token that the model does not know.
        """
        opened = opens_thinking(self.tokenizer, prompt)
        if thinking or opened:
            opening, closing = thinking_marks(self.tokenizer)
            before = "" if opened else f"{opening}\n"
            text = f"{before}{thinking}\n{closing}\n\n{text}"
        return self._check_ids(self.tokenizer(text, add_special_tokens=False).input_ids)

    def find_text(self, ids: Sequence[int], text: str) -> tuple[int, list[int]]:
        """Where the tokens of a text begin in `ids`, its prompt, and these up to the text's end: a tokenizer puts
        special ones before it (`[gMASK] <sop>`), and some put one behind it."""
        own: list[int] = self.tokenizer(text, add_special_tokens=False).input_ids
        for begin in range(len(ids) - len(own), -1, -1):
            if [*ids[begin : begin + len(own)]] == own:
                return begin, [*ids[: begin + len(own)]]
        special = {*self.tokenizer.all_special_ids}
        return next((at for at, token in enumerate(ids) if token not in special), len(ids)), [*ids]

    def _check_ids(self, ids: list[int]) -> list[int]:
        """Raises ValueError for an id beyond the embedding, which would be an IndexError in the model."""
        rows = self._adapters.base.get_input_embeddings().weight.shape[0]
        if ids and max(ids) >= rows:
            token = self.tokenizer.convert_ids_to_tokens(max(ids))
            raise ValueError(
                f"the token {token!r} has the id {max(ids)}, and the model's embedding has {rows} rows: enlarge the "
                "embedding to the tokenizer, or take the token out of the tokenizer's files"
            )
        return ids

    def stream(
        self,
        prompt: Prompt,
        sampling: Sampling = GREEDY,
        cancelled: Callable[[], bool] = lambda: False,
        **fields: Unpack[SamplingFields],
    ) -> Iterator[Piece]:
        """The reply in pieces as it is generated; the last piece has the whole `Reply`.

        Keywords change single fields of `sampling`, here and in the methods below. Raises ValueError for a prompt that
        does not fit and for a value that a field cannot have, TypeError for an unknown field.
        """
        sampling = change_sampling(sampling, fields)
        ids, grammar = self.prompt(prompt), self.grammar(sampling)
        if self.llama_cpp and self.target.adapter is None:
            opened = self.llama_cpp.open
            return stream(self.model, self.tokenizer, ids, sampling, self.stop_ids, cancelled, grammar, opened)
        decoder, compilation = self.decoder, self.compilation
        if compilation is None:
            return stream(decoder, self.tokenizer, ids, sampling, self.stop_ids, cancelled, grammar)
        pieces = stream(decoder, self.tokenizer, ids, sampling, self.stop_ids, cancelled, grammar, compilation.open)
        return compilation.watch(decoder, pieces)

    def generate(self, prompt: Prompt, sampling: Sampling = GREEDY, **fields: Unpack[SamplingFields]) -> Reply:
        """The whole reply. A text is continued as it stands, without any template; a list of messages is a
        conversation."""
        *_, last = self.stream(prompt, change_sampling(sampling, fields))
        assert last.reply is not None
        return last.reply

    def chat(self, prompt: Prompt, sampling: Sampling = GREEDY, **fields: Unpack[SamplingFields]) -> Reply:
        """The reply to a user's text, or to a conversation. A model without a chat template continues it (see
        `templated`)."""
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        return self.generate(messages, change_sampling(sampling, fields))

    def batch(
        self,
        prompts: Sequence[Prompt],
        sampling: Sampling | Sequence[Sampling] = GREEDY,
        on_reply: Callable[[int, Reply], None] = lambda index, reply: None,
        cancelled: Callable[[], bool] = lambda: False,
        size: int = BATCH,
        **fields: Unpack[SamplingFields],
    ) -> list[Reply]:
        """The replies to many prompts, in their order, at most `size` decoded together: with one `sampling`, or one for
        each.

        `on_reply` is called with each reply and its place as soon as it is finished. Raises ValueError for a prompt
        that does not fit, before anything is generated.
        """
        ids = [self.prompt(each) for each in prompts]
        samplings = [sampling] * len(ids) if isinstance(sampling, Sampling) else sampling
        rows = [self.row(row, change_sampling(each, fields)) for row, each in zip(ids, samplings, strict=True)]
        return reply_batch(self.decoder, self.tokenizer, rows, self.stop_ids, on_reply, cancelled, size)

    def row(self, prompt: Sequence[int], sampling: Sampling) -> Row:
        """A reply before its first token, for a batch. Raises ValueError for a schema that is not supported."""
        grammar = self.grammar(sampling)
        after = find_thinking_end(self.tokenizer, prompt) if grammar else ()
        return open_row(sampling, prompt, grammar, after)

    def grammar(self, sampling: Sampling) -> Grammar | None:
        """The grammar that keeps one reply to the schema of `sampling`. Raises ValueError for a schema that is not
        supported."""
        if sampling.schema is None:
            return None
        key = (id(self.tokenizer), self.stop_ids)
        if self._compiler is None or self._compiler[0] != key:
            size = self._adapters.base.get_output_embeddings().weight.shape[0]
            self._compiler = key, SchemaCompiler(self.tokenizer, size, self.stop_ids)
        return self._compiler[1].compile(sampling.schema)

    def _load_tokenizer(self, target: Target) -> Any:
        """The adapter's tokenizer, else the base's; None where there is none. Equal files, such as those of a run's
        checkpoints, are read once."""
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
        except ProblemError:
            raise
        except Exception as error:  # noqa: BLE001 - the files may hold anything
            raise ProblemError(
                Problem(code="model.unloadable", title=f"{name} cannot be loaded", cause=first_lines(error))
            )


def _load_base(target: Target, dtype: str | None, quantization: str, spread: placement.Spread, needed: int) -> Any:
    import torch

    try:
        model = load_model(
            target.base,
            dtype=getattr(torch, dtype) if dtype else "auto",
            quantization_config=quantization_config(quantization, dtype, experts=target.quantize_experts),
            trust_remote_code=target.trust_remote_code,
            **spread.load_arguments,
        )
        if spread.room:
            placement.check_spread(model)
    except ProblemError:
        raise
    except Exception as error:  # noqa: BLE001 - the files may hold anything
        if is_out_of_memory(error):
            raise ProblemError(out_of_memory(spread.device, needed, first_lines(error)))
        raise ProblemError(
            Problem(
                code="model.unloadable",
                title=f"{target.base} cannot be loaded",
                cause=first_lines(error),
                hint="`cockpit model verify` looks a folder over; a hub id needs the network once",
            )
        )
    if spread.device == "cpu":
        _speed_up_on_cpu(model, quantization)
    return model.eval()


def _speed_up_on_cpu(model: Any, quantization: str) -> None:
    """Do as training does on a CPU: compute in float32 where that is faster than 16 bits (most CPUs only emulate
    bfloat16), and unpack NF4 once if memory allows. No weight changes its value."""
    import torch

    compute = choose_cpu_dtype(model.dtype)
    if quantization == "nf4":
        keep_nf4_trainable(model, Device("cpu", compute, "CPU"))
    if compute == torch.float32:
        for tensor in (*model.parameters(), *model.buffers()):
            if tensor.dtype in (torch.bfloat16, torch.float16):
                tensor.data = tensor.data.float()


def describe_no_tokenizer(target: Target) -> Problem:
    """The problem of a model whose folder has no tokenizer."""
    return Problem(
        code="tokenizer.missing",
        title=f"{target.label} cannot chat",
        cause="the model is loaded, but its folder has no tokenizer",
        hint=f"copy the tokenizer's files from where the model came from into {target.base}",
    )


def out_of_memory(device: str, needed: int, error: str) -> Problem:
    """The problem of a model that needs more memory than is free on the device."""
    free = accelerator.free_bytes(device)
    return Problem(
        code="memory.exhausted",
        title=f"Out of memory on {device}",
        cause=f"about {needed / 1e9:.1f} GB are needed, {free / 1e9:.1f} GB are free. {error}",
        hint="quantization nf4 takes about a third of bfloat16; else stop what holds the memory, "
        "or shorten the conversation",
    )


def _digest(folder: Path) -> str:
    """A hash over all files that define a tokenizer."""
    paths = sorted({path for pattern in _TOKENIZER_FILES for path in folder.glob(pattern) if path.is_file()})
    return hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in paths)).hexdigest()
