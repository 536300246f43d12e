"""Trackers of experiments (MLflow, SwanLab, Trackio, Comet, Aim, ClearML), through accelerate's classes for them.

`ROWS` has one row each. A tracker works in a thread of its own: a service that is slow, absent or failing neither
delays nor ends the training; the run gets a warning instead (`logging.tracker_failed`), and waits at its end for
`PATIENCE` seconds at most. A later attempt continues the same run in a tracker that can do so, and steps that are
repeated after a resume are not sent twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import json
import logging
import math
import os
import queue
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from engine.options.tables import TRACKERS
from engine.options.training import LoggingOptions
from engine.protocol.environment import is_secret
from engine.protocol.file_channel import replace
from engine.protocol.home import RunDirectory
from engine.protocol.journal import Evaluation, Metrics, read
from engine.protocol.messages import Problem, ProblemError

FAILURES = 5
"""Entries in a row that a tracker may fail to take before it gets no more."""
PATIENCE = 30.0
"""Seconds that a tracker has at the end of a run to take what it has not taken yet."""
WAITING = 100_000
"""Entries that wait for a slow tracker at most; further ones are left out."""
_WRITING = threading.Lock()
"""Held while an id is added to the file of all trackers' ids."""
_LOGIN = re.compile(r"(?<=://)[^\s/@]+@")
"""The user and password of an address."""


class Place(NamedTuple):
    """What a row needs to know: `known` is the tracker's own id of the run, from an earlier attempt."""

    run: str
    project: str
    folder: Path
    offline: bool
    known: str | None

    @property
    def key(self) -> str:
        """An id for trackers that let their clients choose it: 32 hexadecimal digits, from the run's id."""
        return hashlib.sha256(f"{self.folder.parent}:{self.run}".encode()).hexdigest()[:32]


class Row(NamedTuple):
    """`arguments` are those of accelerate's class, after what has to be set before its start; `identify` returns the
    tracker's id of the run, by which a later attempt continues it; None where it cannot."""

    kind: str
    arguments: Callable[[Place], dict[str, Any]]
    identify: Callable[[Any, Place], str | None]
    updates: bool = True
    """Whether the settings of a run may be sent again, changed."""


def _mlflow(place: Place) -> dict[str, Any]:
    import mlflow

    if place.offline or not os.environ.get("MLFLOW_TRACKING_URI"):
        mlflow.set_tracking_uri(_mlflow_store(place.folder))
    return {"experiment_name": place.project, "run_name": place.run, "run_id": place.known}


def _mlflow_store(folder: Path) -> str:
    """A database, or plain files where only mlflow-skinny is installed, which has no SQL."""
    if importlib.util.find_spec("sqlalchemy") and importlib.util.find_spec("alembic"):
        return f"sqlite:///{folder / 'mlflow.db'}"
    os.environ.setdefault("MLFLOW_ALLOW_FILE_STORE", "true")
    return folder.as_uri()


def _swanlab(place: Place) -> dict[str, Any]:
    chosen = {"mode": "offline"} if place.offline else {}
    return {
        "run_name": place.project,
        "name": place.run,
        "id": place.key,
        "resume": "allow",
        "log_dir": str(place.folder),
        **chosen,
    }


def _trackio(place: Place) -> dict[str, Any]:
    if place.offline:
        os.environ["TRACKIO_DIR"] = str(place.folder)
        os.environ.pop("TRACKIO_SPACE_ID", None)
    return {"run_name": place.project, "name": place.run, "resume": "allow", "embed": False}


def _comet(place: Place) -> dict[str, Any]:
    import comet_ml

    config = comet_ml.ExperimentConfig(
        name=place.run,
        offline_directory=str(place.folder),
        log_code=False,
        log_git_metadata=False,
        auto_output_logging=False,
    )
    if place.offline:
        return {"run_name": place.project, "online": False, "mode": "create", "experiment_config": config}
    return {
        "run_name": place.project,
        "experiment_key": place.key,
        "mode": "get_or_create",
        "online": True,
        "experiment_config": config,
    }


def _aim(place: Place) -> dict[str, Any]:
    return {
        "run_name": place.run,
        "logging_dir": str(place.folder),
        "experiment": place.project,
        "run_hash": place.known,
        "system_tracking_interval": None,
        "capture_terminal_logs": False,
    }


