"""`cockpit doctor [CHECK … | FOLDER]`: what works on this machine, what does not, and the command that fixes it.

`--fix` runs those commands where that is safe (`mending.py`), `--stress` tests the cards (`stress.py`). The result of a
check is True, False (something that is needed fails) or None (worth knowing, not needed). Exit status:
0 when nothing that is needed fails, 1 when something does, 2 for a check or folder that does not exist, 130
interrupted.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil
from rich.table import Table
from rich.text import Text

from engine.models import catalogue, folders, limits, tokenizers, trials
from engine.models.find import find
from engine.protocol import logout
from engine.protocol.client import Client, find_engine
from engine.protocol.console import GuardedConsole, text
from engine.protocol.home import Home
from engine.protocol.messages import ProblemError
from engine.protocol.terminal import guard, to_json
from engine.protocol.text import did_you_mean
from engine.workers import device_checks, mending, probes, stress
from engine.workers.device_checks import Check
from engine.workers.host_checks import check_hosts

LIBRARIES = ("transformers", "peft", "accelerate", "datasets", "safetensors", "tokenizers")
NEEDED_DISK = 5e9
NEEDED_MEMORY = 3e9
"""Bytes, a generous estimate of what the demo takes."""


def check_python(home: Home) -> Iterator[Check]:
    wanted = sys.version_info >= (3, 11)
    yield Check(
        "python",
        wanted,
        f"{platform.python_version()} ({sys.executable})",
        "" if wanted else "use Python 3.11 or newer",
    )


def check_libraries(home: Home) -> Iterator[Check]:
    missing, found = [], []
    for name in LIBRARIES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            missing.append(name)
    detail = f"missing: {', '.join(missing)}" if missing else ", ".join(found)
    yield Check("libraries", not missing, detail, f"pip install {' '.join(missing)}" if missing else "")


def check_torch_and_devices(home: Home) -> Iterator[Check]:
    """torch, its build against the driver, and the devices that the driver's library knows."""
    good, detail = probes.try_on_device("torch")
    build: dict[str, Any] = json.loads(detail) if good else {"text": detail, "cuda": "", "architectures": []}
    yield Check("torch", good, build["text"], "" if good else "make setup (torch is pinned in constraints.txt)")
    yield from device_checks.check_devices(build["cuda"], build["architectures"])


def check_bfloat16(home: Home) -> Iterator[Check]:
    good, detail = probes.try_on_device("bfloat16")
    yield Check("bfloat16", good or None, detail, "" if good else "use model.dtype float32 in profiles")


def check_nf4(home: Home) -> Iterator[Check]:
    good, detail = probes.try_on_device("nf4")
    mend = (
        ""
        if good
        else "pip install --force-reinstall --no-deps 'bitsandbytes>=0.50', or quantization: none in profiles"
    )
    yield Check("nf4", good, detail, mend)


def check_collectives(home: Home) -> Iterator[Check]:
    good, detail = probes.run_probes(["collectives"])["collectives"]
    mend = "" if good else "set GLOO_SOCKET_IFNAME and NCCL_SOCKET_IFNAME to a working interface (`ip -brief address`)"
    yield Check("collectives", good, detail, mend)


def check_disk(home: Home) -> Iterator[Check]:
    folder = home.root if home.root.exists() else home.root.parent
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    writable = os.access(folder, os.W_OK)
    detail = f"{home.root}: {free / 1e9:.1f} GB free" if writable else f"{folder} cannot be written to"
    good = writable and free >= NEEDED_DISK
    yield Check("disk", good, detail, "" if good else "free some space, or set COCKPIT_HOME to another place")


def check_memory(home: Home) -> Iterator[Check]:
    state = psutil.virtual_memory()
    good = state.available >= NEEDED_MEMORY
    detail = (
        f"{state.available / 1e9:.1f} of {state.total / 1e9:.1f} GB available, {len(os.sched_getaffinity(0))} cores"
    )
    yield Check("memory", good, detail, "" if good else "end processes that use it: ps aux --sort=-rss | head")


def check_worker_ahead(home: Home) -> Iterator[Check]:
    """The worker that a running engine keeps ahead of the next job, and the memory that it takes."""
    if find_engine(home) is None:
        return
    try:
        with Client(home, start=False) as client:
            warm = client.request("hello").warm
    except ProblemError:  # `cockpit engine status` says what is wrong with it
        return
    if warm is not None and warm.state != "none":
        mend = "nothing to do; engine.warm_worker: false in settings.yaml keeps none"
        yield Check("worker", True, f"{warm.memory / 1e9:.2f} GB: process {warm.pid} is kept ahead", mend)
    elif warm is not None:
        yield Check("worker", True, f"none is kept ahead: {warm.reason}")


