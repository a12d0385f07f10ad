"""Label Studio's own JSON: a list of tasks, as it imports it and as it exports it ("JSON", and "JSON-MIN").

Tasks that nertool made are read as `ls-sync pull` reads them from a server. Of other people's each task is a document.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import orjson

from nertool.document_parsing import InvalidDocumentError, Problem, load_json
from nertool.documents import Document, Entity, Section, content_digest, dump_document
from nertool.formats.base import NONFINITE, RELATIONS, Record
from nertool.formats.building import ascii_json
from nertool.formats.kazu import parse_record
from nertool.labelling_config import JOIN_RELATION, TEXT
from nertool.labelling_tasks import (
    ID_FIELD,
    META_KEY,
    NAMESPACE,
    Item,
    is_region,
    make_task,
    pack_entity,
    read_result,
    same_text,
    section_numbers,
)
from nertool.reviews import Review, meta_of, read_reviews, reviewed_documents

Task = dict[str, Any]
# What JSON-MIN says of an annotation, beside the task's data.
_MIN_KEYS = {"id", "annotator", "annotation_id", "created_at", "updated_at", "lead_time", "agreement"}
BESIDE = "annotations beside the one that was used"
CANCELLED = "annotations that people skipped or cancelled"
COPIES = "copies of a section, read as one"
DISAGREEMENT = "sections on which people disagree, read as they were before"
DRAFTS = "drafts, which people have not saved"
LOOSE = "relations that join no parts of one entity"
OTHER_KINDS = "answers of people that are no labels of a text"
PREDICTIONS = "predictions that were not used"
REMARKS = "remarks of people on entities"


class _Place(NamedTuple):
    """A task and where it is in the list, from 0."""

    number: int
    task: Any


def read_label_studio(file: Path) -> Iterator[Record]:
    """Reads the tasks of a file, all of them at once; documents come in the order of their first tasks."""
    data = file.read_bytes()
    try:
        tasks, nonfinite = load_json(data)
    except InvalidDocumentError as error:
        yield Record(str(file), None, tuple(error.problems), data)
        return
    if not isinstance(tasks, list):
        yield Record(str(file), None, (Problem("", "an export of Label Studio must be a JSON list of tasks"),), data)
        return
    notes = Counter({NONFINITE: nonfinite})
    groups: dict[object, list[_Place]] = {}
    for number, task in enumerate(tasks):
        groups.setdefault(_document_of(number, task), []).append(_Place(number, task))
    fields = _text_fields(place.task for places in groups.values() for place in places)
    for places in groups.values():
        record = _read_document(file, places, fields, notes)
        yield record._replace(notes=dict(+notes))
        notes = Counter()


def _document_of(number: int, task: Any) -> object:
    """Returns what tasks of one document have in common."""
    if not isinstance(task, dict):
        return number
    if (meta := meta_of(task)) is not None:
        return "nertool", meta["document"]
    return ("JSON-MIN", name) if "data" not in task and (name := _plain(task.get("id"))) else number


def _read_document(file: Path, places: list[_Place], fields: Mapping[str, str], notes: Counter[str]) -> Record:
    place = f"{file}[{places[0].number}]"
    tasks = [task for _, task in places]
    problems: list[Problem] = []
    document = None
    try:
        if not isinstance(tasks[0], dict):
            problems.append(Problem("", "a task must be a JSON object"))
        elif meta_of(tasks[0]) is not None:
            document = _own_document(places, problems, notes)
        else:
            task = tasks[0] if "data" in tasks[0] else _from_json_min(tasks)
            document = _foreign_document(task, fields, problems, notes)
        data = b"" if document is None else dump_document(document)
    except (AttributeError, IndexError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        # Anything may be in a file.
        problems.append(Problem("", f"can't be read as a task of Label Studio: {type(error).__name__}: {error}"))
    if not problems:
        record = parse_record(place, data)  # which checks all that a document must be
        if record.document is not None:
            return record
        problems.extend(record.problems)
    return Record(place, None, tuple(problems), ascii_json(tasks))


# Tasks of nertool's


def _own_document(places: list[_Place], problems: list[Problem], notes: Counter[str]) -> Document:
    """Returns the document as it was written, if nobody has done anything since, else as `ls-sync pull` gives it."""
    reviews = [_with_prediction(review, places, notes) for review in read_reviews([task for _, task in places], {})]
    notes[COPIES] += len(places) - len(reviews)
    troubled = any(review.problems for review in reviews)
    first: dict[str, _Place] = {}
    for number, task in places:
        same = first.setdefault(task["data"][ID_FIELD], _Place(number, task))
        if same.task["data"][TEXT] != task["data"][TEXT]:
            reason = f"has another text than {_name(*same)}, which is the same section"
            problems.append(Problem(_name(number, task), reason))
        notes[DRAFTS] += len(task.get("drafts") or ())
        for annotation in task.get("annotations") or ():
            if annotation.get("was_cancelled"):
                notes[CANCELLED] += 1
            elif troubled:
                _, misplaced, loose = _read(annotation.get("result"), task["data"][TEXT])
                problems.extend(Problem(_name(number, task), problem) for problem in misplaced)
                notes[LOOSE] += loose
    notes[DISAGREEMENT] += sum(review.status == "conflict" for review in reviews)
    document = Document(reviews[0].document, tuple(review.section for review in reviews), reviews[-1].extra)
    untouched = all(review.status in ("unchanged", "open") for review in reviews)
    if untouched and section_numbers(document) == [review.index for review in reviews]:
        return document
    return reviewed_documents(reviews, only_reviewed=False)[0]


def _with_prediction(review: Review, places: list[_Place], notes: Counter[str]) -> Review:
    """Takes the entities of a prediction where there is no annotation."""
    of_it = [task for _, task in places if task["meta"][META_KEY]["index"] == review.index]
    prediction = _best([one for task in of_it for one in task.get("predictions") or ()], notes, PREDICTIONS)
    if prediction is None:
        return review
    if review.status != "open" or review.sent is not None:
        notes[PREDICTIONS] += 1
        return review
    entities, _, _ = _read(prediction.get("result"), review.section.text)
    return replace(review, section=replace(review.section, entities=_predicted(entities, prediction)))


# Tasks of others


def _foreign_document(
    task: Task, fields: Mapping[str, str], problems: list[Problem], notes: Counter[str]
) -> Document | None:
    """Returns a document with a section for each text that the task shows."""
    said, is_prediction = _chosen(task, notes)
    by_field: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    joins = []
    for raw in said.get("result") or ():
        if is_region(raw):
            by_field[fields[_plain(raw.get("to_name"))]].append(raw)
            notes[REMARKS] += bool(raw.get("meta"))
        elif raw.get("type") == "relation" and JOIN_RELATION in (raw.get("labels") or ()):
            joins.append(raw)
        else:
            notes[RELATIONS if raw.get("type") == "relation" else OTHER_KINDS] += 1
    data = task["data"]
    texts = {field: data[field] for field in dict.fromkeys(fields.values()) if isinstance(data.get(field), str)}
    problems.extend(Problem(f"data.{field}", "is missing, or no text") for field in by_field if field not in texts)
    if not texts:
        problems.append(Problem("data", "has no text"))
    sections = []
    for field, text in texts.items():
        of_it = {raw.get("id") for raw in by_field[field]}
        relations = [raw for raw in joins if raw.get("from_id") in of_it]
        entities, misplaced, loose = _read([*by_field[field], *relations], text)
        problems.extend(Problem(f"data.{field}", problem) for problem in misplaced)
        notes[LOOSE] += loose
        sections.append(Section(field, text, _predicted(entities, said) if is_prediction else entities))
    others = {name: value for name, value in data.items() if name not in texts}
    metadata = {**(task.get("meta") or {}), **others}
    document = Document("", tuple(sections), {"metadata": metadata} if metadata else {})
    identifier = task.get("id")
    return replace(document, id=content_digest(document)[:32] if identifier is None else str(identifier))


def _chosen(task: Task, notes: Counter[str]) -> tuple[Mapping[str, Any], bool]:
    """Returns the annotation that counts, or else the prediction, and which of them it is."""
    annotations = task.get("annotations") or []
    kept = [annotation for annotation in annotations if not annotation.get("was_cancelled")]
    notes[CANCELLED] += len(annotations) - len(kept)
    notes[DRAFTS] += len(task.get("drafts") or ())
    annotation = _best(kept, notes, BESIDE)
    prediction = _best(task.get("predictions") or (), notes, PREDICTIONS)
    if annotation is not None:
        notes[PREDICTIONS] += prediction is not None
        return annotation, False
    return prediction or {}, True


def _plain(value: Any) -> str:
    """Returns what stands where a name or a number belongs; of anything else, which may be huge, nothing."""
    return str(value) if isinstance(value, int | str) else ""


def _best(some: Iterable[Any], notes: Counter[str], others: str) -> Mapping[str, Any] | None:
    """Returns the one that people starred as the truth, or else the latest; exports may have the mere numbers."""
    known = [one for one in some if isinstance(one, dict)]
    best = max(
        known,
        key=lambda one: (bool(one.get("ground_truth")), _plain(one.get("updated_at") or one.get("created_at"))),
        default=None,
    )  # fmt: skip
    notes[others] += len(list(some)) - (best is not None)
    return best


def _predicted(entities: Iterable[Entity], prediction: Mapping[str, Any]) -> tuple[Entity, ...]:
    """Gives entities the name of the model and their scores: the lowest of an entity's parts, or else that of all."""
    scores: dict[tuple[str, int, int], Any] = {}
    for raw in prediction.get("result") or ():
        if is_region(raw):
            value = raw["value"]
            scores |= {(label, value["start"], value["end"]): raw.get("score") for label in value["labels"]}

    def score(entity: Entity) -> float | None:
        its = [scores.get((entity.label, *span)) for span in entity.spans]
        known = [float(one) for one in its if isinstance(one, int | float)]
        overall = prediction.get("score")
        return min(known, default=float(overall) if isinstance(overall, int | float) else None)

    model = str(prediction.get("model_version") or NAMESPACE)
    return tuple(replace(entity, namespace=model, score=score(entity)) for entity in entities)


