"""What `train` and `distill` share: one process that leads, and under torchrun others that follow."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nertool.cache_building import Scan
    from nertool.distributed import World
    from nertool.documents import Document
    from nertool.labels import LabelScheme
    from nertool.settings import Settings
    from nertool.sources import Source
    from nertool.window_cache import WindowCache
    from nertool.windows import SectionTokenizer

# Tells the processes that follow what to do; see `may_stop`.
Tell = Callable[[dict[str, Any]], None]


def lead_or_follow(
    output: Path,
    settings: "Settings",
    lead: "Callable[[World, Tell], dict[str, Any]]",
    follow: "Callable[[World], None]",
    *,
    resume: bool,
    force: bool,
    ls_project: str | None,
) -> dict[str, Any] | None:
    """Does this process's part of a run.

    Args:
        output: The run's folder; nobody else may work on it meanwhile.
        settings: The settings.
        lead: What the first process does, which is all but for the shared work where there are others.
        follow: What the others do.
        resume: Go on with an interrupted run.
        force: Remove an older run.
        ls_project: The Label Studio project in which evaluations are shown.

    Returns:
        What `lead` returns; None in all processes but the first.
    """
    from nertool.commands.showing import check_showing
    from nertool.console import quiet
    from nertool.distributed import join_world
    from nertool.files import exclusive
    from nertool.run_folder import check_run_folder

    with join_world() as world:
        if world.rank:
            with quiet():
                follow(world)
            return None
        told = False

        def tell(job: dict[str, Any]) -> None:
            nonlocal told
            told = True
            world.share(job)

        try:
            if ls_project is not None:
                check_showing(ls_project, settings)
            check_run_folder(output, resume=resume, force=force)  # its message on a bad place is better than the lock's
            with exclusive(output):
                return lead(world, tell)
        except BaseException:
            if not told:
                tell({"failed": True})
            raise


def may_stop(job: dict[str, Any]) -> bool:
    """Says whether there is nothing to do for a process that follows.

    Raises:
        SystemExit: If the first process failed, which says why.
    """
    if "failed" in job:
        raise SystemExit(2)
    return "finished" in job


def read_eval(path: Path, settings: "Settings", job: dict[str, Any]) -> "list[Document]":
    """Reads the eval split in a process that follows.

    Raises:
        NertoolError: If it isn't the one that the first process read.
    """
    from nertool.cache_building import scan
    from nertool.errors import NertoolError
    from nertool.formats import ReadReport
    from nertool.sources import Source

    documents = Source(path, settings, ReadReport()).read_all()
    if scan(documents).digest != job["eval"]:
        raise NertoolError(f"{path} holds other documents here than for the first process", "use one file system")
    return documents


@contextmanager
def silent_interrupts() -> Iterator[None]:
    """Ends a process that follows without a word when a signal came in: the first one says so."""
    from nertool.errors import InterruptedBySignalError

    try:
        yield
    except InterruptedBySignalError as error:
        raise SystemExit(128 + error.signal_number) from error


def training_cache(
    source: "Source",
    scanned: "Scan",
    place: Path,
    tokenizer: "SectionTokenizer",
    scheme: "LabelScheme",
    settings: "Settings",
) -> "WindowCache":
    """Opens the cache that a source is, or builds one of its documents.

    Args:
        source: Documents, or a cache.
        scanned: What a first pass over them told.
        place: Where to build it.
        tokenizer: The model's tokenizer.
        scheme: The model's classes.
        settings: The settings.
    """
    from nertool.cache_building import build_cache
    from nertool.console import progress
    from nertool.workers import usable_cores

    cache = source.open_cache(tokenizer, scheme)
    if cache is None:
        with progress("tokenising", scanned.documents, "documents") as advance:
            cache = build_cache(
                place,
                source.read_again,
                tokenizer,
                settings.windows,
                labels=settings.data.labels,
                begin=scheme.begin,
                workers=settings.data.workers or usable_cores(),
                on_documents=advance,
            )
    return cache
