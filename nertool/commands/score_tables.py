"""Scores on one screen; all the rest is in the JSON."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

_MOST_CONFUSIONS = 5
_MOST_SECTIONS = 5
_MOST_CLASSES = 3
_NUMBERS = ("precision", "recall", "f1")


def show_report(report: Mapping[str, Any]) -> None:
    """Shows people the scores as tables: per class, the comparison, the errors and the groups, as far as there are."""
    from nertool.console import counted, say, show
    from nertool.metrics import other_scheme

    show(_classes(report))
    others = [
        f"{name}: micro F1 {_number(scores['micro_f1'])}, mean F1 {_number(scores['mean_f1'])}"
        for name, scores in report["schemes"].items()
        if name not in (report["scheme"], other_scheme(report["scheme"]))
    ]
    say("; ".join(others))
    if comparison := report.get("comparison"):
        show(_comparison(comparison))
    if gold_sets := report.get("gold_sets"):
        show(_gold_sets(gold_sets, report["scheme"]))
    if "errors" in report:
        _show_errors(report["errors"])
    groups = _groups(report.get("groups", {}))
    if groups.row_count:
        show(groups)
    if calibration := report.get("calibration"):
        say(f"scores are off by {calibration['expected_calibration_error']:.3f} (expected calibration error)")
    if llms := [name for name in report["counts"]["annotators"] if name.startswith("the LLM ")]:
        say(f"note: the gold annotations are from {', '.join(llms)}; the scores say how well the model agrees with it")
    if unknown := report["counts"]["classes_unknown_to_the_model"]:
        classes = f"class {next(iter(unknown))!r}" if len(unknown) == 1 else f"{len(unknown)} classes"
        entities = counted(sum(unknown.values()), "entity", "entities")
        say(f"note: the model does not know the {classes} ({entities}, counted as missed)")
        if len(unknown) > 1:
            say(f"  {', '.join(unknown)}")


def _classes(report: Mapping[str, Any]) -> "Table":
    from nertool.console import number_table
    from nertool.metrics import classes_of, other_scheme

    other = other_scheme(report["scheme"])
    heads = ("precision", "recall", "F1", "95 % interval", f"{other} F1", "support")
    table = number_table("class", numbers=heads, title=f"scheme: {report['scheme']}", framed=True)

    def row(name: str, key: str, *, f1_only: bool = False) -> None:
        rates = [None if f1_only and what != "f1" else report.get(f"{key}_{what}") for what in _NUMBERS]
        support = report.get(f"{key}_support")
        table.add_row(
            name,
            *("" if f1_only and value is None else _number(value) for value in rates),
            _interval(report["confidence_intervals"].get(f"{key}_f1")),
            _number(report["schemes"][other].get(f"{key}_f1")),
            "" if support is None or f1_only else f"{support:,}",
        )

    for label in classes_of(report):
        row(label, label)
    table.add_section()
    row("all (micro)", "micro")
    row("mean of the classes", "mean", f1_only=True)
    return table


def _comparison(comparison: Mapping[str, Any]) -> "Table":
    from nertool.console import number_table

    what = "gold" if comparison["kind"] == "gold" else "baseline"
    heads = ("here", what, "difference", "95 % interval", "p-value")
    table = number_table("F1", numbers=heads, title=f"beside the {what} {comparison['baseline']}")
    metrics = comparison["metrics"]
    overall = {"micro_f1": "all (micro)", "mean_f1": "mean of the classes"}
    keys = [*(key for key in metrics if key.endswith("_f1") and key not in overall), *overall]
    for key in keys:
        facts = metrics[key]
        table.add_row(
            overall.get(key, key.removesuffix("_f1")),
            _number(facts["value"]),
            _number(facts["baseline"]),
            "–" if facts["difference"] is None else f"{facts['difference']:+.3f}",
            _interval(facts, signed=True),
            _number(facts["p_value"]),
        )
    return table


def _gold_sets(gold_sets: Mapping[str, Any], scheme: str) -> "Table":
    from nertool.console import counted, number_table

    sent_by = ", ".join(gold_sets["sent_by"])
    title = f"{counted(gold_sets['sections'], 'section')} that people corrected or confirmed; sent to them: {sent_by}"
    table = number_table(scheme, numbers=(*_NUMBERS[:2], "F1", "overlap F1"), title=title)
    names = {
        "predicted_against_sent": "predictions against what was sent",
        "predicted_against_people": "predictions against people's",
        "sent_against_people": "what was sent against people's",
    }
    for key, name in names.items():
        scores = gold_sets["scores"][key]
        rates = (_number(scores[scheme][f"micro_{what}"]) for what in _NUMBERS)
        table.add_row(name, *rates, _number(scores["overlap"]["micro_f1"]))
    return table


def _show_errors(errors: Mapping[str, Any]) -> None:
    from nertool.console import number_table, say, show
    from nertool.error_analysis import NONE

    table = number_table("errors (strict)", numbers=["count"], last="mostly in")
    for kind, facts in errors["kinds"].items():
        if facts["classes"]:
            most = sorted(facts["classes"].items(), key=lambda item: (-item[1], item[0]))[:_MOST_CLASSES]
            table.add_row(
                kind, f"{sum(facts['classes'].values()):,}", ", ".join(f"{label} {count:,}" for label, count in most)
            )
    if table.row_count:
        show(table)
    confused = sorted(
        (-count, gold, predicted)
        for gold, row in errors["confusion"].items()
        for predicted, count in row.items()
        if gold != predicted and NONE not in (gold, predicted)
    )[:_MOST_CONFUSIONS]
    if confused:
        say(
            "confused most: "
            + ", ".join(f"{gold} taken for {predicted} {-count:,}" for count, gold, predicted in confused)
        )


def _groups(groups: Mapping[str, Any]) -> "Table":
    from nertool.console import number_table

    table = number_table("groups (strict)", "", numbers=("precision", "recall", "F1", "support"))
    for name, scores in groups.items():
        few = scores and (name != "section" or len(scores) <= _MOST_SECTIONS)
        if few and (len(scores) > 1 or name == "seen in training"):
            for place, (group, numbers) in enumerate(scores.items()):
                rates = (_number(numbers[what]) for what in _NUMBERS)
                table.add_row("" if place else name, group, *rates, f"{numbers['support']:,}")
    return table


def show_beside_teacher(report: Mapping[str, Any]) -> None:
    """Shows people a teacher and its student side by side."""
    from nertool.console import number_table, say, show
    from nertool.metrics import classes_of

    sides = [report["teacher"], report["student"]]
    table = number_table("", numbers=("teacher", "student"), title="on the eval split", framed=True)
    for label in classes_of(sides[0]["scores"]):
        table.add_row(f"F1, {label}", *(_number(side["scores"].get(f"{label}_f1")) for side in sides))
    table.add_section()
    table.add_row("micro F1", *(_number(side["scores"]["micro_f1"]) for side in sides))
    table.add_row("mean F1", *(_number(side["scores"]["mean_f1"]) for side in sides))
    table.add_section()
    table.add_row("parameters", *(f"{side['parameters'] / 1e6:.1f} M" for side in sides))
    table.add_row("size", *(f"{side['megabytes']:.0f} MB" for side in sides))
    table.add_row("speed", *(f"{side['tokens_per_second']:,} tokens/s" for side in sides))
    show(table)
    if report["retained"] is not None:
        say(f"the student keeps {report['retained']:.1%} of the teacher's score")


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.3f}"


def _interval(interval: Mapping[str, Any] | None, *, signed: bool = False) -> str:
    if not interval or interval["low"] is None:
        return "–"
    sign = "+" if signed else ""
    between = " to " if signed else "–"
    return f"{interval['low']:{sign}.3f}{between}{interval['high']:{sign}.3f}"