def _text_fields(tasks: Iterable[Any]) -> dict[str, str]:
    """Finds out which field of the tasks' data the regions of each control are about, as an export doesn't tell.

    It is the one at whose offsets the texts of the most regions stand; of equal ones the one that is called like the
    control, or `text`, or is longest.

    Returns:
        Name of the control → name of the field. If there are no regions at all, the one text is there nevertheless.
    """
    fits: dict[str, Counter[str]] = defaultdict(Counter)
    lengths: Counter[str] = Counter()
    for task in tasks:
        if not isinstance(task, dict) or meta_of(task) is not None:
            continue
        full = task if "data" in task else _from_json_min([task])
        data = full["data"] if isinstance(full["data"], dict) else {}
        texts = {name: value for name, value in data.items() if isinstance(value, str)}
        for name, text in texts.items():
            lengths[name] += len(text)
        for raw in _all_regions(full):
            control = _plain(raw.get("to_name"))
            fits[control].update({name: _fits(raw.get("value"), text) for name, text in texts.items()})

    def best(control: str) -> str:
        counts = fits[control]
        return max(
            counts or lengths,
            key=lambda name: (counts[name], name == control, name == TEXT, lengths[name]),
            default=TEXT,
        )

    return {control: best(control) for control in [*fits] or [TEXT]}


