import random

import pytest

from nertool.calibration import calibration
from nertool.documents import Entity, Span
from nertool.matching import SectionPair


def entity(start, score=None, label="Gene"):
    return Entity(label, (Span(start, start + 2),), "x", score=score)


def by_hand(scores_and_right):
    """The error as it is defined: bins of a tenth, each as heavy as it is full."""
    error = 0.0
    for number in range(10):
        some = [(s, r) for s, r in scores_and_right if min(9, int(s * 10)) == number]
        if some:
            mean, precision = sum(s for s, _ in some) / len(some), sum(r for _, r in some) / len(some)
            error += len(some) / len(scores_and_right) * abs(mean - precision)
    return error


def test_it_is_what_a_loop_over_bins_gives():
    rng = random.Random(0)
    pairs, of_class = [], {"Gene": [], "Disease": []}
    for document in range(20):
        gold, predicted = [], []
        for i in range(30):
            label, score, right = rng.choice(list(of_class)), rng.choice([1.0, rng.random()]), rng.random() < 0.7
            predicted.append(entity(10 * i, score, label))
            gold.append(entity(10 * i + (not right), None, label))
            of_class[label].append((score, right))
        pairs.append(SectionPair(document, gold, predicted))
    found = calibration(pairs)
    everything = of_class["Gene"] + of_class["Disease"]
    assert found["expected_calibration_error"] == pytest.approx(by_hand(everything))
    for label, some in of_class.items():
        assert found["classes"][label]["expected_calibration_error"] == pytest.approx(by_hand(some))
        assert found["classes"][label]["count"] == len(some)
    assert [(one["low"], one["high"]) for one in found["bins"]] == [(i / 10, (i + 1) / 10) for i in range(10)]
    assert sum(one["count"] for one in found["bins"]) == 600
    assert found["bins"][9]["mean_score"] > 0.95


def test_only_strictly_right_ones_of_the_class_are_right_and_equal_ones_count_once():
    gold = [entity(0), entity(10), entity(20)]
    predicted = [entity(0, 0.9), entity(0, 0.8), entity(11, 0.9), entity(20, 0.9, "Disease"), entity(30)]
    bins = calibration([SectionPair(0, gold, predicted)])["bins"]
    assert [one for one in bins if one["count"]] == [
        {"low": 0.9, "high": 1.0, "count": 3, "mean_score": pytest.approx(0.9), "precision": pytest.approx(1 / 3)}
    ]
    assert bins[0] == {"low": 0.0, "high": 0.1, "count": 0, "mean_score": None, "precision": None}


def test_scores_that_are_probabilities_have_no_error():
    gold = [entity(10 * i) for i in range(80)]
    predicted = [entity(10 * i, 0.8) for i in range(100)]
    assert calibration([SectionPair(0, gold, predicted)])["expected_calibration_error"] == pytest.approx(0, abs=1e-9)


def test_without_scores_there_is_none():
    assert calibration([]) is None
    assert calibration([SectionPair(0, [entity(0)], [entity(0)])]) is None
