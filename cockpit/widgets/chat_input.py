"""The input of the chat: Enter sends, shift+Enter or ctrl+j starts a new line."""

from __future__ import annotations

from textual.binding import Binding
from textual.events import Key
from textual.message import Message
from textual.strip import Strip
from textual.widgets import TextArea

from cockpit.language.translate import tr


class ChatInput(TextArea):
    DEFAULT_CSS = """
    ChatInput { height: auto; min-height: 3; max-height: 8; border: round $primary; padding: 0 1;
        border-subtitle-color: $text-muted; }
    ChatInput:focus { border: round $accent; }
    """
    # In TextArea ctrl+x cuts; here it stops the reply, as everywhere on this screen.
    BINDINGS = [Binding("ctrl+x", "screen.stop", "Stop")]

    class Sent(Message):
        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self) -> None:
        super().__init__(
            tab_behavior="focus",
            highlight_cursor_line=False,
            placeholder=tr("Write to the model. Enter sends, ctrl+j starts a new line."),
        )

    def render_line(self, y: int) -> Strip:
        """An empty line where the frame leaves no room: Textual cannot wrap the placeholder into no cells at all."""
        return super().render_line(y) if self.wrap_width > 0 else Strip.blank(self.size.width)

    async def _on_key(self, event: Key) -> None:
        if event.key == "enter":
            event.stop()
            event.prevent_default()
            self.post_message(self.Sent(self.text))
        elif event.key in ("shift+enter", "ctrl+j"):
            event.stop()
            event.prevent_default()
            self.insert("\n")
        else:
            await super()._on_key(event)
