import itertools
import json
import random
import subprocess
import sys
import time
from collections import Counter, defaultdict

import networkx
import numpy as np
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from nervaluate import Evaluator

from nertool import metrics
from nertool.documents import Entity, Span
from nertool.matching import SCHEMES, SectionPair
from nertool.metrics import confidence_intervals, evaluation_report, score
from tests.bench.intervals import PROCESS, coverage

LABELS = ("Chemical", "Disease", "Gene")
ERRORS = ("false_positives", "false_negatives")


def entity(label, *spans, match=None):
    spans = tuple(Span(*span) for span in spans)
    return Entity(label, spans, match or " ".join(f"{start}-{end}" for start, end in spans))


def counts(gold, predicted, scheme, labels=LABELS):
    """Returns class → (found, false positives, false negatives) of one section."""
    scores = score([SectionPair(0, gold, predicted)], labels, scheme)
    return {label: tuple(row) for label, row in zip(scores.classes, scores.counts[0].tolist(), strict=True)}


def spans(end):
    return st.tuples(st.integers(0, end), st.integers(1, 8)).map(lambda pair: Span(pair[0], sum(pair)))


def entities(max_size=12, end=24):
    several = st.sets(spans(end), min_size=1, max_size=3).map(lambda parts: tuple(sorted(parts)))
    shape = st.one_of(spans(end).map(lambda span: (span,)), several)
    return st.lists(
        st.builds(Entity, st.sampled_from(LABELS), shape, st.sampled_from(["TP53", "aspirin", "ALS"])),
        max_size=max_size,
    )


def section_pairs(max_size=4):
    return st.lists(st.builds(SectionPair, st.sampled_from([0, 8, 16]), entities(), entities()), max_size=max_size)


def random_pairs(seed, documents=8, labels=LABELS):
    rng = random.Random(seed)

    def some():
        return [
            entity(rng.choice(labels), (start, start + rng.randint(1, 6)))
            for start in rng.sample(range(60), k=rng.randint(0, 12))
        ]

    pairs = []
    for document in range(documents):
        for _ in range(rng.randint(1, 3)):
            gold = some()
            pairs.append(SectionPair(document, gold, [e for e in gold if rng.random() < 0.7] + some()[:3]))
    return pairs


# Defects of KAZU's scorer that ours must not have


def test_gold_of_an_unpredicted_class_counts_as_missed():
    gold = [entity("Disease", (0, 5)), entity("Gene", (10, 14)), entity("Gene", (20, 24))]
    pairs = [SectionPair(0, gold, [entity("Disease", (0, 5))]), SectionPair(0, [gold[1]], [gold[1]])]
    for scheme in ("strict", "overlap"):
        result = score(pairs, LABELS, scheme).to_json()
        assert (result["Gene_recall"], result["Gene_support"]) == (1 / 3, 3)
    kazu = score(pairs, LABELS, "kazu").to_json()
    assert (kazu["Gene_recall"], kazu["Gene_support"]) == (1.0, 1)


def test_one_prediction_over_three_golds_is_one_true_positive():
    gold = [entity("Gene", (0, 4)), entity("Gene", (5, 9)), entity("Gene", (10, 14))]
    predicted = [entity("Gene", (0, 14))]
    assert counts(gold, predicted, "overlap")["Gene"] == (1, 0, 2)
    assert counts(gold, predicted, "kazu")["Gene"] == (3, 0, 0)


def test_touching_spans_do_not_overlap():
    gold, predicted = [entity("Gene", (0, 5))], [entity("Gene", (5, 9))]
    assert counts(gold, predicted, "overlap")["Gene"] == counts(predicted, gold, "overlap")["Gene"] == (0, 1, 1)
    assert counts(gold, predicted, "kazu")["Gene"] == (1, 0, 0)


def test_a_prediction_inside_a_gold_overlaps_it():
    gold, predicted = [entity("Gene", (0, 20))], [entity("Gene", (5, 9))]
    assert counts(gold, predicted, "overlap")["Gene"] == counts(predicted, gold, "overlap")["Gene"] == (1, 0, 0)
    assert counts(gold, predicted, "kazu")["Gene"] == (0, 1, 1)


