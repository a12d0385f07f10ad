"""The HTML report of `evaluate --report`: one file that needs nothing else, for people who open browsers.

The page is a function of what it is given: the same input gives the same bytes. Its policy lets nothing be fetched, and
runs no style or script but the page's own two, which it knows by their digests; so markup in a document's text would be
inert even if it got past the escaping. Numbers carry the JSON pointer (RFC 6901) of their place in `evaluate --json`.
"""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from nertool import __version__
from nertool.documents import Document
from nertool.error_analysis import KINDS, MEANINGS, NONE, ErrorItem
from nertool.error_browser import browser_data, choose_errors
from nertool.files import write_atomic
from nertool.metrics import classes_of, other_scheme
from nertool.report_plots import loss_plot, precision_recall_plot, reliability_plot, scores_plot, threshold_plot

PACKAGES = ("jinja2", "matplotlib")
_FILES = Path(__file__).with_name("report_template")
_RATES = ("precision", "recall", "f1")
# Classes with curves of their own, those with most gold entities first; each takes 15 kB. All are in the JSON.
_MOST_CURVES = 12
_MEANINGS_OF_SCHEMES = {
    "strict": "same class and exactly the same characters",
    "overlap": "same class and at least one shared character, each entity in one pair at most",
    "kazu": "what KAZU 2.4.0 counts, omissions included",
}
_GOLD_SETS = {
    "predicted_against_sent": "predictions against what was sent",
    "predicted_against_people": "predictions against people’s",
    "sent_against_people": "what was sent against people’s",
}
_GROUPS = {
    "seen in training": "Seen in training",
    "length in words": "Length in words",
    "section": "Section",
    "provenance": "Who says what is right",
}
_SHADES = 10


def write_html_report(
    path: Path,
    report: Mapping[str, Any],
    gold_documents: Sequence[Document],
    predicted_documents: Sequence[Document],
    errors: Sequence[ErrorItem],
    *,
    model: str,
    documents: str,
    history: Sequence[Mapping[str, Any]] | None = None,
) -> None:
    """Writes the report of an evaluation as one HTML file.

    Args:
        path: The file.
        report: What `evaluate --json` prints.
        gold_documents: The documents with gold entities.
        predicted_documents: The same with those that were scored.
        errors: The errors; their sections are counted through all documents.
        model: What was scored, for people.
        documents: What it was scored on, for people.
        history: The lines of the `metrics.jsonl` of the run that the model is from.

    Raises:
        OSError: When the file can't be written.
    """
    page = html_page(
        report, gold_documents, predicted_documents, errors, model=model, documents=documents, history=history
    )
    write_atomic(path, page.encode())