def check_session(home: Home) -> Iterator[Check]:
    """Whether runs outlive the login."""
    if problem := logout.find_problem():
        yield Check("session", None, f"{problem.title}: {problem.cause}", problem.hint)
    else:
        yield Check("session", True, "runs go on when you log out")


def check_models(home: Home) -> Iterator[Check]:
    for name in catalogue.CATALOGUE:
        if not (home.models / name).is_dir():
            yield Check(
                "model",
                None,
                f"{name} is not installed yet: it is pulled on first use",
                f"cockpit model pull {name}",
                fix=("model", "pull", name),
            )
    for each in find(home):
        mend = f"cockpit model verify {each.path}" if each.problems else ""
        # A damaged model in a hub cache is only worth knowing; one in COCKPIT_HOME is needed.
        bad = False if each.where == "cockpit" else None
        detail = "; ".join(each.problems) or f"whole, {each.size / 1e6:.0f} MB"
        yield Check("model", bad if each.problems else True, f"{each.name}: {detail}", mend)


def check_trials(home: Home) -> Iterator[Check]:
    """The accelerated paths that were tried on this machine's devices, with what came of it."""
    for environment, verdicts in trials.list_verdicts(home).items():
        for verdict in verdicts:
            detail = f"{verdict.name} is {'used' if verdict.used else 'not used'}: {verdict.reason} ({environment})"
            mend = "cockpit doctor --again, once the driver or the libraries are other ones" if verdict.failed else ""
            fix = ("doctor", "path", "--again") if verdict.failed else ()
            yield Check("path", True if verdict.used else None, detail, mend, fix=fix)


CHECKS: tuple[Callable[[Home], Iterator[Check]], ...] = (
    check_python,
    check_libraries,
    check_torch_and_devices,
    check_bfloat16,
    check_nf4,
    check_collectives,
    check_disk,
    check_memory,
    check_worker_ahead,
    check_session,
    check_trials,
    check_models,
)
SHARED: Mapping[Callable[[Home], Iterator[Check]], tuple[str, ...]] = {
    check_torch_and_devices: ("torch", "driver", "device", "health"),
    check_trials: ("path",),
    check_models: ("model",),
}
"""The names of what a function of CHECKS yields, where they are not its own."""


def list_names() -> dict[str, Callable[[Home], Iterator[Check]]]:
    """The name of each check, and the function that makes it."""
    return {name: check for check in CHECKS for name in SHARED.get(check, (check.__name__.removeprefix("check_"),))}


def run_all(home: Home) -> list[Check]:
    """All checks. What computes on the device is tried in one process: most of its time is importing torch."""
    probes.try_together(name for name in ("torch", "bfloat16", "nf4") if name in list_names())
    return [check for run_check in CHECKS for check in run_check(home)]


def run_some(home: Home, names: Sequence[str]) -> list[Check]:
    """The checks of these names, each by itself."""
    functions = dict.fromkeys(list_names()[name] for name in names)
    found = [check for run_check in functions for check in run_check(home) if check.name in names]
    without = [name for name in names if all(check.name != name for check in found)]
    return found + [Check(name, None, "there is nothing of this kind on this machine") for name in without]


def check_folder(folder: Path) -> Iterator[Check]:
    """Check the files, then load the tokenizer and check its template and its stop token."""
    wrong = folders.find_problems(folder) or list(filter(None, [limits.find_vocabulary_problem(folder, folder)]))
    yield Check("files", not wrong, "; ".join(wrong) or "whole", f"cockpit model verify {folder}" if wrong else "")
    if family := folders.describe_glm(folder):
        yield Check("family", True, family)
    if not folders.has_tokenizer(folder):
        return
    from engine.models.template_lock import find_end_of_turn
    from engine.models.template_metadata import choose_template

    try:
        tokenizer = tokenizers.load(folder)
    except ProblemError as error:
        yield Check("tokenizer", False, error.problem.cause, error.problem.hint)
        return
    except (OSError, ValueError, KeyError, ImportError) as error:
        yield Check("tokenizer", False, probes.last_line(str(error)), "copy the tokenizer's files again")
        return
    yield Check("tokenizer", True, f"{len(tokenizer)} tokens, {type(tokenizer).__name__}")
    if not choose_template(tokenizer.chat_template):
        yield Check(
            "template", None, "no chat template: chat continues text", "add chat_template.jinja to chat with it"
        )
        return
    end = find_end_of_turn(tokenizer)
    name = tokenizer.convert_ids_to_tokens(end) if end is not None else ""
    detail = f"a turn ends with {name}" if name else "no special token ends a turn: replies would not stop"
    yield Check("template", bool(name), detail, "" if name else "fix chat_template.jinja")