def test_discontinuous_golds_can_be_matched():
    gold = [entity("Disease", (0, 4), (15, 21))]
    assert counts(gold, [entity("Disease", (15, 21))], "overlap")["Disease"] == (1, 0, 0)
    assert counts(gold, [entity("Disease", (5, 14))], "overlap")["Disease"] == (0, 1, 1)  # in its gap
    assert counts(gold, [entity("Disease", (15, 21), (0, 4))], "strict")["Disease"] == (1, 0, 0)
    assert counts(gold, [entity("Disease", (15, 21))], "kazu")["Disease"] == (0, 1, 1)


def test_a_class_never_predicted_does_not_zero_the_mean():
    gold = [entity("Disease", (0, 5)), entity("Gene", (10, 14))]
    report = evaluation_report([SectionPair(0, gold, gold[:1])], LABELS)
    assert report["mean_f1"] == 0.5  # Disease 1, Gene 0; Chemical has neither gold nor predictions
    assert report["Gene_f1"] == 0.0
    assert report["Gene_precision"] is None
    assert report["schemes"]["kazu"]["mean_f1"] == 0.0


# strict


def test_strict_agrees_with_nervaluate():
    for seed in range(25):
        rng = random.Random(seed)

        def flat(rng=rng):
            cuts = sorted(rng.sample(range(120), k=30))
            kept = (span for span in itertools.pairwise(cuts) if rng.random() < 0.6)
            return [entity(rng.choice(LABELS), span) for span in kept]

        pairs = []
        for document in range(5):
            gold = flat()
            pairs.append(
                SectionPair(document, gold, [e for e in gold if rng.random() < 0.7] if rng.random() < 0.5 else flat())
            )

        def as_dicts(section):
            return [{"label": e.label, "start": e.start, "end": e.end - 1} for e in section]  # its ends are included

        theirs = Evaluator(
            [as_dicts(p.gold) for p in pairs], [as_dicts(p.predicted) for p in pairs], list(LABELS), "dict"
        )
        results = theirs.evaluate()
        ours = score(pairs, LABELS, "strict").to_json()
        for name, result in [("micro", results["overall"]), *results["entities"].items()]:
            strict = result["strict"]
            assert ours[f"{name}_precision"] == pytest.approx(strict.precision)
            assert ours[f"{name}_recall"] == pytest.approx(strict.recall)
            assert ours[f"{name}_f1"] == pytest.approx(strict.f1)
            assert ours[f"{name}_support"] == strict.possible


def test_strict_needs_every_span_and_the_label():
    gold = [entity("Gene", (0, 4), (6, 9))]
    for predicted in (entity("Gene", (0, 4)), entity("Gene", (0, 9)), entity("Disease", (0, 4), (6, 9))):
        found, wrong, missed = np.sum(list(counts(gold, [predicted], "strict").values()), axis=0)
        assert (found, wrong, missed) == (0, 1, 1)


@pytest.mark.parametrize("scheme", ["strict", "overlap"])
def test_duplicates_count_once(scheme):
    gold = [entity("Gene", (0, 4)), entity("Gene", (0, 4), match="TP53")]
    assert counts(gold, gold[:1], scheme)["Gene"] == (1, 0, 0)
    assert counts(gold[:1], gold, scheme)["Gene"] == (1, 0, 0)
    assert counts([], gold, scheme)["Gene"] == (0, 1, 0)


def test_kazu_counts_duplicates_each():
    gold = [entity("Gene", (0, 4)), entity("Gene", (0, 4))]
    assert counts(gold, gold[:1], "kazu")["Gene"] == (2, 0, 0)
    assert counts([], gold, "kazu")["Gene"] == (0, 2, 0)


# overlap


def share_a_character(one, other):
    characters = [{c for start, end in e.spans for c in range(start, end)} for e in (one, other)]
    return not characters[0].isdisjoint(characters[1])


