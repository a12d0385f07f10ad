"""`nertool convert`: documents between file formats."""

from pathlib import Path
from typing import Annotated, Any

import typer

from nertool.commands.options import Config, Force, Json, Set, SkipInvalid, command, settings_from


@command
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A file, or a folder of files.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The folder (kazu) or file (other formats) to make.")],
    from_format: Annotated[
        str | None, typer.Option("--from", help="kazu, jsonl, pubtator or text; by default the file's ending tells.")
    ] = None,
    to_format: Annotated[
        str | None, typer.Option("--to", help="kazu, jsonl or pubtator; by default OUT's ending tells, else kazu.")
    ] = None,
    force: Force = False,
    skip_invalid: SkipInvalid = None,
    json: Json = False,
    config: Config = None,
    assignments: Set = None,
) -> None:
    """Convert documents between formats; says what a format can't hold.

    nertool convert corpus.PubTator documents/ --from pubtator --to kazu
    """
    from nertool.console import print_json, say

    settings = settings_from(config, assignments, {"data.skip_invalid": skip_invalid})
    result = run_convert(source, output, from_format, to_format, force=force, skip_invalid=settings.data.skip_invalid)
    if json:
        print_json(result)
    else:
        say(f"{result['written']:,} documents with {result['read']['entities']:,} entities written to {output}")
        for loss, count in result["losses"].items():
            say(f"  lost in {result['to']}: {count:,} {loss}")


def run_convert(
    source: Path, output: Path, from_format: str | None, to_format: str | None, *, force: bool, skip_invalid: bool
) -> dict[str, Any]:
    """Converts documents.

    Returns:
        What was read, written and lost, as `--json` prints it.

    Raises:
        NertoolError: If a format is unknown, documents are invalid or the output can't be made.
    """
    from nertool.console import progress
    from nertool.errors import NertoolError, nearest_name
    from nertool.files import check_output, new_folder, partial_path, publish_file
    from nertool.formats import FORMATS, ReadReport, read_documents
    from nertool.formats.reading import report_reading, write_rejected

    to_format = to_format or next(
        (name for name, known in FORMATS.items() if output.name.lower().endswith(known.endings) and name != "kazu"),
        "kazu",
    )
    for name in (from_format, to_format):
        if name is not None and name not in FORMATS:
            raise NertoolError(f"unknown format {name!r}{nearest_name(name, FORMATS)}", f"known: {', '.join(FORMATS)}")
    writer_type = FORMATS[to_format].writer
    if writer_type is None:
        raise NertoolError(f"nertool reads the format {to_format}, but can't write it", "use kazu, jsonl or pubtator")
    report = ReadReport()
    documents = read_documents(source, report, format_name=from_format, skip_invalid=skip_invalid, texts=True)

    def write(path: Path) -> dict[str, int]:
        with writer_type(path) as writer, progress("converting", None, "documents") as advance:
            for document in documents:
                writer.write(document)
                advance(report.documents)
            return dict(writer.losses)

    if to_format == "kazu":
        with new_folder(output, "convert", force=force, source=source) as folder:
            losses = write(folder)
            write_rejected(report, folder / "rejected.jsonl")
    else:
        check_output(output, force=force, as_file=True, source=source)
        partial = partial_path(output)
        try:
            losses = write(partial)
            write_rejected(report, output.with_name(f"{output.name}.rejected.jsonl"))
            publish_file(partial, output)
        finally:
            partial.unlink(missing_ok=True)
    report_reading(report)
    return {"read": report.to_json(), "written": report.documents, "to": to_format, "losses": losses}
