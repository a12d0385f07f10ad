"""What `train` and `distill` share: one process that leads, and under torchrun others that follow."""

from collections.abc import Callable
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

# Tells the processes that follow what to do.
Tell = Callable[[dict[str, Any]], None]


def lead_or_follow(
    output: Path,
    settings: "Settings",
    lead: "Callable[[World, Tell], dict[str, Any]]",
    follow: "Callable[[World, dict[str, Any]], object]",
    *,
    resume: bool,
    force: bool,
    ls_project: str | None,
) -> dict[str, Any] | None:
    """Does this process's part of a run.

    Args:
        output: The run's folder; nobody else may work on it meanwhile.
        settings: The settings.
        lead: What the first process does, which is all but for the shared work where there are others; it tells them
            what to do, or that the run is `finished`.
        follow: What the others do, given what they were told.
        resume: Go on with an interrupted run.
        force: Remove an older run.
        ls_project: The Label Studio project in which evaluations are shown.

    Returns:
        What `lead` returns; None in all processes but the first.

    Raises:
        SystemExit: Where a process that follows has to stop; the first one says why.
    """
    from nertool.commands.showing import check_showing
    from nertool.distributed import join_world
    from nertool.files import exclusive
    from nertool.run_folder import check_run_folder

    with join_world() as world:
        if world.rank:
            _follow(world, follow)
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


def _follow(world: "World", follow: "Callable[[World, dict[str, Any]], object]") -> None:
    """Does as the first process tells, without a word."""
    from nertool.console import quiet
    from nertool.errors import InterruptedBySignalError

    with quiet():
        try:
            job: dict[str, Any] = world.share(None)
            if "failed" in job:
                raise SystemExit(2)
            if "finished" not in job:
                follow(world, job)
        except InterruptedBySignalError as error:
            raise SystemExit(128 + error.signal_number) from error


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


def data_facts(
    train: "tuple[Path, Scan]", evaluated: "tuple[Path, Scan]", cache: "WindowCache", settings: "Settings", command: str
) -> dict[str, Any]:
    """Returns what a model is to tell of its data and settings; names instead of paths, which are nobody's business.

    Args:
        train: Where the training documents are, and what a first pass over them told.
        evaluated: The same of the eval split.
        cache: The cache of the training documents.
        settings: The settings of the run.
        command: `train` or `distill`.
    """
    from nertool.files import last_part
    from nertool.model import shown_name
    from nertool.run_folder import changed_settings

    changed = changed_settings(settings, command)
    for part, key in (("model", "name"), ("distill", "student")):
        if changed.get(part, {}).get(key):
            changed[part][key] = shown_name(changed[part][key])
    losses = {key: cache.info["representation"][key] for key in ("entities", "kept", "losses", "ceiling_micro_f1")}
    (train_data, train_scan), (eval_data, eval_scan) = train, evaluated
    facts = {
        "train": train_scan.to_json(last_part(train_data)),
        "eval": eval_scan.to_json(last_part(eval_data)),
        "representation": losses,
        "settings": changed,
    }
    split = _split_facts(train, evaluated)
    return {**facts, "split": split} if split else facts


def _split_facts(train: "tuple[Path, Scan]", evaluated: "tuple[Path, Scan]") -> dict[str, Any] | None:
    """Returns what `nertool split` found out, if one of the two lies where it wrote and both hold what it wrote.

    That is told by the numbers of documents and of entities of each class, so that a cache of one side will do.
    """
    from nertool.files import MANIFEST_NAME, read_json
    from nertool.splitting import SplitFile

    for folder in (train[0].absolute().parent, evaluated[0].absolute().parent):
        manifest = folder / MANIFEST_NAME
        if not manifest.is_file() or read_json(manifest).get("command") != "split":
            continue
        report = read_json(folder / "split.json", SplitFile)
        documents = report["counts"]["documents"]
        entities = {label: facts["counts"] for label, facts in report["classes"].items()}
        if all(
            scanned.documents == documents[side]
            and all(entities.get(label, {}).get(side, 0) == number for label, number in scanned.labels.items())
            for side, (_, scanned) in (("train", train), ("eval", evaluated))
        ):
            groups = report["duplicate_groups"]
            return {
                "seed": report["seed"],
                "documents": documents,
                "equal_groups": sum(group["kind"] == "exact" for group in groups),
                "similar_groups": sum(group["kind"] == "near" for group in groups),
                "documents_in_groups": sum(len(group["ids"]) for group in groups),
                "unseen_mentions": {side: unseen["overall"] for side, unseen in report["unseen_mentions"].items()},
            }
    return None


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

    Raises:
        NertoolError: If the cache is damaged, or the documents have changed since that pass.
    """
    from functools import partial

    from nertool.cache_building import build_cache
    from nertool.console import progress
    from nertool.window_cache import check_content
    from nertool.workers import usable_cores

    cache = source.open_cache(tokenizer, scheme)
    if cache is None:
        with progress("tokenising", scanned.documents, "documents") as advance:
            cache = build_cache(
                place,
                partial(source.read_again, scanned),
                tokenizer,
                settings.windows,
                labels=settings.data.labels,
                begin=scheme.begin,
                workers=settings.data.workers or usable_cores(),
                scanned=scanned,
                on_documents=advance,
            )
    check_content(cache)
    return cache
