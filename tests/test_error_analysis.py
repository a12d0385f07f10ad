import random
import time
from collections import Counter
from itertools import chain

import networkx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nertool.documents import Entity, Span
from nertool.error_analysis import KINDS, MEANINGS, NONE, find_errors, summarise_errors
from nertool.matching import SectionPair
from nertool.metrics import score

LABELS = ("Chemical", "Disease", "Gene")
BOUNDARY = {"too long", "too short", "shifted", "split", "merged"}


def entity(label, *spans, match="x"):
    return Entity(label, tuple(Span(*span) for span in spans), match)


def only(gold, predicted):
    """Returns the errors of one section as kind, gold and predicted."""
    return [(item.kind, item.gold, item.predicted) for item in find_errors([SectionPair(0, gold, predicted)])]


def spans(end):
    return st.tuples(st.integers(0, end), st.integers(1, 8)).map(lambda pair: Span(pair[0], sum(pair)))


def entities(max_size=10, end=24):
    shape = st.lists(spans(end), min_size=1, max_size=3).map(tuple)  # parts may touch, overlap and be there twice
    one = spans(end).map(lambda span: (span,))
    return st.lists(st.builds(Entity, st.sampled_from(LABELS), one | shape, st.sampled_from("ab")), max_size=max_size)


def section_pairs():
    """Sections with what is right, what is nearly right, duplicates and anything else."""

    def pair(document, gold, predicted, also):
        return SectionPair(document, gold, predicted + [one for one, kept in zip(gold, also, strict=False) if kept])

    return st.lists(
        st.builds(pair, st.sampled_from([0, 3]), entities(), entities(), st.lists(st.booleans(), max_size=10)),
        max_size=3,
    )


def key(one):
    return one.label, tuple(sorted(set(one.spans)))


def characters(one):
    return {c for start, end in one.spans for c in range(start, end)}


def overlap(one, other):
    return not characters(one).isdisjoint(characters(other))


# The kinds, by hand


@pytest.mark.parametrize(
    ("gold", "predicted", "kind"),
    [
        ((5, 9), (3, 9), "too long"),
        ((5, 9), (3, 12), "too long"),
        ((5, 9), (6, 9), "too short"),
        ((5, 9), (7, 12), "shifted"),
    ],
)
def test_boundaries(gold, predicted, kind):
    gold, predicted = entity("Gene", gold), entity("Gene", predicted)
    assert only([gold], [predicted]) == [(kind, (gold,), (predicted,))]


def test_boundaries_of_several_parts():
    gold = entity("Gene", (0, 4), (10, 14))
    for kind, predicted in (
        ("too long", entity("Gene", (0, 14))),
        ("too short", entity("Gene", (0, 4))),
        ("too short", entity("Gene", (0, 4), (12, 14))),
        ("shifted", entity("Gene", (0, 8))),
        ("shifted", entity("Gene", (0, 2), (2, 4), (10, 14))),  # the same characters in other parts
    ):
        assert only([gold], [predicted]) == [(kind, (gold,), (predicted,))]
    between = entity("Gene", (4, 10))
    assert [kind for kind, _, _ in only([gold], [between])] == ["missed", "invented"]


def test_split_and_merged():
    one, parts = entity("Gene", (0, 14)), [entity("Gene", (0, 4)), entity("Gene", (5, 9)), entity("Gene", (10, 14))]
    assert only([one], parts) == [("split", (one,), tuple(parts))]
    assert only(parts, [one]) == [("merged", tuple(parts), (one,))]


def test_a_prediction_over_a_right_one_and_a_missed_one_is_not_merged():
    found, missed, wrong = entity("Gene", (0, 4)), entity("Gene", (5, 9)), entity("Gene", (0, 9))
    assert only([found, missed], [found, wrong]) == [("too long", (missed,), (wrong,))]


def test_classes():
    gold = entity("Gene", (0, 4))
    assert only([gold], [entity("Disease", (0, 4))]) == [("wrong class", (gold,), (entity("Disease", (0, 4)),))]
    assert only([gold], [entity("Disease", (2, 9))]) == [
        ("wrong class and boundary", (gold,), (entity("Disease", (2, 9)),))
    ]
    assert only([gold], [entity("Gene", (4, 9))]) == [
        ("missed", (gold,), ()),
        ("invented", (), (entity("Gene", (4, 9)),)),
    ]


