from __future__ import annotations

from engine.protocol.text import did_you_mean, first_line, first_lines


def test_first_lines_of_an_error() -> None:
    error = RuntimeError("\nError(s) in loading state_dict for X:\n\tsize mismatch\na\nb")
    assert first_line(error) == "Error(s) in loading state_dict for X:"
    assert first_lines(error) == "Error(s) in loading state_dict for X:\n\tsize mismatch\na"
    assert first_line(ValueError("  ")) == first_lines(ValueError()) == "ValueError"


def test_a_misspelt_word() -> None:
    assert did_you_mean("learning_rat", ["epochs", "learning_rate"]) == ", did you mean learning_rate?"
    assert did_you_mean("zzz", ["epochs", "learning_rate"]) == ""
