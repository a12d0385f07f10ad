"""`nertool ls-sync`: documents and predictions into Label Studio, and people's corrections back."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nertool.commands.options import Config, Force, Json, Set, SkipInvalid, command, settings_from

if TYPE_CHECKING:
    from nertool.documents import Entity
    from nertool.label_studio import Project, Server
    from nertool.labelling_sync import Pushed
    from nertool.labelling_tasks import Item
    from nertool.reviews import Review
    from nertool.settings import Settings

ls_sync = typer.Typer(
    name="ls-sync",
    help="Look at documents and predictions in Label Studio, correct them there, and get the corrections back.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_PROBLEMS_SHOWN = 20

ProjectName = Annotated[
    str | None,
    typer.Option("--project", metavar="NAME", help="The project's title, or id:NUMBER.", show_default=False),
]


@ls_sync.command()
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

    settings = settings_from(config, assignments, {"label_studio.project": project, "data.skip_invalid": skip_invalid})
    if spool is not None:
        results = run_push_spool(spool, settings, alone=documents is None and not predictions)
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
    from nertool.labelling_spool import choose_sample
    from nertool.labelling_sync import Push, Pushed
    from nertool.labelling_tasks import check_title, make_items, mentions
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


def run_push_spool(
    folder: Path, settings: "Settings", *, alone: bool = True, only: Path | None = None
) -> list[dict[str, Any]]:
    """Sends all files of a spool, oldest first; each is deleted when it is there.

    Args:
        folder: The spool.
        settings: How to reach the server.
        alone: Whether nothing else is to be sent.
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

    if not alone:
        raise NertoolError("--from SPOOL sends what is in the spool", "leave DOCS and --predictions out")
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


def connect(settings: "Settings") -> "Server":
    """Connects to the server.

    Raises:
        NertoolError: If the extra isn't installed, or the server can't be reached.
    """
    check_extra()
    from nertool.label_studio import Server

    return Server(settings.label_studio)


def check_extra() -> None:
    """Makes sure that the SDK is installed, without loading it, which takes most of a second."""
    from importlib.util import find_spec

    from nertool.errors import NertoolError

    if find_spec("label_studio_sdk") is None:
        raise NertoolError("Label Studio's SDK is not installed", 'pip install "nertool[label-studio]"')


def _send(server: "Server", project: str, wanted: Any) -> dict[str, Any]:
    from dataclasses import asdict

    from nertool.console import progress
    from nertool.labelling_sync import push as bring

    with progress("sending", len(wanted.items), "") as advance:
        pushed = bring(server, project, wanted, advance)
    _show_pushed(pushed)
    return {"project": project, **asdict(pushed)}


def _show_pushed(pushed: "Pushed") -> None:
    from nertool.console import say

    parts = [f"{pushed.created:,} sections new", f"{pushed.updated:,} updated", f"{pushed.unchanged:,} as they were"]
    if pushed.copies_removed:
        parts.append(f"{pushed.copies_removed:,} copies removed")
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
    from nertool.console import say
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
        raise NertoolError(
            f"{folder}: {len(different)} sections have another text than in DOCS: {', '.join(different[:5])}",
            "predict the documents that you push",
        )
    if not found:
        raise NertoolError(
            f"{folder} holds predictions for none of the sections", "predict the documents that you push"
        )
    if unknown:
        say(f"note: {folder}: predictions for {unknown:,} sections that are not in DOCS are left out")
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


@ls_sync.command()
@command
def pull(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="A folder, or a .jsonl, .jsonl.gz or .jsonl.zst file.")],
    project: ProjectName = None,
    reviewed: Annotated[
        bool, typer.Option("--reviewed", help="Only sections about which people have said what is right.")
    ] = False,
    force: Force = False,
    json: Json = False,
    config: Config = None,
    assignments: Set = None,
) -> None:
    """Get documents with people's corrections as their entities, and say what people did.

    Each section's metadata tells its status, who and when; review.json has all conflicts and problems.

    nertool ls-sync pull corrected --project "Test split"
    """
    from nertool.console import print_json, say

    settings = settings_from(config, assignments, {"label_studio.project": project})
    result = run_pull(output, settings, only_reviewed=reviewed, force=force)
    if json:
        print_json(result)
    else:
        show_reviews(result)
        say(f"{result['documents']:,} documents with {result['entities']:,} entities written to {output}")


