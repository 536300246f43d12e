"""A session with the app: it is opened, opened anew in another language, and at the end says which runs go on."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from cockpit.app import CockpitApp
from cockpit.connection.attachment import Attachment
from cockpit.language.translate import read_language, set_language, tr
from cockpit.painted_app import REOPEN
from cockpit.state.app_state import AppState
from engine.protocol.home import Home
from engine.protocol.states import LIVE


def run(
    home: Home,
    readonly: bool = False,
    select: str | None = None,
    screen: str = "dashboard",
    engines: Sequence[Attachment] = (),
) -> int:
    """Open the app and return its exit status when the user has detached: 1 when it had to end by itself."""
    app = CockpitApp(home, readonly=readonly, selected=select, first=screen, engines=engines)
    app.run()
    while app.return_code == REOPEN and not engines and not app.is_web:
        set_language(read_language(str(home.root)))
        app = CockpitApp(home, readonly=readonly, selected=app.state.selected, first=app.screen_name, engines=engines)
        app.run()
    if app.return_code == REOPEN:
        if not app.is_web:  # the page offers to open the app again
            print(tr("The language has been changed: open the app again."))
    elif app.return_code:
        print(tr("The app had to end. The report is in {fault_log}", fault_log=app.fault_log), file=sys.stderr)
    for engine in app.engines if not app.is_web else ():
        live = list_live(engine.state)
        if live:
            one, runs = len(live) == 1, ", ".join(live)
            said = tr("Detached: {runs} goes on.", runs=runs) if one else tr("Detached: {runs} go on.", runs=runs)
            ways = tr(
                "Come back with `{command}`, stop with `{command} stop {run}`.", command=engine.command, run=live[0]
            )
            print(said, ways)
    return 0 if app.return_code == REOPEN else app.return_code or 0


def list_live(state: AppState) -> list[str]:
    """The runs that go on, as far as the app knows: until an engine has answered, that of the first paint."""
    known = [state.early] if state.connection == "connecting" and state.early else state.runs.values()
    return [run.id for run in known if run.state in LIVE and run.state != "stopping"]