def html_page(
    report: Mapping[str, Any],
    gold_documents: Sequence[Document],
    predicted_documents: Sequence[Document],
    errors: Sequence[ErrorItem],
    *,
    model: str,
    documents: str,
    history: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """Returns the page that `write_html_report` writes."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # noqa: PLC0415 (an optional package)
    from markupsafe import Markup  # noqa: PLC0415

    environment = Environment(
        loader=FileSystemLoader(_FILES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    style, script = ((_FILES / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    numbers = Numbers(report)
    classes = classes_of(report["schemes"]["strict"])
    chosen = choose_errors(errors)
    return environment.get_template("page.html").render(
        version=__version__,
        style=Markup(style),
        script=Markup(script),
        policy=(
            f"default-src 'none'; style-src '{_digest(style)}'; script-src '{_digest(script)}'; "
            "base-uri 'none'; form-action 'none'"
        ),
        data=Markup(_json_for_html(browser_data(chosen.errors, gold_documents, predicted_documents))),
        report=report,
        number=numbers,
        model=model,
        documents=documents,
        classes=classes,
        other_scheme=other_scheme(report["scheme"]),
        meanings_of_schemes=_MEANINGS_OF_SCHEMES,
        axis=_axis([report["confidence_intervals"].get(f"{label}_f1") for label in [*classes, "micro", "mean"]]),
        comparison=report.get("comparison"),
        comparison_axis=_comparison_axis(report),
        kinds={kind: MEANINGS[kind] for kind in KINDS},
        no_entity=NONE,
        confusion=_confusion(report["errors"]["confusion"], classes),
        groups={key: (name, report["groups"].get(key)) for key, name in _GROUPS.items()},
        has_groups=any(report["groups"].values()),
        gold_set_names=_GOLD_SETS,
        curves=[(label, name, *map(Markup, plots)) for label, name, *plots in _curves(report, classes)],
        reliability=Markup(reliability_plot(report["calibration"]["bins"])) if report["calibration"] else None,
        learning=[(title, note, Markup(plot)) for title, note, plot in _learning(history or ())],
        shown=len(chosen.errors),
        found=len(errors),
        of_each=chosen.of_each,
    )


class Numbers:
    """Writes numbers of the report as the page shows them, with where they are in the JSON."""

    def __init__(self, report: Mapping[str, Any]) -> None:
        self.report = report

    def at(self, *path: str | Sequence[str]) -> Any:
        """Returns what is at a place in the report, named step by step or several at once; `None` if nothing is."""
        value: Any = self.report
        for step in _steps(path):
            value = value.get(step) if isinstance(value, Mapping) else None
        return value

    def __call__(self, *path: str | Sequence[str], signed: bool = False) -> Any:
        """Returns the number at a place as an element with the JSON pointer of that place in `data-key`."""
        from markupsafe import Markup  # noqa: PLC0415 (an optional package)

        pointer = "".join("/" + step.replace("~", "~0").replace("/", "~1") for step in _steps(path))
        return Markup('<span class="n" data-key="{}">{}</span>').format(pointer, in_words(self.at(*path), signed))


def _steps(path: Sequence[str | Sequence[str]]) -> list[str]:
    return [step for part in path for step in ([part] if isinstance(part, str) else part)]


def in_words(value: float | None, signed: bool = False) -> str:
    """Returns a number as the page shows it: `0.792`, `+0.004`, `3,535`, or `–` for none."""
    if value is None:
        return "–"
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:{'+' if signed else ''}.3f}".replace("-", "−")


def _axis(intervals: Sequence[Mapping[str, Any] | None]) -> tuple[float, float]:
    """Returns what the drawn intervals run from and to, in tenths."""
    return _tenth_below(one["low"] for one in intervals if one), 1.0


def _tenth_below(values: Iterable[float]) -> float:
    """Returns where an axis that ends at 1 begins; it has some length although all values may be 1."""
    return min(int(min(values, default=0.0) * 10) / 10, 0.9)


def _comparison_axis(report: Mapping[str, Any]) -> float:
    """Returns how far the drawn differences run to either side."""
    metrics = report.get("comparison", {}).get("metrics", {}).values()
    ends = [abs(one[end]) for one in metrics for end in ("low", "high") if one[end] is not None]
    return max(ends, default=0.0) or 1.0


def _confusion(
    counts: Mapping[str, Mapping[str, int]], classes: Sequence[str]
) -> tuple[list[str], dict[str, dict[str, int]]]:
    """Returns the names of rows and columns, and for each cell how dark it is: its share of the row, in tenths."""
    used = {*counts, *(label for row in counts.values() for label in row)}
    names = [*(label for label in classes if label in used), *sorted(used - {*classes, NONE}), NONE]
    shades = {
        gold: {
            predicted: min(_SHADES - 1, -(-count * (_SHADES - 1) // max(1, sum(row.values()))))
            for predicted, count in row.items()
        }
        for gold, row in counts.items()
    }
    return names, shades


def _curves(report: Mapping[str, Any], classes: Sequence[str]) -> list[tuple[str, str, str, str]]:
    """Returns key, name and the two plots of all classes together and of those with most gold entities."""
    curves = report["threshold_curves"]
    if curves is None:
        return []
    strict = report["schemes"]["strict"]
    by_support = sorted((c for c in classes if c in curves and c != "micro"), key=lambda c: -strict[f"{c}_support"])
    together = curves["micro"]
    drawn = []
    for label in ["micro", *by_support[:_MOST_CURVES]]:
        both = [*curves[label], *together]
        least = _tenth_below(p[rate] for p in both for rate in _RATES if p[rate] is not None)
        point = (strict.get(f"{label}_recall"), strict.get(f"{label}_precision"))
        present = None if None in point else point
        threshold = (report["thresholds"] or {}).get(label) if label != "micro" else None
        others = together if label != "micro" else ()
        plots = (
            precision_recall_plot(curves[label], present, others, least),
            threshold_plot(curves[label], threshold, least),
        )
        drawn.append((label, "All classes" if label == "micro" else label, *plots))
    return drawn


def _learning(history: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Returns title, note and plot of each learning curve that the run's lines have points for."""
    losses = [(row["step"], row["loss"]) for row in history if row.get("kind") == "train" and _is_finite(row["loss"])]
    evals = [row for row in history if row.get("kind") == "eval"]
    micro, mean = (
        [(row["step"], row[key]) for row in evals if _is_finite(row.get(key))] for key in ("micro_f1", "mean_f1")
    )
    plots = []
    if losses:
        plots.append(("Training loss", "", loss_plot(losses)))
    if micro or mean:
        plots.append(("F1 while training", "micro solid, mean of the classes dashed", scores_plot(micro, mean)))
    return plots


def _is_finite(value: Any) -> bool:
    return isinstance(value, int | float) and value - value == 0


def _digest(text: str) -> str:
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"


def _json_for_html(value: Any) -> str:
    """Returns JSON in which nothing can end or begin an element, or a line of a script."""
    text = orjson.dumps(value).decode()
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text
