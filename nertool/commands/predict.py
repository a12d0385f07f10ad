"""`nertool predict`: entities in new texts."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from nertool.commands.options import (
    Config,
    Device,
    Force,
    Json,
    LsProject,
    Set,
    ShardOption,
    SkipInvalid,
    command,
    settings_from,
)

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from nertool.bulk_prediction import Engine, Job
    from nertool.chunks import Shard
    from nertool.settings import Settings

STANDARD = Path("-")


@command
def predict(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="A model folder, trained or exported.")],
    source: Annotated[
        Path, typer.Argument(metavar="IN", help="Documents or texts: a folder, a file, or - for lines on stdin.")
    ],
    output: Annotated[
        Path, typer.Argument(metavar="OUT", help="A folder, a .jsonl, .jsonl.gz or .jsonl.zst file, or - for stdout.")
    ],
    from_format: Annotated[
        str | None, typer.Option("--from", metavar="FORMAT", help="The format of IN; unset: as its ending tells.")
    ] = None,
    min_score: Annotated[
        float | None,
        typer.Option("--min-score", metavar="SCORE", help="Leave out entities with a lower score.", show_default=False),
    ] = None,
    labels: Annotated[
        str | None, typer.Option("--labels", metavar="A,B", help="Only entities of these classes.", show_default=False)
    ] = None,
    keep: Annotated[
        bool | None, typer.Option("--keep", help="Keep the entities that the documents have, and add to them.")
    ] = None,
    documents_per_file: Annotated[
        int | None,
        typer.Option(
            "--documents-per-file", metavar="N", help="More than 1: parts instead of a file each.", show_default=False
        ),
    ] = None,
    shard: ShardOption = None,
    workers: Annotated[
        int | None, typer.Option("--workers", metavar="N", help="Processes, each with the model.", show_default=False)
    ] = None,
    engine: Annotated[
        Literal["local", "ray"], typer.Option("--engine", help="Where the work is done: here, or on a Ray cluster.")
    ] = "local",
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

    nertool predict packed corpus.jsonl.zst predictions/ --shard $SLURM_ARRAY_TASK_ID/100
    """
    from nertool.chunks import Shard
    from nertool.commands.showing import check_showing, choose_rows, show_predictions
    from nertool.console import counted, print_json, say
    from nertool.errors import NertoolError
    from nertool.formats import ReadReport, read_documents

    options = {
        "predict.device": device,
        "predict.min_score": min_score,
        "predict.labels": None if labels is None else tuple(label.strip() for label in labels.split(",")),
        "predict.keep_entities": keep,
        "predict.documents_per_file": documents_per_file,
        "predict.workers": workers,
        "data.skip_invalid": skip_invalid,
    }
    settings = settings_from(config, assignments, options)
    if output == STANDARD and (json or shard or ls_project):
        raise NertoolError("documents on stdout go with none of --json, --shard and --ls-project", "name a file as OUT")
    if ls_project is not None:
        check_showing(ls_project, settings)
    part = None if shard is None else Shard.parse(shard)
    if output == STANDARD:
        _predict_to_stdout(model, source, settings, from_format, engine)
        return
    result = run_predict(
        model, source, output, settings, force=force, from_format=from_format, shard=part, engine_name=engine
    )
    if json:
        print_json(result)
    else:
        entities = counted(result["entities"], "predicted entity", "predicted entities")
        say(f"{counted(result['documents'], 'document')} with {entities} written to {result['output']}")
    if ls_project is not None:
        documents = ((None, document) for document in read_documents(Path(result["output"]), ReadReport()))
        rows = choose_rows(documents, settings.label_studio.sample)
        show_predictions(rows, model, ls_project, settings)


