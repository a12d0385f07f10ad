"""Bringing a Label Studio project to the state that it should have.

Everything here looks first what is there, and sends what is missing: so it can be cut off at any moment, and run again.
People's work is never changed: where it stands in the way, that is reported.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from nertool.console import Advance, say
from nertool.documents import Entity
from nertool.errors import NertoolError
from nertool.label_studio import Patience, Server, TooLargeError, TroubleError
from nertool.labelling_config import TEXT
from nertool.labelling_projects import ready_project
from nertool.labelling_tasks import (
    ID_FIELD,
    META_KEY,
    Item,
    check_items,
    make_prediction,
    make_result,
    make_task,
    mentions,
    read_result,
    sent_entities,
    task_data,
    task_meta,
)
from nertool.reviews import has_peoples_work, meta_of

QUEUE_FIELD = "queue"
QUEUE_TAB = "Queue"
# Beyond so many wrong predictions of a version it is quicker to delete all of it.
_MOST_DELETED_ONE_BY_ONE = 100
# Each import of predictions costs the server seconds, however few they are, and more the more tasks there are.
_PREDICTIONS_PER_TASK = 10

Task = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Push:
    """What a project should have.

    Args:
        items: The sections, in the order in which new ones are made.
        predictions: Version → section → what the model found there. The last version is what people see first.
        labels: Classes to offer beside those that occur.
        queue: Keys of the sections to look at first, in order.
        keep_versions: How many versions of one run (`RUN@STEP`) stay; None: all.
    """

    items: Sequence[Item]
    predictions: Mapping[str, Mapping[str, tuple[Entity, ...]]] = field(default_factory=dict)
    labels: Iterable[str] = ()
    queue: Sequence[str] = ()
    keep_versions: int | None = None


@dataclass
class Pushed:
    """What a push did."""

    url: str = ""
    created: int = 0
    updated: int = 0
    unchanged: int = 0
    copies_removed: int = 0
    conflicts: list[dict[str, str]] = field(default_factory=list)
    predictions: dict[str, dict[str, int]] = field(default_factory=dict)
    versions_removed: list[str] = field(default_factory=list)


def push(server: Server, name: str, wanted: Push, advance: Advance) -> Pushed:
    """Brings a project to the state that `wanted` describes; makes it if there is none.

    Args:
        server: The server.
        name: The project's title, or `id:NUMBER`.
        wanted: What it should have.
        advance: Told how many sections and predictions are there.

    Raises:
        NertoolError: If something can't be sent, or the server is in trouble for too long.
    """
    pushed = Pushed()
    if problems := check_items(wanted.items):
        raise NertoolError("\n".join(problems), "take it out; browsers can't show it")
    labels = {*wanted.labels, *(entity.label for item in wanted.items for entity in item.section.entities)}
    labels |= {
        entity.label for version in wanted.predictions.values() for found in version.values() for entity in found
    }
    project = ready_project(server, name, labels)
    pushed.url = server.project_url(project.id)
    ranks = {key: f"{rank:05}" for rank, key in enumerate(wanted.queue, start=1)}
    tasks = _bring_tasks(server, project.id, wanted.items, ranks, advance, pushed)
    if ranks:
        _show_queue(server, project.id)
    texts = {item.key: item.section.text for item in wanted.items}
    for version, found in wanted.predictions.items():
        rows = {
            int(task["id"]): make_prediction(int(task["id"]), version, found[key], texts[key])
            for key, task in tasks.items()
            if key in found and task["data"][TEXT] == texts[key]
        }
        pushed.predictions[version] = _bring_predictions(server, project.id, version, rows, advance)
        server.update_project(project.id, model_version=version)  # so a version is shown first only when it is whole
    if wanted.keep_versions is not None:
        for version in wanted.predictions:
            pushed.versions_removed += _remove_old_versions(server, project.id, version, wanted.keep_versions)
    return pushed


def _bring_tasks(
    server: Server,
    project: int,
    items: Sequence[Item],
    ranks: Mapping[str, str],
    advance: Advance,
    pushed: Pushed,
) -> dict[str, Task]:
    """Imports the sections that are missing, and brings those that differ up to date; returns the tasks by section."""
    wanted = {item.key: item for item in items}
    tasks = _list_tasks(server, project, pushed)
    for key, item in wanted.items():
        if key in tasks and not _bring_task(server, project, tasks[key], item, pushed):
            del tasks[key]
    before = len(wanted.keys() & tasks.keys())
    tasks = _import_missing(server, project, wanted, tasks, ranks, advance, pushed)
    pushed.created = len(wanted.keys() & tasks.keys()) - before
    _bring_ranks(server, tasks, ranks)
    return {key: task for key, task in tasks.items() if key in wanted}


def _import_missing(
    server: Server,
    project: int,
    wanted: Mapping[str, Item],
    tasks: dict[str, Task],
    ranks: Mapping[str, str],
    advance: Advance,
    pushed: Pushed,
) -> dict[str, Task]:
    patience = Patience(server)
    in_doubt = False
    while missing := [item for key, item in wanted.items() if key not in tasks]:
        there = len(wanted) - len(missing)
        try:
            for sent in _send_all(
                server, missing, lambda item: _ranked(make_task(item), ranks), lambda item: item.key,
                lambda batch: server.import_tasks(project, batch), server.settings.tasks_per_request,
            ):  # fmt: skip
                advance(there + sent, "sections")
            trouble = None
        except TroubleError as error:
            trouble, in_doubt = error, True
        tasks = _list_tasks(server, project, pushed)
        if sum(key in tasks for key in wanted) > there:
            patience.progress()
        elif trouble is None:
            raise NertoolError("Label Studio took the sections, but they aren't there", "see the server's log")
        if trouble is not None:
            patience.wait(trouble)
            tasks = _list_tasks(server, project, pushed)
    if in_doubt:  # what was thought lost may have come in late, as a copy
        tasks = _list_tasks(server, project, pushed)
    return tasks


def _list_tasks(server: Server, project: int, pushed: Pushed) -> dict[str, Task]:
    """Returns nertool's tasks by section; removes copies that nobody has worked on."""
    copies: dict[str, list[Task]] = {}
    for task in server.tasks(project):
        if meta_of(task) is not None:
            copies.setdefault(task["data"][ID_FIELD], []).append(task)
    for key, some in copies.items():
        if len(some) > 1:
            with_work = [task for task in some if has_peoples_work(server.task(task["id"]))]
            copies[key] = with_work or some[:1]
            kept = {task["id"] for task in copies[key]}
            # At once: later, people may have begun to work on them.
            surplus = [int(task["id"]) for task in some if task["id"] not in kept]
            server.delete_tasks(project, surplus)
            pushed.copies_removed += len(surplus)
            if len(with_work) > 1:
                ids = ", ".join(str(task["id"]) for task in with_work)
                _note_conflict(pushed, key, f"people have worked on several copies of it (tasks {ids})")
    return {key: some[0] for key, some in copies.items()}


