from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from nertool.stratification import stratify

USUAL = {"train": 0.8, "eval": 0.1, "test": 0.1}

groups_of_documents = st.lists(
    st.dictionaries(st.sampled_from("abcdef"), st.integers(1, 30), max_size=4).map(
        lambda labels: {**dict(sorted(labels.items())), None: 1}
    ),
    min_size=3,
    max_size=40,
)


@settings(max_examples=60, deadline=None)
@given(groups=groups_of_documents)
def test_every_group_gets_a_side_and_no_side_stays_empty(groups):
    sides, single = stratify(groups, USUAL)
    assert len(sides) == len(groups)
    assert set(sides) == set(USUAL)
    assert all(sum(label in group for group in groups) == 1 for label in single)


def test_ten_documents_of_each_class_are_shared_8_1_1():
    groups = [{label: 1, None: 1} for label in "abcdefghi" for _ in range(10)]
    sides, _ = stratify(groups, USUAL)
    by_class = Counter(zip((next(iter(group)) for group in groups), sides, strict=True))
    assert set(by_class.values()) == {8, 1}
    assert all(by_class[label, "train"] == 8 for label in "abcdefghi")


def test_entities_are_counted_not_documents():
    """One document holds as many entities as ten others together: it may not go to a small side."""
    groups = [{"a": 50, None: 1}, *({"a": 5, None: 1} for _ in range(10))]
    sides, _ = stratify(groups, {"train": 0.8, "eval": 0.2})
    assert sides[0] == "train"
    assert sum(group["a"] for group, side in zip(groups, sides, strict=True) if side == "eval") in (15, 20)


def test_a_class_of_one_group_goes_to_train_even_if_that_makes_train_too_big():
    groups = [{f"only{number}": 1, None: 1} for number in range(8)] + [{"a": 1, None: 1}, {"a": 1, None: 1}]
    sides, single = stratify(groups, {"train": 0.2, "eval": 0.4, "test": 0.4})
    assert sides[:8] == ["train"] * 8
    assert single == {f"only{number}": number for number in range(8)}
    assert set(sides[8:]) == {"eval", "test"}


@settings(max_examples=60, deadline=None)
@given(groups=groups_of_documents)
def test_moving_what_sits_badly_never_takes_a_class_away_from_train(groups):
    """Train holds most of each class when groups are placed, and improving the shares must not undo that."""
    sides, _ = stratify(groups, {"train": 0.9, "eval": 0.1})
    labels_of = [{label for label in group if label is not None} for group in groups]
    in_train = set().union(*(labels for labels, side in zip(labels_of, sides, strict=True) if side == "train"))
    if sum(side == "eval" for side in sides) > 1:  # else the only group of eval was needed there
        assert in_train == set().union(*labels_of)
