"""A tiny model, prepared rows, and the real worker as real processes, with this test in the supervisor's place."""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

from engine.config.profile import parse
from engine.protocol import sockets, wire
from engine.protocol.home import Home
from engine.protocol.journal import AnyEntry, read
from engine.protocol.messages import Answered, CancelInstruction, Instruction
from tests.training import warm

WORDS = 60
SECONDS = 120.0


def make_model(folder: Path, hidden: int = 64) -> Path:
    """A two-layer Llama with random weights in float32, and a tokenizer that knows `w0` … `w59`."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<pad>", "<end>", "user", "assistant", *(f"w{index}" for index in range(WORDS))]
    inner = Tokenizer(models.WordLevel({word: index for index, word in enumerate(words)}, unk_token="<pad>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<end>")
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }} {{ m.content }} <end> {% endfor %}"
        "{% if add_generation_prompt %}assistant {% endif %}"
    )
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_rows(count: int, seed: int) -> list[dict[str, list[int]]]:
    """Rows of 6 to 30 tokens; the reply repeats the question, so there is something to learn. Half of each row is
    trained."""
    generator = random.Random(seed)
    rows = []
    for _ in range(count):
        asked = [generator.randrange(4, 4 + WORDS) for _ in range(generator.randrange(2, 14))]
        ids = [2, *asked, 1, 3, *asked, 1]
        rows.append({"input_ids": ids, "labels": [-100] * (len(asked) + 3) + ids[len(asked) + 3 :]})
    return rows


def prepare(folder: Path, base: Path, rows: int = 27, held_out: int = 6) -> dict[str, Any]:
    """What the prepare stage would have left: Arrow sets and the content of prepared.json."""
    from datasets import Dataset

    train = make_rows(rows, 1)
    Dataset.from_list(train).save_to_disk(str(folder / "train"))
    Dataset.from_list(make_rows(held_out, 2)).save_to_disk(str(folder / "validation"))
    return {
        "train": str(folder / "train"),
        "validation": str(folder / "validation"),
        "validation_rows": None,
        "rows": rows,
        "tokens": sum(len(row["input_ids"]) for row in train),
        "trained_tokens": sum(label != -100 for row in train for label in row["labels"]),
        "rejected": 0,
        "hash": "0",
        "base": str(base),
        "lock": {"template_sha256": "", "eos_token_ids": [1], "golden": []},
        "stats": {},
    }


def pack(plain: Path, folder: Path, length: int = 64, **more: Any) -> None:
    """Join the rows of a set into packed rows of at most so many tokens; `more` as for `write_packed`."""
    from datasets import load_from_disk

    from engine.prep.token_rows import PLAIN
    from engine.prep.token_store import arrow_writer, link_streams, write_packed

    rows = load_from_disk(str(plain))
    stream, linked = folder.with_name(f"{folder.name}.stream"), folder.with_name(f"{folder.name}.plain")
    with arrow_writer(stream, PLAIN) as write:
        write(
            {name: ([each for row in rows for each in row[name]], [len(row[name]) for row in rows]) for name in PLAIN}
        )
    with link_streams(linked, PLAIN) as link:
        link(stream)
    write_packed(linked, folder, length, **more)


PROFILE = """
model: {{base: {base}, dtype: float32}}
adapter: {{kind: lora, rank: 4, alpha: 8}}
data: {{train: [{{source: triples/train.jsonl}}], max_length: 64}}
training: {{epochs: 1, micro_batch: 4, learning_rate: 1.0e-2, warmup: 2, threads: 1, rehearsal: true}}
checkpoint: {{every_steps: 100}}
evaluation: {{every_steps: 100, at_start: false}}
logging: {{tensorboard: false, plots: false}}
limits: {{disk_free_gb: 0}}
"""


@dataclass
class Supervised:
    """A run's worker, started for real; instructions are sent and answers read over real sockets."""

    home: Home
    id: str
    attempts: int = 0
    process: subprocess.Popen[bytes] | warm.Workers | None = None
    answers: dict[str, Answered] = field(default_factory=dict)
    heard: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.run = self.home.run(self.id)
        self.address = f"ipc://{sockets.make_directory(self.home) / self.id}"
        self._context = zmq.Context()
        self._socket = self._context.socket(zmq.ROUTER)
        self._socket.bind(self.address)
        self._rank0: bytes | None = None

    @classmethod
    def create(
        cls, home: Home, name: str, prepared: dict[str, Any], *changes: str, profile: str = PROFILE
    ) -> Supervised:
        run = home.run(name)
        run.path.mkdir(parents=True)
        text = profile.format(base=prepared["base"])
        run.profile.write_text(parse(text, "test", Path("/"), changes, home).to_yaml())
        (run.path / "job.json").write_text(json.dumps({"kind": "train", "directory": str(run.path)}))
        run.prepared.write_text(json.dumps(prepared))
        return cls(home, name)

    def start(
        self,
        *extra: str,
        processes: int = 1,
        environment: dict[str, str] | None = None,
        limit: int | None = None,
        fault: str = "",
        cold: bool = False,
    ) -> None:
        """The next attempt. `limit` is the largest file in bytes that the worker may write: a full disk, as far as it
        can tell. `fault` is one of `faulty`'s. `cold`: by the command line that a launcher would use, rather than
        forked (see `warm`)."""
        self.attempts += 1
        given = environment or {}
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | given
        if fault:
            places = [str(Path(__file__).parents[2]), given.get("PYTHONPATH", "")]
            environment |= {"FAULT": fault, "PYTHONPATH": os.pathsep.join(filter(None, places))}
        self._rank0 = None
        arguments = ["--home", str(self.home.root), "--job", self.id, "--attempt", str(self.attempts)]
        worker = [
            "tests.training.faulty" if fault else "engine.workers.train",
            *arguments,
            "--address",
            self.address,
            *extra,
        ]
        self.process = warm.start(worker, processes, environment, self.run.log, cold)
        if limit is not None:
            resource.prlimit(self.process.pid, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))

    def wait(self) -> int:
        """The worker's exit status."""
        assert self.process is not None
        deadline = time.monotonic() + SECONDS
        while self.process.poll() is None:
            self._hear()
            assert time.monotonic() < deadline, self.log()
        return self.process.returncode

    def train(self, *extra: str, processes: int = 1, cold: bool = False) -> None:
        """One attempt, to a good end."""
        self.start(*extra, processes=processes, cold=cold)
        assert self.wait() == 0, self.log()

    def tell(self, name: str, **arguments: Any) -> str:
        """Send an instruction to rank 0, once it is there; returns its id."""
        self.until(lambda: self._rank0 is not None)
        identity = f"{name}-{time.monotonic_ns()}"
        instruction = Instruction(id=identity, name=name, arguments=arguments)
        self._socket.send_multipart([self._rank0, wire.encode(instruction)])
        return identity

    def cancel(self, request: str) -> None:
        """Give a question up."""
        self._socket.send_multipart([self._rank0, wire.encode(CancelInstruction(request=request))])

    def ask(self, name: str, **arguments: Any) -> Answered:
        """Send an instruction and wait for its answer."""
        identity = self.tell(name, **arguments)
        self.until(lambda: identity in self.answers)
        return self.answers[identity]

    def until(self, condition: Any) -> None:
        deadline = time.monotonic() + SECONDS
        while not condition():
            self._hear()
            assert self.process is None or self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()

    def _hear(self) -> None:
        if not self._socket.poll(20):
            return
        identity, payload = self._socket.recv_multipart()
        message = wire.decode_from_worker(payload)
        self.heard.append(message)
        if isinstance(message, Answered):
            self.answers[message.id] = message
        if type(message).__name__ == "Joined" and message.rank == 0:
            self._rank0 = identity

    def entries(self, kind: type[AnyEntry]) -> list[Any]:
        return [entry for entry, _ in read(self.run.events) if isinstance(entry, kind)]

    def series(self, name: str) -> dict[int, float | None]:
        """A metric by step, a later attempt's value in an earlier one's place."""
        from engine.protocol.journal import Metrics

        return {entry.step: entry.values[name] for entry in self.entries(Metrics)}

    def log(self) -> str:
        return self.run.log.read_text()[-4000:]

    def close(self) -> None:
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._context.destroy(linger=0)
