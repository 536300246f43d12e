"""How a model answers as it learns: each probe's replies over the steps, and the replies kept of each evaluation."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.content import Content
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from cockpit.state.app_state import Entry, RunTold
from cockpit.state.reply_format import NEW, compared, indented
from cockpit.state.run_history import Answered, probes, samples, scores
from cockpit.widgets.run_dialog import Sheet
from engine.protocol.messages import Run

CHANGES = 40
"""Changed replies of a probe that are shown, the newest."""
NOTHING = """\
No replies yet.

Prompts that are answered at every evaluation:
    evaluation: {probes: ["Extract the triples: …"]}
Held-out rows that are answered and scored:
    evaluation: {task: triples, samples: 32}\
"""


class Replies(Sheet[None]):
    DEFAULT_CSS = """
    Replies OptionList { width: 26; height: 1fr; border: none; background: $surface; text-wrap: nowrap; text-overflow: ellipsis; padding: 0; }
    Replies VerticalScroll { width: 1fr; height: 1fr; padding: 0 0 0 1; border-left: solid $primary; }
    Replies Static { width: 1fr; height: auto; }
    """
    BINDINGS = [("j", "scroll(1)", "Down"), ("k", "scroll(-1)", "Up")]
    KEYS = "↑↓ choose · j k PgUp PgDn scroll · Esc closes"

    def __init__(self, run: str) -> None:
        super().__init__("replies", run)
        self._probes: dict[str, list[Answered]] = {}
        self._samples: dict[int, list[Entry]] = {}
        self._listed: list[tuple[str, str]] = []
        """Id and title of what can be chosen."""

    def compose_sheet(self) -> ComposeResult:
        with Horizontal():
            yield OptionList(compact=True)
            with VerticalScroll(can_focus=False):
                yield Static()

    def show(self, run: Run, told: RunTold) -> None:
        self._probes, self._samples = probes(told), samples(told)
        listed = [(f"probe {at}", prompt) for at, prompt in enumerate(self._probes)]
        listed += [(f"samples {step}", f"step {step:,}") for step in self._samples]
        if listed != self._listed:
            self._listed = listed
            self._fill()
        self._draw()

    def _fill(self) -> None:
        options = self.query_one(OptionList)
        chosen = options.highlighted_option.id if options.highlighted_option else None
        options.clear_options()
        for heading, kind in (("Probes", "probe"), ("Held-out rows", "samples")):
            ours = [(name, title) for name, title in self._listed if name.startswith(kind)]
            if ours:
                options.add_option(Option(Content.styled(heading, "bold $accent"), disabled=True))
                options.add_options([Option(Content(" " + " ".join(title.split())), id=name) for name, title in ours])
        names = [name for name, _ in self._listed]
        if names:
            options.highlighted = options.get_option_index(chosen if chosen in names else names[0])
        options.focus()

    @on(OptionList.OptionHighlighted)
    def _highlighted(self) -> None:
        self._draw()
        self.query_one(VerticalScroll).scroll_home(animate=False)

    def _draw(self) -> None:
        option = self.query_one(OptionList).highlighted_option
        kind, _, which = (option.id or "" if option else "").partition(" ")
        text = Content(NOTHING)
        if kind == "probe" and int(which) < len(self._probes):
            prompt = list(self._probes)[int(which)]
            text = told_of_probe(prompt, self._probes[prompt])
        elif kind == "samples" and int(which) in self._samples:
            text = Content("\n\n").join(told_of_sample(entry) for entry in self._samples[int(which)])
        self.query_one(Static).update(text)

    def action_scroll(self, by: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=by, animate=False)

    def key_pageup(self) -> None:
        self.query_one(VerticalScroll).scroll_page_up(animate=False)

    def key_pagedown(self) -> None:
        self.query_one(VerticalScroll).scroll_page_down(animate=False)


def told_of_probe(prompt: str, replies: list[Answered]) -> Content:
    """The prompt, and its replies from the newest on; what is new in each against the one before (below it) is marked."""
    shown = replies[-CHANGES:]
    before = replies[-CHANGES - 1].reply if len(replies) > CHANGES else None
    blocks = []
    for answered in shown:
        now = indented(answered.reply)
        steps = f"── step {answered.step:,}" + (
            f" to {answered.last:,}, unchanged" if answered.last > answered.step else ""
        )
        text, moved = (Content(now), "") if before is None else compared(indented(before), now)
        head = Content.assemble((steps, "bold $accent"), (f"  {moved}" if moved else "", "$text-muted"))
        blocks.append(Content.assemble(head, "\n", text if text else "(an empty reply)"))
        before = answered.reply
    legend = Content.assemble((" new ", NEW), ("  against the reply before, which stands below", "$text-muted"))
    asked = Content.assemble(("asked  ", "$text-muted"), prompt)
    return Content("\n\n").join([asked, *([legend] if len(replies) > 1 else []), *reversed(blocks)])


def told_of_sample(entry: Entry) -> Content:
    """A held-out row: what was asked, the reply, what it should have been, its scores."""
    reply, reference = indented(entry["reply"]), entry.get("reference", "")
    parts = [
        Content.assemble(("asked  ", "$text-muted"), entry["prompt"], "\n"),
        Content.assemble(("── reply ", "bold $accent"), "\n", reply or "(an empty reply)"),
    ]
    if reference:
        same = " (the same)" if indented(reference) == reply else ""
        body = "" if same else f"\n{indented(reference)}"
        parts.append(Content.assemble((f"── reference{same} ", "bold $success"), body))
    if said := scores(entry):
        parts.append(Content.assemble(("── scores ", "bold $secondary"), said))
    return Content("\n").join(parts)
