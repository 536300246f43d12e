"""The profile screen: pick a profile, edit it in a form or as text, see its problems, launch it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from textual import on, work
from textual.app import ComposeResult
from textual.binding import Binding
from textual.containers import Horizontal
from textual.widgets import OptionList, Static, TextArea

from cockpit.connection.drafts import PROFILE
from cockpit.connection.submission import build_submission
from cockpit.content import Content
from cockpit.language.translate import tr, tr_engine
from cockpit.profiles.check import ProfileCheck, check_profile, summarize_launch
from cockpit.profiles.differences import mark_copy
from cockpit.profiles.files import ProfileFile, free_path, list_profiles, user_folder, write_profile
from cockpit.profiles.yaml_edit import clear_value, set_value, set_values
from cockpit.screens.base import opens_dialog
from cockpit.screens.profile_tools import ProfileToolsScreen
from cockpit.widgets.confirm import Confirm
from cockpit.widgets.fit_dialog import FitDialog
from cockpit.widgets.forecast_line import ForecastLine
from cockpit.widgets.form import Form, list_values
from cockpit.widgets.prompt import Prompt
from cockpit.widgets.yaml_editor import YamlEditor

if TYPE_CHECKING:
    from engine.config.issues import Issue

DEBOUNCE = 0.15
"""Seconds without typing after which the text is checked."""


class ProfileScreen(ProfileToolsScreen):
    """Files on the left, form and text side by side, problems below."""

    HELP_TEXT = """
    Pick a profile, then change it in the form (Enter edits, ← → step through choices, Backspace restores the default)
    or in the text; comments are kept. ● marks settings that the file has.
    `/` finds settings; Enter unfolds groups such as `clean`, and edits lists of sources. While you type a value or
    YAML, `→` at the end of the line takes over what is proposed.
    Built-in profiles are read-only: ctrl+s saves a copy.
    The second line says what the profile takes on the engine's host, by a traced step without weights; `F` lists
    settings with which it fits.
    """
    DEFAULT_CSS = """
    ProfileScreen #body { height: 1fr; }
    ProfileScreen OptionList, ProfileScreen OptionList:focus { border: none; padding: 0; background: $background; }
    ProfileScreen #files {
        width: 25; height: 1fr; border-right: solid $primary; text-wrap: nowrap; text-overflow: ellipsis;
    }
    ProfileScreen #status { height: 1; padding: 0 1; background: $surface; }
    ProfileScreen #notes { height: auto; max-height: 3; padding: 0 1; color: $text-muted; display: none; }
    ProfileScreen #issues { height: auto; max-height: 6; border-top: solid $error; padding: 0; display: none; }
    ProfileScreen.-problems #issues { display: block; }
    ProfileScreen.-narrow #files {
        dock: top; width: 100%; height: 4; border-right: none; border-bottom: solid $primary;
    }
    """
    BINDINGS = [
        ("ctrl+s", "save", "Save as"),
        ("ctrl+l", "launch", "Launch"),
        ("ctrl+g", "next_problem", "Next problem"),
        Binding("F", "fit", "What fits"),
        ("f3", "differences", "Differences"),
        ("f4", "editor", "$EDITOR"),
        Binding("escape", "leave", "Back", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.files: list[ProfileFile] = []
        self.file: ProfileFile | None = None
        self.saved = ""
        self.drafts: dict[Path, str] = {}
        """Unsaved texts. They are on disk too, see `connection.drafts`."""
        self._bases: dict[Path, str] = {}
        """The text of each file when it was opened, or when its draft was begun."""
        self.result: ProfileCheck | None = None
        self._taken: list[dict[str, Any]] = []
        """The drafts of apps that have ended, until they are shown."""
        self._taking = threading.Lock()
        self._formed: ProfileFile | None = None
        """The file whose settings the form shows."""

    def compose_body(self) -> ComposeResult:
        yield Static(id="status")
        yield ForecastLine()
        yield Static(id="notes")
        with Horizontal(id="body"):
            yield OptionList(id="files")
            yield Form(id="form")
            yield YamlEditor(id="text")
        yield OptionList(id="issues")

    @property
    def listing(self) -> OptionList:
        return self.query_one("#files", OptionList)

    @property
    def editor(self) -> YamlEditor:
        return self.query_one("#text", YamlEditor)

    @property
    def form(self) -> Form:
        return self.query_one("#form", Form)

    @property
    def forecast(self) -> ForecastLine:
        return self.query_one(ForecastLine)

    def on_mount(self) -> None:
        self.load_files(None)

    # ── files ──────────────────────────────────────────────────────────────────────────────────────────────────────

    @work(exclusive=True, group="files")
    async def load_files(self, selected: Path | None) -> None:
        """List the profiles and open `selected`, else the first one."""
        self.files = await asyncio.to_thread(list_profiles, self.app.home, Path.cwd())
        await self._restore_drafts()
        paths = [file.path for file in self.files]
        if selected and selected not in paths and selected.is_file():  # a file of another folder
            self.files.insert(0, ProfileFile(selected, "opened"))
            paths.insert(0, selected)
        at = paths.index(selected) if selected in paths else 0
        with self.prevent(OptionList.OptionHighlighted):
            self.listing.clear_options()
            self.listing.add_options([self._label(file) for file in self.files])
            self.listing.highlighted = at
        self.open(self.files[at])
        (self.form.settings if selected else self.listing).focus()

    async def _restore_drafts(self) -> None:
        """Offer the unsaved edits of an app that has ended, and those of files that are gone or lie elsewhere."""
        await asyncio.to_thread(self._take_drafts)
        left, self._taken = self._taken, []
        for draft in left:
            self.drafts[Path(draft["key"])] = str(draft["text"])
            self._bases[Path(draft["key"])] = str(draft["base"])
        known = {file.path for file in self.files}
        self.files += [ProfileFile(path, "draft") for path in self.drafts if path not in known]
        if left:
            names = ", ".join(Path(draft["key"]).stem for draft in left)
            text = tr("{names}: what was not saved is back, marked with *", names=names)
            self.notify(text, title=tr("Unsaved edits"), timeout=8)

    def _take_drafts(self) -> None:
        """In a thread. It goes on when the files are loaded anew meanwhile, and what it has found must not be lost."""
        with self._taking:
            self._taken += self.app.drafts.take_over(PROFILE)

    def _label(self, file: ProfileFile) -> Content:
        changed = "*" if file.path in self.drafts else ""
        return Content.assemble(f"{file.name}{changed}", (f" {tr(file.place)}", "dim"))

    @on(OptionList.OptionHighlighted, "#files")
    def _file_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        self.open(self.files[event.option_index])

    @on(OptionList.OptionSelected, "#files")
    def _file_selected(self) -> None:
        self.form.settings.focus()

    def open(self, file: ProfileFile) -> None:
        """Show this file, or its unsaved draft."""
        try:
            self.saved = file.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            if file.path not in self.drafts:
                self.notify(tr("cannot read {path}: {error}", path=file.path, error=error), severity="error")
                return
            self.saved = ""
        self.file = file
        if file.path not in self.drafts:
            self._bases[file.path] = self.saved
        self.editor.load_text(self.drafts.get(file.path, self.saved))
        self.editor.read_only = file.builtin
        self.check()

    # ── checking ───────────────────────────────────────────────────────────────────────────────────────────────────

    @on(TextArea.Changed, "#text")
    def _text_changed(self) -> None:
        file, text = self.file, self.editor.text
        if file is None:
            return
        was_changed = file.path in self.drafts
        if text != self.saved:
            self.drafts[file.path] = text
            base = self._bases.setdefault(file.path, self.saved)
            self.app.drafts.keep(PROFILE, str(file.path), text=text, base=base)
        elif was_changed:
            self._forget_draft(file.path)
        if was_changed != (file.path in self.drafts):
            self.listing.replace_option_prompt_at_index(self.files.index(file), self._label(file))
        self.check()

    def _forget_draft(self, path: Path) -> None:
        self.drafts.pop(path, None)
        self._bases.pop(path, None)
        self.app.drafts.drop(PROFILE, str(path))

    @work(exclusive=True, group="check")
    async def check(self) -> None:
        """Check the text after a pause in typing."""
        await asyncio.sleep(DEBOUNCE)
        await self._check()

    async def _check(self) -> ProfileCheck | None:
        """Check the current text and show the result, unless the text has changed meanwhile."""
        file, text = self.file, self.editor.text
        if file is None:
            return None
        result = await asyncio.to_thread(check_profile, text, file, self.app.home, self.app.engine.elsewhere)
        if text != self.editor.text or file != self.file:
            return None
        self._show(result)
        return result

    def _show(self, result: ProfileCheck) -> None:
        self.result = result
        issues = result.issues
        if self._formed != self.file or not any(issue.code == "profile.syntax" for issue in issues):
            # Text that is no YAML has no settings: the form of this file stays as it was.
            self._formed = self.file
            self.form.show(result.fields, result.document, {issue.key: tr_engine(issue.message) for issue in issues})
        self.editor.completions = {field.key: list_values(field) for field in result.fields}
        self.form.directory = self.file.path.parent if self.file else None
        self.editor.mark({issue.line: issue.column for issue in reversed(issues)})
        self.set_class(bool(issues), "-problems")
        listing = self.query_one("#issues", OptionList)
        listing.clear_options()
        listing.add_options([_issue_line(issue) for issue in issues])
        status = (
            (tr("✗ {issues} problem{plural}", issues=len(issues), plural="s" * (len(issues) > 1)), "$text-error")
            if issues
            else (tr("✓ valid"), "$text-success")
        )
        assert self.file is not None
        place = tr("built-in, read-only: ctrl+s saves a copy") if self.file.builtin else str(self.file.path)
        self.query_one("#status", Static).update(
            Content.assemble(status, "  ", (self.file.name, "bold"), (f"  {place}", "dim"))
        )
        self.forecast.follow(result.profile)
        notes = self.query_one("#notes", Static)
        notes.display = bool(result.notes)
        notes.update(Content("\n".join(result.notes)))

    @on(OptionList.OptionSelected, "#issues")
    def _issue_selected(self, event: OptionList.OptionSelected) -> None:
        self._go_to_issue(event.option_index)

    def _go_to_issue(self, index: int) -> None:
        assert self.result is not None
        issue = self.result.issues[index]
        self.editor.go_to(issue.line, issue.column)

    async def action_leave(self) -> None:
        """Esc leaves the text, then the screen."""
        if self.focused is self.editor:
            self.form.settings.focus()
        else:
            await self.app.action_back()

    def action_next_problem(self) -> None:
        """Go to the next problem after the cursor, else to the first one."""
        issues = self.result.issues if self.result else []
        here = self.editor.cursor_location[0] + 1
        if issues:
            self._go_to_issue(next((at for at, issue in enumerate(issues) if issue.line > here), 0))

    # ── changing ───────────────────────────────────────────────────────────────────────────────────────────────────

    @on(Form.Changed)
    def _form_changed(self, event: Form.Changed) -> None:
        self._edit(lambda text: set_value(text, event.key, event.value))

    @on(Form.Cleared)
    def _form_cleared(self, event: Form.Cleared) -> None:
        self._edit(lambda text: clear_value(text, event.key))

    def _edit(self, change: Callable[[str], str]) -> None:
        """Apply a change from the form to the text; ctrl+z in the text undoes it."""
        if self.file is None or self.file.builtin:
            text = tr("built-in profiles are read-only: ctrl+s saves a copy that you can change")
            self.notify(text, severity="warning")
            return
        try:
            text = change(self.editor.text)
        except ValueError as error:
            self.notify(str(error), severity="error")
            return
        self.editor.replace(text, (0, 0), self.editor.document.end, maintain_selection_offset=False)

    @opens_dialog
    @work(exclusive=True, group="fit")
    async def action_fit(self) -> None:
        """Show settings with which the profile fits, and put the chosen ones into the text."""
        result = await self._check()
        if result is None:
            return
        if result.profile is None:
            self.notify(tr("fix the problems first: ctrl+g goes to each"), severity="error")
            return
        if result.profile.launch.via != "local":
            self.notify(
                tr("the cards of other hosts are not known: name them with `cockpit fit --cards`"), severity="warning"
            )
            return
        text = result.text
        settings = await self.app.push_screen_wait(FitDialog(self.forecast, self.forecast.describe(result.profile)))
        if settings and text == self.editor.text:
            self._edit(lambda text: set_values(text, settings))

    @opens_dialog
    @work(exclusive=True, group="save")
    async def action_save(self) -> None:
        """Ask for a path and write the text there."""
        if self.file is None:
            return
        file, text = self.file, self.editor.text
        text = mark_copy(text, file.name) if file.builtin else text
        proposed = free_path(user_folder(self.app.home) / file.path.name) if file.builtin else file.path
        answer = await self.app.push_screen_wait(
            Prompt(tr("Save as"), tr("A path; relative to the working directory."), str(proposed), paths=True)
        )
        if not answer:
            return
        path = Path(answer).expanduser().absolute()
        path = path if path.suffix else path.with_suffix(".yaml")
        if not await self._may_write(path, file, text):
            return
        try:
            await asyncio.to_thread(write_profile, path, text, self.app.home)
        except OSError as error:
            self.notify(tr("cannot write {path}: {strerror}", path=path, strerror=error.strerror), severity="error")
            return
        self._forget_draft(file.path)
        self._forget_draft(path)
        self.notify(tr("saved {path}", path=path))
        self.load_files(path)

    async def _may_write(self, path: Path, file: ProfileFile, text: str) -> bool:
        """Whether nothing is lost by writing `text` there, or the user agrees to lose it. The file that is being
        edited may be replaced as long as it is as it was when it was opened."""
        try:
            there = await asyncio.to_thread(path.read_bytes)
        except FileNotFoundError:
            return True
        except OSError as error:
            self.notify(tr("cannot read {path}: {strerror}", path=path, strerror=error.strerror), severity="error")
            return False
        unchanged = path == file.path and there == self._bases.get(path, "").encode()
        if unchanged or there == text.encode():
            return True
        changed = tr("It has changed on disk since you opened it.") if path == file.path else tr("It is another file.")
        choices = {"y": tr("replace it")}
        answer = await self.app.push_screen_wait(
            Confirm(tr("Replace the file?"), tr("{path} exists. {changed}", path=path, changed=changed), choices)
        )
        return answer is not None

    @opens_dialog
    @work(exclusive=True, group="launch")
    async def action_launch(self) -> None:
        """Check the text once more, ask for confirmation, submit it, and go to the run."""
        result = await self._check()
        if result is None or self.file is None:
            return
        profile = result.profile
        if profile is None:
            self.notify(tr("fix the problems first: ctrl+g goes to each"), severity="error")
            self._go_to_issue(0)
            return
        question = Confirm(tr("Launch"), summarize_launch(profile), {"y": tr("launch it")})
        if not await self.app.push_screen_wait(question):
            return
        engine = self.app.engine
        directory = "" if engine.is_here else engine.directory
        message = build_submission(profile, source=str(self.file.path), shell=engine.shell, directory=directory)
        run = await self.app.ask("submit", message)
        if run is not None:
            await self.app.open_run(run.id)


def _issue_line(issue: Issue) -> Content:
    return Content.assemble(
        ("✗ ", "$text-error"),
        (f"{issue.line}:{issue.column} ", "dim"),
        (f"{issue.key}  ", "bold"),
        tr_engine(issue.message),
    )
