"""The labelling configuration: colours, and what people changed in it."""

import itertools
import math
from xml.etree import ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nertool.errors import NertoolError
from nertool.labelling_config import config_labels, extend_config, label_colours, make_config, palette

NAMES = st.sets(
    st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"), min_size=1),
    min_size=1,
    max_size=40,
)


def luminance(colour: str) -> float:
    """WCAG 2.1's relative luminance, from its definition."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("count", [1, 6, 18, 24, 25, 100, 300])
def test_colours_are_distinct_and_readable_on_white_for_any_number_of_classes(count: int) -> None:
    colours = list(label_colours(f"class {i}" for i in range(count)).values())
    assert len(set(colours)) == count
    assert all(1.05 / (luminance(colour) + 0.05) >= 4.45 for colour in colours)  # 4.5 but for rounding to 8 bits


def test_the_colours_of_a_usual_number_of_classes_are_far_apart() -> None:
    rgb = [[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in palette(32)]
    assert min(math.dist(a, b) for a, b in itertools.combinations(rgb, 2)) > 20


def test_a_class_has_the_same_colour_in_every_project_unless_another_had_it_first() -> None:
    names = [f"class {i}" for i in range(18)]
    everywhere = label_colours(names)
    alone = {name: label_colours([name])[name] for name in names}
    assert sum(alone[name] == everywhere[name] for name in names) > 9


@given(NAMES, NAMES)
def test_classes_with_any_characters_are_kept_and_new_ones_added(first: set[str], second: set[str]) -> None:
    config = make_config(first)
    assert list(config_labels(config)) == sorted(first)
    extended = extend_config(config, second)
    assert set(config_labels(extended)) == first | second
    before, after = (
        {tag.get("value"): tag.get("background") for tag in ET.fromstring(one).iter("Label")}
        for one in (config, extended)
    )
    assert {name: after[name] for name in before} == before
    assert len(set(after.values())) == len(after)


def test_hotkeys_are_different() -> None:
    keys = [tag.get("hotkey") for tag in ET.fromstring(make_config(map(str, range(60)))).iter("Label")]
    given_keys = [key for key in keys if key]
    assert len(set(given_keys)) == len(given_keys) > 30


def test_what_people_changed_stays() -> None:
    config = make_config(["gene"]).replace("#", "#").replace("<Header", '<Header value="Please be careful"/><Header', 1)
    extended = extend_config(config, ["drug"])
    assert "Please be careful" in extended
    assert extend_config(extended, ["gene", "drug"]) == extended


@pytest.mark.parametrize(
    "config", ["<View/>", "<View", '<View><Labels name="label" toName="other"/><Text name="text" value="$t"/></View>']
)
def test_a_configuration_that_regions_do_not_fit_is_refused(config: str) -> None:
    with pytest.raises(NertoolError, match="labelling configuration"):
        extend_config(config, ["gene"])
