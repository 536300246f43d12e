"""Our themes: the default is dark, with cool frames and a warm accent; the other one is light. Widgets use only theme
variables, so any other theme works too."""

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

COCKPIT_LIGHT = Theme(
    name="cockpit-light",
    dark=False,
    primary="#2a6186",
    secondary="#1a6363",
    accent="#854a00",
    success="#256029",
    warning="#854600",
    error="#a81c28",
    foreground="#1b2329",
    background="#f7f7f4",
    surface="#f1f1ec",
    panel="#e8e9e5",
    variables={
        "footer-key-foreground": "#854a00",
        "footer-background": "#e8e9e5",
        "border": "#2a6186",
        "block-cursor-background": "#2a6186",
        "block-cursor-foreground": "#ffffff",
        "input-selection-background": "#2a6186 35%",
    },
)
