"""`nertool convert`: documents between file formats."""

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nertool.commands.options import Config, Force, Json, Set, SkipInvalid, command, settings_from

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from nertool.documents import Document
    from nertool.formats import Rejected
    from nertool.settings import Settings


@command
def convert(
    source: Annotated[Path, typer.Argument(metavar="IN", help="A file, or a folder of files.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The file or folder to make.")],
    from_format: Annotated[
        str | None,
        typer.Option("--from", metavar="FORMAT", help="The format of IN; unset: as its ending tells."),
    ] = None,
    to_format: Annotated[
        str | None,
        typer.Option("--to", metavar="FORMAT", help="The format of OUT; unset: as its ending tells."),
    ] = None,
    force: Force = False,
    skip_invalid: SkipInvalid = None,
    json: Json = False,
    config: Config = None,
    assignments: Set = None,
) -> None:
    """Convert documents between formats; says first what a format can't hold.

    Formats: kazu, jsonl, bioc, pubtator, brat, conll, conll-bioes, spacy, datasets, labelstudio, text.

    nertool convert corpus.PubTator documents/ --from pubtator --to kazu
    """
    from nertool.console import counted, print_json, say

    settings = settings_from(config, assignments, {"data.skip_invalid": skip_invalid})
    result = run_convert(source, output, settings, from_format=from_format, to_format=to_format, force=force)
    if json:
        print_json(result)
    else:
        but = ", without what it can't hold" if result["losses"] else ""
        entities = counted(result["read"]["entities"], "entity", "entities")
        say(f"{counted(result['written'], 'document')} with {entities} converted to {output}{but}")


def run_convert(
    source: Path,
    output: Path,
    settings: "Settings",
    *,
    from_format: str | None = None,
    to_format: str | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Converts documents.

    Args:
        source: A file, or a folder of files.
        output: The file or folder to make.
        settings: The `Settings`.
        from_format: The format of the source; by default each file's ending tells.
        to_format: The format of the output; by default as its ending tells.
        force: Replace an older output.

    Returns:
        What was read, written and lost, as `--json` prints it.

    Raises:
        NertoolError: If a format is unknown, documents are invalid or the output can't be made.
    """
    import orjson

    from nertool.console import progress, say
    from nertool.errors import NertoolError
    from nertool.files import check_output, growing, json_lines, new_folder
    from nertool.formats import ReadReport, read_documents
    from nertool.formats.output import publish_documents
    from nertool.formats.reading import choose_format, format_to_write, report_reading

    if from_format is not None:
        choose_format(from_format)
    to_name, to = format_to_write(output, to_format)
    report = ReadReport()

    def read(into: ReadReport, on_rejected: "Callable[[Rejected], object]") -> "Iterator[Document]":
        return read_documents(
            source, into, format_name=from_format, skip_invalid=settings.data.skip_invalid, texts=True,
            on_rejected=on_rejected,
        )  # fmt: skip

    check_output(output, force=force, as_file=not to.folder, source=source)
    losses: Counter[str] = Counter()
    id_keys: set[str] = set()
    with progress("checking", None, "documents") as advance:
        for document in read(report, lambda _: None):  # they are written on the second reading
            if to.losses is not None:
                losses.update(to.losses(document))
            if to.id_key is not None:
                if (key := to.id_key(document.id)) in id_keys:
                    losses["ids that are like another one's here, which got longer ones"] += 1
                id_keys.add(key)
            advance(report.documents)
    for loss, count in losses.items():
        say(f"{to_name} can't hold: {count:,} {loss}")

    def write(path: Path, rejected: Path) -> None:
        again = ReadReport()
        with (
            to.writer(path) as writer,
            json_lines(rejected) as set_aside,
            progress("writing", report.documents, "documents") as advance,
        ):
            for number, document in enumerate(read(again, lambda item: set_aside(item.to_json())), start=1):
                try:
                    writer.write(document)
                except (orjson.JSONEncodeError, RecursionError) as error:
                    raise NertoolError(
                        f"the document {document.id!r} can't be written as {to_name}: {error}",
                        "take what is nested so deeply out of its metadata, or convert to kazu or jsonl",
                    ) from error
                advance(number)
        if again != report:
            raise NertoolError(f"{source} changed while it was read", "try again")

    if to.folder:
        with new_folder(output, "convert", force=force, source=source) as folder:
            write(folder, folder / "rejected.jsonl")
    else:
        with growing(output) as partial:
            write(partial / output.name, partial / "rejected.jsonl")
            publish_documents(partial / output.name, output)
    report_reading(report)
    return {"read": report.to_json(), "written": report.documents, "to": to_name, "losses": dict(losses)}