def _all_regions(task: Task) -> Iterator[Mapping[str, Any]]:
    for said in (*_list(task.get("annotations")), *_list(task.get("predictions"))):
        for raw in _list(said.get("result") if isinstance(said, dict) else None):
            if isinstance(raw, dict) and is_region(raw):
                yield raw


def _list(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list) else ()


def _fits(value: Any, text: str) -> bool:
    if not isinstance(value, dict):
        return False
    start, end, said = value.get("start"), value.get("end"), value.get("text")
    if not (type(start) is int and type(end) is int and 0 <= start < end <= len(text)):
        return False
    return not isinstance(said, str) or same_text(text[start:end], said)


def _from_json_min(rows: Sequence[Task]) -> Task:
    """Returns the task of rows of JSON-MIN, of which there is one for each annotation."""
    annotations = []
    data: Task = {}
    for row in rows:
        labels = {name: value for name, value in row.items() if _is_labels(value)}
        data |= {name: value for name, value in row.items() if name not in _MIN_KEYS and name not in labels}
        if row.get("annotation_id") is not None or labels:
            result = [
                {"id": f"{name} {number}", "type": "labels", "to_name": name, "value": value}
                for name, values in labels.items()
                for number, value in enumerate(values)
            ]
            annotations.append({"result": result, "updated_at": row.get("updated_at")})
    return {"id": rows[0].get("id"), "data": data, "annotations": annotations}


def _is_labels(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, dict) and "labels" in one for one in value)


# Both


def _read(result: Any, text: str) -> tuple[tuple[Entity, ...], list[str], int]:
    """Returns the entities of an annotation, what is wrong with its regions, and how many relations join nothing."""
    entities, problems = read_result(result, text)
    if not problems:
        return entities, [], 0
    regions = [raw for raw in _list(result) if not (isinstance(raw, dict) and raw.get("type") == "relation")]
    misplaced = read_result(regions, text)[1]
    return entities, misplaced, len(problems) - len(misplaced)


def _name(number: int, task: Task) -> str:
    return f"task {task['id']}" if "id" in task else f"[{number}]"


class LabelStudioWriter:
    """Writes a task for each section into one list, ready for import."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Self:
        self._file = self.path.open("wb")
        self._before = b"[\n"
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.write(b"[]\n" if self._before == b"[\n" else b"\n]\n")
        self._file.close()

    def write(self, document: Document) -> None:
        """Writes the tasks of a document, a line each."""
        for number, section in zip(section_numbers(document), document.sections, strict=True):
            task = make_task(Item(document.id, number, section, True, document.extra))
            # All of the section, also what `push` leaves to the server: the order of entities, and what people did.
            facts = task["meta"][META_KEY]
            facts["gold"] = [pack_entity(entity, section.text) for entity in section.entities]
            if section.extra:
                facts["section_extra"] = dict(section.extra)
            self._file.write(self._before + orjson.dumps(task))
            self._before = b",\n"


def label_studio_losses(document: Document) -> Counter[str]:
    """Counts what of a document a list of tasks can't hold."""
    numbers = section_numbers(document)
    losses = {
        "documents without sections (left out)": int(not numbers),
        "documents whose sections got back into the order of their numbers": int(numbers != sorted(numbers)),
    }
    return +Counter(losses)
