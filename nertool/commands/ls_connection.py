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
    check_extra()
    from nertool.label_studio import Server

    return Server(settings.label_studio)


def check_extra() -> None:
    """Makes sure that the SDK is installed, without loading it, which takes most of a second."""
    from importlib.util import find_spec

    from nertool.errors import NertoolError

    if find_spec("label_studio_sdk") is None:
        raise NertoolError("Label Studio's SDK is not installed", 'pip install "nertool[label-studio]"')
