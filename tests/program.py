"""`python -m tests.program TEXT ARGUMENT…` runs a program that a test has as text: `tests.training.warm` starts
modules."""

import sys

text = sys.argv.pop(1)
exec(compile(text, "<program of a test>", "exec"), {"__name__": "__main__"})
