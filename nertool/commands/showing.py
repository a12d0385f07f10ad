"""What `train`, `evaluate` and `predict` do with `--ls-project`: show predictions, and never fail by it."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from heapq import nsmallest
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from nertool.documents import Document, Entity
    from nertool.labelling_tasks import Item
    from nertool.runs import Show
    from nertool.settings import Settings

# Where `evaluate` and `predict` keep what they could not send, in the working folder.
SPOOL = Path("label-studio-spool")

# A section to show, and what a model found in it.
Row = tuple["Item", tuple["Entity", ...]]


def check_showing(project: str, settings: "Settings") -> None:
    """Refuses beforehand what could never work; whether the server answers shows when it is needed.

    Raises:
        NertoolError: If the extra isn't installed, there is no token, or the name can't be a project's.
    """
    from nertool.errors import NertoolError
    from nertool.extras import require
    from nertool.labelling_tasks import check_title

    require("label_studio_sdk")  # without loading it, which takes most of a second
    check_title(project)
    if settings.label_studio.token is None:
        raise NertoolError("--ls-project needs a token", "set NERTOOL_LABEL_STUDIO__TOKEN")


def choose_rows(documents: Iterable[tuple["Document | None", "Document"]], count: int | None) -> list[Row]:
    """Returns a sample of sections, always the same ones of the same documents.

    Args:
        documents: The gold, if there is any, and the predicted document, one pair at a time.
        count: How many sections; None: all.
    """
    from nertool.labelling_tasks import numbered_items, sample_order

    def rows() -> Iterator[Row]:
        for gold, predicted in documents:
            for place, item in numbered_items(gold or predicted, has_gold=gold is not None):
                section = item.section if gold else replace(item.section, entities=())
                yield replace(item, section=section), predicted.sections[place].entities

    if count is None:
        return list(rows())
    return nsmallest(count, rows(), key=lambda row: sample_order(row[0].key))


@contextmanager
def showing_evaluations(
    run: Path, documents: Sequence["Document"], labels: Sequence[str], settings: "Settings", project: str | None
) -> Iterator["Show | None"]:
    """Gives what takes the predictions of each evaluation of a training, and sends them in the background.

    Args:
        run: The run's folder, which gets the spool.
        documents: The eval split.
        labels: The model's classes.
        settings: The settings.
        project: The Label Studio project; without one, None is given and nothing done.
    """
    if project is None:
        yield None
        return
    from nertool.console import say
    from nertool.labelling_spool import Spooled, Uploader, spool_files, write_spool
    from nertool.labelling_tasks import numbered_items
    from nertool.run_folder import SPOOL_FOLDER

    numbers: dict[str, int] = {}
    before = 0
    for document in documents:
        numbers |= {item.key: before + place for place, item in numbered_items(document, has_gold=True)}
        before += len(document.sections)
    rows = choose_rows(((document, document) for document in documents), settings.label_studio.sample)
    items = tuple(sorted((item for item, _ in rows), key=lambda item: numbers[item.key]))
    name = run.resolve().name

    with Uploader(run / SPOOL_FOLDER, settings.label_studio) as uploader:

        def show(step: int, predicted: Sequence[Sequence["Entity"]]) -> None:
            found = {item.key: tuple(predicted[numbers[item.key]]) for item in items}
            keep = settings.label_studio.keep_versions
            try:
                write_spool(uploader.folder, Spooled(project, f"{name}@{step}", tuple(labels), keep, items, found))
                for superseded in spool_files(uploader.folder)[: -keep if keep else 0]:
                    superseded.unlink(missing_ok=True)  # while no server is there, they must not fill the disk
            except Exception as error:  # noqa: BLE001 (whatever it is, it is no reason to end a training)
                say(f"warning: nothing to show in Label Studio for step {step:,}: {error}")
            uploader.start()

        yield show


def show_predictions(rows: Sequence[Row], model: Path, project: str, settings: "Settings") -> None:
    """Sends predictions at once; what can't be sent stays in a spool in the working folder, with a warning.

    Args:
        rows: What to show.
        model: The model's folder, after which the predictions are named.
        project: The Label Studio project.
        settings: The settings.
    """
    from nertool.commands.ls_push import run_push_spool
    from nertool.console import say
    from nertool.errors import NertoolError
    from nertool.labelling_spool import Spooled, write_spool

    items = tuple(item for item, _ in rows)
    predicted = {item.key: entities for item, entities in rows}
    keep = settings.label_studio.keep_versions
    try:
        file = write_spool(SPOOL, Spooled(project, _version(model), _labels(model), keep, items, predicted))
        run_push_spool(SPOOL, settings, only=file)
        with suppress(OSError):  # what an earlier command could not send is still in it
            SPOOL.rmdir()
    except (NertoolError, OSError) as error:
        say(
            f"warning: Label Studio doesn't get the predictions: {error}. "
            f"Send them later: nertool ls-sync push --from {SPOOL}"
        )


def _labels(model: Path) -> tuple[str, ...]:
    from nertool.artefacts import NERTOOL_FILE, read_facts
    from nertool.labels import LabelScheme

    is_model = (model / NERTOOL_FILE).is_file()  # or documents of somebody else
    return LabelScheme.from_json(read_facts(model)["scheme"]).labels if is_model else ()


def _version(model: Path) -> str:
    """Returns how a model's predictions are called, as during its training: RUN@STEP."""
    from nertool.artefacts import NERTOOL_FILE, read_facts

    folder = model.resolve()
    if not (folder / NERTOOL_FILE).is_file():
        return folder.name  # documents of somebody else
    name = folder.parent.name if folder.name == "model" else folder.name
    step = read_facts(model).get("step")
    return name if step is None else f"{name}@{step}"
