"""What Label Studio shows: the labelling configuration of a project, with a colour for each class.

Source: the tags are those of Label Studio's own documentation (Labels, Text, Filter, Relations).
"""

import hashlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from xml.etree import ElementTree as ET

from nertool.errors import NertoolError

# The names of the tags, which every region of an annotation repeats.
LABELS, TEXT, REVIEW = "label", "text", "review"
CHECKED = "checked"
JOIN_RELATION = "continues"
# What Label Studio's own shortcuts leave free.
_HOTKEYS = "1234567890qwetasdfgzxcvbyiopjklnm"
_STICKY = "position: sticky; top: 0; z-index: 3; padding: 4px 0; background: var(--color-neutral-background, #fff);"
# A quarter of the palette stays free, so these do for 18 classes.
_COLOURS = 24
_TINT = 0.3  # how much of a colour lies behind a mention
_FEWEST_LABELS_WITH_FILTER = 10
# Luminances: a contrast of 4.5 with white, and not so dark that all look black.
_LIGHTEST, _DARKEST = 1.05 / 4.5 - 0.05, 0.03
Colour = tuple[float, float, float]


def make_config(labels: Iterable[str]) -> str:
    """Returns the configuration for these classes: the text, the classes to mark in it, and parts to be joined.

    A region may have several classes. Parts of a discontinuous mention are regions joined by a relation.
    """
    labels = sorted(labels)
    view = ET.Element("View")
    ET.SubElement(view, "Header", value="$title", size="5")
    if len(labels) >= _FEWEST_LABELS_WITH_FILTER:
        ET.SubElement(
            view, "Filter", name="filter", toName=LABELS, hotkey="shift+f", minlength="0", placeholder="Find a class"
        )
    # The classes stay in sight over a text that is longer than the screen.
    top = ET.SubElement(view, "View", style=_STICKY)
    tag = ET.SubElement(top, "Labels", name=LABELS, toName=TEXT, choice="multiple", showInline="true")
    _add_labels(tag, labels)
    ET.SubElement(view, "Text", name=TEXT, value="$text", granularity="symbol")
    # Label Studio lets nobody save an annotation in which nothing has changed: this is how one says that it is right.
    review = ET.SubElement(view, "Choices", name=REVIEW, toName=TEXT, choice="multiple", showInline="true")
    ET.SubElement(review, "Choice", value="The entities are right", alias=CHECKED, hotkey="shift+c")
    relations = ET.SubElement(view, "Relations")
    ET.SubElement(relations, "Relation", value=JOIN_RELATION)
    ET.indent(view)
    return ET.tostring(view, encoding="unicode")


def extend_config(config: str, labels: Iterable[str]) -> str:
    """Adds the classes that a configuration lacks, and leaves everything else as people may have changed it.

    Raises:
        NertoolError: If it isn't one that nertool made, or has lost what regions refer to.
    """
    view, tag = _parse(config)
    known = {label.get("value") for label in tag.iter("Label")}
    new = sorted(set(labels) - known)
    if not new:
        return config
    _add_labels(tag, new)
    ET.indent(view)
    return ET.tostring(view, encoding="unicode")


def config_labels(config: str) -> tuple[str, ...]:
    """Returns the classes of a configuration, in its order.

    Raises:
        NertoolError: As `extend_config` does.
    """
    return tuple(label.get("value", "") for label in _parse(config)[1].iter("Label"))


def label_colours(labels: Iterable[str], taken: Mapping[str, str] | None = None) -> dict[str, str]:
    """Returns a colour for each class, `#rrggbb`, all different.

    A class asks for the colour that its name hashes to, and gets the next free one if another class was first: so most
    have the same colour in every project.

    Args:
        labels: The classes.
        taken: Classes that have a colour already.
    """
    used = set((taken or {}).values())
    names = sorted(set(labels))
    size = _COLOURS
    while size * 3 < (len(used) + len(names)) * 4:  # a quarter stays free, so that few classes have to give way
        size *= 2
    colours = palette(size)
    first = {name: int.from_bytes(hashlib.sha256(name.encode()).digest()[:4]) % size for name in names}
    result: dict[str, str] = {}
    # All that can have what they ask for get it, before the others look for what is left.
    for tries in (1, size):
        for name in names:
            if name not in result:
                wanted = (colours[(first[name] + i) % size] for i in range(tries))
                if colour := next((colour for colour in wanted if colour not in used), None):
                    result[name] = colour
                    used.add(colour)
    return result