def _clearml(place: Place) -> dict[str, Any]:
    from clearml import Task

    Task.set_random_seed(None)  # else its start seeds random, numpy and torch anew, in the middle of the training
    if place.offline:
        os.environ["CLEARML_CACHE_DIR"] = str(place.folder)
        Task.set_offline(True)
    return {
        "project_name": place.project,
        "task_name": place.run,
        "continue_last_task": place.known if place.known and not place.offline else False,
        "reuse_last_task_id": False,
        "output_uri": False,
        "auto_connect_arg_parser": False,
        "auto_connect_frameworks": False,
        "auto_connect_streams": False,
        "auto_resource_monitoring": False,
    }


ROWS: dict[str, Row] = {
    "mlflow": Row("mlflow", _mlflow, lambda run, _: run.info.run_id, updates=False),
    "swanlab": Row("swanlab", _swanlab, lambda _, place: None if place.offline else place.key),
    "trackio": Row("trackio", _trackio, lambda _, place: place.run),
    "comet": Row("comet_ml", _comet, lambda _, place: None if place.offline else place.key),
    "aim": Row("aim", _aim, lambda run, _: str(run.hash)),
    "clearml": Row("clearml", _clearml, lambda task, place: None if place.offline else str(task.id)),
}


def check_installed(options: LoggingOptions) -> None:
    """Raise ProblemError for a tracker whose package is not installed."""
    for name in options.trackers:
        module, package = TRACKERS[name]
        if importlib.util.find_spec(module) is None:
            raise ProblemError(
                Problem(
                    code="package.missing",
                    title=f"logging.trackers: {name} needs the package {package}",
                    cause="it is not installed",
                    hint=f"pip install {package}, or take {name} out of logging.trackers",
                )
            )


def flatten(settings: dict[str, Any], prefix: str = "") -> dict[str, str | int | float | bool]:
    """The settings of a profile as single values, by their paths; lists as JSON."""
    flat: dict[str, str | int | float | bool] = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{prefix}{key}.")
        elif value is not None:
            plain = isinstance(value, (str, int, float, bool))
            flat[prefix + key] = value if plain else json.dumps(value, ensure_ascii=False, default=str)
    return flat


def _is_secret(name: str) -> bool:
    """Whether a setting is a variable that is named like a key: a profile should have none, and a service gets none."""
    return name.startswith("launch.environment.") and is_secret(name.removeprefix("launch.environment."))


