"""What a source names: files, folders, globs, hub data sets, the entries of another trainer's catalogue."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import Any

import pytest

from engine.prep import dataset_info, sources
from engine.prep.sources import HubSource
from engine.protocol.home import Home
from tests.hub import Hub


def touch(folder: Path, *names: str) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text('{"text": "t"}\n')


def named(folder: Path, source: str) -> list[str]:
    return [str(path.relative_to(folder)) for path in sources.list_files(source, folder)]


# ── files, folders, globs ──────────────────────────────────────────────────────────────────────────────────────────


def test_a_file_a_folder_and_a_glob(tmp_path: Path) -> None:
    touch(tmp_path, "one.jsonl", "deep/b.csv.gz", "deep/a.json", "deep/er/c.txt", "README.md", ".hidden/x.jsonl")
    touch(tmp_path, "deep/dataset_info.json", "deep/.y.jsonl", "deep/cache-12.arrow")
    assert named(tmp_path, "one.jsonl") == ["one.jsonl"]
    assert named(tmp_path, str(tmp_path / "one.jsonl")) == ["one.jsonl"]
    assert named(tmp_path, "deep") == ["deep/a.json", "deep/b.csv.gz", "deep/er/c.txt"]
    assert named(tmp_path, ".") == ["deep/a.json", "deep/b.csv.gz", "deep/er/c.txt", "one.jsonl"]
    assert named(tmp_path, "deep/[ab].*") == ["deep/a.json", "deep/b.csv.gz"]
    assert named(tmp_path, "**/*.txt") == ["deep/er/c.txt"]
    assert named(tmp_path, f"{tmp_path}/*.jsonl") == ["one.jsonl"]


def test_a_name_with_the_signs_of_a_glob_is_a_name_first(tmp_path: Path) -> None:
    touch(tmp_path, "rows[1].jsonl", "rows1.jsonl")
    assert named(tmp_path, "rows[1].jsonl") == ["rows[1].jsonl"]


def test_the_bundled_samples_are_found_by_glob_too(tmp_path: Path) -> None:
    assert [path.name for path in sources.list_files("triples/t*.jsonl", tmp_path)] == ["test.jsonl", "train.jsonl"]


def test_links_are_followed_once_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path, "set/a/rows.jsonl", "elsewhere/more.jsonl")
    (tmp_path / "set/a/up").symlink_to(tmp_path / "set")
    (tmp_path / "set/b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/c").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/again.jsonl").symlink_to(tmp_path / "set/a/rows.jsonl")
    assert named(tmp_path, "set") == ["set/a/rows.jsonl", "set/b/more.jsonl"]
    assert len(named(tmp_path, "set/**/*.jsonl")) == 2


def test_a_link_that_leads_nowhere_is_named(tmp_path: Path) -> None:
    touch(tmp_path, "set/rows.jsonl")
    (tmp_path / "set/loop.jsonl").symlink_to("loop.jsonl")
    with pytest.raises(ValueError, match=r"loop\.jsonl is a broken link"):
        sources.list_files("set", tmp_path)
    with pytest.raises(ValueError, match=r"there is no set/loop\.jsonl"):
        sources.list_files("set/loop.jsonl", tmp_path)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("row.jsonl", r"there is no row\.jsonl .* did you mean rows\.jsonl\?"),
        ("set/mroe.jsonl", r"did you mean set/more\.jsonl\?"),
        ("triples/trian.jsonl", r"did you mean triples/train\.jsonl\?"),
        ("set/*.json", r"nothing matches set/\*\.json .*: the folder holds more\.jsonl, notes\.doc"),
        ("sets/*.json", r"nothing matches .*: there is no folder"),
        ("set/*", r"notes\.doc: cannot read \.doc"),
        ("docs", r"docs is a folder without a file that can be read \(1 × \.pdf\)"),
        ("empty", r"without a file that can be read \(nothing at all\)"),
        ("docs/a.pdf", r"a\.pdf: cannot read \.pdf; known are"),
        ("hf://org/name", "must be fetched first"),
    ],
)
def test_what_cannot_be_used_is_said_with_what_is_there(source: str, message: str, tmp_path: Path) -> None:
    touch(tmp_path, "rows.jsonl", "set/more.jsonl", "set/notes.doc", "docs/a.pdf")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        sources.list_files(source, tmp_path)


def test_a_tokenised_folder_is_known(tmp_path: Path) -> None:
    from datasets import Dataset

    Dataset.from_list([{"input_ids": [1], "labels": [1]}]).save_to_disk(str(tmp_path / "tokens"))
    Dataset.from_list([{"text": "t"}]).save_to_disk(str(tmp_path / "text"))
    assert sources.is_tokenised(tmp_path / "tokens")
    assert not sources.is_tokenised(tmp_path / "text") and not sources.is_tokenised(tmp_path)
    assert [path.suffix for path in sources.list_files("text", tmp_path)] == [".arrow"]


def test_a_folder_of_splits_is_not_mixed(tmp_path: Path) -> None:
    from datasets import Dataset, DatasetDict

    rows = Dataset.from_list([{"text": "t"}])
    DatasetDict({"train": rows, "test": rows}).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(ValueError, match=r"set holds several splits; name one of them: set/test, set/train"):
        sources.list_files("set", tmp_path)
    assert [path.parent.name for path in sources.list_files("set/train", tmp_path)] == ["train"]


# ── the hub ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("hf://org/name", HubSource("org/name", None, "train")),
        ("hf://squad", HubSource("squad", None, "train")),
        ("hf://org/na-me.v2:en@test", HubSource("org/na-me.v2", "en", "test")),
    ],
)
def test_hub_names(source: str, expected: HubSource) -> None:
    assert sources.parse_hub_source(source) == expected


@pytest.mark.parametrize(
    "source", ["hf://", "hf://a/b/c", "hf://org/name:", "hf://org/name@", "hf://org/name@train[:9]", "hf://../x/y"]
)
def test_hub_names_that_are_none(source: str) -> None:
    with pytest.raises(ValueError, match="is written hf://org/name"):
        sources.parse_hub_source(source)


class Streamed:
    """Stands in for the hub's streaming data set: the hub cannot be reached from a test."""

    def __init__(self, rows: list[Any]) -> None:
        self._rows = rows
        split = type("Split", (), {"num_examples": len(rows)})
        self.info = type("Info", (), {"splits": {"train": split}})

    def __iter__(self) -> Any:
        for row in self._rows:
            if isinstance(row, Exception):
                raise row
            yield row


