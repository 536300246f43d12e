from __future__ import annotations

from engine.training.overfitting import Overfitting


def told(pairs: list[tuple[float, float]]) -> list[str]:
    watch = Overfitting()
    watch.evaluated(pairs[0][1] + 1)  # before the first step
    said = []
    for train, held_out in pairs:
        watch.trained(train + 0.1)
        watch.trained(train - 0.1)
        said.append(watch.evaluated(held_out))
    return said


def test_it_speaks_when_the_curves_part_and_once() -> None:
    said = told([(2.0, 2.1), (1.5, 1.8), (1.2, 1.9), (1.0, 2.0), (0.8, 2.2), (0.6, 2.4)])
    assert [bool(each) for each in said] == [False, False, False, True, False, False]
    assert said[3] == "the loss on held-out rows has risen to 2 from 1.8 while the training loss fell to 1"


def test_a_single_bad_evaluation_or_both_losses_rising_is_no_overfitting() -> None:
    assert not any(told([(2.0, 2.1), (1.8, 2.2), (1.6, 2.0), (1.4, 2.1), (1.2, 1.9)]))
    assert not any(told([(2.0, 2.1), (2.2, 2.2), (2.4, 2.3), (2.6, 2.4)]))
