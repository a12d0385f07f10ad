"""`nertool ls-sync push`: documents and predictions into Label Studio."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nertool.commands.ls_connection import ProjectName, connect
from nertool.commands.options import Config, Json, Set, SkipInvalid, command, settings_from

if TYPE_CHECKING:
    from nertool.documents import Entity
    from nertool.label_studio import Server
    from nertool.labelling_sync import Push, Pushed
    from nertool.labelling_tasks import Item
    from nertool.settings import Settings

_PROBLEMS_SHOWN = 20


@command
def push(
    documents: Annotated[
        Path | None, typer.Argument(metavar="DOCS", help="Documents, texts or a cache: what people look at.")
    ] = None,
    predictions: Annotated[
        list[str] | None,
        typer.Option(
            "--predictions",
            metavar="[NAME=]DIR",
            help="Documents with a model's entities, shown beside the gold; may be given several times.",
        ),
    ] = None,
    project: ProjectName = None,
    sample: Annotated[
        int | None, typer.Option("--sample", metavar="N", min=1, help="Only N sections, always the same ones.")
    ] = None,
    errors_only: Annotated[
        bool, typer.Option("--errors-only", help="Only sections in which predictions differ from the gold.")
    ] = False,
    queue: Annotated[
        Path | None,
        typer.Option("--queue", metavar="FILE", help="What to look at first: a line for each document or section."),
    ] = None,
    keep_versions: Annotated[
        int | None,
        typer.Option("--keep-versions", metavar="N", min=1, help="Delete older versions RUN@STEP of a run beyond N."),
    ] = None,
    spool: Annotated[
        Path | None,
        typer.Option("--from", metavar="SPOOL", help="Send what training could not send; instead of DOCS."),
    ] = None,
    skip_invalid: SkipInvalid = None,
    json: Json = False,
    config: Config = None,
    assignments: Set = None,
) -> None:
    """Send documents as tasks, their entities as annotations, and models' entities as predictions.

    Only what is missing or has changed is sent; people's work is never overwritten. A push that was cut off goes on
    when it is run again. The token is read from NERTOOL_LABEL_STUDIO__TOKEN.

    nertool ls-sync push split/test --predictions predicted --project "Test split"
    """
    from nertool.console import print_json
    from nertool.errors import NertoolError

    settings = settings_from(config, assignments, {"label_studio.project": project, "data.skip_invalid": skip_invalid})
    if spool is not None:
        if documents is not None or predictions:
            raise NertoolError("--from SPOOL sends what is in the spool", "leave DOCS and --predictions out")
        results = run_push_spool(spool, settings)
    else:
        results = [
            run_push(
                documents, settings, predictions=predictions or (), sample=sample, errors_only=errors_only, queue=queue,
                keep_versions=keep_versions,
            )
        ]  # fmt: skip
    if json:
        print_json(results[0] if spool is None else {"pushed": results})


def run_push(
    source: Path | None,
    settings: "Settings",
    *,
    predictions: Iterable[str] = (),
    sample: int | None = None,
    errors_only: bool = False,
    queue: Path | None = None,
    keep_versions: int | None = None,
) -> dict[str, Any]:
    """Brings a project to the state of these documents.

    Args:
        source: Documents, texts or a cache.
        settings: The settings; `label_studio.project` names the project.
        predictions: Folders of predicted documents, each with an optional `NAME=` before it.
        sample: How many sections to send.
        errors_only: Send only sections in which predictions and gold differ.
        queue: File with documents' or sections' ids, most urgent first.
        keep_versions: How many versions of one run stay.

    Returns:
        The counts that `--json` prints.

    Raises:
        NertoolError: If input, settings or server are not as they must be.
    """
    from dataclasses import asdict

    from nertool.console import say
    from nertool.errors import NertoolError
    from nertool.formats import ReadReport, read_documents
    from nertool.formats.reading import report_reading
    from nertool.labelling_sync import Push, Pushed
    from nertool.labelling_tasks import check_title, choose_sample, make_items, mentions
    from nertool.window_cache import is_cache, open_cache

    if source is None:
        raise NertoolError("no documents are named", "nertool ls-sync push DOCS, or --from SPOOL")
    check_title(settings.label_studio.project)
    reading = ReadReport()
    if is_cache(source):
        documents = list(open_cache(source).documents())
    else:
        documents = list(read_documents(source, reading, skip_invalid=settings.data.skip_invalid, texts=True))
    has_gold = any(section.entities for document in documents for section in document.sections)
    if not has_gold:
        say("the documents have no entities, so they are sent without annotations")
    items = {item.key: item for document in documents for item in make_items(document, has_gold=has_gold)}
    versions = {}
    for named in predictions:
        version, folder = _version_and_folder(named)
        if version in versions:
            raise NertoolError(f"two predictions are called {version!r}", "--predictions NAME=DIR gives another name")
        versions[version] = _read_predictions(folder, items, settings)
    chosen = list(items.values())
    if errors_only:
        if not (versions and has_gold):
            raise NertoolError("--errors-only needs --predictions, and documents with entities to compare with")
        chosen = [
            item
            for item in chosen
            if any(
                item.key in found and mentions(found[item.key]) != mentions(item.section.entities)
                for found in versions.values()
            )
        ]
    ranked = _read_queue(queue, items) if queue is not None else []
    chosen_keys = {item.key for item in chosen}
    ranked = [key for key in ranked if key in chosen_keys][:sample]
    first = set(ranked)
    rest = [item for item in chosen if item.key not in first]
    chosen = [items[key] for key in ranked] + choose_sample(rest, None if sample is None else sample - len(ranked))
    report_reading(reading)
    if not chosen:
        say("there is nothing to look at: predictions and gold are the same in all sections")
        return {"project": settings.label_studio.project, **asdict(Pushed())}
    wanted = Push(chosen, versions, settings.data.labels, ranked, keep_versions)
    with connect(settings) as server:
        return _send(server, settings.label_studio.project, wanted)


def run_push_spool(folder: Path, settings: "Settings", *, only: Path | None = None) -> list[dict[str, Any]]:
    """Sends all files of a spool, oldest first; each is deleted when it is there.

    Args:
        folder: The spool.
        settings: How to reach the server.
        only: Send just this file of it.

    Returns:
        The counts of each file.

    Raises:
        NertoolError: If the folder is no spool, or something can't be sent; what wasn't sent stays.
    """
    from nertool.console import say
    from nertool.errors import NertoolError
    from nertool.files import exclusive
    from nertool.labelling_spool import read_spool, spool_files
    from nertool.labelling_sync import Push

    if not folder.is_dir():
        raise NertoolError(f"{folder} is no spool: there is no such folder")
    results: list[dict[str, Any]] = []
    problems: dict[Path, NertoolError] = {}
    with exclusive(folder, wait_seconds=30.0):
        if not spool_files(folder):
            say(f"{folder} is empty: everything has been sent")
            return results
        with connect(settings) as server:
            # Those that come meanwhile, too; what is wrong with one is no reason to keep the others.
            while files := [file for file in spool_files(folder) if file not in problems and only in (None, file)]:
                for file in files:
                    try:
                        before, one = file.stat(), read_spool(file)
                        wanted = Push(one.items, {one.version: one.predicted}, one.labels, (), one.keep_versions)
                        results.append(_send(server, one.project, wanted))
                        after = file.stat()
                        if (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns):
                            file.unlink()
                    except FileNotFoundError:
                        continue  # its writer has dropped it for newer ones
                    except NertoolError as error:
                        problems[file] = error
    if problems:
        last = list(problems.values())[-1]
        raise NertoolError("\n".join(dict.fromkeys(error.message for error in problems.values())), last.hint)
    return results


def _send(server: "Server", project: str, wanted: "Push") -> dict[str, Any]:
    from dataclasses import asdict

    from nertool.console import progress
    from nertool.labelling_sync import push as bring

    with progress("sending", len(wanted.items), "") as advance:
        pushed = bring(server, project, wanted, advance)
    _show_pushed(pushed)
    return {"project": project, **asdict(pushed)}


def _show_pushed(pushed: "Pushed") -> None:
    from nertool.console import counted, say

    new = f"{counted(pushed.created, 'section')} new"
    parts = [new, f"{pushed.updated:,} updated", f"{pushed.unchanged:,} as they were"]
    if pushed.copies_removed:
        parts.append(f"{counted(pushed.copies_removed, 'copy', 'copies')} removed")
    say(", ".join(parts))
    for version, counts in pushed.predictions.items():
        say(f"predictions {version}: {counts['sent']:,} sent, {counts['unchanged']:,} there already")
    for version in pushed.versions_removed:
        say(f"older version removed: {version}")
    for conflict in pushed.conflicts:
        say(f"conflict: {conflict['section']}: {conflict['reason']}")
    say(pushed.url)


def _version_and_folder(named: str) -> tuple[str, Path]:
    name, equals, path = named.partition("=")
    if equals and not Path(named).exists():
        return name, Path(path)
    folder = Path(named)
    return folder.resolve().name.partition(".jsonl")[0], folder


def _read_predictions(folder: Path, items: "dict[str, Item]", settings: "Settings") -> "dict[str, tuple[Entity, ...]]":
    """Returns what was predicted for each section, which must have the text that it is shown with."""
    from nertool.console import counted, say
    from nertool.errors import NertoolError
    from nertool.formats import ReadReport, read_documents
    from nertool.labelling_tasks import make_items

    found = {}
    different, unknown = [], 0
    for document in read_documents(folder, ReadReport(), skip_invalid=settings.data.skip_invalid):
        for item in make_items(document, has_gold=False):
            if item.key not in items:
                unknown += 1
            elif items[item.key].section.text != item.section.text:
                different.append(item.key)
            else:
                found[item.key] = item.section.entities
    if different:
        sections = counted(len(different), "section has", "sections have")
        raise NertoolError(
            f"{folder}: {sections} another text than in DOCS: {', '.join(different[:5])}",
            "predict the documents that you push",
        )
    if not found:
        raise NertoolError(
            f"{folder} holds predictions for none of the sections", "predict the documents that you push"
        )
    if unknown:
        sections = counted(unknown, "section that is", "sections that are")
        say(f"note: {folder}: predictions for {sections} not in DOCS are left out")
    if missing := len(items) - len(found):
        say(f"note: {folder}: no predictions for {missing:,} of the sections")
    return found


def _read_queue(path: Path, items: "dict[str, Item]") -> list[str]:
    """Returns the sections that a queue names, in its order; a document's id stands for all its sections."""
    from nertool.errors import NertoolError, nearest_name

    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise NertoolError(f"{path}: the queue can't be read: {error}") from error
    by_document: dict[str, list[str]] = {}
    for item in items.values():
        by_document.setdefault(item.document, []).append(item.key)
    ranked: dict[str, None] = {}
    problems: list[str] = []
    known = (*by_document, *items)
    for number, line in enumerate(lines, start=1):
        if name := line.strip():
            keys = [name] if name in items else by_document.get(name, [])
            if not keys:
                near = nearest_name(name, known) if len(problems) < _PROBLEMS_SHOWN else ""
                problems.append(f"{path}:{number}: no document or section {name!r}{near}")
            ranked |= dict.fromkeys(keys)
    if problems:
        if (more := len(problems) - _PROBLEMS_SHOWN) > 0:
            problems[_PROBLEMS_SHOWN:] = [f"and {more:,} more"]
        raise NertoolError("\n".join(problems), "a line is a document's id, or ID#N for its section N (from 0)")
    return list(ranked)