def _bring_task(server: Server, project: int, listed: Task, item: Item, pushed: Pushed) -> bool:
    """Brings a task up to date unless people have worked on it; returns whether it is still there.

    One whose text is another is deleted, right after the look at it, to be made anew.
    """
    meta, new = listed["meta"][META_KEY], task_meta(item)
    number, text = int(listed["id"]), item.section.text
    same_text = listed["data"][TEXT] == text
    if same_text and (meta == new or not item.has_gold):  # without gold, what is there stays
        pushed.unchanged += 1
        return True
    whole = server.task(number)
    desired = mentions(item.section.entities)
    if has_peoples_work(whole, also_ours=[desired] if same_text else []):
        sent = sent_entities(meta, text)
        said = {mentions(read_result(one.get("result"), text)[0]) for one in whole.get("annotations", [])}
        if same_text and (said == {desired} or (sent is not None and mentions(sent) == desired)):
            pushed.unchanged += 1  # nothing that would have to be told to people
        else:
            what = "entities" if same_text else "text"
            _note_conflict(pushed, item.key, f"its {what} changed, but people have worked on it: left as it is")
        return True
    pushed.updated += 1
    if not same_text:
        server.delete_tasks(project, [number])
        return False
    result = make_result(item.section.entities, text)
    data = {**listed["data"], **task_data(item)}
    if meta.get("gold") is None:
        _create_annotation(server, number, result)
    else:
        # First what is going to be sent, beside what was: whoever looks in between knows that both are ours.
        announced = {**new, "gold_before": meta.get("gold_before", meta["gold"])}
        server.update_task(number, meta={**listed["meta"], META_KEY: announced})
        annotation = whole["annotations"][0]
        if mentions(read_result(annotation.get("result"), text)[0]) != desired:
            server.update_annotation(int(annotation["id"]), result)
    server.update_task(number, meta={**listed["meta"], META_KEY: new}, data=data)
    return True


def _create_annotation(server: Server, task: int, result: Sequence[Mapping[str, Any]]) -> None:
    """Adds the gold to a task that has no annotation yet."""
    patience = Patience(server)
    while not server.task(task)["annotations"]:
        try:
            server.create_annotation(task, result)
        except TroubleError as trouble:
            patience.wait(trouble)


def _bring_ranks(server: Server, tasks: Mapping[str, Task], ranks: Mapping[str, str]) -> None:
    """Notes in the tasks which come first; only a push with a queue changes that."""
    if not ranks:
        return
    for key, task in tasks.items():
        if task["data"].get(QUEUE_FIELD) != ranks.get(key):
            data = {name: value for name, value in task["data"].items() if name != QUEUE_FIELD}
            server.update_task(int(task["id"]), data=data | ({QUEUE_FIELD: ranks[key]} if key in ranks else {}))


def _ranked(task: dict[str, Any], ranks: Mapping[str, str]) -> dict[str, Any]:
    rank = ranks.get(task["data"][ID_FIELD])
    return {**task, "data": {**task["data"], QUEUE_FIELD: rank}} if rank else task


