"""`nertool ls-sync pull`: documents as people left them, and what they did."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nertool.commands.ls_connection import ProjectName, connect
from nertool.commands.options import Config, Force, Json, Set, command, settings_from

if TYPE_CHECKING:
    from nertool.label_studio import Project, Server
    from nertool.reviews import Review
    from nertool.settings import Settings


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
    from nertool.console import counted, print_json, say

    settings = settings_from(config, assignments, {"label_studio.project": project})
    result = run_pull(output, settings, only_reviewed=reviewed, force=force)
    if json:
        print_json(result)
    else:
        show_reviews(result)
        entities = counted(result["entities"], "entity", "entities")
        say(f"{counted(result['documents'], 'document')} with {entities} written to {output}")


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
    from nertool.labelling_projects import existing_project
    from nertool.provenance import REVIEWED
    from nertool.reviews import describe, reviewed_documents

    check_output(output, force=force, as_file=is_document_file(output))
    with connect(settings) as server:
        reviews, others = read_project(server, existing_project(server, settings.label_studio.project))
    documents = reviewed_documents(reviews, only_reviewed=only_reviewed)
    if not documents:
        what = "no section that people have reviewed" if only_reviewed and reviews else "no sections of nertool's"
        raise NertoolError(f"the project {settings.label_studio.project!r} has {what}")
    summary = {
        **summarise(reviews, others),
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


def read_project(server: "Server", project: "Project") -> "tuple[list[Review], int]":
    """Returns what became of all sections, and how many tasks are not nertool's."""
    from nertool.console import progress
    from nertool.reviews import meta_of, read_reviews

    users = server.users()
    with progress("exporting", project.tasks, "tasks"):
        tasks = server.export(project.id)
    return read_reviews(tasks, users), sum(meta_of(task) is None for task in tasks)


def summarise(reviews: "list[Review]", others: int) -> dict[str, Any]:
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
    from nertool.console import counted, number_table, say, show
    from nertool.reviews import MEANINGS

    table = number_table("status", numbers=["sections"], last="")
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
        passed_over = counted(
            result["other_tasks"], "task is not nertool's and was", "tasks are not nertool's and were"
        )
        say(f"note: {passed_over} passed over")
