"""The default theme: dark, with cool frames and a warm accent. Widgets use only theme variables, so any other theme
works too."""

from __future__ import annotations

from textual.theme import Theme

COCKPIT = Theme(
    name="cockpit",
    primary="#3d7ea6",
    secondary="#5fb3b3",
    accent="#f2b544",
    success="#7bc275",
    warning="#e8a04c",
    error="#e0646c",
    foreground="#d6dbe0",
    background="#101418",
    surface="#151b21",
    panel="#1b242c",
    variables={
        "footer-key-foreground": "#f2b544",
        "footer-background": "#1b242c",
        "border": "#3d7ea6",
        "block-cursor-background": "#3d7ea6",
        "input-selection-background": "#3d7ea6 45%",
    },
)
