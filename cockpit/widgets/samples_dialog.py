"""A dialog with the replies of a run as it trains: those to each probe over the steps, and the samples of each
evaluation."""

from __future__ import annotations

from textual import on
from textual.app import ComposeResult
from textual.containers import Horizontal, VerticalScroll
from textual.widgets import OptionList, Static
from textual.widgets.option_list import Option

from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.state.app_state import Entry, RunHistory
from cockpit.state.reply_format import indent_json
from cockpit.state.run_history import ProbeReply, format_scores, replies_by_probe, samples_by_step
from cockpit.state.text_diff import NEW, mark_new_words
from cockpit.widgets.run_dialog import RunDialog
from engine.protocol.messages import Run

MAX_REPLIES = 40
"""The newest changed replies of a probe that are shown."""
NOTHING = """\
No replies yet.

Prompts to answer at every evaluation:
    evaluation: {probes: ["Extract the triples: …"]}
Held-out rows to answer and score:
    evaluation: {task: triples, samples: 32}\
"""


class SamplesDialog(RunDialog[None]):
    DEFAULT_CSS = """
    SamplesDialog OptionList {
        width: 26; height: 1fr; border: none; background: $surface; text-wrap: nowrap; text-overflow: ellipsis; padding:
        0;
    }
    SamplesDialog VerticalScroll { width: 1fr; height: 1fr; padding: 0 0 0 1; border-left: solid $primary; }
    SamplesDialog Static { width: 1fr; height: auto; }
    """
    BINDINGS = [("j", "scroll(1)", "Down"), ("k", "scroll(-1)", "Up")]
    KEYS = "↑↓ choose · j k PgUp PgDn scroll · Esc closes"

    def __init__(self, run: str) -> None:
        super().__init__("replies", run)
        self._probes: dict[str, list[ProbeReply]] = {}
        self._samples: dict[int, list[Entry]] = {}
        self._entries: list[tuple[str, str]] = []
        """Id and title of each entry of the list."""

    def compose_dialog(self) -> ComposeResult:
        with Horizontal():
            yield OptionList(compact=True)
            with VerticalScroll(can_focus=False):
                yield Static()

    def show(self, run: Run, history: RunHistory) -> None:
        self._probes, self._samples = replies_by_probe(history), samples_by_step(history)
        entries = [(tr("probe {at}", at=at), prompt) for at, prompt in enumerate(self._probes)]
        entries += [(tr("samples {step}", step=step), tr("step {step:,}", step=step)) for step in self._samples]
        if entries != self._entries:
            self._entries = entries
            self._fill()
        self._draw()

    def _fill(self) -> None:
        options = self.query_one(OptionList)
        chosen = options.highlighted_option.id if options.highlighted_option else None
        options.clear_options()
        for heading, kind in (("Probes", "probe"), (tr("Held-out rows"), "samples")):
            ours = [(name, title) for name, title in self._entries if name.startswith(kind)]
            if ours:
                options.add_option(Option(Content.styled(heading, "bold $accent"), disabled=True))
                options.add_options([Option(Content(" " + " ".join(title.split())), id=name) for name, title in ours])
        names = [name for name, _ in self._entries]
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
        text = Content(tr(NOTHING))
        if kind == "probe" and int(which) < len(self._probes):
            prompt = list(self._probes)[int(which)]
            text = describe_probe(prompt, self._probes[prompt])
        elif kind == "samples" and int(which) in self._samples:
            text = Content("\n\n").join(describe_sample(entry) for entry in self._samples[int(which)])
        self.query_one(Static).update(text)

    def action_scroll(self, by: int) -> None:
        self.query_one(VerticalScroll).scroll_relative(y=by, animate=False)

    def key_pageup(self) -> None:
        self.query_one(VerticalScroll).scroll_page_up(animate=False)

    def key_pagedown(self) -> None:
        self.query_one(VerticalScroll).scroll_page_down(animate=False)


def describe_probe(prompt: str, replies: list[ProbeReply]) -> Content:
    """The prompt and its replies, newest first. New words, compared with the previous reply (below), are marked."""
    newest = replies[-MAX_REPLIES:]
    before = replies[-MAX_REPLIES - 1].reply if len(replies) > MAX_REPLIES else None
    blocks = []
    for each in newest:
        now = indent_json(each.reply)
        steps = tr("── step {step:,}", step=each.step) + (
            tr(" to {last:,}, unchanged", last=each.last) if each.last > each.step else ""
        )
        text, difference = (Content(now), "") if before is None else mark_new_words(indent_json(before), now)
        head = Content.assemble((steps, "bold $accent"), (f"  {difference}" if difference else "", "$text-muted"))
        blocks.append(Content.assemble(head, "\n", text if text else tr("(an empty reply)")))
        before = each.reply
    legend = Content.assemble((" new ", NEW), (tr("  compared with the previous reply, below"), "$text-muted"))
    heading = Content.assemble(("prompt  ", "$text-muted"), prompt)
    return Content("\n\n").join([heading, *([legend] if len(replies) > 1 else []), *reversed(blocks)])


def describe_sample(entry: Entry) -> Content:
    """A held-out row: prompt, reply, reference and scores."""
    reply, reference = indent_json(entry["reply"]), entry.get("reference", "")
    parts = [
        Content.assemble(("prompt  ", "$text-muted"), entry["prompt"], "\n"),
        Content.assemble((tr("── reply "), "bold $accent"), "\n", reply or tr("(an empty reply)")),
    ]
    if reference:
        same = tr(" (the same)") if indent_json(reference) == reply else ""
        body = "" if same else f"\n{indent_json(reference)}"
        parts.append(Content.assemble((tr("── reference{same} ", same=same), "bold $success"), body))
    if scores := format_scores(entry):
        parts.append(Content.assemble((tr("── scores "), "bold $secondary"), scores))
    return Content("\n").join(parts)
