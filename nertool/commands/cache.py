"""`nertool cache`: documents into a memory-mapped training cache."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nertool.commands.options import Config, Force, Json, Model, Set, SkipInvalid, command, settings_from

if TYPE_CHECKING:
    from nertool.documents import Document
    from nertool.settings import Settings


@command
def cache(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A folder of documents, or a .jsonl file.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The cache folder to make.")],
    model: Model = None,
    force: Force = False,
    skip_invalid: SkipInvalid = None,
    json: Json = False,
    config: Config = None,
    assignments: Set = None,
) -> None:
    """Tokenise documents into a compact training cache, and say what the model can't learn from them.

    A build that was killed goes on where it was when the same command is run again.

    nertool cache split/train cache/train --model minilm
    """
    from nertool.console import print_json, say, suggest

    options = {"model.name": model, "data.skip_invalid": skip_invalid}
    settings = settings_from(config, assignments, options)
    info = run_cache(source, output, settings, force=force)
    if json:
        print_json(info)
    else:
        show_cache(info)
        say(f"written to {output}")
        beside = source.parent / "eval"
        data = ["--train", output, "--eval", beside if beside.is_dir() else "DOCUMENTS"]
        suggest("train", *data, "--output", "run", *(["--model", model] if model else []))


def run_cache(source: Path, output: Path, settings: "Settings", *, force: bool = False) -> dict[str, Any]:
    """Builds a cache, or opens the one that is there if the same things made it.

    Args:
        source: The documents.
        output: The cache folder.
        settings: The `Settings`.
        force: Replace a cache that something else made.

    Returns:
        The content of cache.json with what was read.

    Raises:
        NertoolError: If documents are invalid, or what is at `output` was made by something else.
    """
    from nertool.cache_building import build_cache
    from nertool.console import progress
    from nertool.files import check_output
    from nertool.formats import ReadReport, read_documents
    from nertool.formats.reading import count_files, report_reading, write_rejected
    from nertool.model import load_tokenizer
    from nertool.window_cache import is_cache
    from nertool.workers import usable_cores

    if not is_cache(output):
        check_output(output, force=force, source=source)
    tokenizer = load_tokenizer(settings.model.name)
    report = ReadReport()

    def read() -> Iterator["Document"]:
        nonlocal report
        report = ReadReport()
        return read_documents(source, report, skip_invalid=settings.data.skip_invalid)

    with progress("tokenising", count_files(source), "documents") as advance:
        built = build_cache(
            output,
            read,
            tokenizer,
            settings.windows,
            labels=settings.data.labels,
            begin=settings.model.begin_channels,
            force=force,
            workers=settings.data.workers or usable_cores(),
            on_documents=advance,
        )
    write_rejected(report, output / "rejected.jsonl")
    report_reading(report)
    return {"read": report.to_json(), **built.info}


def show_cache(info: dict[str, Any]) -> None:
    """Shows people what is in a cache and what its targets can't express."""
    from nertool.console import counted, say

    counts, part = info["counts"], info["representation"]
    say(
        f"{counted(counts['documents'], 'document')}, {counted(counts['sections'], 'section')}, "
        f"{counted(counts['tokens'], 'token')}, {counted(counts['windows'], 'window')}, "
        f"{counted(len(info['fingerprint']['labels']), 'class', 'classes')}"
    )
    if counts["empty_sections"]:
        say(f"note: {counted(counts['empty_sections'], 'section has', 'sections have')} no text")
    if part["ceiling_micro_f1"] is not None:
        say(
            f"{part['kept']:,} of {part['entities']:,} entities can be expressed exactly: "
            f"a perfect model reaches a strict micro F1 of {part['ceiling_micro_f1']:.4f}"
        )
    for reason, count in sorted(part["losses"].items(), key=lambda item: -item[1]):
        say(f"  {count:,} can't: {reason} (such as {', '.join(map(repr, part['examples'][reason]))})")
    if not info["fingerprint"]["begin_channels"] and part["entities"] and part["touching"] / part["entities"] > 0.02:
        say(
            f"hint: {part['touching']:,} entities touch another one of their class; "
            "--set model.begin_channels=true may keep them apart"
        )