class Tracker:
    """One tracker of a run. `warn` takes the arguments of `Reporter.warn`, and is called from `write` and `close`
    only: the tracker's own thread never writes to the journal."""

    def __init__(
        self, name: str, run: RunDirectory, options: LoggingOptions, settings: dict[str, Any], warn: Callable[..., None]
    ):
        self.name, self._run, self._row, self._warn = name, run, ROWS[name], warn
        folder = run.path.parent.parent / "trackers" / name
        self._id_name = _name_id(name, options.offline)
        self._place = Place(run.id, options.project, folder, options.offline, _read_ids(run).get(self._id_name))
        self._settings = {name: value for name, value in flatten(settings).items() if not _is_secret(name)}
        self._highest = _find_highest(run) if self._place.known else {}
        self._entries: queue.Queue[Metrics | Evaluation | None] = queue.Queue(WAITING)
        self._complaints: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._dropped = 0
        self._deadline: float | None = None
        self._given_up = threading.Event()
        self._thread = threading.Thread(target=self._work, name=f"tracker-{name}", daemon=True)
        self._thread.start()

    def write(self, entry: Metrics | Evaluation) -> None:
        if not self._given_up.is_set() and not self._put(entry):
            self._dropped += 1
        self._report(entry.step)

    def _put(self, entry: Metrics | Evaluation | None) -> bool:
        try:
            self._entries.put_nowait(entry)
        except queue.Full:
            return False
        return True

    def rewind(self, step: int) -> None:
        """Nothing: what was sent stays, and is not sent again."""

    def end(self) -> None:
        """Nothing more is written. Trackers that are ended together share the time that `close` waits."""
        if self._deadline is None:
            self._deadline = time.monotonic() + PATIENCE
            while not self._put(None):
                with contextlib.suppress(queue.Empty):
                    self._entries.get_nowait()
                    self._dropped += 1

    def close(self) -> None:
        """Wait until the tracker has taken everything, `PATIENCE` seconds after `end` at most."""
        self.end()
        assert self._deadline is not None
        self._thread.join(max(0.0, self._deadline - time.monotonic()))
        if self._thread.is_alive():
            left = self._entries.qsize()
            what = f"taken the last {left} entries" if left else "ended the run"
            self._complaints.put(f"it has not {what} within {PATIENCE:.0f} s")
        if self._dropped:
            self._complaints.put(f"it was too slow, so {self._dropped} entries were left out")
        self._report(0)

    def _report(self, step: int) -> None:
        while not self._complaints.empty():
            self._warn(
                code="logging.tracker_failed",
                step=step,
                message=f"{self.name}: {self._complaints.get()}",
                hint="the run goes on, and its journal has everything; check the service and its login, or set "
                "logging.offline to true",
            )

    def _work(self) -> None:
        try:
            tracker = self._start()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever fails there, the run goes on
            self._given_up.set()
            self._complaints.put(f"it could not be started and gets nothing of this attempt: {_describe(error)}")
            return
        self._send_all(tracker)
        try:
            tracker.finish()
        except (Exception, SystemExit) as error:  # noqa: BLE001
            self._complaints.put(f"it did not end the run: {_describe(error)}")

    def _start(self) -> Any:
        from accelerate import tracking

        # accelerate's logger fails before an Accelerator is made, which this thread does not wait for.
        tracking.logger = _Log(logging.getLogger("accelerate.tracking"), {})
        self._place.folder.mkdir(parents=True, exist_ok=True)
        tracker = tracking.LOGGER_TYPE_TO_CLASS[self._row.kind](**self._row.arguments(self._place))
        tracker.main_process_only = False  # only rank 0 has trackers
        tracker.start()
        if self._row.updates or not self._place.known:
            tracker.store_init_configuration(self._settings)
        if (found := self._row.identify(tracker.tracker, self._place)) and found != self._place.known:
            with _WRITING:
                replace(_ids_path(self._run), json.dumps(_read_ids(self._run) | {self._id_name: found}).encode())
        return tracker

    def _send_all(self, tracker: Any) -> None:
        failures = 0
        while (entry := self._entries.get()) is not None:
            if not (values := self._select(entry)):
                continue
            try:
                tracker.log(values, step=entry.step)
                failures = 0
            except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever fails there, the run goes on
                failures += 1
                if failures == 1:
                    self._complaints.put(f"it did not take the metrics of step {entry.step}: {_describe(error)}")
                if failures == FAILURES:
                    self._given_up.set()
                    self._complaints.put(f"it gets nothing more of this attempt, after {FAILURES} failures in a row")
                    return

    def _select(self, entry: Metrics | Evaluation) -> dict[str, float]:
        """The finite values of an entry that the tracker does not have yet."""
        chosen = {}
        for name, value in entry.values.items():
            if value is not None and math.isfinite(value) and entry.step > self._highest.get(name, -1):
                chosen[name] = value
                self._highest[name] = entry.step
        return chosen


class _Log(logging.LoggerAdapter):  # type: ignore[type-arg]
    """Takes what accelerate's logger takes."""

    def process(self, msg: Any, kwargs: Any) -> tuple[Any, Any]:
        kwargs.pop("main_process_only", None)
        return msg, kwargs

    def warning_once(self, *arguments: Any, **options: Any) -> None:
        self.warning(*arguments, **options)


def _describe(error: BaseException) -> str:
    """The first line of an error, with its kind, without the login of an address."""
    lines = _LOGIN.sub("…@", str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__


def _name_id(name: str, offline: bool) -> str:
    """What a tracker's id of the run is kept under: a server does not know the runs of another, nor those that were
    recorded on this machine."""
    if offline:
        return f"{name} offline"
    server = os.environ.get("MLFLOW_TRACKING_URI", "") if name == "mlflow" else ""
    return f"{name} {hashlib.sha256(server.encode()).hexdigest()[:8]}" if server else name


def _ids_path(run: RunDirectory) -> Path:
    return run.path / "trackers.json"


def _read_ids(run: RunDirectory) -> dict[str, str]:
    try:
        found = json.loads(_ids_path(run).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return {str(name): str(value) for name, value in found.items()} if isinstance(found, dict) else {}


def _find_highest(run: RunDirectory) -> dict[str, int]:
    """The last step of each metric that earlier attempts have journaled, and so have sent."""
    highest: dict[str, int] = {}
    for entry, _ in read(run.events):
        if isinstance(entry, (Metrics, Evaluation)):
            for name, value in entry.values.items():
                if value is not None:
                    highest[name] = max(highest.get(name, -1), entry.step)
    return highest
