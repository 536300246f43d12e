"""What the profile screen can do besides editing: an editor of the user's, differences, lists of sources."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from textual import on, work
from textual.app import SuspendNotSupported

from cockpit.content import Content
from cockpit.language.translate import tr
from cockpit.profiles.differences import Difference, compare, find_parent
from cockpit.profiles.files import ProfileFile
from cockpit.profiles.yaml_edit import read_yaml, set_value, to_flow_yaml, value_at
from cockpit.screens.base import CockpitScreen, opens_dialog
from cockpit.state.formatting import counted
from cockpit.widgets.form import Form
from cockpit.widgets.picker import Choice, Picker
from cockpit.widgets.sources_dialog import SourcesDialog
from cockpit.widgets.text_dialog import TextDialog

if TYPE_CHECKING:
    from cockpit.widgets.yaml_editor import YamlEditor

SAVED = "the file as it is saved"


class ProfileToolsScreen(CockpitScreen):
    """Subclasses have the `files`, the open `file` with its `saved` text, and the `editor` with the current one."""

    if TYPE_CHECKING:
        files: list[ProfileFile]
        file: ProfileFile | None
        saved: str

        @property
        def editor(self) -> YamlEditor: ...

        def _edit(self, change: Callable[[str], str]) -> None: ...

    def check_action(self, action: str, parameters: tuple[object, ...]) -> bool | None:
        return action != "launch" or not self.app.readonly

    @opens_dialog
    @work(exclusive=True, group="sources")
    async def _edit_sources(self, key: str) -> None:
        """Edit a list of sources in a dialog."""
        if self.file is None:
            return
        try:
            given = value_at(read_yaml(self.editor.text), key)
        except KeyError:
            given = []
        sources = given if isinstance(given, list) else [] if given is None else [given]
        changed = await self.app.push_screen_wait(SourcesDialog(key, sources, self.file.path.parent))
        if changed is not None and changed != sources:
            self._edit(lambda text: set_value(text, key, to_flow_yaml(changed)))

    @on(Form.SourcesWanted)
    def _sources_wanted(self, event: Form.SourcesWanted) -> None:
        self._edit_sources(event.key)

    def action_editor(self) -> None:
        """Open the text in $VISUAL or $EDITOR, and take over what was saved there."""
        command = os.environ.get("VISUAL") or os.environ.get("EDITOR")
        if self.file is None or self.file.builtin:
            self.notify(
                tr("built-in profiles are read-only: ctrl+s saves a copy that you can change"), severity="warning"
            )
            return
        if not command:
            self.notify(tr("set EDITOR, for instance: export EDITOR=vim"), title=tr("No editor"), severity="warning")
            return
        before = self.editor.text
        try:
            with tempfile.TemporaryDirectory() as folder:
                path = Path(folder) / f"{self.file.name}.yaml"
                path.write_text(before, encoding="utf-8")
                with self.app.suspend():
                    status = subprocess.run([*shlex.split(command), str(path)], check=False).returncode
                text = path.read_text(encoding="utf-8")
        except (OSError, ValueError, SuspendNotSupported) as error:
            self.notify(
                str(error) or tr("this terminal cannot run it"),
                title=tr("{command} failed", command=command),
                severity="error",
            )
            return
        if status:
            self.notify(
                tr("it ended with status {status}; nothing is taken over", status=status),
                title=command,
                severity="warning",
            )
        elif text != before:
            self._edit(lambda _: text)

    @opens_dialog
    @work(exclusive=True, group="differences")
    async def action_differences(self) -> None:
        """Show in which settings the text differs from the saved file, its parent or another profile."""
        if self.file is None:
            return
        text = self.editor.text
        parent = find_parent(text)
        choices = [Choice(tr(SAVED), tr("what is not saved yet"))] if text != self.saved else []
        others = [file for file in self.files if file.path != self.file.path]
        others.sort(key=lambda file: (file.name != parent, not file.builtin))
        named: dict[str, ProfileFile] = {}
        for file in others:  # a copy has the name of the built-in profile that it was made from
            label = f"{file.name} {tr(file.place)}"
            named[str(file.path) if label in named else label] = file
        choices += [
            Choice(label, tr("it was copied from this") if file.name == parent and file.builtin else "")
            for label, file in named.items()
        ]
        name = await self.app.push_screen_wait(Picker(tr("Differences to"), tr("a profile of the list"), choices))
        theirs = self.saved if name == SAVED else self._read(named.get(name or ""))
        if name and theirs is not None:
            found = compare(theirs, text)
            title = tr(
                "{name} beside {other}: {settings} with another value",
                name=self.file.name,
                other=name,
                settings=counted(len(found), "setting"),
            )
            await self.app.push_screen_wait(TextDialog(title, describe(found)))

    def _read(self, file: ProfileFile | None) -> str | None:
        if file is None:
            return None
        try:
            return file.path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            self.notify(tr("cannot read {path}: {error}", path=file.path, error=error), severity="error")
            return None


def describe(found: list[Difference]) -> Content:
    """Each setting with the other profile's value and this one's below it."""
    if not found:
        return Content(tr("No setting differs."))
    lines = []
    for each in found:
        lines.append(Content.styled(each.key, "bold"))
        lines.append(Content.assemble(("  - ", "$text-error"), (each.theirs, "dim")))
        lines.append(Content.assemble(("  + ", "$text-success"), each.ours))
    return Content("\n").join(lines)
