"""The plots of the HTML report, drawn by matplotlib as SVG that lives inside the page.

The page decides how they look: colours are its CSS variables, so that they follow light, dark and print, and fonts are
its own. They hold no text from documents, classes or files.
"""

import hashlib
import io
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What is drawn in these colours gets the page's.
_INK, _MUTED, _LINE, _ACCENT, _SECOND, _THIRD = (f"#0000{number:02x}" for number in range(1, 7))
_VARIABLES = {
    _INK: "var(--ink)",
    _MUTED: "var(--muted)",
    _LINE: "var(--line)",
    _ACCENT: "var(--accent)",
    _SECOND: "var(--second)",
    _THIRD: "var(--third)",
}
_SETTINGS: dict[Any, Any] = {
    "axes.edgecolor": _LINE,
    "axes.facecolor": "none",
    "axes.labelcolor": _MUTED,
    "axes.linewidth": 0.8,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "figure.dpi": 72,
    "figure.facecolor": "none",
    "font.size": 8,
    "grid.color": _LINE,
    "grid.linewidth": 0.5,
    "lines.linewidth": 1.6,
    "svg.fonttype": "none",
    "svg.hashsalt": "nertool",
    "text.color": _MUTED,
    "text.parse_math": False,
    "xtick.color": _LINE,
    "xtick.labelcolor": _MUTED,
    "ytick.color": _LINE,
    "ytick.labelcolor": _MUTED,
}
_SVG = "http://www.w3.org/2000/svg"
_XLINK_HREF = "{http://www.w3.org/1999/xlink}href"
# Points of a loss curve, beyond which it is averaged: more than its width has pixels for.
_MOST_POINTS = 300
_F1_LINES = (0.2, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


def precision_recall_plot(
    curve: Sequence[Mapping[str, Any]],
    present: tuple[float, float] | None,
    others: Sequence[Mapping[str, Any]],
    least: float,
) -> str:
    """Draws precision against recall at all thresholds.

    Args:
        curve: `precision` and `recall` at each threshold; what is `None` is left out.
        present: Recall and precision at the threshold that the model decides by.
        others: The curve of all classes together, for comparison; maybe none.
        least: Where the axes begin.
    """
    with _figure(2.1, 2.0) as (figure, draw):
        axes = draw((0.19, 0.2, 0.78, 0.71))
        axes.grid(False)
        last = 1.0
        for f1 in reversed(_F1_LINES):
            first = f1 / (2 - f1)  # the recall for which the precision must be 1
            if least < first < last - 0.12 * (1 - least):  # labels need room
                last = first
                recalls = [first + (1 - first) * step / 40 for step in range(41)]
                axes.plot(recalls, [f1 * r / (2 * r - f1) for r in recalls], color=_LINE, linewidth=0.8)
                axes.text(first, 1 + 0.02 * (1 - least), f"{f1:g}", ha="center", va="bottom", fontsize=7)
        for points, colour, width in ((others, _MUTED, 1.0), (curve, _ACCENT, 1.8)):
            pairs = [(p["recall"], p["precision"]) for p in points if None not in (p["recall"], p["precision"])]
            axes.plot([x for x, _ in pairs], [y for _, y in pairs], color=colour, linewidth=width)
        if present is not None:
            axes.plot(*present, "o", color=_ACCENT, markersize=6, clip_on=False)
        _unit_axes(axes, "recall", "precision", (least, least))
        return _svg(figure, "precision against recall at all thresholds")


def threshold_plot(curve: Sequence[Mapping[str, Any]], present: float | None, least: float) -> str:
    """Draws precision, recall and F1 against the threshold; `present` is the one in use."""
    with _figure(2.1, 2.0) as (figure, draw):
        axes = draw((0.19, 0.2, 0.78, 0.71))
        if present is not None:
            axes.axvline(present, color=_MUTED, linewidth=0.9)
        for what, colour, style in (("precision", _SECOND, "--"), ("recall", _THIRD, ":"), ("f1", _ACCENT, "-")):
            points = [(point["threshold"], point[what]) for point in curve if point[what] is not None]
            axes.plot([x for x, _ in points], [y for _, y in points], style, color=colour)
        _unit_axes(axes, "threshold", "", (0, least))
        return _svg(figure, "precision, recall and F1 against the threshold")


def reliability_plot(bins: Sequence[Mapping[str, Any]]) -> str:
    """Draws the precision of the predictions in each bin of scores against their mean score, and how many they are."""
    used = [one for one in bins if one["count"]]
    most = max((one["count"] for one in used), default=1)
    with _figure(3.6, 3.4) as (figure, draw):
        axes = draw((0.14, 0.37, 0.82, 0.6))
        axes.plot([0, 1], [0, 1], color=_MUTED, linewidth=0.9)
        for one in used:
            axes.plot([one["mean_score"]] * 2, [one["mean_score"], one["precision"]], color=_ACCENT, linewidth=1.0)
        axes.plot(
            [o["mean_score"] for o in used],
            [o["precision"] for o in used],
            "o",
            color=_ACCENT,
            markersize=5,
            clip_on=False,
        )
        _unit_axes(axes, "", "precision", (0, 0))
        axes.set_xticklabels([])
        below = draw((0.14, 0.12, 0.82, 0.19))
        below.grid(False, axis="x")
        widths = [one["high"] - one["low"] for one in used]
        below.bar(
            [one["low"] for one in used],
            [one["count"] for one in used],
            width=[width * 0.92 for width in widths],
            align="edge",
            color=_ACCENT,
        )
        _unit_axes(below, "score", "entities", (0, 0))
        below.set(ylim=(0, most * 1.08))
        below.set_yticks([most], [f"{most:,}"])
        return _svg(figure, "precision of the predictions against their scores, and how many have which score")


def loss_plot(losses: Sequence[tuple[int, float]]) -> str:
    """Draws the training loss against the step, on a logarithmic scale if it falls that far; long ones are averaged."""
    size = -(-len(losses) // _MOST_POINTS)
    chunks = [losses[first : first + size] for first in range(0, len(losses), size)]
    steps = [chunk[-1][0] for chunk in chunks]
    means = [sum(loss for _, loss in chunk) / len(chunk) for chunk in chunks]
    with _figure(4.2, 2.5) as (figure, draw):
        axes = draw((0.13, 0.17, 0.84, 0.8))
        axes.plot(steps, means, color=_ACCENT, linewidth=1.3)
        if min(means) > 0 and max(means) > 20 * min(means):
            from matplotlib.ticker import FuncFormatter, NullFormatter  # noqa: PLC0415 (an optional package)

            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axes.yaxis.set_minor_formatter(NullFormatter())
        _step_axes(axes, "training loss")
        return _svg(figure, "training loss against the step")


def scores_plot(micro: Sequence[tuple[int, float]], mean: Sequence[tuple[int, float]]) -> str:
    """Draws micro F1 and mean F1 of the eval documents against the step."""
    with _figure(4.2, 2.5) as (figure, draw):
        axes = draw((0.13, 0.17, 0.84, 0.8))
        axes.plot([x for x, _ in mean], [y for _, y in mean], "o--", color=_SECOND, markersize=3)
        axes.plot([x for x, _ in micro], [y for _, y in micro], "o-", color=_ACCENT, markersize=4)
        _step_axes(axes, "F1")
        return _svg(figure, "F1 of the eval documents against the step")


def _unit_axes(axes: "Axes", x: str, y: str, least: tuple[float, float]) -> None:
    """Makes axes that end at 1."""
    axes.set(xlim=(least[0], 1), ylim=(least[1], 1.005), xlabel=x, ylabel=y)
    for side, first in zip((axes.xaxis, axes.yaxis), least, strict=True):
        step = 0.1 if first > 0.55 else 0.2
        count = round((1 - first) / step + 0.49)
        ticks = [1 - step * number for number in range(count + 1) if 1 - step * number > first - 0.01]
        side.set_ticks(ticks, [f"{tick:.1f}".replace("1.0", "1").replace("0.0", "0") for tick in ticks])
    axes.tick_params(length=0)


def _step_axes(axes: "Axes", y: str) -> None:
    axes.set(xlabel="step", ylabel=y)
    axes.set_xlim(left=0)
    axes.tick_params(length=0, which="both")
    axes.locator_params(axis="x", nbins=5)
    axes.xaxis.set_major_formatter("{x:,.0f}")


@contextmanager
def _figure(width: float, height: float) -> "Iterator[tuple[Figure, Any]]":
    """Gives a figure of so many inches and what adds axes to it, whatever the user's own matplotlib settings are."""
    import matplotlib as mpl  # noqa: PLC0415 (an optional package, slow to import)
    from matplotlib.figure import Figure  # noqa: PLC0415

    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.rcParams.update(_SETTINGS)
        figure = Figure(figsize=(width, height))
        yield figure, figure.add_axes


def _svg(figure: "Figure", description: str) -> str:
    """Returns a figure as an SVG element without style attributes, which the page's policy forbids."""
    out = io.StringIO()
    nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    figure.savefig(out, format="svg", metadata=nothing)
    root = ET.fromstring(out.getvalue())
    for parent in list(root.iter()):
        for child in list(parent):
            if child.tag in (f"{{{_SVG}}}style", f"{{{_SVG}}}metadata"):
                parent.remove(child)
    used = set(re.findall(r"#(m\w+|p\w+)\b", out.getvalue()))
    prefix = hashlib.sha256(out.getvalue().encode()).hexdigest()[:8]  # other plots of the page have ids, too
    for one in root.iter():
        one.tag = one.tag.removeprefix(f"{{{_SVG}}}")
        if (identifier := one.attrib.pop("id", None)) in used:
            one.set("id", f"plot-{prefix}-{identifier}")
        if (target := one.attrib.pop(_XLINK_HREF, None)) is not None:
            one.set("href", target.replace("#", f"#plot-{prefix}-"))
        if "clip-path" in one.attrib:
            one.set("clip-path", one.attrib["clip-path"].replace("#", f"#plot-{prefix}-"))
        for name, value in _declarations(one.attrib.pop("style", "")):
            one.set(name, _VARIABLES.get(value, value))
        for name in ("d", "x", "y", "transform", "width", "height"):
            if name in one.attrib:
                one.set(name, _rounded(one.attrib[name]))
        one.tail = None
        if one.tag != "text":
            one.text = None
    root.attrib = {"class": "plot", "viewBox": root.attrib["viewBox"], "role": "img", "aria-label": description}
    return ET.tostring(root, encoding="unicode", short_empty_elements=True)


def _declarations(style: str) -> list[tuple[str, str]]:
    """Returns the properties of a style attribute, but for the fonts, which are the page's."""
    pairs = (part.partition(":") for part in style.split(";") if part.strip())
    return [(name.strip(), value.strip()) for name, _, value in pairs if name.strip() not in ("font", "font-family")]


def _rounded(numbers: str) -> str:
    short = re.sub(r"-?\d+\.\d+", lambda found: f"{float(found[0]):.1f}".removesuffix(".0"), numbers)
    return re.sub(r"\s+", " ", short).strip()
