"""What `cockpit fit` finds, from its command line to its answer; and larger settings where there is room."""

from __future__ import annotations

import json
import logging
import sys
from typing import Any

import pytest

from cockpit.cli import main
from cockpit.verbs import tools
from engine.config.profile import parse
from engine.training.forecast import estimate, solver, ways
from engine.training.forecast.hosts import Host
from engine.workers import forecast as worker
from tests.training.harness import PROFILE

GB = 10**9
TOKENS = ("training.micro_batch=1", "training.tokens_per_batch=8192")


@pytest.fixture
def run_here(monkeypatch):
    """The verbs' worker runs in this process."""

    def run(name: str, options: Any, *arguments: str) -> None:
        shared = ["--home", str(options.home), *(["--json"] if options.json else [])]
        monkeypatch.setattr(sys, "argv", [name, *arguments, *shared])
        try:
            raise SystemExit(worker.main())
        finally:
            logging.disable(logging.NOTSET)

    monkeypatch.setattr(tools, "_run_worker", run)


@pytest.mark.slow
def test_fit_for_eight_cards_from_the_command_line(bare_home, tiny, tmp_path, run_here, capfd):
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": f"w{n} w{n + 1}"}) + "\n" for n in range(20)))
    file, copy = tmp_path / "own.yaml", tmp_path / "copy.yaml"
    text = PROFILE.format(base=tiny).replace("triples/train.jsonl", str(rows))
    file.write_text(text.replace("micro_batch: 4", "micro_batch: 4, accumulation: 16"))
    arguments = ["--home", str(bare_home.root), "--json", "fit", str(file), "--cards", "8x80GB", "--apply", str(copy)]
    with pytest.raises(SystemExit) as ended:
        main([*arguments, "--set", "launch.processes=1", "--way", "1"])
    assert ended.value.code == 0
    found = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert (found["cards"], found["card_bytes"]) == (8, 80 * GB)
    first = found["ways"][0]
    assert first["settings"] == {} and first["verdict"] == "fits" and 0 < first["device_bytes"] < GB
    written = parse(copy.read_text(), "copy", tmp_path)
    training = written.training
    assert training.micro_batch * training.accumulation * written.launch.processes == 64
    grown = {way["grows"].split(",")[0]: way["settings"] for way in found["ways"] if "grows" in way}
    assert grown["a larger micro-batch"] == {"training.micro_batch": 8, "training.accumulation": 1}
    assert set(grown) >= {"a larger micro-batch", "a higher rank"}
    assert all(way["verdict"] == "fits" for way in found["ways"] if "grows" in way)


def test_each_setting_is_doubled_while_it_fits(monkeypatch):
    """Memory is a number of GB by the settings, on a card of 20 GB; all rows are as they are made up."""
    profile = parse(
        PROFILE.format(base="a/b"),
        "test",
        "/",
        ["training.micro_batch=1", "training.accumulation=12", "data.max_length=1024", "adapter.rank=8"],
    )
    host = Host("cuda", "a card", 1, 20 * GB, None)

    def fake(changed: Any, host: Any, given: Any) -> dict[str, Any]:
        rank = changed.adapter.rank / 8 * 0.1
        needed = 3 + changed.training.micro_batch * changed.data.max_length / 1024 * 2 + rank
        return {"device_bytes": int(needed * GB), "host_bytes": GB, "error_percent": 10.0}

    monkeypatch.setattr(solver, "estimate", fake)
    monkeypatch.setattr(estimate, "assume_rows", lambda changed, given, stack, ranks: given)
    monkeypatch.setattr(estimate, "read_config", lambda *_: type("Config", (), {"max_position_embeddings": 4096}))
    unchanged = solver.try_change(profile, host, None, {"settings": {}, "time": 1.0})
    found = [way["settings"] for way in ways.find_larger(profile, host, None, unchanged)]
    alpha = profile.adapter.alpha
    assert found == [
        {"training.micro_batch": 4, "training.accumulation": 3},
        {"adapter.rank": 256, "adapter.alpha": alpha * 32},
        {"data.max_length": 4096},
    ]
    assert ways.find_larger(profile, host, None, unchanged | {"device_bytes": 15 * GB}) == []
    assert ways.find_larger(profile, host, None, unchanged | {"verdict": "near"}) == []


