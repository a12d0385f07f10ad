"""What the commands of `ls-sync` share: the option that names a project, and the connection."""

from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from nertool.label_studio import Server
    from nertool.settings import Settings

ProjectName = Annotated[
    str | None,
    typer.Option("--project", metavar="NAME", help="The project's title, or id:NUMBER.", show_default=False),
]


def connect(settings: "Settings") -> "Server":
    """Connects to the server.

    Raises:
        NertoolError: If the extra isn't installed, or the server can't be reached.
    """
    from nertool.extras import require

    require("label_studio_sdk")
    from nertool.label_studio import Server

    return Server(settings.label_studio)