def print_checks(checks: list[Check]) -> None:
    """Print a table on stdout, with what to do under each check that fails."""
    table = Table("", "check", "found", box=None, pad_edge=False)
    marks = {True: text("✓", "green"), False: text("✗", "red"), None: text("·", "yellow")}
    for check in checks:
        mend = text(f"\n→ {check.mend}" if check.mend else "", "bold")
        table.add_row(marks[check.ok], text(check.name), Text.assemble(text(check.detail), mend))
    GuardedConsole().print(table)


def read_targets(targets: Sequence[str]) -> tuple[list[str], Path | None]:
    """The checks that are named, or the folder. Raises ValueError for what is neither."""
    known = list_names()
    if len(targets) == 1 and targets[0] not in known and Path(targets[0]).is_dir():
        return [], Path(targets[0])
    for target in targets:
        if target not in known:
            close = did_you_mean(target, known) or "."
            raise ValueError(f"there is no check or folder {target}{close} The checks are {', '.join(known)}")
    return list(targets), None


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="cockpit doctor")
    parser.add_argument(
        "targets", nargs="*", metavar="CHECK|FOLDER", help="run these checks alone, or look at a folder"
    )
    parser.add_argument("--home")
    parser.add_argument("--json", action="store_true")
    parser.add_argument(
        "--hosts", metavar="A,B", type=lambda text: text.split(","), help="measure whether these can train together"
    )
    parser.add_argument("--ssh-option", action="append", default=[], help="an option of ssh (repeatable)")
    parser.add_argument(
        "--again", action="store_true", help="forget which accelerated paths were tried: they are tried anew"
    )
    parser.add_argument("--fix", action="store_true", help="run the commands that mend what fails, where that is safe")
    parser.add_argument("--yes", action="store_true", help="with --fix: do not ask")
    parser.add_argument("--stress", type=float, metavar="SECONDS", help="test each card, or the CPU, for so long")
    return parser.parse_args()


def main() -> int:
    arguments = parse()
    home = Home.locate(arguments.home)
    try:
        names, folder = read_targets(arguments.targets)
        chosen = [*names[:1], *filter(None, [folder, arguments.hosts, arguments.stress is not None])]
        if len(chosen) > 1:
            raise ValueError("checks, a folder, --hosts and --stress each have a run of the doctor of their own")
        if arguments.fix:
            mending.check_can_ask(yes=arguments.yes)
    except ValueError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.again:
        trials.forget(home)
    tokenizers.leave_out_torch()  # the probes that need it are processes of their own
    run: Callable[[], Iterable[Check]] = lambda: run_some(home, names) if names else run_all(home)  # noqa: E731
    if arguments.hosts:
        run = lambda: check_hosts(home, arguments.hosts, arguments.ssh_option)  # noqa: E731
    elif arguments.stress is not None:
        run = lambda: stress.check_devices(arguments.stress, home)  # noqa: E731
    elif folder is not None:
        run = lambda: check_folder(folder)  # noqa: E731
    mended: list[mending.Mended] = []
    try:
        checks = list(run())
        if arguments.fix:
            wanted = bool(names) or not arguments.yes
            mended = mending.mend(checks, home, also_wanted=wanted, yes=arguments.yes)
            if mended:
                probes.forget()
                checks = list(run())
    except KeyboardInterrupt:
        return 130
    good = all(check.ok is not False for check in checks) and not any(each.status for each in mended)
    if arguments.json:
        document = {"checks": [asdict(check) for check in checks], "ok": good}
        print(to_json(document | ({"mended": [each._asdict() for each in mended]} if arguments.fix else {})))
    else:
        print_checks(checks)
    return 0 if good else 1


if __name__ == "__main__":
    guard()
    sys.exit(main())