def run_pull(output: Path, settings: "Settings", *, only_reviewed: bool = False, force: bool = False) -> dict[str, Any]:
    """Writes the documents of a project as people left them.

    Args:
        output: A folder, or a `.jsonl` file.
        settings: The settings; `label_studio.project` names the project.
        only_reviewed: Leave out sections about which people have not said what is right.
        force: Replace an older output.

    Returns:
        What `--json` prints.

    Raises:
        NertoolError: If the output, the settings or the server are not as they must be, or nothing is left to write.
    """
    from nertool.errors import NertoolError
    from nertool.files import check_output, write_json
    from nertool.formats.output import is_document_file, new_documents
    from nertool.labelling_sync import existing_project
    from nertool.reviews import REVIEWED, describe, reviewed_documents

    check_output(output, force=force, as_file=is_document_file(output))
    with connect(settings) as server:
        reviews, others = _read_reviews(server, existing_project(server, settings.label_studio.project))
    documents = reviewed_documents(reviews, only_reviewed=only_reviewed)
    if not documents:
        what = "no section that people have reviewed" if only_reviewed and reviews else "no sections of nertool's"
        raise NertoolError(f"the project {settings.label_studio.project!r} has {what}")
    summary = {
        **_summary(reviews, others),
        "documents": len(documents),
        "sections": sum(len(document.sections) for document in documents),
        "entities": sum(len(section.entities) for document in documents for section in document.sections),
    }
    notable = [describe(one) for one in reviews if one.problems or one.status not in {*REVIEWED, "unchanged", "open"}]
    with new_documents(output, "ls-sync pull", force=force) as out:
        for document in documents:
            out.documents.write(document)
        write_json(out.folder / "review.json", {**summary, "to_look_at": notable})
    return {**summary, "to_look_at": notable}


def _read_reviews(server: "Server", project: "Project") -> "tuple[list[Review], int]":
    """Returns what became of all sections, and how many tasks are not nertool's."""
    from nertool.console import progress
    from nertool.reviews import meta_of, read_reviews

    users = server.users()
    with progress("exporting", project.tasks, "tasks"):
        tasks = server.export(project.id)
    return read_reviews(tasks, users), sum(meta_of(task) is None for task in tasks)


def _summary(reviews: "list[Review]", others: int) -> dict[str, Any]:
    """Counts what people did, and how far they agree with what they were shown."""
    from collections import Counter

    from nertool.matching import SectionPair
    from nertool.metrics import evaluation_report
    from nertool.reviews import STATUSES, agreement_pairs

    statuses = Counter(review.status for review in reviews)
    pairs = [SectionPair(*pair) for pair in agreement_pairs(reviews)]
    agreement = None
    if pairs:
        report = evaluation_report(pairs, (), bootstrap_samples=0)
        names = ("micro_precision", "micro_recall", "micro_f1", "mean_f1")
        agreement = {"sections": len(pairs), **{name: report[name] for name in names}}
    return {
        "statuses": {status: statuses[status] for status in STATUSES},
        "people": sorted({opinion.person for review in reviews for opinion in review.opinions}),
        "other_tasks": others,
        "agreement_of_sent_entities": agreement,
        "problems": sum(len(review.problems) for review in reviews),
    }


