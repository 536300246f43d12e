"""A row as training sees it: rendered by the chat template, cut into tokens, measured."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from engine.config.profile import Profile
from engine.prep.base_model import load_tokenizer, locate_base
from engine.prep.chat_labels import Renderer
from engine.prep.formats.canonical import Canonical, conversation_of, kind_of
from engine.prep.rendered import Refusal, RenderedRow, Rendering
from engine.prep.rows import Rejects, Row
from engine.prep.stats import histogram
from engine.prep.templates import unwrap_tokenizer
from engine.prep.token_pieces import reply_parts
from engine.prep.token_rows import BATCH, MASKED, UNLIMITED, BatchTokenizer, Counts
from engine.prep.tokenize import encode, label, make_row_tokenizer, tokenize
from engine.prep.tokenize_replies import REPLIES
from engine.protocol.home import Home

_BARS = 12
"""Bars of the histogram of lengths."""


class RowViews:
    """Renders and tokenises rows as a run of the profile would. Loads the tokenizer when it is first needed."""

    def __init__(self, profile: Profile, home: Home) -> None:
        self._profile, self._home = profile, home
        self._loss_on = str(getattr(profile.method, "loss_on", "assistant"))
        self._tokenizer: Any = None

    def tokenizer(self) -> Any:
        """The profile's tokenizer. Raises ProblemError, also for one that the profile trains and that is not trained
        yet."""
        if self._tokenizer is None:
            _, folder = locate_base(self._profile, self._home, lambda *_: None)
            self.use_tokenizer(folder)
        return self._tokenizer

    def use_tokenizer(self, folder: Path) -> None:
        """Use the tokenizer in this folder from now on: preparing has trained it."""
        profile = self._profile
        self._tokenizer = load_tokenizer(
            folder, profile.data.template, profile.directory, profile.model.trust_remote_code
        )

    def count_tokens(self, content: Canonical) -> int:
        """Tokens of a row's sequences before truncation, for a pair those of its longer sequence; 0 if the template
        refuses the row."""
        if kind_of(content) != "tokens":
            counts = Counts()
            make_row_tokenizer(kind_of(content), self.tokenizer(), self._loss_on, UNLIMITED)([content], counts)
            return max(counts.lengths, default=0)
        rendered = self._renderer().render([content])[0]
        sequences = [] if isinstance(rendered, Refusal) else rendered.sequences
        return sum(len(self._encode(sequence).ids) for sequence in sequences)

    def render(self, content: Canonical) -> dict[str, Any]:
        """A row's text in training, beside the prompt that chat would send to get its last reply.

        `same` is whether the training text begins with that prompt; `means` says how the trained characters were found
        (`rendered.Means`) and `sequences` into how many sequences the row is unrolled, of which the text is the last.
        Raises ValueError if the template refuses the row.
        """
        if kind_of(content) != "tokens":  # show the better reply, or the judged one
            content = {**content, "messages": conversation_of(content)}
            content = {name: content[name] for name in ("messages", "tools") if name in content}
        renderer = self._renderer()
        rendering = self._render(content, renderer)
        text = rendering.sequences[-1].text
        told = {"training": text, "means": rendering.means, "sequences": len(rendering.sequences)}
        if "messages" not in content or not rendering.sequences[-1].ends:
            return {**told, "chat": "", "same": True}
        last = max(number for number, turn in enumerate(content["messages"]) if turn["role"] == "assistant")
        (prompt,) = renderer.render_prompts([{**content, "messages": content["messages"][:last]}])
        if isinstance(prompt, Refusal):
            return {**told, "chat": "", "same": True}
        return {**told, "chat": prompt, "same": text.startswith(prompt)}

    def tokens(self, row: Row) -> dict[str, Any]:
        """A row as the model sees it: the texts of `pieces` joined are the rendered row, up to where it is cut.

        For preference rows `parts` holds the prompt with each reply, for unrolled ones each sequence, and `pieces` all
        of them. Raises ValueError for a row that would be left out.
        """
        if self._profile.method.rows in REPLIES:  # type: ignore[attr-defined]
            return self._reply_tokens(row)
        rendering = self._render(row.content, self._renderer())
        whole = [self._pieces(sequence) for sequence in rendering.sequences]
        parts = [pieces[: self._profile.data.max_length] for pieces in whole]
        kept = [piece for part in parts for piece in part]
        told = {
            "pieces": kept,
            "tokens": len(kept),
            "trained": sum(piece["trained"] for piece in kept),
            "cut": sum(map(len, whole)) - len(kept),
        }
        if len(parts) > 1:
            names = [f"sequence {number} of {len(parts)}" for number in range(1, len(parts) + 1)]
            told["parts"] = [{"name": name, "pieces": part} for name, part in zip(names, parts, strict=True)]
        return told

    def _pieces(self, rendered: RenderedRow) -> list[dict[str, Any]]:
        encoding = self._encode(rendered)
        pieces, covered = [], 0
        for token, trained, (_, end) in zip(encoding.ids, label(rendered, encoding), encoding.offsets, strict=True):
            # Tokens that share one character all claim it: the first shows it. Skipped blanks go to the next token.
            pieces.append({"text": rendered.text[covered:end], "id": token, "trained": trained != MASKED})
            covered = max(covered, end)
        return pieces

    def measure(self, rows: Iterable[Row], dropped: Callable[[int, str], object]) -> dict[str, Any]:
        """Counts over rows tokenised as a run would; `histogram` has [length in tokens, rows], the shortest length
        first. `dropped` is called with the number of each row that is left out, and the reason."""
        counts = self.count(rows, dropped)
        bars = histogram(counts.lengths, _BARS)
        return {**counts.summary(), "histogram": [list(bar) for bar in zip(bars["edges"], bars["rows"], strict=False)]}

    def count(self, rows: Iterable[Row], dropped: Callable[[int, str], object]) -> Counts:
        """Tokenise rows as a run would, and count them."""
        counts, before, length = Counts(), 0, self._profile.data.max_length
        tokenizing, stream = self._row_tokenizer(length), iter(rows)
        while some := list(itertools.islice(stream, BATCH)):
            batch = tokenizing([row.content for row in some], counts)
            for at, (reason, _) in batch.dropped(len(some), length).items():
                dropped(before + at, reason)
            before += len(some)
        return counts

    def _reply_tokens(self, row: Row) -> dict[str, Any]:
        kept, whole, rejects = Counts(), Counts(), Rejects(lambda _: None)
        length = self._profile.data.max_length
        found = [columns for _, columns in tokenize([row], self._row_tokenizer(length), rejects, kept)]
        if not found:
            raise ValueError(rejects.first[0] if rejects.first else f"cut at {length} tokens, before a reply begins")
        self._row_tokenizer(UNLIMITED)([row.content], whole)
        parts = reply_parts(self.tokenizer(), found[0])
        return {
            "pieces": [piece for part in parts for piece in part["pieces"]],
            "parts": parts,
            "tokens": kept.tokens,
            "trained": kept.trained_tokens,
            "cut": whole.tokens - kept.tokens,
        }

    def _row_tokenizer(self, max_length: int) -> BatchTokenizer:
        """As a run with this method would have it."""
        method: Any = self._profile.method
        if method.rows == "prompts":
            max_length -= method.max_new_tokens
        max_prompt = getattr(method, "max_prompt", None)
        data = self._profile.data
        return make_row_tokenizer(
            method.rows,
            self.tokenizer(),
            self._loss_on,
            max_length,
            max_prompt,
            turns=data.turns,
            thinking=data.thinking,
        )

    def _renderer(self) -> Renderer:
        data = self._profile.data
        return Renderer(self.tokenizer(), self._loss_on, data.turns, data.thinking)

    def _render(self, content: Canonical, renderer: Renderer) -> Rendering:
        rendered = renderer.render([content])[0]
        if isinstance(rendered, Refusal):
            raise ValueError(rendered.reason)
        return rendered

    def _encode(self, rendered: RenderedRow) -> Any:
        return next(encode([rendered], unwrap_tokenizer(self.tokenizer())))
