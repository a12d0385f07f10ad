"""Finding and making nertool's projects in Label Studio, where titles are not unique and other people's stand beside.

A project is nertool's by a mark in its description.
"""

from collections.abc import Iterable

from nertool.console import counted, say
from nertool.errors import NertoolError, nearest_name
from nertool.label_studio import Patience, Project, Server, TroubleError
from nertool.labelling_config import config_labels, extend_config, make_config
from nertool.labelling_tasks import BY_ID, check_title

MARK = "[nertool]"
DESCRIPTION = f"Documents from nertool ls-sync; it finds this project by this mark: {MARK}"


def find_project(server: Server, name: str) -> Project | None:
    """Returns nertool's project of a title, or the one of `id:NUMBER`; None if there is none.

    Raises:
        NertoolError: If there are several, or the one of that name isn't nertool's.
    """
    everything, name = server.projects(), name.strip()  # the server strips titles, too
    if name.startswith(BY_ID):
        found = [project for project in everything if str(project.id) == name.removeprefix(BY_ID)]
    else:
        found = [project for project in everything if project.title == name]
    own = [project for project in found if is_own(project)]
    if len(own) > 1:
        which = " or ".join(f"{BY_ID}{project.id} ({counted(project.tasks, 'task')})" for project in own)
        raise NertoolError(
            f"there are {len(own)} projects called {name!r} in Label Studio", f"say which one: --project {which}"
        )
    if found and not own:
        raise NertoolError(
            f"the project {name!r} in Label Studio was not made by nertool",
            f"choose another name, or put {MARK} into the project's description if nertool may work in it",
        )
    return own[0] if own else None


def existing_project(server: Server, name: str) -> Project:
    """Returns a project that must be there.

    Raises:
        NertoolError: If it isn't, with the nearest name; or as `find_project` does.
    """
    project = find_project(server, name)
    if project is None:
        titles = [one.title for one in server.projects() if is_own(one)]
        known = (
            f"nertool's projects there: {', '.join(sorted(titles)[:10])}" if titles else "nertool has none there yet"
        )
        raise NertoolError(f"there is no project {name!r} in Label Studio{nearest_name(name, titles)}", known)
    return project


def is_own(project: Project) -> bool:
    """Tells whether nertool made a project, or was told that it may work in it."""
    return MARK in project.description


def ready_project(server: Server, name: str, labels: Iterable[str]) -> Project:
    """Finds or makes the project, with all classes in its configuration."""
    check_title(name)
    labels = set(labels)
    patience = Patience(server)
    while (project := find_project(server, name)) is None:
        if name.startswith(BY_ID):
            raise NertoolError(f"there is no project {name} in Label Studio")
        if not labels:
            raise NertoolError(
                "there are no classes for people to mark: neither documents nor predictions have entities",
                """name them: --set 'data.labels=["gene", "drug"]'""",
            )
        try:
            project = server.create_project(name.strip(), DESCRIPTION, make_config(labels))
            say(f"made the project {name!r}")
            return project
        except TroubleError as trouble:
            patience.wait(trouble)
    config = extend_config(project.config, labels)
    if config != project.config:
        new = ", ".join(sorted(set(labels) - set(config_labels(project.config))))
        server.update_project(project.id, label_config=config)
        say(f"classes added to the project: {new}")
    return project
