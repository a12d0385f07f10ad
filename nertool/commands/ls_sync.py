"""`nertool ls-sync`: documents and predictions in Label Studio, and people's corrections back."""

from typing import Annotated

import typer

from nertool.commands.ls_connection import ProjectName, connect
from nertool.commands.ls_pull import pull, read_project, show_reviews, summarise
from nertool.commands.ls_push import push
from nertool.commands.options import Config, Json, Set, command, settings_from
from nertool.commands.plain_help import PlainCommand, PlainGroup

ls_sync = typer.Typer(
    name="ls-sync",
    help="Look at documents and predictions in Label Studio, correct them there, and get the corrections back.",
    cls=PlainGroup,
    no_args_is_help=True,
    rich_markup_mode=None,
)
ls_sync.command(cls=PlainCommand)(push)
ls_sync.command(cls=PlainCommand)(pull)


@ls_sync.command(cls=PlainCommand)
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
    from nertool.labelling_projects import existing_project

    settings = settings_from(config, assignments, {"label_studio.project": project})
    with connect(settings) as server:
        found = existing_project(server, settings.label_studio.project)
        result = {
            "id": found.id, "title": found.title, "url": server.project_url(found.id),
            **summarise(*read_project(server, found)),
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


@ls_sync.command("list", cls=PlainCommand)
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
    from nertool.labelling_projects import is_own

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


@ls_sync.command(cls=PlainCommand)
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
    from nertool.labelling_projects import existing_project

    if project is None:
        raise NertoolError("no project is named", "nertool ls-sync delete --project NAME")
    settings = settings_from(config, assignments, {"label_studio.project": project})
    with connect(settings) as server:
        found = existing_project(server, project)
        reviews, others = read_project(server, found)
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
