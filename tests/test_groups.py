import random

from nertool.documents import Document, Entity, Section, Span
from nertool.groups import SectionFacts, group_scores, training_mentions
from nertool.matching import SectionPair
from nertool.metrics import score


def entity(text, start, label="Gene", shift=0):
    return Entity(label, (Span(start, start + len(text) + shift),), text)


FACTS = [SectionFacts("title", "the LLM m"), SectionFacts("abstract", "people in Label Studio: corrected")]


def test_groups_by_hand():
    gold = [entity("TP53", 0), entity("breast cancer", 10, "Disease"), entity("a b c d e", 30)]
    predicted = [gold[0], entity("cancer", 17, "Disease"), entity("of", 60)]
    also = [entity("Tp53", 0)]
    train = [
        Document("t", (Section("s", "", (entity("tp53", 0), entity("CANCER", 0, "Disease"), entity("of", 0, "X"))),))
    ]
    found = group_scores([SectionPair(0, gold, predicted), SectionPair(0, also, also)], FACTS, training_mentions(train))
    assert found["seen in training"] == {
        "seen": {"precision": 2 / 3, "recall": 1.0, "f1": 0.8, "support": 2, "predicted": 3},
        "unseen": {"precision": 0.0, "recall": 0.0, "f1": 0.0, "support": 2, "predicted": 1},
    }
    assert {name: (one["support"], one["predicted"]) for name, one in found["length in words"].items()} == {
        "1": (2, 4), "2": (1, 0), "4+": (1, 0)
    }  # fmt: skip
    assert found["length in words"]["2"]["precision"] is None
    assert {name: one["f1"] for name, one in found["section"].items()} == {"abstract": 1.0, "title": 1 / 3}
    assert list(found["provenance"]) == ["people in Label Studio: corrected", "the LLM m"]


def test_white_space_and_case_do_not_matter_but_the_class_does():
    seen = training_mentions([Document("t", (Section("s", "", (entity("Breast\n Cancer", 0, "Disease"),)),))])
    gold = [entity("breast cancer", 0, "Disease"), entity("breast cancer", 0)]
    found = group_scores([SectionPair(0, gold, [])], FACTS, seen)["seen in training"]
    assert (found["seen"]["support"], found["unseen"]["support"]) == (1, 1)


def test_without_training_documents_it_is_not_known_what_was_seen():
    assert group_scores([], [], None) == {
        "seen in training": None, "length in words": {}, "section": {}, "provenance": {}
    }  # fmt: skip


def test_every_way_of_grouping_adds_up_to_the_strict_scores():
    rng = random.Random(3)
    texts = ["a", "b c", "d e f", "g h i j k"]

    def some():
        return [entity(rng.choice(texts), rng.randrange(50), rng.choice(["Gene", "Disease"])) for _ in range(20)]

    pairs = [SectionPair(i // 2, some(), some()) for i in range(12)]
    facts = [SectionFacts(rng.choice("xyz"), rng.choice("pq")) for _ in pairs]
    counts = score(pairs, (), "strict").counts.sum(axis=(0, 1))
    for groups in group_scores(pairs, facts, {("Gene", "a"), ("Disease", "b c")}).values():
        assert sum(one["support"] for one in groups.values()) == counts[0] + counts[2]
        assert sum(one["predicted"] for one in groups.values()) == counts[0] + counts[1]
        right = sum((one["recall"] or 0) * one["support"] for one in groups.values())
        assert round(right) == counts[0]
