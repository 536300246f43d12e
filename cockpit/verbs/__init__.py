"""The verbs, the headless twins of the screens: one function each, `(options) -> exit status`, imported when it is
called."""