@pytest.mark.parametrize(
    ("card", "batch", "expected"),
    [
        (9, ("training.micro_batch=4",), [("a lower rank", 16, 4096), ("shorter rows", 64, 1024)]),
        (7, ("training.micro_batch=4",), [("a lower rank", 1, 2048)]),
        (9, TOKENS, [("a lower rank", 16, 4096), ("shorter rows", 64, 1024)]),
        (2, ("training.micro_batch=4",), []),
    ],
)
def test_where_nothing_fits_at_one_row_rank_and_length_are_halved(card, batch, expected, monkeypatch):
    """Memory is a number of GB by the settings; int8 takes one less than 16 bits, and NF4 two."""
    changes = [*batch, "data.max_length=4096", "adapter.rank=64", "training.gradient_checkpointing=true"]
    profile = parse(PROFILE.format(base="a/b"), "test", "/", changes)
    assumed = []

    def fake(changed: Any, host: Any, given: Any) -> dict[str, Any]:
        training, length = changed.training, changed.data.max_length
        tokens = training.tokens_per_batch or training.micro_batch * length
        needed = 5 + tokens / 1024 + changed.adapter.rank / 16
        needed -= {"none": 0, "int8": 1, "nf4": 2}[changed.model.quantization]
        return {"device_bytes": int(needed * GB), "host_bytes": GB, "error_percent": 10.0}

    monkeypatch.setattr(solver, "estimate", fake)
    monkeypatch.setattr(estimate, "assume_rows", lambda changed, *_, **__: assumed.append(changed.data.max_length))
    found = ways.solve(profile, Host("cuda", "a card", 1, card * GB, None), None)
    told = []
    for way in found:
        changed = estimate.replace_settings(profile, way["settings"])
        adapter: Any = changed.adapter
        told.append((way["grows"].split(",")[0].split(":")[0], adapter.rank, changed.data.max_length))
        assert adapter.alpha / adapter.rank == pytest.approx(profile.adapter.alpha / 64, rel=1e-3)
        assert changed.model.quantization == "nf4"
        assert ("this changes the data" in way["grows"]) == ("data.max_length" in way["settings"])
    assert told == expected
    assert assumed or not expected  # the real rows are cut


def test_int8_is_tried_where_nf4_is():
    profile = parse(PROFILE.format(base="a/b"), "test", "/", ["adapter={kind: lora}"])
    for kind, expected in (("cuda", ["nf4", "int8"]), ("cpu", [])):
        listed = solver.list_changes(profile, Host(kind, "", 1, 20 * GB, None))
        alone = [each["settings"] for each in listed if len(each["settings"]) == 1]
        assert [each["model.quantization"] for each in alone if "model.quantization" in each] == expected


def test_a_micro_batch_that_grows_stays_so_on_other_cards():
    profile = parse(
        PROFILE.format(base="a/b"),
        "test",
        "/",
        ["training.micro_batch=auto", "training.accumulation=16", "launch.processes=2"],
    )
    assert solver.spread(profile, Host("cuda", "a card", 8, 20 * GB, None)) == {"training.accumulation": 4}


def test_a_search_that_is_given_up_ends(monkeypatch):
    def give_up(*_: Any) -> Any:
        raise estimate.Abandoned

    monkeypatch.setattr(solver, "estimate", give_up)
    profile = parse(PROFILE.format(base="a/b"), "test", "/", [])
    given: Any = None
    with pytest.raises(estimate.Abandoned):
        solver.try_change(profile, Host("cuda", "a card", 1, 20 * GB, None), given, {"settings": {}, "time": 1.0})


def test_a_higher_rank_has_the_scale_of_the_profile():
    for kind, power in (("lora", 1.0), ("rslora", 0.5)):
        changes = [f"adapter={{kind: {kind}, rank: 8, alpha: 16}}"]
        for way in ways._list_ranks(parse(PROFILE.format(base="a/b"), "test", "/", changes)):
            rank, alpha = way["settings"].values()
            assert alpha / rank**power == pytest.approx(16 / 8**power, rel=1e-4)