def run_predict(
    model_folder: Path,
    source: Path,
    output: Path,
    settings: "Settings",
    *,
    force: bool = False,
    from_format: str | None = None,
    shard: "Shard | None" = None,
    engine_name: Literal["local", "ray"] = "local",
) -> dict[str, Any]:
    """Predicts documents, chunk by chunk; each finished chunk is saved.

    Args:
        model_folder: A model that nertool trained or exported.
        source: Documents or texts; `-`: lines on stdin.
        output: A folder, or a `.jsonl` file, compressed or not.
        settings: The `Settings`.
        force: Replace an older output.
        from_format: The format of the source; by default each file's ending tells.
        shard: The part that is wanted, if not all; then the output is a folder that gets a file for it.
        engine_name: `local` or `ray`.

    Returns:
        The counts that `--json` prints.

    Raises:
        NertoolError: If the model or the documents can't be used.
    """
    from nertool import __version__
    from nertool.artefacts import model_digest, read_facts
    from nertool.bulk_prediction import Job, Reading, check_all, check_labels, predict_checked
    from nertool.chunks import WHOLE, Check
    from nertool.console import Rate, progress
    from nertool.errors import NertoolError
    from nertool.files import check_output
    from nertool.formats.output import is_document_file
    from nertool.formats.reading import invalid_documents, report_reading
    from nertool.formats.standard_input import spool
    from nertool.prediction_output import PredictionOutput, check_parts, part_of

    digest = model_digest(model_folder)
    check_labels(tuple(read_facts(model_folder)["scheme"]["labels"]), settings.predict.labels)
    model = {"model": model_folder.absolute().name, "model_digest": digest[:16], "nertool_version": __version__}
    selection = settings.predict.model_dump(include={"min_score", "labels", "keep_entities"})
    facts = model | {name: value for name, value in selection.items() if value}
    # What the entities depend on, and which documents are in which chunk.
    decisive = model | selection | settings.predict.model_dump(include={"documents_per_chunk", "tokens_per_batch"})
    parts: dict[str, Any] = {}
    if shard is not None:
        parts = {**decisive, **_what_parts_share(source, output, settings, from_format), "parts": shard.of}
        check_parts(output, parts, force=force)
        output = part_of(output, shard.number, shard.of)
    check_output(output, force=force, as_file=is_document_file(output), source=None if source == STANDARD else source)
    with PredictionOutput(output, settings.predict.documents_per_file) as writer:
        job = Job(model_folder.resolve(), digest, settings.predict, writer.ending, facts)
        piped = source == STANDARD
        if piped:
            source, from_format = spool(sys.stdin.buffer, writer.folder, from_format), "jsonl"
        reading = Reading(source, from_format, settings.predict.documents_per_chunk, shard or WHOLE)
        check = Check(writer.reject)
        with _open_engine(engine_name, job) as engine:
            with progress("checking", None, "documents") as advance:
                left_out = check_all(engine, reading, check, advance)
            if check.report.rejected and not settings.data.skip_invalid:
                raise invalid_documents(check.report)
            if not (check.report.documents or check.report.rejected or piped or shard):
                raise NertoolError(f"{source} holds no documents")
            writer.resume({**decisive, "documents": check.digest, "compression": Path(writer.ending).suffix})
            reading = replace(reading, done=writer.done, left_out=left_out)
            with progress("predicting", check.report.documents, "documents", writer.documents) as advance:
                rate = Rate()
                for chunk in predict_checked(engine, reading, check.digests):
                    if parts and writer.runs_on is None:  # on the first machine that runs it
                        check_parts(output.parent, {**parts, "runs_on": chunk.runs_on}, force=False)
                    writer.write(chunk.key, chunk.data, chunk.documents, chunk.entities, chunk.runs_on)
                    advance(writer.documents, rate.note(documents=chunk.documents, tokens=chunk.tokens))
        writer.finish()
    report_reading(check.report)
    return {
        "output": str(output),
        "documents": writer.documents,
        "entities": writer.entities,
        "runs_on": writer.runs_on,
        "read": check.report.to_json(),
    }


def _what_parts_share(source: Path, output: Path, settings: "Settings", from_format: str | None) -> dict[str, Any]:
    """Returns what all shards must have alike besides what decides on the entities; None: not known yet."""
    from nertool.chunks import describe_files
    from nertool.errors import NertoolError
    from nertool.formats.output import is_document_file

    if is_document_file(output) or source == STANDARD:
        raise NertoolError("--shard makes a folder of parts, of files that every shard can read", "name a folder")
    run_by = settings.predict.model_dump(include={"engine", "device", "precision"})
    return {**run_by, "files": describe_files(source, from_format), "runs_on": None}


def _predict_to_stdout(
    model: Path, source: Path, settings: "Settings", from_format: str | None, engine_name: Literal["local", "ray"]
) -> None:
    import shutil
    from tempfile import TemporaryDirectory

    with TemporaryDirectory(prefix="nertool-") as folder:
        output = Path(folder) / "documents.jsonl"
        run_predict(model, source, output, settings, from_format=from_format, engine_name=engine_name)
        with output.open("rb") as lines:
            shutil.copyfileobj(lines, sys.stdout.buffer)
        sys.stdout.buffer.flush()


def _open_engine(name: Literal["local", "ray"], job: "Job") -> "AbstractContextManager[Engine]":
    if name == "ray":
        from nertool.ray_engine import RayEngine

        return RayEngine(job)
    from nertool.bulk_prediction import LocalEngine, choose_workers

    return LocalEngine(job, choose_workers(job.model, job.settings))
