"""What all tests share: a home of their own, the embedded model, real engines that are gone afterwards."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import signal
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from cockpit import remote_names
from engine.hardware.nvidia import Nvidia
from engine.protocol.client import find_engine
from engine.protocol.home import Home
from engine.protocol.sockets import list_directories
from engine.supervisor.processes import WORKER_DEFAULTS
from tests.scripted.bench import Engine
from tests.trained import trained  # noqa: F401 - a fixture

USER_HOME = Home.locate()
# Tests start several hundred processes, and without its caches each would compile the whole project anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["LANGUAGE"] = "en"  # whatever the locale of the shell
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["COCKPIT_WARM"] = "0"  # a worker ahead costs ten seconds of a core; tests/supervisor/test_ahead.py asks
os.environ.setdefault("COCKPIT_COMPILE", "0")  # else chats of tests would compile in the background
for _name, _value in WORKER_DEFAULTS.items():
    os.environ.setdefault(_name, _value)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # A shell starts what it puts into the background so, and children would inherit it: ctrl+c is what some tests are
    # about.
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def _own_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command line that a test runs in its own process says how it was called; the next test is another process's."""
    monkeypatch.setattr(remote_names, "command", "cockpit")
    monkeypatch.setattr(remote_names, "ends_with_reader", False)


MOST_OPEN = 512
"""Files, sockets and pipes that a process of tests may have open between two tests."""


@pytest.fixture(autouse=True)
def _few_open_files() -> Iterator[None]:
    """What tests or the code that they call leave open adds up over thousands of tests."""
    yield
    if (opened := psutil.Process().num_fds()) > MOST_OPEN:
        names = [re.sub(r"\d+", "N", os.path.realpath(file)) for file in Path("/proc/self/fd").glob("*")]
        pytest.fail(f"{opened} files are open, most often: {Counter(names).most_common(5)}")


@pytest.fixture(scope="session")
def whole_smollm2() -> Path:
    """The embedded model's folder, pulled into the user's home on first need (as `make setup` does)."""
    from engine.models.catalogue import pull

    return pull("smollm2-135m-instruct", USER_HOME.create(), lambda *_: None)


def link_files(source: Path, folder: Path, without: tuple[str, ...]) -> None:
    """Make a folder with links to the files of `source`, but for some."""
    folder.mkdir()
    for file in source.iterdir():
        if file.name not in without:
            (folder / file.name).symlink_to(file)


LAYERS = 6
"""Of the 30 that the embedded model has: replies mean less, and each token is computed in a third of the time."""


@pytest.fixture(scope="session")
def smollm2(whole_smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with its first layers. What it says means nothing: tests that read it take the whole model."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    folder = tmp_path_factory.mktemp("models") / whole_smollm2.name
    link_files(whole_smollm2, folder, without=("config.json", "model.safetensors"))
    config = json.loads((whole_smollm2 / "config.json").read_text(encoding="utf-8"))
    (folder / "config.json").write_text(json.dumps(config | {"num_hidden_layers": LAYERS}), encoding="utf-8")
    with safe_open(whole_smollm2 / "model.safetensors", "pt") as whole:
        names = {*whole.keys()}
        names = {name for name in names if not name.startswith("model.layers.") or int(name.split(".")[2]) < LAYERS}
        save_file({name: whole.get_tensor(name) for name in names}, folder / "model.safetensors", whole.metadata())
    return folder


TOKENS = 12_000
"""Of the 49,152 that the embedded model's tokenizer has: it is loaded for each prepared set, and most of that time goes
into words that no test has."""


@pytest.fixture(scope="session")
def light(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The embedded model with the first tokens and merges of its tokenizer, and the ids that they have there."""
    folder = tmp_path_factory.mktemp("light") / smollm2.name
    link_files(smollm2, folder, without=("tokenizer.json",))
    tokenizer = json.loads((smollm2 / "tokenizer.json").read_text(encoding="utf-8"))
    model = tokenizer["model"]
    model["vocab"] = {token: number for token, number in model["vocab"].items() if number < TOKENS}
    model["merges"] = [pair for pair in model["merges"] if "".join(pair) in model["vocab"]]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    return folder


def end_processes_of(home: Home) -> None:
    """Kill every process that belongs to this home: engine, workers, ranks. Looks again until there is none, since an
    engine may have started one in between."""
    marker = str(home.root)
    found = True
    while found:
        found = False
        for process in psutil.process_iter(["pid", "cmdline"]):
            if process.pid != os.getpid() and any(marker in part for part in process.info["cmdline"] or []):
                try:
                    process.send_signal(signal.SIGKILL)
                    process.wait(5)
                    found = True
                except (psutil.NoSuchProcess, psutil.TimeoutExpired):
                    pass


@pytest.fixture
def bare_home(tmp_path: Path) -> Iterator[Home]:
    """A new, empty COCKPIT_HOME; whatever was started for it is gone after the test."""
    home = Home(tmp_path / "home").create()
    yield home
    end_processes_of(home)
    assert find_engine(home) is None
    for directory in list_directories(home):
        shutil.rmtree(directory, ignore_errors=True)


@pytest.fixture
def home(bare_home: Home, smollm2: Path) -> Home:
    """A COCKPIT_HOME that holds the embedded model."""
    (bare_home.models / smollm2.name).symlink_to(smollm2)
    return bare_home


@pytest.fixture
def engine(bare_home: Home) -> Iterator[Engine]:
    """A real supervisor over scripted workers."""
    engine = Engine(bare_home)
    yield engine
    engine.close()


_frozen = 0
"""Modules that were imported when objects were last taken out of the garbage collector's sight."""


def pytest_runtest_setup() -> None:
    """Take what the libraries have created so far out of the garbage collector's sight.

    torch and transformers leave half a million objects. A run calls `gc.collect()` several times, which walks them all:
    0.6 s of a core each time, more than a run of the tiny model computes.
    """
    global _frozen
    if len(sys.modules) > _frozen + 50:
        gc.collect()
        gc.freeze()
        _frozen = len(sys.modules)


LONGEST = ("training", "cli", "serving", "inference", "faults")
"""Folders that hold the longest files. They are begun first, so that no worker has one left when the others have
ended."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` need a card: `pytest -m gpu` on a machine that has one runs them all. With
    `COCKPIT_GPU_TESTS=cpu` those that take the fixture `device` run on a CPU."""
    items.sort(key=lambda item: LONGEST.index(name) if (name := item.path.parent.name) in LONGEST else len(LONGEST))
    marked = [item for item in items if item.get_closest_marker("gpu")]
    if os.environ.get("COCKPIT_GPU_TESTS") == "cpu":
        marked = [item for item in marked if "device" not in getattr(item, "fixturenames", ())]
        reason = "needs a CUDA device, and this is a rehearsal on a CPU"
    else:
        reason = "no CUDA device"
        marked = marked if not marked or not Nvidia().count else []
    for item in marked:
        item.add_marker(pytest.mark.skip(reason=reason))
