"""Options that several commands share, and what they do about errors."""

import errno
import functools
import signal
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any, ParamSpec

import typer

from nertool.commands.plain_help import COMMON
from nertool.errors import InterruptedBySignalError, NertoolError

if TYPE_CHECKING:
    from nertool.settings import Settings

Parameters = ParamSpec("Parameters")


def _setting_names(incomplete: str) -> list[str]:
    """Returns how a shell may complete a `--set`."""
    from nertool.settings import Settings

    names = (f"{section}.{name}=" for section, part in Settings() for name, _ in part)
    return [name for name in names if name.startswith(incomplete)]


Config = Annotated[
    Path | None,
    typer.Option(
        "--config",
        metavar="FILE",
        help="Settings file (TOML); else nertool.toml, if it is here.",
        rich_help_panel=COMMON,
    ),
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="SECTION.NAME=VALUE",
        help="Any setting; may be given several times.",
        rich_help_panel=COMMON,
        autocompletion=_setting_names,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document on stdout.", rich_help_panel=COMMON)]
Force = Annotated[bool, typer.Option("--force", help="Replace an older output of nertool's.", rich_help_panel=COMMON)]
SkipInvalid = Annotated[
    bool | None,
    typer.Option("--skip-invalid", help="Set invalid documents aside in rejected.jsonl.", rich_help_panel=COMMON),
]
ShardOption = Annotated[
    str | None, typer.Option("--shard", metavar="I/N", help="Only part I of N; OUT becomes a folder of the parts.")
]
Model = Annotated[
    str | None, typer.Option("--model", help="Backbone: a hub name, a folder, or `minilm`.", show_default=False)
]
Device = Annotated[str | None, typer.Option("--device", help="auto, cpu, cuda, cuda:1 or mps.", show_default=False)]
LsProject = Annotated[
    str | None,
    typer.Option(
        "--ls-project", metavar="NAME", help="Show predictions beside the gold in this Label Studio project, too."
    ),
]

# What the operating system says when the fault is the place or the disk, not ours.
_PLACE_ERRORS = {
    errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR, errno.EISDIR,
    errno.ENAMETOOLONG, errno.EIO, errno.EMFILE, errno.ENOTEMPTY, errno.EEXIST, errno.ELOOP, errno.EFBIG,
}  # fmt: skip


def command(function: Callable[Parameters, None]) -> Callable[Parameters, None]:
    """Makes a Typer function end as users expect: one readable message and exit status 2, or 128 + the signal."""

    @functools.wraps(function)
    def wrapped(*args: Parameters.args, **kwargs: Parameters.kwargs) -> None:
        signal.signal(signal.SIGTERM, _terminate)
        if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # nohup ignores it
            signal.signal(signal.SIGHUP, _terminate)
        try:
            function(*args, **kwargs)
        except NertoolError as error:
            _print_error(error.message, error.hint)
            raise typer.Exit(2) from error
        except OSError as error:
            if error.errno not in _PLACE_ERRORS:
                raise
            where = f"{error.filename}: " if error.filename else ""
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            _print_error(
                f"{where}{error.strerror or error}",
                "free some space, then the same command again (train: with --resume)" if full else None,
            )
            raise typer.Exit(2) from error
        except RuntimeError as error:
            if not _is_out_of_memory(error):
                raise
            _print_error(
                f"the device is out of memory: {str(error).splitlines()[0]}",
                "lower train.tokens_per_batch and raise train.accumulate_batches; or predict.tokens_per_batch",
            )
            raise typer.Exit(2) from error
        except InterruptedBySignalError as error:
            _print_error(f"interrupted: {error.saved}", None)
            raise typer.Exit(128 + error.signal_number) from error
        except KeyboardInterrupt as error:
            _print_error("interrupted: the same command goes on or starts again (train: with --resume)", None)
            raise typer.Exit(128 + signal.SIGINT) from error

    return wrapped


def _is_out_of_memory(error: RuntimeError) -> bool:
    """Knows torch's error by its name, as importing torch would take seconds; on Apple's GPUs by its text only."""
    return type(error).__name__ == "OutOfMemoryError" or str(error).startswith("MPS backend out of memory")


def _terminate(number: int, _frame: FrameType | None) -> None:
    raise InterruptedBySignalError(number, "the same command goes on or starts again (train: with --resume)")


def _print_error(message: str, hint: str | None) -> None:
    from nertool.console import say, say_beside

    say_beside("Error:", "bold red", message)
    if hint:
        say(f"  → {hint}")


def settings_from(config: Path | None, assignments: list[str] | None, options: dict[str, Any]) -> "Settings":
    """Resolves the settings from what the command line says."""
    from nertool.settings import load_settings

    return load_settings(config, assignments or [], options)