def show_reviews(result: dict[str, Any]) -> None:
    """Prints what people did."""
    from rich.table import Table

    from nertool.console import say, show
    from nertool.reviews import MEANINGS

    table = Table(box=None, pad_edge=False)
    table.add_column("status")
    table.add_column("sections", justify="right")
    table.add_column("")
    for status, count in result["statuses"].items():
        if count:
            table.add_row(status, f"{count:,}", MEANINGS[status])
    show(table)
    if result["people"]:
        say(f"people: {', '.join(result['people'])}")
    if agreement := result["agreement_of_sent_entities"]:
        f1 = "–" if agreement["micro_f1"] is None else f"{agreement['micro_f1']:.3f}"
        say(
            f"in {agreement['sections']:,} reviewed sections, the entities that people were shown agree with theirs "
            f"at a strict micro F1 of {f1}"
        )
    for one in result.get("to_look_at", [])[:20]:
        people = " and ".join(opinion["person"] for opinion in one["opinions"])
        detail = "; ".join(one["problems"]) or people
        say(f"  {one['status']}: {one['section']} (task {one['task']}){': ' + detail if detail else ''}")
    if len(result.get("to_look_at", [])) > 20:
        say(f"  and {len(result['to_look_at']) - 20:,} more, in review.json")
    if result["other_tasks"]:
        say(f"note: {result['other_tasks']:,} tasks are not nertool's and were passed over")


@ls_sync.command()
@command
def status(
    project: ProjectName = None,
    json: Json = False,
    config: Config = None,
    assignments: Set = None,
) -> None:
    """Say how far people are with a project, and which predictions it shows.

    nertool ls-sync status --project "Test split"
    """
    from nertool.console import print_json, say
    from nertool.labelling_sync import existing_project

    settings = settings_from(config, assignments, {"label_studio.project": project})
    with connect(settings) as server:
        found = existing_project(server, settings.label_studio.project)
        result = {
            "id": found.id, "title": found.title, "url": server.project_url(found.id),
            **_summary(*_read_reviews(server, found)),
            "versions": server.versions(found.id), "shown_version": found.model_version,
        }  # fmt: skip
    if json:
        print_json(result)
        return
    show_reviews(result)
    for version, count in result["versions"].items():
        shown = " (shown first)" if version == found.model_version else ""
        say(f"predictions {version}: {count:,}{shown}")
    say(result["url"])


@ls_sync.command("list")
@command
def list_projects(
    json: Json = False,
    config: Config = None,
    assignments: Set = None,
) -> None:
    """List nertool's projects.

    nertool ls-sync list
    """
    from rich.table import Table

    from nertool.console import print_json, say, show
    from nertool.labelling_sync import is_own

    with connect(settings_from(config, assignments, {})) as server:
        rows = [
            {"id": one.id, "title": one.title, "tasks": one.tasks, "url": server.project_url(one.id)}
            for one in server.projects()
            if is_own(one)
        ]
    if json:
        print_json(rows)
        return
    table = Table("title", "id", "tasks", "address", box=None, pad_edge=False)
    for row in rows:
        table.add_row(str(row["title"]), str(row["id"]), f"{row['tasks']:,}", str(row["url"]))
    if rows:
        show(table)
    else:
        say(f"nertool has no projects at {server.url}")


@ls_sync.command()
@command
def delete(
    project: ProjectName = None,
    force: Annotated[bool, typer.Option("--force", help="Delete people's work with it.")] = False,
    json: Json = False,
    config: Config = None,
    assignments: Set = None,
) -> None:
    """Delete a project of nertool's, named with --project, with all its tasks and predictions.

    One that holds people's work is only deleted with --force; pull it first.

    nertool ls-sync delete --project "Test split"
    """
    from nertool.console import print_json, say
    from nertool.errors import NertoolError
    from nertool.labelling_sync import existing_project

    if project is None:
        raise NertoolError("no project is named", "nertool ls-sync delete --project NAME")
    settings = settings_from(config, assignments, {"label_studio.project": project})
    with connect(settings) as server:
        found = existing_project(server, project)
        reviews, others = _read_reviews(server, found)
        touched = sum(one.status not in ("unchanged", "open") for one in reviews)
        if (touched or others) and not force:
            parts = [f"people's work on {touched:,} sections"] * bool(touched)
            parts += [f"{others:,} tasks that are not nertool's"] * bool(others)
            raise NertoolError(
                f"the project {project!r} holds {' and '.join(parts)}",
                f"get it first: nertool ls-sync pull OUT --project {project!r}; then --force deletes it all",
            )
        server.delete_project(found.id)
    if json:
        print_json({"deleted": found.id, "title": found.title, "sections": len(reviews)})
    else:
        say(f"deleted: {found.title} ({len(reviews):,} sections)")
