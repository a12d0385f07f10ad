"""`nertool annotate`: entities found by an LLM, placed in the text."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nertool.commands.options import Config, Force, Json, Set, ShardOption, SkipInvalid, command, settings_from

if TYPE_CHECKING:
    from nertool.chunks import Shard
    from nertool.settings import Settings


@command
def annotate(
    source: Annotated[Path, typer.Argument(metavar="IN", help="Documents or plain texts (.txt): a folder or a file.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="A folder, or a .jsonl, .jsonl.gz or .jsonl.zst file.")],
    responses: Annotated[
        Path | None,
        typer.Option("--responses", metavar="FILE", help="Use the answers recorded in FILE, and ask nobody."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what asking would take, and do nothing.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again where the answer can't be read, was refused or cut off.")
    ] = False,
    llm: Annotated[str | None, typer.Option("--llm", metavar="NAME", help="The LLM's name at the endpoint.")] = None,
    base_url: Annotated[
        str | None,
        typer.Option("--base-url", metavar="URL", help="The OpenAI-compatible endpoint.", show_default=False),
    ] = None,
    classes: Annotated[
        Path | None, typer.Option("--classes", metavar="FILE", help="TOML file with the classes; by default KAZU's 18.")
    ] = None,
    shard: ShardOption = None,
    skip_invalid: SkipInvalid = None,
    force: Force = False,
    json: Json = False,
    config: Config = None,
    assignments: Set = None,
) -> None:
    """Let an LLM find the entities in documents or texts; entities that they had are replaced.

    Every answer is kept in OUT.responses.jsonl before anything else is done with it: a run that was killed goes on
    where it was, and nothing is asked twice. What can't be used goes to quarantine.jsonl in OUT, with the reason.
    The key of the endpoint is read from NERTOOL_ANNOTATE__API_KEY.

    nertool annotate texts/ documents/ --llm gpt-4.1-mini
    """
    from nertool.chunks import Shard
    from nertool.console import counted, print_json, say, suggest

    options = {
        "annotate.model": llm,
        "annotate.base_url": base_url,
        "annotate.classes": classes,
        "data.skip_invalid": skip_invalid,
    }
    settings = settings_from(config, assignments, options)
    result = run_annotate(
        source,
        output,
        settings,
        responses=responses,
        dry_run=dry_run,
        retry_failed=retry_failed,
        force=force,
        shard=None if shard is None else Shard.parse(shard),
    )
    if json:
        print_json(result)
    elif dry_run:
        show_plan(result)
    else:
        show_reconciliation(result["reconciliation"])
        entities = counted(result["entities"], "entity", "entities")
        say(f"{counted(result['documents'], 'document')} with {entities} written to {result['output']}")
        if shard is None:
            suggest("split", output, "split")


def run_annotate(
    source: Path,
    output: Path,
    settings: "Settings",
    *,
    responses: Path | None = None,
    dry_run: bool = False,
    retry_failed: bool = False,
    force: bool = False,
    shard: "Shard | None" = None,
) -> dict[str, Any]:
    """Asks for what is missing, unless answers are given, and makes documents of all answers.

    Args:
        source: Documents or texts.
        output: A folder, or a `.jsonl` file, compressed or not.
        settings: The settings.
        responses: Recorded answers to use instead of asking.
        dry_run: Only count requests and estimate tokens.
        retry_failed: Ask again for answers that can't be used.
        force: Replace an older output; recorded answers are never deleted.
        shard: The part that is wanted, if not all; then the output is a folder that gets a file for it.

    Returns:
        The counts that `--json` prints.

    Raises:
        NertoolError: If something is wrong with input, settings, endpoint or answers, or if answers are missing.
    """
    from nertool.annotation_run import AnnotationRun, ask_and_write, plan_requests, replay_and_write
    from nertool.chunks import WHOLE, describe_files
    from nertool.entity_classes import load_classes
    from nertool.errors import NertoolError
    from nertool.files import check_output, recover_folder
    from nertool.formats.output import is_document_file
    from nertool.prediction_output import check_parts, part_of
    from nertool.prompts import make_prompt

    if responses is not None and (dry_run or retry_failed):
        option = "--dry-run" if dry_run else "--retry-failed"
        raise NertoolError(f"--responses asks nobody, so {option} makes no sense with it", "leave one of them out")
    classes = load_classes(settings.annotate.classes)
    if shard is not None:
        if is_document_file(output):
            raise NertoolError("--shard makes a folder of parts", "name a folder")
        if not dry_run:
            facts = {"llm": settings.annotate.model, "files": describe_files(source), "parts": shard.of}
            check_parts(output, facts, force=force)
        output = part_of(output, shard.number, shard.of)
    run = AnnotationRun(source, output, settings, classes, shard or WHOLE)
    if dry_run:
        return plan_requests(run, make_prompt(settings.annotate, classes), retry_failed=retry_failed)
    recover_folder(output)
    check_output(output, force=force, as_file=is_document_file(output), source=source)
    if responses is not None:
        return replay_and_write(run, responses, force=force)
    if not settings.annotate.model:
        raise NertoolError(
            "no LLM is named", "--llm NAME, or --responses FILE for recorded answers; --dry-run says what it would take"
        )
    return ask_and_write(run, make_prompt(settings.annotate, classes), retry_failed=retry_failed, force=force)


def show_plan(result: dict[str, Any]) -> None:
    """Prints what `--dry-run` found out."""
    from nertool.console import counted, say

    at_hand = counted(result["answers_at_hand"], "answer")
    say(f"{counted(result['documents'], 'document')}, {counted(result['texts'], 'text')}; {at_hand} at hand")
    say(
        f"to ask: {counted(result['calls'], 'request')}, about {result['input_tokens']:,} tokens of requests and "
        f"{result['output_tokens']:,} of answers"
    )
    cost = "set annotate.input_price and annotate.output_price to see the cost"
    say(f"about {result['cost']:,.2f} in the currency of the prices" if "cost" in result else cost)


def show_reconciliation(reconciliation: dict[str, Any]) -> None:
    """Prints what became of all mentions, class by class, with examples of what was lost."""
    from nertool.console import counted, number_table, say, show
    from nertool.reconciliation import OUTCOMES

    texts, totals = reconciliation["pieces"], reconciliation["totals"]
    say(
        f"{counted(texts['all'], 'text')}: {texts['answered']:,} answered"
        + (f" ({texts['cut off']:,} of them cut off)" if texts["cut off"] else "")
        + f", {texts['unusable']:,} with unusable answers, {texts['missing']:,} without answers"
    )
    shown = [name for name in OUTCOMES if totals[name]]
    columns = ("mentions", *shown, "entities")
    table = number_table("class", numbers=columns)
    for label, row in reconciliation["classes"].items():
        table.add_row(label, *(f"{row.get(name, 0):,}" for name in columns))
    table.add_row("all", *(f"{totals[name]:,}" for name in columns))
    show(table)
    for name in ("unusable", "malformed", "unknown class", "not in the text", "fuzzy"):
        for example in reconciliation["examples"].get(name, [])[:2]:
            say(f"  {name}: {example}")
