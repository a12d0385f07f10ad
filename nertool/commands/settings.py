"""`nertool settings`: the settings that hold, and a file to begin with."""

from pathlib import Path
from typing import Annotated

import typer

from nertool.commands.options import Config, Force, Json, Set, command


def _sections(incomplete: str) -> list[str]:
    """Returns how a shell may complete the name of a section."""
    from nertool.settings import Settings

    return [name for name in Settings.model_fields if name.startswith(incomplete)]


@command
def settings(
    section: Annotated[
        str | None,
        typer.Argument(metavar="SECTION", help="Only this section, as `train`.", autocompletion=_sections),
    ] = None,
    show: Annotated[
        bool,
        typer.Option(
            "--show/--init",
            help="Show the settings that hold here; or write a file with all of them, their meanings and defaults: "
            "nertool.toml, or the one that --config names.",
            show_default=False,
        ),
    ] = True,
    force: Force = False,
    json: Json = False,
    config: Config = None,
    assignments: Set = None,
) -> None:
    """Show the settings that hold, and where each of them comes from; or begin a file of them.

    They are shown as TOML on stdout. Of keys and tokens it is shown whether they are set.

    nertool settings train

    nertool settings --init
    """
    if show:
        show_settings(section, config, assignments or [], as_json=json)
    else:
        init_settings(section, config, assignments or [], force=force, as_json=json)


def show_settings(section: str | None, config: Path | None, assignments: list[str], *, as_json: bool) -> None:
    """Prints the resolved settings and their origins."""
    from nertool.console import print_json, print_text
    from nertool.settings import trace_settings
    from nertool.settings_file import trace, traced_as_toml

    traced = trace(*trace_settings(config, assignments), section)
    if as_json:
        print_json(traced)
    else:
        print_text(traced_as_toml(traced))


def init_settings(
    section: str | None, config: Path | None, assignments: list[str], *, force: bool, as_json: bool
) -> None:
    """Writes a settings file in which all is commented out.

    Raises:
        NertoolError: If it is there already.
    """
    from nertool.console import print_json, say
    from nertool.errors import NertoolError
    from nertool.files import check_output, write_atomic
    from nertool.settings import CONFIG_FILE
    from nertool.settings_file import template

    if assignments:
        raise NertoolError("--init writes the defaults, so --set makes no sense with it", "change the file afterwards")
    path = config or Path(CONFIG_FILE)
    text = template(section)
    check_output(path, force=force, as_file=True)
    write_atomic(path, text.encode())
    if as_json:
        print_json({"output": str(path)})
    else:
        say(f"settings: {path}, with everything commented out; nertool settings shows what holds")
