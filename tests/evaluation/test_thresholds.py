from __future__ import annotations

import pytest

from engine.options.thresholds import check_thresholds, parse_threshold


def test_thresholds_are_read_and_judged() -> None:
    values = {"eval/loss": 1.5, "eval/schema_validity": 0.95, "train/loss": None}
    wanted = ["schema_validity >= 0.95", "eval/loss<1.2", "loss > -1e3", "train/loss <= 2", "rouge_l > 0.1"]
    verdicts = check_thresholds(wanted, values)
    assert [verdict.passed for verdict in verdicts] == [True, False, True, False, False]
    assert str(verdicts[1]) == "loss is 1.5, wanted < 1.2"
    assert str(verdicts[4]) == "rouge_l was not measured, wanted > 0.1"
    assert str(parse_threshold(" eval/token_accuracy  >0.5 ")) == "token_accuracy > 0.5"


@pytest.mark.parametrize("text", ["", "loss", "loss = 1", "loss < high", "< 1", "loss < 1 or so", "a b < 1"])
def test_invalid_thresholds_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no threshold"):
        parse_threshold(text)