def maximum_pairs(gold, predicted):
    """Returns class → how many pairs networkx can make."""
    pairs = {}
    for label in LABELS:
        graph = networkx.Graph()
        golds = [("gold", key) for key in {e.spans for e in gold if e.label == label}]
        predictions = [("predicted", key) for key in {e.spans for e in predicted if e.label == label}]
        graph.add_nodes_from(golds + predictions)
        for one, other in itertools.product(golds, predictions):
            if share_a_character(entity(label, *one[1]), entity(label, *other[1])):
                graph.add_edge(one, other)
        matching = networkx.bipartite.maximum_matching(graph, golds)
        pairs[label] = (len(matching) // 2, len(golds), len(predictions))
    return pairs


@settings(max_examples=200, deadline=None)
@given(gold=entities(), predicted=entities())
def test_overlap_makes_as_many_pairs_as_networkx(gold, predicted):
    expected = {label: (n, p - n, g - n) for label, (n, g, p) in maximum_pairs(gold, predicted).items()}
    assert counts(gold, predicted, "overlap") == expected


def crowd(rng, several):
    sizes = [rng.randint(2, 3) if rng.random() < several else 1 for _ in range(50)]
    starts = [[rng.randrange(200) for _ in range(size)] for size in sizes]
    return [entity("Gene", *sorted({(s, s + rng.choice([1, 1, 2, 3, 5, 20, 60])) for s in some})) for some in starts]


@pytest.mark.parametrize("several", [0.0, 0.03, 0.6])
def test_overlap_makes_as_many_pairs_as_networkx_in_crowded_sections(several):
    rng = random.Random(several)
    for _ in range(8):
        gold, predicted = crowd(rng, several), crowd(rng, several)[:40]
        found, golds, predictions = maximum_pairs(gold, predicted)["Gene"]
        assert counts(gold, predicted, "overlap")["Gene"] == (found, predictions - found, golds - found)


@pytest.mark.parametrize("several", [0.0, 0.1, 0.6])
def test_the_errors_of_a_crowded_section_do_not_depend_on_the_order(several):
    rng = random.Random(several)
    for _ in range(8):
        gold, predicted = crowd(rng, several), crowd(rng, several)[:40]
        gold += [entity("Gene", e.spans[0], (300, 301)) for e in gold[:20]]  # with the same first span
        predicted += [entity("Gene", e.spans[0], (350, 351)) for e in predicted[:20]]
        predicted += [entity("Gene", e.spans[0], (400, 401)) for e in predicted[:20]]
        one = evaluation_report([SectionPair(0, gold, predicted)], LABELS, scheme="overlap", bootstrap_samples=0)
        rng.shuffle(gold)
        rng.shuffle(predicted)
        other = evaluation_report([SectionPair(0, gold, predicted)], LABELS, scheme="overlap", bootstrap_samples=0)
        assert {name: one[name] for name in ERRORS} == {name: other[name] for name in ERRORS}


def test_overlap_gives_up_an_exact_pair_for_two_others():
    gold = [entity("Gene", (0, 10)), entity("Gene", (0, 2))]
    predicted = [entity("Gene", (0, 10)), entity("Gene", (8, 10))]
    assert counts(gold, predicted, "overlap")["Gene"] == (2, 0, 0)


def test_overlap_of_a_part_that_touches_behind_a_longer_one():
    gold = [entity("Gene", (5, 7), (30, 32)), entity("Gene", (8, 9))]
    predicted = [entity("Gene", (0, 10)), entity("Gene", (2, 5))]
    assert counts(gold, predicted, "overlap")["Gene"] == (1, 1, 1)


@pytest.mark.parametrize("discontinuous", [False, True])
def test_overlap_of_a_crowded_section_is_fast(discontinuous):
    size = 5000
    gold = [entity("Gene", (i, 2 * size - i)) for i in range(size)]
    predicted = [entity("Gene", (i, i + 1)) for i in range(size - 1)]
    predicted.append(entity("Gene", (0, 1), (size, size + 1)) if discontinuous else entity("Gene", (size, size + 1)))
    start = time.process_time()
    assert counts(gold, predicted, "overlap")["Gene"] == (size, 0, 0)
    assert time.process_time() - start < 5  # a product of both takes minutes


@settings(max_examples=60, deadline=None)
@given(pairs=section_pairs(), data=st.data())
def test_the_order_of_entities_and_sections_does_not_matter(pairs, data):
    shuffled = [
        SectionPair(document, data.draw(st.permutations(gold)), data.draw(st.permutations(predicted)))
        for document, gold, predicted in data.draw(st.permutations(pairs))
    ]
    for scheme in ("strict", "overlap"):
        one = evaluation_report(pairs, LABELS, scheme=scheme, bootstrap_samples=20)
        other = evaluation_report(shuffled, LABELS[::-1], scheme=scheme, bootstrap_samples=20)
        del one["schemes"]["kazu"], other["schemes"]["kazu"]  # the last digit of its mean depends on the order
        assert json.dumps(one) == json.dumps(other)


@settings(max_examples=100, deadline=None)
@given(gold=entities(), predicted=entities())
def test_whatever_is_right_under_strict_is_right_under_overlap(gold, predicted):
    strict, overlap = counts(gold, predicted, "strict"), counts(gold, predicted, "overlap")
    for label in LABELS:
        assert overlap[label][0] >= strict[label][0]
        for scheme in (strict, overlap):  # nothing is lost or counted twice
            assert scheme[label][0] + scheme[label][2] == len({e.spans for e in gold if e.label == label})
            assert scheme[label][0] + scheme[label][1] == len({e.spans for e in predicted if e.label == label})


# kazu


def kazu_by_product(pairs, labels):
    """KAZU's rules said again, comparing every gold with every predicted entity."""
    totals = {}
    errors = {"false_positives": defaultdict(Counter), "false_negatives": defaultdict(Counter)}
    for pair in pairs:
        for label in sorted({e.label for e in pair.predicted}):
            gold = [e for e in pair.gold if e.label == label]
            predicted = [e for e in pair.predicted if e.label == label]
            matches = set()
            for (g, one), (p, other) in itertools.product(enumerate(gold), enumerate(predicted)):
                if set(one.spans) == set(other.spans):
                    matches.add((g, p))
                elif len(one.spans) == len(other.spans) == 1:
                    (start, end), (other_start, other_end) = one.spans[0], other.spans[0]
                    if other_start <= start <= other_end or other_start <= end <= other_end:
                        matches.add((g, p))
            missed = [e.match for g, e in enumerate(gold) if g not in {g for g, _ in matches}]
            wrong = [e.match for p, e in enumerate(predicted) if p not in {p for _, p in matches}]
            found, false, lost = totals.get(label, (0, 0, 0))
            totals[label] = (found + len(gold) - len(missed), false + len(wrong), lost + len(missed))
            errors["false_positives"][label].update(wrong)
            errors["false_negatives"][label].update(missed)
    result, f1s = {}, []
    for label, (found, false, lost) in totals.items():
        precision = found / (found + false) if found + false else 0.0
        recall = found / (found + lost) if found + lost else 0.0
        result |= {f"{label}_precision": precision, f"{label}_recall": recall, f"{label}_support": found + lost}
        f1s.append(2 * (precision * recall) / (precision + recall) if precision + recall else 0.0)
    total = 0.0
    for f1 in f1s:
        total += f1
    result["mean_f1"] = total / len(f1s) if f1s and all(f1s) and len(f1s) == len(set(labels)) else 0.0
    for name, texts in errors.items():
        result[name] = {label: dict(counter) for label, counter in texts.items() if counter}
    return result


@settings(max_examples=100, deadline=None)
@given(pairs=section_pairs(), labels=st.sets(st.sampled_from([*LABELS, "Species"])))
def test_kazu_counts_as_its_product_loop_does(pairs, labels):
    expected = kazu_by_product(pairs, labels)
    report = evaluation_report(pairs, labels, scheme="kazu", bootstrap_samples=0)
    assert {key: report[key] for key in expected} == expected
    keys_of_classes = {key for key in report if key.startswith(LABELS) and not key.endswith("_f1")}
    assert keys_of_classes == {key for key in expected if key.startswith(LABELS)}


def test_kazu_mean_has_the_last_digit_of_kazu():
    labels = [f"class{i:02}" for i in range(18)]
    seen = Counter()
    for seed in range(10):
        pairs = random_pairs(seed, documents=40, labels=labels)
        expected = kazu_by_product(pairs, labels)["mean_f1"]
        scores = score(pairs, labels, "kazu")
        assert scores.to_json()["mean_f1"] == expected
        found, wrong, missed = scores.counts.sum(axis=0).T
        precision, recall = found / (found + wrong), found / (found + missed)
        seen[float(np.mean(2 * precision * recall / (precision + recall))) == expected] += 1
    assert seen[False], "the data doesn't tell the order of adding"


def test_kazu_micro_is_made_of_its_own_counts():
    gold = [entity("Gene", (0, 4)), entity("Gene", (5, 9)), entity("Disease", (20, 25))]
    predicted = [entity("Gene", (0, 10)), entity("Gene", (40, 42))]
    result = score([SectionPair(0, gold, predicted)], LABELS, "kazu").to_json()
    assert (result["micro_precision"], result["micro_recall"], result["micro_f1"]) == (2 / 3, 1.0, 0.8)
    assert "Disease_recall" not in result


# The report


def test_report_by_hand():
    gold = [entity("Gene", (0, 4), match="TP53"), entity("Gene", (6, 9), match="MYC"), entity("Disease", (20, 25))]
    predicted = [gold[0], entity("Gene", (30, 33), match="the"), entity("Chemical", (20, 25), match="water")]
    again = [
        entity("Gene", (0, 3), match="the"),
        entity("Gene", (0, 3), match="the"),
        entity("Gene", (5, 7), match="a"),
        entity("Gene", (8, 9), match="b"),
    ]
    pairs = [SectionPair(0, gold, predicted), SectionPair(4, [], again)]
    report = evaluation_report(pairs, [*LABELS, "Species"])
    assert (report["Gene_precision"], report["Gene_recall"], report["Gene_f1"]) == (1 / 5, 1 / 2, 2 / 7)
    assert (report["Gene_support"], report["Chemical_support"]) == (2, 0)
    assert (report["Chemical_precision"], report["Chemical_recall"], report["Chemical_f1"]) == (0.0, None, 0.0)
    assert (report["Species_precision"], report["Species_recall"], report["Species_f1"]) == (None, None, None)
    assert report["mean_f1"] == pytest.approx((2 / 7 + 0 + 0) / 3)
    assert (report["micro_precision"], report["micro_recall"], report["micro_f1"]) == (1 / 6, 1 / 3, 2 / 9)
    assert report["scheme"] == "strict"
    assert report["classes_without_gold_or_predictions"] == ["Species"]
    assert json.dumps(report["false_positives"]) == json.dumps(
        {"Chemical": {"water": 1}, "Gene": {"the": 2, "a": 1, "b": 1}}
    )
    assert report["false_negatives"] == {"Disease": {"20-25": 1}, "Gene": {"MYC": 1}}
    assert report["counts"] == {
        "documents": 2,
        "sections": 2,
        "gold_entities": 3,
        "predicted_entities": 7,
        "gold_duplicates": 0,
        "predicted_duplicates": 1,
    }


def test_report_has_the_flat_numbers_of_each_scheme():
    pairs = random_pairs(3)
    for scheme in SCHEMES:
        report = evaluation_report(pairs, LABELS, scheme=scheme, bootstrap_samples=10)
        assert list(report["schemes"]) == list(SCHEMES)
        for name, flat in report["schemes"].items():
            assert flat == score(pairs, LABELS, name).to_json()
            assert flat["scheme"] == name
        assert report["schemes"][scheme].items() <= report.items()


def test_a_class_that_the_model_does_not_know_counts():
    pairs = [SectionPair(0, [entity("Species", (0, 5)), entity("Gene", (6, 9))], [entity("Gene", (6, 9))])]
    report = evaluation_report(pairs, ["Gene"])
    assert (report["Species_recall"], report["mean_f1"], report["micro_recall"]) == (0.0, 0.5, 0.5)


@pytest.mark.parametrize("pairs", [[], [SectionPair(0, [], [])], [SectionPair(0, [], []), SectionPair(1, [], [])]])
@pytest.mark.parametrize("labels", [(), LABELS])
def test_nothing_at_all_is_neither_one_nor_zero(pairs, labels):
    report = evaluation_report(pairs, labels)
    assert report["mean_f1"] is report["micro_f1"] is report["micro_precision"] is report["micro_recall"] is None
    assert report["classes_without_gold_or_predictions"] == sorted(labels)
    assert set(report["confidence_intervals"].values()) == {None}
    for label in labels:
        assert report[f"{label}_f1"] is None
        assert report[f"{label}_support"] == 0
    kazu = report["schemes"]["kazu"]
    assert (kazu["mean_f1"], kazu["micro_f1"], kazu["micro_precision"], kazu["micro_recall"]) == (0.0, 0.0, 0.0, 0.0)


@settings(max_examples=50, deadline=None)
@given(pairs=section_pairs(), scheme=st.sampled_from(SCHEMES))
def test_report_is_json(pairs, scheme):
    report = evaluation_report(pairs, LABELS, scheme=scheme, bootstrap_samples=10)
    assert json.loads(json.dumps(report, allow_nan=False)) == orjson.loads(orjson.dumps(report)) == report


# Confidence intervals


def slow_intervals(pairs, scheme, samples, seed):
    """The bootstrap as it is told: draw documents, score them, look at the middle 95 %."""
    documents = sorted({pair.document for pair in pairs})
    by_document = {d: [pair for pair in pairs if pair.document == d] for d in documents}
    rng = np.random.default_rng(seed)
    full = score(pairs, LABELS, scheme)
    names = [f"{name}_{what}" for name in full.classes for what in ("precision", "recall", "f1")]
    values = {name: [] for name in ("micro_precision", "micro_recall", "micro_f1", "mean_f1", *names)}
    for _ in range(samples):
        weights = rng.multinomial(len(documents), [1 / len(documents)] * len(documents))
        drawn = [pair for d, n in zip(documents, weights, strict=True) for _ in range(n) for pair in by_document[d]]
        result = score(drawn, LABELS, scheme).to_json()
        for name, some in values.items():
            value = result.get(name, 0.0)  # kazu has no numbers of a class that isn't predicted; of ours they are 0
            if value is not None:
                some.append(value)
    return {name: np.percentile(some, [2.5, 97.5]).tolist() if some else None for name, some in values.items()}


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("seed", [0, 1])
def test_intervals_are_those_of_a_slow_loop(scheme, seed):
    pairs = random_pairs(seed, documents=5)
    fast = confidence_intervals(score(pairs, LABELS, scheme), 60, seed)
    slow = slow_intervals(pairs, scheme, 60, seed)
    assert fast.keys() == slow.keys()
    for name, expected in slow.items():
        assert [fast[name]["low"], fast[name]["high"]] == pytest.approx(expected, rel=1e-12)
        assert (fast[name]["level"], fast[name]["samples"]) == (0.95, 60)


def test_intervals_are_the_same_in_blocks(monkeypatch):
    scores = score(random_pairs(0, documents=7), LABELS, "strict")
    at_once = confidence_intervals(scores, 50, 3)
    monkeypatch.setattr(metrics, "_WEIGHTS_AT_ONCE", 15)
    assert confidence_intervals(scores, 50, 3) == at_once


def test_every_flat_number_but_the_supports_has_an_interval():
    for scheme in SCHEMES:
        flat = score(random_pairs(0), LABELS, scheme).to_json()
        intervals = evaluation_report(random_pairs(0), LABELS, scheme=scheme)["confidence_intervals"]
        assert {*intervals} == {key for key in flat if key != "scheme" and not key.endswith("_support")}


def test_samples_without_any_entity_are_left_out():
    gene = entity("Gene", (0, 4))
    pairs = [SectionPair(0, [gene], [gene]), SectionPair(1, [], [])]  # a quarter of the samples is empty
    intervals = evaluation_report(pairs, LABELS, bootstrap_samples=100)["confidence_intervals"]
    assert intervals["micro_f1"] == {"low": 1.0, "high": 1.0, "level": 0.95, "samples": 100} == intervals["mean_f1"]


def test_intervals_are_deterministic_and_mostly_hold_the_point():
    inside = 0
    for seed in range(20):
        pairs = random_pairs(seed, documents=25)
        report = evaluation_report(pairs, LABELS, bootstrap_samples=200)
        assert report == evaluation_report(pairs, LABELS, bootstrap_samples=200)
        interval = report["confidence_intervals"]["micro_f1"]
        assert interval["low"] < interval["high"]
        inside += interval["low"] <= report["micro_f1"] <= interval["high"]
    assert inside >= 19
    other = evaluation_report(pairs, LABELS, bootstrap_samples=200, bootstrap_seed=7)
    assert other["confidence_intervals"] != report["confidence_intervals"]


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say():
    """500 collections of 100 documents from a process whose F1 is known; chance alone makes 2 % more or less of it."""
    found = coverage(PROCESS, documents=100, draws=500)
    assert found.keys() == {"micro_f1", "mean_f1", "class0_f1", "class1_f1", "class2_f1"}
    assert all(0.93 <= share <= 0.97 for share in (found["micro_f1"], found["mean_f1"])), found
    assert all(0.91 <= share <= 0.98 for share in found.values()), found  # the rarest class has 100 gold entities


def test_no_interval_without_samples_or_with_one_document():
    several, one = random_pairs(0), [pair for pair in random_pairs(0) if pair.document == 0]
    for report in (evaluation_report(several, LABELS, bootstrap_samples=0), evaluation_report(one, LABELS)):
        assert set(report["confidence_intervals"].values()) == {None}


def test_metrics_does_not_import_torch():
    code = "import sys, nertool.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
