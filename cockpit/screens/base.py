"""The base of every screen: the bar at the top, the keys at the bottom, and the messages of the engine."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar, cast

from textual.app import ComposeResult
from textual.screen import Screen
from textual.worker import Worker

from cockpit.connection.engine_app import EngineApp
from cockpit.keymap import named
from cockpit.screens import SCREENS
from cockpit.widgets.key_bar import KeyBar
from cockpit.widgets.top_bar import TopBar

if TYPE_CHECKING:
    from cockpit.state.app_state import AppState

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def opens_dialog(start: Callable[Arguments, Worker[Result]]) -> Callable[Arguments, Worker[Result]]:
    """Decorate a `@work` method that opens a dialog, above `@work`. Keys typed after it was called wait for the
    dialog."""

    @wraps(start)
    def started(*args: Arguments.args, **options: Arguments.kwargs) -> Worker[Result]:
        worker = start(*args, **options)
        cast(EngineApp, worker.node.app).keys.expect(worker)
        return worker

    return started


class CockpitScreen(Screen[None]):
    """A screen with a key of its own. Subclasses give `compose_body` and, when they show live data, `receive`.

    `self.app.state` is the current `AppState`; `await self.app.ask(operation, message)` asks the engine and returns its
    reply, or None after it has shown what went wrong; `self.app.open_run(run_id)` goes to the dashboard of a run;
    `self.app.home` is the `Home`.
    """

    if TYPE_CHECKING:
        app: EngineApp  # type: ignore[assignment]

    HELP_TEXT = ""
    """A few lines for `?`, above the keys."""

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        named(cls)

    OVER = ""
    """The title of a screen that has no key and lies on another one."""

    def compose(self) -> ComposeResult:
        self._take_size()
        yield TopBar({name: title for name, (title, _) in SCREENS.items()}, self.OVER)
        yield from self.compose_body()
        yield KeyBar()

    def _take_size(self) -> None:
        """Take the classes of the terminal's size before there are widgets: Textual sets them after it has laid out the
        screen, and then styles and lays out all of it again."""
        for places, cells in zip(
            (self.app.HORIZONTAL_BREAKPOINTS, self.app.VERTICAL_BREAKPOINTS), self.app.size, strict=True
        ):
            fitting = [name for least, name in places or () if cells >= least]
            self.set_class(True, *fitting[-1:], update=False)

    def compose_body(self) -> ComposeResult:
        """The widgets between the top bar and the key bar."""
        return ()

    def receive(self, state: AppState, body: object) -> None:
        """Called on every mounted screen, visible or not, after `body` (a Snapshot or a published body) was reduced
        into `state`."""

    def interrupt(self) -> bool:
        """Stop what is going on here. Returns whether there was something."""
        return False

    def _compositor_refresh(self) -> None:
        """Textual marks a screen under a modal for repainting each time it has repainted it. Every tick of a timer
        below would then send the whole dimmed screen again, 25 kB."""
        if self.app._batch_count:  # Textual would render it, throw that away and know nothing of it afterwards
            self._repaint_required = True
            return
        super()._compositor_refresh()
        if not self.is_active:
            self._repaint_required = False
