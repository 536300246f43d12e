"""What the app knows and how it is worded: pure functions and frozen dataclasses, without a screen and without an
engine."""
