import random

import pytest

from nertool.documents import Document, Entity, Section, Span
from nertool.errors import NertoolError
from nertool.labels import LabelScheme, make_scheme


def make_document(*labels: str) -> Document:
    entities = tuple(Entity(label, (Span(0, 1),), "a") for label in labels)
    return Document("x", (Section("s", "abc", entities), Section("t", "abc", entities[:1])))


def test_classes_are_sorted_and_occur_once_whatever_the_order():
    labels = ["gene", "drug", "gene", "Disease", "α"]
    for seed in range(5):
        random.Random(seed).shuffle(labels)
        assert make_scheme(labels).labels == ("Disease", "drug", "gene", "α")


def test_no_classes_at_all_are_an_error_that_says_what_to_do():
    with pytest.raises(NertoolError, match="no entities") as error:
        make_scheme([])
    assert error.value.hint == "annotate them first"


def test_begin_channels_double_the_outputs_and_have_names_of_their_own():
    inside, both = make_scheme("ab"), make_scheme("ab", begin=True)
    assert (inside.channels, both.channels) == (2, 4)
    assert inside.channel_names() == {0: "a", 1: "b"}
    assert both.channel_names() == {0: "a", 1: "b", 2: "begin of a", 3: "begin of b"}


def test_more_than_19_classes_are_no_problem():
    scheme = make_scheme(f"class{number:02d}" for number in range(40))  # KAZU crashes from 20 on
    assert len(scheme.channel_names()) == scheme.channels == 40


@pytest.mark.parametrize("begin", [False, True])
def test_a_scheme_survives_json(begin):
    scheme = make_scheme("ab", begin=begin)
    assert LabelScheme.from_json(scheme.to_json()) == scheme
