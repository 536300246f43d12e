"""The headless twin of every screen: one function a verb, `(options) -> exit status`, imported when it is called."""
