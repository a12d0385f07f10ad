"""The `nertool` command: registers the commands, nothing else."""

import gc
import os
import sys
from collections.abc import Callable
from typing import Annotated

import typer

from nertool import __version__
from nertool.commands import (
    annotate,
    audit,
    cache,
    convert,
    demo,
    distill,
    doctor,
    evaluate,
    export,
    ls_sync,
    predict,
    settings,
    split,
    train,
)
from nertool.commands.plain_help import PlainCommand, PlainGroup

app = typer.Typer(
    name="nertool",
    help="From texts annotated by an LLM to a small, fast, trustworthy biomedical NER model.",
    cls=PlainGroup,
    no_args_is_help=True,
    rich_markup_mode=None,  # plain help: it comes in half the time, and reads the same in a pipe
    pretty_exceptions_enable=False,  # its tracebacks show local variables, and so secrets
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _version(wanted: bool) -> None:
    if wanted:
        print(__version__)  # noqa: T201 (stdout is data, and this is it)
        raise typer.Exit


@app.callback()
def _main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """From texts annotated by an LLM to a small, fast, trustworthy biomedical NER model."""


# In the order of the work; `nertool --help` shows the sections.
_SECTIONS: dict[str, list[Callable[..., None]]] = {
    "Begin": [demo.demo, doctor.doctor, settings.settings],
    "Make documents": [annotate.annotate, convert.convert],
    "Train and score": [split.split, cache.cache, train.train, evaluate.evaluate],
    "Correct": [audit.audit],
    "Use": [distill.distill, export.export, predict.predict],
}
for _section, _functions in _SECTIONS.items():
    for _function in _functions:
        app.command(cls=PlainCommand, rich_help_panel=_section)(_function)
app.add_typer(ls_sync.ls_sync, rich_help_panel="Correct")


def main() -> None:
    """Runs the command line."""
    # These must be set before torch is imported. Threads that wait by spinning burn as much CPU as they compute with,
    # and far more on a machine that others use, too.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    if sys.platform == "darwin":
        # Lets operations that MPS lacks run on the CPU.
        os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")
    # Documents are trees without cycles, which the collector would walk through again and again: a fifth of the time of
    # reading them.
    gc.set_threshold(50_000, 20, 100)
    app(prog_name="nertool")  # of `python -m nertool`, too
