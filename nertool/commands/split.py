"""`nertool split`: documents into train, eval and test."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nertool.commands.options import Config, Force, Json, Set, SkipInvalid, command, settings_from

if TYPE_CHECKING:
    from nertool.errors import NertoolError
    from nertool.settings import Settings


@command
def split(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A folder of documents, or a .jsonl file.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="Gets train/, eval/, test/ and split.json.")],
    fractions: Annotated[
        str | None, typer.Option("--fractions", help="Shares of train, eval and test: 0.8,0.1,0.1.", show_default=False)
    ] = None,
    seed: Annotated[int | None, typer.Option("--seed", help="Another seed, another split.", show_default=False)] = None,
    force: Force = False,
    skip_invalid: SkipInvalid = None,
    json: Json = False,
    config: Config = None,
    assignments: Set = None,
) -> None:
    """Split documents into train, eval and test, stratified over all classes, with duplicates kept together.

    nertool split documents/ split/ --fractions 0.8,0.1,0.1 --seed 42
    """
    from nertool.console import print_json, say, suggest

    options = {
        "data.split_fractions": _parse_fractions(fractions),
        "data.split_seed": seed,
        "data.skip_invalid": skip_invalid,
    }
    settings = settings_from(config, assignments, options)
    report = run_split(source, output, settings, force=force)
    if json:
        print_json(report)
    else:
        _show(report)
        say(f"written to {output}; details in {output / 'split.json'}")
        suggest("train", "--train", output / "train", "--eval", output / "eval", "--output", "run")


def run_split(source: Path, output: Path, settings: "Settings", *, force: bool = False) -> dict[str, Any]:
    """Splits documents; reads them twice, to plan and to write, so that memory stays small.

    Args:
        source: The documents.
        output: The folder to make.
        settings: The `Settings`.
        force: Replace an older split.

    Returns:
        The content of split.json.

    Raises:
        NertoolError: If documents are invalid, too few, or the output can't be made.
    """
    from contextlib import ExitStack

    from nertool.console import progress
    from nertool.documents import content_digest
    from nertool.files import new_folder, write_json
    from nertool.formats import ReadReport, read_documents
    from nertool.formats.kazu import KazuWriter
    from nertool.formats.reading import report_reading, write_rejected
    from nertool.splitting import SIDES, plan_split, summarise

    own = settings.data
    with new_folder(output, "split", force=force, source=source) as folder, ExitStack() as stack:
        report = ReadReport()
        summaries = []
        with progress("comparing", None, "documents") as advance:
            for document in read_documents(source, report, skip_invalid=own.skip_invalid):
                summaries.append(summarise(document))
                advance(report.documents)
        planned = {summary.id: summary.digest.hex() for summary in summaries}
        plan = plan_split(summaries, own.split_fractions, own.split_seed, own.duplicate_similarity)
        writers = {side: stack.enter_context(KazuWriter(folder / side)) for side in SIDES}
        with progress("writing", report.documents, "documents") as advance:
            second = ReadReport()
            for document in read_documents(source, second, skip_invalid=own.skip_invalid):
                if planned.pop(document.id, None) != content_digest(document):
                    raise _changed(source, document.id)
                writers[plan.assignment[document.id]].write(document)
                advance(second.documents)
        if planned:
            raise _changed(source, next(iter(planned)))
        result = {"read": report.to_json(), **plan.report()}
        write_json(folder / "split.json", result)
        write_rejected(report, folder / "rejected.jsonl")
    report_reading(report)
    return result


def _changed(source: Path, document: str) -> "NertoolError":
    from nertool.errors import NertoolError

    return NertoolError(f"{source} changed while it was read: {document!r} isn't what it was, or there", "try again")


def _parse_fractions(text: str | None) -> tuple[float, ...] | None:
    from nertool.errors import NertoolError

    if text is None:
        return None
    parts = text.split(",")
    try:
        if len(parts) == 3:
            return tuple(float(part) for part in parts)
    except ValueError:
        pass
    raise NertoolError(f"--fractions {text}: write three numbers, the shares of train, eval and test", "0.8,0.1,0.1")


def _show(report: dict[str, Any]) -> None:
    from nertool.console import number_table, say, show
    from nertool.splitting import SIDES

    table = number_table("class", numbers=SIDES, title="entities in each side", framed=True)
    for label, row in report["classes"].items():
        table.add_row(label, *(f"{row['counts'][side]:,} ({100 * row['shares'][side]:.1f} %)" for side in SIDES))
    counts = report["counts"]["documents"]
    table.add_section()
    table.add_row("documents", *(f"{counts[side]:,}" for side in SIDES))
    show(table)
    if groups := report["duplicate_groups"]:
        kinds = [group["kind"] for group in groups]
        say(
            f"kept together: {kinds.count('exact')} groups of equal and {kinds.count('near')} of nearly equal documents"
        )
    for label, side in report["classes_in_a_single_document"].items():
        say(f"note: the class {label!r} is in one document only, which went to {side}")
    for side, unseen in report["unseen_mentions"].items():
        if unseen["overall"]["share"] is not None:
            say(f"{side}: {100 * unseen['overall']['share']:.1f} % of the mentions never occur in train")