def _show_queue(server: Server, project: int) -> None:
    """Makes the tab that shows the queue in its order."""
    data = {
        "title": QUEUE_TAB, "type": "list", "target": "tasks", "ordering": [f"tasks:data.{QUEUE_FIELD}"],
        "filters": {
            "conjunction": "and",
            "items": [
                {"filter": f"filter:tasks:data.{QUEUE_FIELD}", "operator": "empty", "type": "String", "value": False}
            ],
        },
    }  # fmt: skip
    if not any(tab["data"].get("title") == QUEUE_TAB for tab in server.tabs(project)):
        server.add_tab(project, data)


def _bring_predictions(
    server: Server, project: int, version: str, rows: Mapping[int, Mapping[str, Any]], advance: Advance
) -> dict[str, int]:
    """Makes sure that a version has just these predictions for these tasks; returns what it took."""
    patience = Patience(server)
    there = _right_predictions(server, project, version, rows) if server.versions(project).get(version) else set()
    counts = {"sent": len(rows) - len(there), "unchanged": len(there)}
    while missing := [row for task, row in rows.items() if task not in there]:
        before = len(there)
        try:
            for sent in _send_all(
                server, missing, lambda row: row, lambda row: f"the prediction of task {row['task']}",
                lambda batch: server.import_predictions(project, batch),
                server.settings.tasks_per_request * _PREDICTIONS_PER_TASK,
            ):  # fmt: skip
                advance(before + sent, f"predictions of {version}")
            if server.versions(project).get(version) == len(rows):
                return counts
            trouble = TroubleError(f"not all predictions of {version} are there")
        except TroubleError as error:
            trouble = error
        there = _right_predictions(server, project, version, rows)
        if len(there) > before:
            patience.progress()
        if len(there) < len(rows):
            patience.wait(trouble)
            there = _right_predictions(server, project, version, rows)
    return counts


def _right_predictions(server: Server, project: int, version: str, rows: Mapping[int, Mapping[str, Any]]) -> set[int]:
    """Returns the tasks whose prediction of a version is there and right, after deleting wrong ones and copies.

    Predictions for other tasks than these stay.
    """
    right: set[int] = set()
    wrong: list[int] = []
    others = 0
    for prediction in server.predictions(project):
        task = prediction.get("task")
        if prediction.get("model_version") != version or task is None:
            continue
        if task not in rows:
            others += 1
        elif task in right or prediction.get("result") != rows[task]["result"]:
            wrong.append(int(prediction["id"]))
        else:
            right.add(task)
    if len(wrong) > _MOST_DELETED_ONE_BY_ONE and not others:
        server.delete_version(project, version)
        return set()
    server.delete_predictions(wrong)
    return right


def _remove_old_versions(server: Server, project: int, version: str, keep: int) -> list[str]:
    """Deletes the oldest versions of the same run before this one, so that `keep` stay; none without a step."""
    run, _, step = version.rpartition("@")
    if not run or not step.isdigit():
        return []
    others = (other.rpartition("@") for other in server.versions(project))
    earlier = sorted(
        int(number) for name, _, number in others if name == run and number.isdigit() and int(number) < int(step)
    )
    old = [f"{run}@{number}" for number in earlier[: max(0, len(earlier) - keep + 1)]]
    for one in old:
        server.delete_version(project, one)
    return old


def _send_all(
    server: Server,
    rows: Sequence[Any],
    make: Callable[[Any], Mapping[str, Any]],
    name: Callable[[Any], str],
    send: Callable[[Sequence[Mapping[str, Any]]], None],
    most_rows: int,
) -> Iterator[int]:
    """Sends rows in requests that are neither too many rows nor too many bytes; yields how many are sent.

    Raises:
        NertoolError: If a single row is too large.
        TroubleError: If the server is in trouble; the rows before may be there.
    """
    most_bytes = server.settings.bytes_per_request
    position = 0
    while position < len(rows):
        batch: list[Mapping[str, Any]] = []
        size = 0
        for row in rows[position : position + most_rows]:
            made = make(row)
            bytes_of_row = len(orjson.dumps(made))
            if batch and size + bytes_of_row > most_bytes:
                break
            batch.append(made)
            size += bytes_of_row
        try:
            send(batch)
        except TooLargeError:
            if len(batch) == 1:
                raise NertoolError(
                    f"{name(rows[position])} is too large for the server: {size:,} bytes",
                    "raise the limit of the server or of the proxy before it, or leave the section out",
                ) from None
            most_bytes = size // 2
            say(f"the server takes no {size:,} bytes at once; trying {most_bytes:,}")
            continue
        position += len(batch)
        yield position


def _note_conflict(pushed: Pushed, key: str, reason: str) -> None:
    conflict = {"section": key, "reason": reason}
    if conflict not in pushed.conflicts:
        pushed.conflicts.append(conflict)
