"""The last line of a screen: the keys that work here.

Unlike Textual's footer it is one widget that repaints only when the keys change, so that a dialog does not redraw the
whole screen for it. Keys without room are left out rather than cut.
"""

from __future__ import annotations

from textual import events
from textual.screen import Screen
from textual.style import Style

from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.widgets.line import Line


class KeyBar(Line):
    """Keys can be clicked. The app's own keys come last, and are left out last. Help has F1 where `?` is typed."""

    DEFAULT_CSS = """
    KeyBar { dock: bottom; height: 1; background: $panel; text-wrap: nowrap; }
    """

    def on_mount(self) -> None:
        self.screen.bindings_updated_signal.subscribe(self, self._changed)
        self.call_after_refresh(self._draw)

    def on_resize(self) -> None:
        self._draw()

    async def on_click(self, event: events.Click) -> None:
        if key := event.style.meta.get("key"):
            await self.run_action(f"app.simulate_key({key!r})")

    def _changed(self, screen: Screen[object]) -> None:
        if screen.is_active:
            self._draw()

    def _draw(self) -> None:
        everywhere: list[Content] = []
        here: list[Content] = []
        shown: set[tuple[str, str]] = set()
        bindings = self.screen.active_bindings.values()
        helped = any(active.binding.action == "help" and active.binding.show for active in bindings)
        for active in bindings:
            binding = active.binding
            key = self.app.get_key_display(binding)
            said = (key, binding.description)  # a dialog and what lies under it may both have Esc
            wanted = binding.show or (binding.action == "help" and not helped)
            if wanted and binding.description and active.enabled and said not in shown:
                shown.add(said)
                name = Content.assemble((f" {key} ", "bold $accent"), f"{tr(binding.description)} ")
                click = Style.from_meta({"key": binding.key})  # a link would have one colour for key and word
                (everywhere if active.node is self.app else here).append(name.stylize(click))
        room = self.size.width - sum(each.cell_length for each in everywhere)
        fitting: list[Content] = []
        for each in here:
            room -= each.cell_length
            if room < 0:
                break
            fitting.append(each)
        self.show(Content("").join(fitting + everywhere))