def test_a_span_with_two_classes_of_which_one_is_found():
    gene, protein, other = (entity(label, (0, 4)) for label in ("Gene", "Chemical", "Disease"))
    assert only([gene, protein], [gene]) == [("missed", (protein,), ())]
    assert only([gene], [gene, protein]) == [("invented", (), (protein,))]
    assert only([gene, protein], [gene, other]) == [("wrong class", (protein,), (other,))]
    assert only([gene, protein], [other]) == [("wrong class", (protein,), (other,)), ("missed", (gene,), ())]


def test_the_class_comes_before_the_place():
    gold = entity("Gene", (0, 4))
    near, other = entity("Gene", (0, 5)), entity("Disease", (0, 4))
    assert set(only([gold], [near, other])) == {("too long", (gold,), (near,)), ("invented", (), (other,))}


def test_nested_ones_are_paired_with_the_most_similar():
    outer, inner = entity("Gene", (0, 20)), entity("Gene", (10, 20))
    longer, shorter = entity("Gene", (0, 22)), entity("Gene", (12, 20))
    assert only([outer, inner], [shorter, longer]) == [
        ("too long", (outer,), (longer,)),
        ("too short", (inner,), (shorter,)),
    ]


def test_a_more_similar_pair_gives_way_if_two_can_be_made():
    gold = [entity("Gene", (0, 10)), entity("Gene", (0, 2))]
    predicted = [entity("Gene", (0, 9)), entity("Gene", (8, 11))]
    assert only(gold, predicted) == [
        ("too long", (gold[1],), (predicted[0],)),
        ("shifted", (gold[0],), (predicted[1],)),
    ]


# What always holds


@settings(max_examples=150, deadline=None)
@given(pairs=section_pairs())
def test_every_error_is_in_one_item_and_what_is_right_in_none(pairs):
    items = find_errors(pairs)
    for number, pair in enumerate(pairs):
        here = [item for item in items if item.section == number]
        right = set(map(key, pair.gold)) & set(map(key, pair.predicted))
        for side, of_items in ((pair.gold, "gold"), (pair.predicted, "predicted")):
            inside = Counter(map(key, chain.from_iterable(getattr(item, of_items) for item in here)))
            assert inside == Counter(set(map(key, side)) - right)
    strict = score(pairs, LABELS, "strict")
    _, wrong, missed = strict.counts.sum(axis=(0, 1)).tolist()
    assert (sum(len(item.gold) for item in items), sum(len(item.predicted) for item in items)) == (missed, wrong)


@settings(max_examples=150, deadline=None)
@given(pairs=section_pairs())
def test_each_item_is_of_its_kind(pairs):
    for item in find_errors(pairs):
        sizes = len(item.gold), len(item.predicted)
        several = {"missed": (1, 0), "invented": (0, 1)}.get(item.kind, (1, 1))
        assert item.kind in ("split", "merged") or sizes == several
        if item.kind == "split":
            assert sizes[0] == 1 < sizes[1]
        elif item.kind == "merged":
            assert sizes[0] > 1 == sizes[1]
        same_class = len({one.label for one in (*item.gold, *item.predicted)}) == 1
        assert same_class == (item.kind in {*BOUNDARY, "missed", "invented"})
        for gold in item.gold:
            for predicted in item.predicted:
                assert overlap(gold, predicted)
                assert (key(gold)[1] == key(predicted)[1]) == (item.kind == "wrong class")
                a, b = characters(gold), characters(predicted)
                assert item.kind != "too long" or a < b
                assert item.kind != "too short" or b < a
                assert item.kind != "shifted" or a == b or (a - b and b - a)


@settings(max_examples=150, deadline=None)
@given(pairs=section_pairs())
def test_nothing_is_missed_that_could_be_explained(pairs):
    items = find_errors(pairs)
    for number in range(len(pairs)):
        here = [item for item in items if item.section == number]
        for label in LABELS:
            # As many boundary errors as pairs can be made, and nothing of the class beside them that overlaps.
            golds = [one for item in here for one in item.gold if one.label == label]
            predictions = [one for item in here for one in item.predicted if one.label == label]
            graph = networkx.Graph()
            graph.add_edges_from(
                (("gold", g), ("predicted", p))
                for g, gold in enumerate(golds)
                for p, predicted in enumerate(predictions)
                if overlap(gold, predicted)
            )
            tops = [node for node in graph if node[0] == "gold"]
            possible = len(networkx.bipartite.maximum_matching(graph, tops)) // 2
            of_boundary = [item for item in here if item.kind in BOUNDARY and item.label == label]
            assert len(of_boundary) == possible
            assert sum(len(item.gold) + len(item.predicted) for item in of_boundary) == len(graph)
        missed = [item.gold[0] for item in here if item.kind == "missed"]
        invented = [item.predicted[0] for item in here if item.kind == "invented"]
        assert not any(overlap(gold, predicted) for gold in missed for predicted in invented)