@cache
def palette(size: int) -> tuple[str, ...]:
    """Returns colours whose tints are as different as can be, and in which a class's name reads well on white.

    Label Studio lays a tint of a class's colour behind its mentions, and writes its name in the colour itself beside
    the text: the names have a contrast of 4.5 or more. The colours are picked one by one, each with its tint as far as
    possible from those before. Distances are those in Oklab, in which equal ones look equal.
    Source: B. Ottosson, "A perceptual color space for image processing" (2020); contrast: WCAG 2.1.
    """
    candidates = [colour for colour in _grid() if _DARKEST <= _luminance(colour) <= _LIGHTEST]
    tints = [_oklab([1 - _TINT + _TINT * _encode(part) for part in colour]) for colour in candidates]
    chosen = [max(range(len(tints)), key=lambda i: math.hypot(*tints[i][1:]))]
    distances = [math.dist(tint, tints[chosen[0]]) for tint in tints]
    while len(chosen) < size:
        chosen.append(max(range(len(tints)), key=distances.__getitem__))
        distances = [min(old, math.dist(tint, tints[chosen[-1]])) for old, tint in zip(distances, tints, strict=True)]
    return tuple("#" + "".join(f"{round(255 * _encode(part)):02x}" for part in candidates[i]) for i in chosen)


def _parse(config: str) -> tuple[ET.Element, ET.Element]:
    try:
        view = ET.fromstring(config)
    except ET.ParseError as error:
        raise NertoolError(f"the project's labelling configuration is not valid XML: {error}") from error
    tag = next((tag for tag in view.iter("Labels") if tag.get("name") == LABELS and tag.get("toName") == TEXT), None)
    if tag is None or not any(text.get("name") == TEXT for text in view.iter("Text")):
        raise NertoolError(
            f"the project's labelling configuration has no <Labels name={LABELS!r} toName={TEXT!r}> for a "
            f"<Text name={TEXT!r}> any more",
            "put them back in the project's settings, or push to a new project",
        )
    return view, tag


def _add_labels(tag: ET.Element, labels: Sequence[str]) -> None:
    present = {label.get("value", ""): label for label in tag.iter("Label")}
    colours = label_colours(labels, {name: label.get("background", "") for name, label in present.items()})
    free = iter(key for key in _HOTKEYS if key not in {label.get("hotkey") for label in present.values()})
    for label in labels:
        element = ET.SubElement(tag, "Label", value=label, background=colours[label])
        if key := next(free, ""):
            element.set("hotkey", key)


def _grid() -> Iterator[Colour]:
    """Yields linear red, green and blue of colours from all over what a screen shows."""
    lights, chromas = (0.36, 0.42, 0.48, 0.54, 0.6), (0.03, 0.07, 0.11, 0.15, 0.19, 0.23, 0.27)
    for light, chroma, hue in itertools.product(lights, chromas, range(0, 360, 6)):
        a, b = chroma * math.cos(math.radians(hue)), chroma * math.sin(math.radians(hue))
        x = (light + 0.3963377774 * a + 0.2158037573 * b) ** 3
        y = (light - 0.1055613458 * a - 0.0638541728 * b) ** 3
        z = (light - 0.0894841775 * a - 1.2914855480 * b) ** 3
        colour = (
            4.0767416621 * x - 3.3077115913 * y + 0.2309699292 * z,
            -1.2684380046 * x + 2.6097574011 * y - 0.3413193965 * z,
            -0.0041960863 * x - 0.7034186147 * y + 1.7076147010 * z,
        )
        if all(0 <= part <= 1 for part in colour):
            yield colour


def _oklab(encoded: Sequence[float]) -> Colour:
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in encoded)
    x = math.cbrt(0.4122214708 * red + 0.5363325363 * green + 0.0514459929 * blue)
    y = math.cbrt(0.2119034982 * red + 0.6806995451 * green + 0.1073969566 * blue)
    z = math.cbrt(0.0883024619 * red + 0.2817188376 * green + 0.6299787005 * blue)
    return (
        0.2104542553 * x + 0.7936177850 * y - 0.0040720468 * z,
        1.9779984951 * x - 2.4285922050 * y + 0.4505937099 * z,
        0.0259040371 * x + 0.7827717662 * y - 0.8086757660 * z,
    )


def _luminance(colour: Colour) -> float:
    return 0.2126 * colour[0] + 0.7152 * colour[1] + 0.0722 * colour[2]


def _encode(part: float) -> float:
    """Returns the sRGB value, in [0, 1], of a linear one."""
    return 12.92 * part if part <= 0.0031308 else 1.055 * part ** (1 / 2.4) - 0.055
