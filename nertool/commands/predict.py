"""`nertool predict`: entities in new texts."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nertool.commands.options import Config, Device, Force, Json, LsProject, Set, SkipInvalid, command, settings_from

if TYPE_CHECKING:
    from nertool.documents import Document
    from nertool.formats import ReadReport


@command
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder, trained or exported.")],
    source: Annotated[Path, typer.Argument(metavar="IN", help="Documents or plain texts (.txt): a folder or a file.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="A folder, or a .jsonl, .jsonl.gz or .jsonl.zst file.")],
    ls_project: LsProject = None,
    device: Device = None,
    skip_invalid: SkipInvalid = None,
    force: Force = False,
    json: Json = False,
    config: Config = None,
    assignments: Set = None,
) -> None:
    """Find entities in documents or texts; entities that they had are replaced.

    A run that was killed goes on where it was when the same command is run again.

    nertool predict run/model texts/ predictions/
    """
    from nertool.commands.showing import check_showing, choose_rows, show_predictions
    from nertool.console import print_json, say
    from nertool.formats import ReadReport, read_documents

    options = {"predict.device": device, "data.skip_invalid": skip_invalid}
    settings = settings_from(config, assignments, options)
    if ls_project is not None:
        check_showing(ls_project, settings)
    result = run_predict(model, source, output, settings, force=force)
    if json:
        print_json(result)
    else:
        say(f"{result['documents']:,} documents with {result['entities']:,} predicted entities written to {output}")
    if ls_project is not None:
        documents = ((None, document) for document in read_documents(output, ReadReport()))
        rows = choose_rows(documents, settings.label_studio.sample)
        show_predictions(rows, model, ls_project, settings)


def run_predict(
    model_folder: Path, source: Path, output: Path, settings: Any, *, force: bool = False
) -> dict[str, Any]:
    """Predicts documents, chunk by chunk; each finished chunk is saved.

    Args:
        model_folder: A model that nertool trained or exported.
        source: Documents or texts.
        output: A folder, or a `.jsonl` file, compressed or not.
        settings: The `Settings`.
        force: Replace an older output.

    Returns:
        The counts that `--json` prints.

    Raises:
        NertoolError: If the model or the documents can't be used.
    """
    from itertools import islice

    from nertool.artefacts import model_digest
    from nertool.cache_building import scan
    from nertool.console import progress
    from nertool.files import check_output
    from nertool.formats import ReadReport, read_documents
    from nertool.formats.output import is_document_file
    from nertool.formats.reading import report_reading
    from nertool.inference import load_tagger, predict_documents
    from nertool.prediction_output import PredictionOutput

    check_output(output, force=force, as_file=is_document_file(output), source=source)
    tagger = load_tagger(model_folder, settings.predict)
    reading = ReadReport()

    def read(report: "ReadReport") -> "Iterator[Document]":
        return read_documents(source, report, skip_invalid=settings.data.skip_invalid, texts=True)

    with progress("reading", None, "documents") as advance:
        scanned = scan(read(reading), advance)  # what is wrong with them shows before the long work, not after it
    job = {
        "model": model_digest(model_folder),
        "documents": scanned.digest,
        "predict": settings.predict.model_dump(),
        "runs_on": tagger.runs_on,
    }
    with PredictionOutput(output, job) as writer, progress("predicting", scanned.documents, "documents") as advance:
        documents = islice(read(ReadReport()), writer.documents, None)
        for chunk in predict_documents(tagger, documents, settings.predict.documents_per_chunk):
            writer.write(chunk)
            advance(writer.documents)
        writer.finish(reading)
    report_reading(reading)
    return {
        "documents": writer.documents,
        "entities": writer.entities,
        "runs_on": tagger.runs_on,
        "read": reading.to_json(),
    }
