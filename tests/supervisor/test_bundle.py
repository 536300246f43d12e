"""A bundle for whoever helps holds no secret, path, name of a person or host, and no text of a row."""

from __future__ import annotations

import io
import json
import random
import string
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest
from ruamel.yaml import YAML

from engine.protocol import journal
from engine.protocol.home import Home, RunDirectory
from engine.protocol.messages import Problem
from engine.workers import bundle, bundle_parts, redaction
from engine.workers.redaction import Redactor, RowTexts

LETTERS = string.ascii_lowercase
CHINESE = "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少床前明月光疑是地上霜"
SENTENCES = (
    "{} cannot be read",
    "ValueError: {!r} is not what was expected",
    "failed at {}: try again",
    "warning ({}), and then some more",
    '{{"detail": "{}"}}',
    "[rank3]: RuntimeError: {}",
    "{}",
)


def word(rng: random.Random, size: int = 9) -> str:
    return "".join(rng.choices(LETTERS, k=size))


@dataclass
class Planted:
    """What must not be found, and the texts that it is planted in."""

    user: str
    host: str
    home: str
    secrets: list[str]
    environment: dict[str, str]
    rows: list[str]

    def forbidden(self) -> Iterator[str]:
        yield from (self.user, self.host, self.home, *self.secrets)
        for row in self.rows:
            yield from ([row[:6]] if row[0] in CHINESE else row.split())

    def texts(self) -> list[str]:
        places = [self.home, f"{self.home}/my files/clients.jsonl", f"~{self.user}/x/y.bin", f"/mnt/{self.user}/z"]
        names = [
            self.user,
            self.host,
            f"{self.user}@{self.host}.example.org",
            self.user.upper(),
            f"{self.user}:{self.host}",
        ]
        parts = [row[: max(len(row) * 2 // 3, 30)] for row in self.rows]
        keys = [f"api_key={self.secrets[0]}", f"Authorization: Bearer {self.secrets[1]}", *self.secrets]
        urls = [f"https://{self.user}:{self.secrets[2]}@{self.host}/v1", f"hf_token is {self.secrets[3]}"]
        return [*places, *names, *self.rows, *parts, *keys, *urls]


def plant(rng: random.Random) -> Planted:
    tail = "".join(rng.choices(string.ascii_letters + string.digits, k=30))
    secrets = [
        f"sk-{tail}",
        f"eyJhbGciOiJIUzI1NiJ9.{tail}.sig{word(rng)}",
        f"p{word(rng)}!{rng.randrange(999)}",
        f"hf_{tail[:24]}",
        f"AKIA{tail[:16].upper()}",
        f"{word(rng)} {word(rng)}",
    ]
    user, host = word(rng, 6), f"{word(rng, 5)}-{rng.randrange(99)}"
    environment = {"SERVICE_API_KEY": secrets[0], "DB_PASSWORD": secrets[2], "MY_TOKEN": secrets[5], "USER": user}
    rows = [" ".join(word(rng) for _ in range(rng.randrange(6, 14))) for _ in range(3)]
    rows += [f"{word(rng)} {word(rng)}", "".join(rng.sample(CHINESE, 14)), "\n".join(word(rng) for _ in range(8))]
    return Planted(user, host, f"/home/{user}", secrets, environment | {"HOSTNAME": host}, rows)


def make_run(folder: Path, planted: Planted, rng: random.Random, readable: bool) -> tuple[Home, RunDirectory]:
    """A run with what is planted in every place that a file of it has for text."""
    home = Home(folder / "home").create()
    run = home.run(f"tune-{planted.user}-1")
    run.path.mkdir(parents=True)
    texts = planted.texts()

    def say() -> str:
        return rng.choice(SENTENCES).format(rng.choice(texts))

    source = folder / ("rows.jsonl" if readable else "rows.parquet")
    source.write_text("".join(json.dumps({"prompt": row, "tags": [row]}) + "\n" for row in planted.rows))
    profile = {
        "name": f"of-{planted.user}",
        "description": planted.rows[0],
        "model": {"base": f"{planted.home}/models/base", "dtype": "bfloat16"},
        "data": {
            "train": [{"source": str(source), "columns": {say(): say()}}],
            "system": planted.rows[1],
            "max_length": 512,
        },
        "evaluation": {"probes": planted.rows},
        "launch": {"environment": {"HF_TOKEN": planted.secrets[3]}, "hosts": [planted.host]},
        "training": {"learning_rate": 1e-4, planted.user: say()},
    }
    with run.profile.open("w") as file:
        YAML().dump(profile, file)
    (run.path / "job.json").write_text(json.dumps({"directory": planted.home, "host": planted.host, "source": say()}))
    run.prepared.write_text(json.dumps({"rejects": say(), "entry": f"{planted.home}/cache"}))
    run.report.write_text(json.dumps({"memory": {say(): say(), "peak": 5}}))
    problem = Problem(
        code="training.failed", title=say(), cause=say(), hint=say(), place=say(), traceback="\n".join(texts)
    )
    rows = [journal.BadRow(row=1, text=text, tokens=3, file=say()) for text in planted.rows]
    events: list[journal.AnyEntry] = [
        journal.Start(
            attempt=1,
            max_steps=9,
            epochs=1,
            steps_per_epoch=9,
            processes=1,
            global_batch=2,
            parameters=5,
            trainable_parameters=1,
            rows=2,
            trained_tokens=3,
            resumed=say(),
            facts={say(): say()},
        ),
        journal.Metrics(attempt=1, step=1, values={"train/loss": 2.5, say(): 1.0}),
        journal.Phase(attempt=1, name=say(), detail=say()),
        journal.Checkpoint(attempt=1, step=1, path=f"{planted.home}/step-1", metrics={say(): 1.0}),
        journal.Sample(
            attempt=1,
            step=1,
            prompt=rng.choice(planted.rows),
            reply=planted.rows[1],
            reference=planted.rows[2],
            scores={say(): 1.0},
        ),
        journal.Ledger(attempt=1, step=1, name=say(), old=[say()], new={say(): say()}),
        journal.BadBatch(attempt=1, code="pause.loss_spike", step=1, reason=say(), rows=rows, total=9),
        *(
            journal.Warn(attempt=1, code="data.rows.bad", message=sentence.format(text), hint=text)
            for text in texts
            for sentence in SENTENCES
        ),
        journal.Memory(attempt=1, source="forecast", device_bytes=7, strategy=say()),
        journal.End(attempt=1, step=1, status="failed", problem=problem),
    ]
    lifecycle = [
        journal.Launched(attempt=1, pid=7, start_time=1.0, identity=say(), stage=say(), slurm_conf=planted.home),
        journal.State(attempt=1, state="failed", reason=say(), code="training.failed", problem=problem),
    ]
    for path, entries in ((run.events, events), (run.lifecycle, lifecycle)):
        path.write_bytes(b"".join(journal.encode(entry) + b"\n" for entry in entries))
        with path.open("a") as file:
            file.write(say() + "\n" + json.dumps({"kind": "of a newer version", "text": say()}) + "\n")
    lines = [sentence.format(text) for text in texts for sentence in SENTENCES]
    lines += [
        "Traceback (most recent call last):",
        f'  File "{planted.home}/lib/python3.11/site-packages/torch/nn/m.py", line 7, in f',
    ]
    rng.shuffle(lines)
    lines += ["12:00:01  step 3  loss 2.5  grad_norm 0.1"]
    run.log.write_text("\n".join(lines))
    home.engine_log.write_text("\n".join(rng.sample(lines, len(lines))))
    return home, run


@pytest.fixture(autouse=True)
def _plain_names(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(redaction.getpass, "getuser", lambda: "")


@pytest.mark.parametrize("readable", [True, False], ids=["rows known", "rows unreadable"])
@pytest.mark.parametrize("seed", range(4))
def test_nothing_that_was_planted_is_in_a_bundle(seed: int, readable: bool, tmp_path: Path) -> None:
    rng = random.Random(seed)
    planted = plant(rng)
    home, run = make_run(tmp_path, planted, rng, readable)
    doctor = [{"name": "disk", "ok": True, "detail": f"{planted.home} on {planted.host}: {planted.secrets[0]}"}]
    files, redactor = bundle.make_files(home, run, planted.environment, doctor=lambda _: doctor)
    assert set(files) == set(bundle.ABOUT)
    found = [
        (name, each, next(line for line in content.splitlines() if each.casefold() in line.casefold()))
        for name, content in files.items()
        for each in planted.forbidden()
        if each.casefold() in content.casefold()
    ]
    assert found == []
    assert min(redactor.counts[kind] for kind in ("secrets", "paths", "names")) > 0
    # What helps is still there.
    events = [json.loads(line) for line in files["events.jsonl"].splitlines()]
    assert next(each for each in events if each["kind"] == "metrics")["values"]["train/loss"] == 2.5
    assert sum(each.get("code") == "data.rows.bad" for each in events) > 50
    assert "training.failed" in files["summary.md"] and "learning_rate: 0.0001" in files["profile.yaml"]
    assert "step 3  loss 2.5" in files["log.txt"] and "site-packages/torch/nn/m.py" in files["log.txt"]
    assert json.loads(files["forecast.json"])["entries"][0]["device_bytes"] == 7


def test_what_is_asked_for_stays_but_secrets_never(tmp_path: Path) -> None:
    rng = random.Random(99)
    planted = plant(rng)
    home, run = make_run(tmp_path, planted, rng, True)
    files, _ = bundle.make_files(home, run, planted.environment, with_rows=True, with_paths=True, with_names=True)
    everything = "".join(files.values())
    for each in (planted.user, planted.host, planted.home, planted.rows[0]):
        assert each in everything
    assert [secret for secret in planted.secrets if secret in everything] == []


def test_a_line_of_a_log_that_says_nothing_private_is_kept_as_it_is() -> None:
    redactor = Redactor(names=["ann", "box"], paths=["/home/ann"], rows=RowTexts([]))
    for line in (
        "12:00:01  step 1,204  loss 0.4371  learning_rate 0.0001  grad_norm 0.83  tokens_per_second 5,120",
        "CUDA out of memory. Tried to allocate 2.50 GiB. GPU 0 has a total capacity of 79.1 GiB",
        "ValueError: expected 3 tokens: 17, got max_new_tokens=256",
        "W0101 12:00:00.000000 torch/distributed/run.py:792] train/loss and eval/loss at 10:15",
        "annotated tokens: 4096",
        "KeyError: 'model.layers.0'",
        "pkg_resources, hf_hub_download and sklearn; skip_special_tokens=True",
    ):
        assert redactor.clean(line) == line
    assert redactor.clean("Ann at box, /home/ann/x") == "[name] at [name], [path]"


def test_a_hostile_line_takes_no_time_to_speak_of() -> None:
    redactor = Redactor(names=["ann"], paths=["/home/ann"], rows=RowTexts([]))
    for each in ("/", "/a", "-", "_a", "a.", "a-", "key", "a:", "'/", "+", "~", "://a:"):
        redactor.clean(each * 3000)


def test_settings_that_are_somebodys_own_are_left_out(tmp_path: Path) -> None:
    settings = {
        "method": {"kind": "sft"},
        "model": {"base": "org/model", "dtype": "bfloat16"},
        "data": {"train": ["acme.jsonl", "of/acme.jsonl"], "test": "acme.csv", "boilerplate": ["acme"]},
        "judge": {"rubric": {"tone": "acme"}, "prompts": {"first": "acme"}},
        "launch": {
            "hosts": ["jane@node7:22"],
            "ssh_options": ["-l", "jane"],
            "slurm": {"account": "acme"},
            "environment": {"X_TOKEN": "hunter", "NAME": "jane"},
        },
    }
    written = io.StringIO()
    YAML().dump(settings, written)
    cleaned = bundle_parts.clean_profile(written.getvalue(), Redactor(), with_rows=False, with_paths=False)
    assert [each for each in ("acme", "jane", "node7", "hunter") if each in cleaned] == []
    assert all(each in cleaned for each in ("sft", "org/model", "bfloat16"))
    assert bundle_parts.list_own_names(settings) == {"jane", "node7", "acme"}
    assert redaction.list_secrets(bundle_parts.list_environment(settings)) == ["hunter"]


def test_switches_are_no_secrets() -> None:
    environment = {"TOKENIZERS_PARALLELISM": "false", "MAX_TOKENS": "4096", "PWD": "/x/y", "MY_TOKEN": "abcd1"}
    assert redaction.list_secrets(environment) == ["abcd1"]


def test_the_archive_is_written_only_when_that_was_agreed_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = random.Random(5)
    home, run = make_run(tmp_path, plant(rng), rng, True)
    target = tmp_path / "out" / "help.zip"
    asked = ["report", run.id, "--home", str(home.root), "--bundle", str(target), "--no-doctor", "--json"]

    def report(*more: str) -> tuple[int, dict[str, Any]]:
        monkeypatch.setattr(bundle.sys, "argv", [*asked, *more])
        status = bundle.main()
        out = capsys.readouterr().out
        return status, json.loads(out) if out else {}

    status, said = report()
    assert (status, said["error"]["code"], target.exists()) == (2, "request.unconfirmed", False)
    status, said = report("--yes")
    assert status == 0 and target.stat().st_mode & 0o777 == 0o600
    with zipfile.ZipFile(target) as archive:
        assert {each.filename: each.file_size for each in archive.infolist()} == said["files"]
    assert list(target.parent.iterdir()) == [target]
    assert report("--yes")[1]["error"]["code"] == "output.not_empty"


def test_on_a_terminal_one_is_asked_and_can_read_it_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = iter(["s\n", "y\n", "\n"])
    terminal = SimpleNamespace(isatty=lambda: True, readline=lambda: next(answers))
    monkeypatch.setattr(bundle.sys, "stdin", terminal)
    monkeypatch.setattr(bundle.sys.stderr, "isatty", lambda: True, raising=False)
    files = {"summary.md": "# the summary\n", "log.txt": "a line\n"}
    assert bundle._agrees(tmp_path / "x.zip", files)
    assert "# the summary" in capsys.readouterr().err
    assert not bundle._agrees(tmp_path / "x.zip", files)
    assert msgspec.json.encode(files)
