import itertools
import random

import numpy as np
import pytest

from nertool.comparison import compare
from nertool.documents import Entity, Span
from nertool.matching import SCHEMES, SectionPair
from nertool.metrics import confidence_intervals, score

LABELS = ("Disease", "Gene")


def entity(label, start):
    return Entity(label, (Span(start, start + 2),), "x")


def systems(seed, documents=6, recall=(0.9, 0.6)):
    """Returns two systems' predictions for the same documents."""
    rng = random.Random(seed)
    pairs = ([], [])
    for document in range(documents):
        gold = [entity(rng.choice(LABELS), 10 * i) for i in range(rng.randint(1, 9))]
        for side, found in zip(pairs, recall, strict=True):
            predicted = [one for one in gold if rng.random() < found]
            predicted += [entity(rng.choice(LABELS), 10 * i + 5) for i in range(rng.randint(0, 2))]
            side.append(SectionPair(document, gold, predicted))
    return pairs


@pytest.mark.parametrize("scheme", SCHEMES)
def test_intervals_of_differences_are_those_of_a_slow_loop(scheme):
    ours, theirs = systems(1)
    found = compare(score(ours, LABELS, scheme), score(theirs, LABELS, scheme), 80, 5)
    rng = np.random.default_rng(5)
    values = {key: [] for key in found}
    for _ in range(80):
        weights = rng.multinomial(6, [1 / 6] * 6)
        drawn = [
            score([pair for pair, n in zip(side, weights, strict=True) for _ in range(n)], LABELS, scheme).to_json()
            for side in (ours, theirs)
        ]
        for key, some in values.items():
            if None not in (one := [result.get(key, 0.0) for result in drawn]):
                some.append(one[0] - one[1])
    for key, some in values.items():
        low, high = np.percentile(some, [2.5, 97.5])
        assert (found[key]["low"], found[key]["high"]) == pytest.approx((low, high), abs=1e-12)
        flat, flat_theirs = (score(side, LABELS, scheme).to_json() for side in (ours, theirs))
        assert (found[key]["value"], found[key]["baseline"]) == (flat[key], flat_theirs[key])
        assert found[key]["difference"] == flat[key] - flat_theirs[key]
        assert (found[key]["level"], found[key]["samples"]) == (0.95, 80)


def test_p_values_are_near_those_of_all_swaps():
    for seed in range(3):
        ours, theirs = systems(seed, recall=(0.85, 0.7))
        found = compare(score(ours, LABELS, "strict"), score(theirs, LABELS, "strict"), 4000, 1)
        values = {key: [] for key in found}
        for swaps in itertools.product([False, True], repeat=len(ours)):
            sides = [
                score([two[swap ^ side] for *two, swap in zip(ours, theirs, swaps, strict=True)], LABELS, "strict")
                for side in (0, 1)
            ]
            one, other = (side.to_json() for side in sides)
            for key, some in values.items():
                some.append(one[key] - other[key])
        for key, all_swaps in values.items():
            expected = np.mean(np.abs(all_swaps) >= abs(found[key]["difference"]) - 1e-12)
            assert found[key]["p_value"] == pytest.approx(expected, abs=0.03)


def test_p_values_of_equally_good_systems_are_even():
    """Of two systems that are equally good, a share of p has p-values up to p."""
    p_values = []
    for seed in range(300):
        ours, theirs = systems(seed, documents=30, recall=(0.8, 0.8))
        comparison = compare(score(ours, LABELS, "strict"), score(theirs, LABELS, "strict"), 200, seed)
        p_values.append(comparison["micro_f1"]["p_value"])
    for level in (0.05, 0.2, 0.5):
        assert abs(np.mean(np.array(p_values) <= level) - level) < 3 * (level * (1 - level) / 300) ** 0.5
    better = [compare(*(score(side, LABELS, "strict") for side in systems(seed, 30)), 200, 1) for seed in range(10)]
    assert all(one["micro_f1"]["p_value"] < 0.02 and one["micro_f1"]["low"] > 0 for one in better)


def test_a_paired_interval_is_narrower_than_two():
    """Two systems that share most errors: each interval is wide, that of the difference isn't."""
    rng = random.Random(0)
    ours, theirs = [], []
    for document in range(60):
        gold = [entity("Gene", 10 * i) for i in range(12)]
        hard = rng.random()
        found = [one for one in gold if rng.random() > hard]
        ours.append(SectionPair(document, gold, found))
        theirs.append(SectionPair(document, gold, found[1:]))
    one, other = (score(side, LABELS, "strict") for side in (ours, theirs))
    paired = compare(one, other, 500, 0)["micro_f1"]
    alone = [confidence_intervals(side, 500, 0)["micro_f1"] for side in (one, other)]
    assert alone[0]["low"] < alone[1]["high"]
    assert paired["low"] > 0 and paired["p_value"] < 0.01
    assert paired["high"] - paired["low"] < 0.5 * (alone[0]["high"] - alone[0]["low"])


def test_the_same_system_is_no_different():
    ours, _ = systems(0)
    scores = score(ours, LABELS, "strict")
    for numbers in compare(scores, scores, 50, 0).values():
        assert (numbers["difference"], numbers["low"], numbers["high"], numbers["p_value"]) == (0, 0, 0, 1)


def test_classes_of_one_side_only_and_too_few_documents():
    gold = [entity("Gene", 0), entity("Disease", 10)]
    other = [entity("Species", 20), gold[0]]
    ours = [SectionPair(number, gold, gold) for number in range(3)]
    theirs = [SectionPair(number, gold, other) for number in range(3)]
    found = compare(score(ours, ["Gene"], "strict"), score(theirs, ["Gene"], "strict"), 20, 0)
    assert found["Species_f1"]["baseline"] == 0.0
    assert found["Species_f1"]["value"] is found["Species_f1"]["difference"] is found["Species_f1"]["p_value"] is None
    assert found["Disease_f1"]["difference"] == 1.0
    single = compare(score(ours[:1], LABELS, "strict"), score(theirs[:1], LABELS, "strict"), 20, 0)["micro_f1"]
    assert single["difference"] == 0.5 and single["low"] is single["high"] is single["p_value"] is None