def test_a_hub_set_is_fetched_once_and_whole(bare_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: list[Any] = []

    def load_dataset(*arguments: Any, **options: Any) -> Streamed:
        asked.append((arguments, options))
        return Streamed([{"text": "ä", "day": date(2024, 1, 1)}, {"text": "b", "day": None}])

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    told: list[Any] = []
    hub = sources.parse_hub_source("hf://org/name:en")
    path = sources.fetch(hub, bare_home, lambda *each: told.append(each))
    assert [json.loads(line) for line in path.read_text().splitlines()] == [
        {"text": "ä", "day": "2024-01-01"},
        {"text": "b", "day": None},
    ]
    assert told == [("fetching", 1, 2), ("fetching", 2, 2)]
    assert asked == [(("org/name", "en"), {"split": "train", "streaming": True})]
    assert sources.fetch(hub, bare_home, lambda *_: None) == path and len(asked) == 1


@pytest.mark.parametrize("rows", [[{"text": "t"}, ConnectionError("cut off")], [{"picture": object()}]])
def test_a_fetch_that_fails_leaves_nothing(rows: list[Any], bare_home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: Streamed(rows))
    with pytest.raises(ValueError, match=r"hf://org/name@train cannot be fetched: (cut off|row 1 has)"):
        sources.fetch(sources.parse_hub_source("hf://org/name"), bare_home, lambda *_: None)
    assert list(bare_home.cache.iterdir()) == []


FETCH = """
import sys
from pathlib import Path
from engine.prep import sources
from engine.protocol.home import Home
for source in sys.argv[2:]:
    told = []
    try:
        print(sources.fetch(sources.parse_hub_source(source), Home(Path(sys.argv[1])), lambda *each: told.append(each)))
        assert told[-1] == ("fetching", 3, 0), told
    except ValueError as error:
        print(" ".join(str(error).split()))
"""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    touch(tmp_path, "set/data/train.jsonl", "set/data/test.jsonl", "set/README.md")
    (tmp_path / "set/data/test.jsonl").write_text('{"text": "1"}\n{"text": "2"}\n{"text": "3"}\n')
    (tmp_path / "set/README.md").write_text("A data set.\n")
    server = Hub(tmp_path / "set")
    yield server
    server.close()


@pytest.mark.slow
def test_datasets_itself_fetches_from_a_hub(hub: Hub, tmp_path: Path) -> None:
    """The real library over a real socket; only the hub's other side is ours."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment |= {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_XET": "1"}

    refused = {
        "hf://org/name@nope": "Bad split: nope. Available splits: ['train', 'test']",
        "hf://org/other": "doesn't exist on the Hub or cannot be accessed",
    }
    done = subprocess.run(
        [sys.executable, "-c", FETCH, tmp_path / "home", "hf://org/name@test", *refused],
        cwd=Path(__file__).parents[2],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    path, *errors = done.stdout.splitlines()
    assert Path(path).read_text() == '{"text":"1"}\n{"text":"2"}\n{"text":"3"}\n'
    assert any(path.endswith("data/test.jsonl") for _, path, _ in hub.asked)
    for (source, message), error in zip(refused.items(), errors, strict=True):
        assert error.startswith(source) and message in error
    assert len([path for path in (tmp_path / "home/cache").iterdir() if not path.name.startswith(".")]) == 1


# ── LLaMA-Factory's catalogue ──────────────────────────────────────────────────────────────────────────────────────

ENTRIES: dict[str, Any] = {
    "alpaca_demo": {"file_name": "alpaca.json"},
    "renamed": {
        "file_name": "r.json",
        "columns": {"prompt": "q", "query": "input", "response": "a", "system": "sys", "history": None},
        "num_samples": 5,
    },
    "dpo": {
        "file_name": "dpo.json",
        "ranking": True,
        "formatting": "sharegpt",
        "columns": {"messages": "conversations", "chosen": "good", "rejected": "rejected"},
    },
    "kto": {"file_name": "k.json", "formatting": "sharegpt", "columns": {"messages": "messages", "kto_tag": "label"}},
    "pretrain": {"file_name": "c4.jsonl", "columns": {"prompt": "content"}},
    "chat": {
        "hf_hub_url": "org/chat",
        "subset": "en",
        "split": "test",
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"},
    },
    "local_first": {"hf_hub_url": "org/x", "file_name": "here.json", "formatting": "openai"},
    "pictures": {"file_name": "p.json", "columns": {"images": "images"}},
    "odd_tags": {"file_name": "p.json", "formatting": "sharegpt", "tags": {"user_tag": "Q"}},
    "scripted": {"script_url": "some_script"},
    "modelscope": {"ms_hub_url": "a/b"},
    "odd": {"file_name": "p.json", "formatting": "other"},
}


@pytest.fixture
def listed(tmp_path: Path) -> dataset_info.Catalog:
    path = tmp_path / "dataset_info.json"
    path.write_text(json.dumps(ENTRIES))
    (tmp_path / "here.json").write_text("[]")
    return dataset_info.read(path)


def test_catalogue_entries_become_sources(listed: dataset_info.Catalog, tmp_path: Path) -> None:
    assert list(listed) == list(ENTRIES) and len(listed) == len(ENTRIES) and "dpo" in listed and "no" not in listed
    found = {name: listed[name] for name in list(ENTRIES)[:7]}
    assert {name: (each.format, each.columns) for name, each in found.items()} == {
        "alpaca_demo": ("alpaca", {}),
        "renamed": ("alpaca", {"instruction": "q", "input": "input", "output": "a", "system": "sys"}),
        "dpo": ("preference", {"conversations": "conversations", "chosen": "good", "rejected": "rejected"}),
        "kto": ("kto", {"conversations": "messages", "kto_tag": "label"}),
        "pretrain": ("text", {"text": "content"}),
        "chat": ("sharegpt", {"conversations": "messages"}),
        "local_first": ("messages", {}),
    }
    assert found["alpaca_demo"].source == str(tmp_path / "alpaca.json")
    assert found["renamed"].max_rows == 5
    assert sources.parse_hub_source(found["chat"].source) == HubSource("org/chat", "en", "test")
    assert found["local_first"].source == str(tmp_path / "here.json")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("alpaca_dmeo", r"has no data set alpaca_dmeo, did you mean alpaca_demo\?"),
        ("pictures", r"pictures: its column 'images' is not known for alpaca \(pictures and sound"),
        ("odd_tags", r"its user_tag is 'Q', but turns are read by human or user"),
        ("scripted", r"neither file_name nor hf_hub_url, and script_url cannot be read here"),
        ("modelscope", r"and ms_hub_url cannot be read here; download it"),
        ("odd", r"its formatting is 'other'"),
    ],
)
def test_entries_that_cannot_be_used_are_refused_by_name(name: str, message: str, listed: dataset_info.Catalog) -> None:
    with pytest.raises(ValueError, match=message):
        listed[name]


@pytest.mark.parametrize(
    ("content", "message"), [("[1]", "is not a catalogue"), ("{", "is not JSON"), ('{"a": 1}', "is not a catalogue")]
)
def test_a_file_that_is_no_catalogue(content: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        dataset_info.read(tmp_path / "x.json")