@settings(max_examples=100, deadline=None)
@given(pairs=section_pairs(), seed=st.integers(0, 99))
def test_the_order_of_entities_does_not_matter(pairs, seed):
    rng = random.Random(seed)
    shuffled = [
        SectionPair(p.document, rng.sample(p.gold, len(p.gold)), rng.sample(p.predicted, len(p.predicted)))
        for p in pairs
    ]
    assert _plain(find_errors(shuffled)) == _plain(find_errors(pairs))


def _plain(items):
    def side(entities):
        return [(key(one), one.match) for one in entities]

    return [(item.section, item.kind, side(item.gold), side(item.predicted)) for item in items]


@settings(max_examples=100, deadline=None)
@given(pairs=section_pairs())
def test_gold_and_predicted_may_change_places(pairs):
    """What is missed is invented the other way round, what is too long too short; pairs are counted alike."""
    other = {"missed": "invented", "too long": "too short", "split": "merged"}
    other |= {there: here for here, there in other.items()}
    turned = find_errors([SectionPair(p.document, p.predicted, p.gold) for p in pairs])
    here, there = (Counter(item.kind for item in items) for items in (find_errors(pairs), turned))
    for kind in ("missed", "invented", "wrong class", "wrong class and boundary"):
        assert here[kind] == there[other.get(kind, kind)]
    assert sum(here[kind] for kind in BOUNDARY) == sum(there[kind] for kind in BOUNDARY)


@settings(max_examples=100, deadline=None)
@given(pairs=section_pairs())
def test_the_summary_adds_up(pairs):
    strict = score(pairs, LABELS, "strict")
    found, wrong, missed = strict.counts.sum(axis=0).T
    items = find_errors(pairs)
    summary = summarise_errors(items, dict(zip(strict.classes, found.tolist(), strict=True)))
    assert list(summary["kinds"]) == list(KINDS) == list(MEANINGS)
    assert sum(kind["gold"] for kind in summary["kinds"].values()) == missed.sum()
    assert sum(kind["predicted"] for kind in summary["kinds"].values()) == wrong.sum()
    assert sum(n for kind in summary["kinds"].values() for n in kind["classes"].values()) == len(items)
    confusion = summary["confusion"]
    assert NONE not in confusion.get(NONE, {})
    for label, *counts in zip(strict.classes, found.tolist(), wrong.tolist(), missed.tolist(), strict=True):
        assert sum(confusion.get(label, {}).values()) == counts[0] + counts[2]
        assert sum(row.get(label, 0) for row in confusion.values()) == counts[0] + counts[1]
        assert confusion.get(label, {}).get(label, 0) >= counts[0]


def test_the_confusion_by_hand():
    gold = [entity("Gene", (0, 4)), entity("Gene", (10, 20)), entity("Disease", (30, 34)), entity("Gene", (40, 44))]
    parts = [entity("Gene", (10, 13)), entity("Gene", (15, 19))]
    predicted = [gold[0], *parts, entity("Gene", (30, 34)), entity("Disease", (60, 64))]
    summary = summarise_errors(find_errors([SectionPair(0, gold, predicted)]), {"Gene": 1, "Chemical": 0})
    assert summary["confusion"] == {
        NONE: {"Disease": 1, "Gene": 1},
        "Disease": {"Gene": 1},
        "Gene": {NONE: 1, "Gene": 2},
    }
    used = {kind: facts for kind, facts in summary["kinds"].items() if facts["classes"]}
    assert used == {
        "missed": {"gold": 1, "predicted": 0, "classes": {"Gene": 1}},
        "invented": {"gold": 0, "predicted": 1, "classes": {"Disease": 1}},
        "wrong class": {"gold": 1, "predicted": 1, "classes": {"Disease": 1}},
        "split": {"gold": 1, "predicted": 2, "classes": {"Gene": 1}},
    }


def test_a_large_collection_takes_seconds():
    rng = random.Random(1)

    def some(count):
        starts = [rng.randrange(40_000) for _ in range(count)]
        return [entity(rng.choice(LABELS), (start, start + rng.randint(1, 20))) for start in starts]

    pairs = [SectionPair(number, some(1000), some(1000)) for number in range(30)]
    begin = time.process_time()
    items = find_errors(pairs)
    assert len(items) > 30_000
    assert time.process_time() - begin < 8
