from __future__ import annotations

from engine.training.overfitting import OverfittingDetector


def find_warnings(pairs: list[tuple[float, float]]) -> list[str]:
    detector = OverfittingDetector()
    detector.add_evaluation(pairs[0][1] + 1)  # before the first step
    warnings = []
    for train, held_out in pairs:
        detector.add_training_loss(train + 0.1)
        detector.add_training_loss(train - 0.1)
        warnings.append(detector.add_evaluation(held_out))
    return warnings


def test_it_speaks_when_the_curves_part_and_once() -> None:
    warnings = find_warnings([(2.0, 2.1), (1.5, 1.8), (1.2, 1.9), (1.0, 2.0), (0.8, 2.2), (0.6, 2.4)])
    assert [bool(each) for each in warnings] == [False, False, False, True, False, False]
    assert warnings[3] == "the loss on held-out rows has risen to 2 from 1.8 while the training loss fell to 1"


def test_a_single_bad_evaluation_or_both_losses_rising_is_no_overfitting() -> None:
    assert not any(find_warnings([(2.0, 2.1), (1.8, 2.2), (1.6, 2.0), (1.4, 2.1), (1.2, 1.9)]))
    assert not any(find_warnings([(2.0, 2.1), (2.2, 2.2), (2.4, 2.3), (2.6, 2.4)]))
