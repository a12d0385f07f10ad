"""What people did with the sections in Label Studio, read from its tasks."""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple, get_args

from nertool.documents import Document, Entity, Section
from nertool.errors import NertoolError
from nertool.labelling_config import CHECKED, REVIEW, TEXT
from nertool.labelling_tasks import (
    ID_FIELD,
    META_KEY,
    Mention,
    mentions,
    pack_entity,
    read_result,
    restore,
    section_key,
    sent_entities,
)
from nertool.provenance import REVIEWED, SECTION_METADATA, section_review, with_review

Status = Literal["corrected", "confirmed", "annotated", "unchanged", "conflict", "skipped", "draft", "open"]
STATUSES: tuple[Status, ...] = get_args(Status)
# In a corrected section's metadata: the entities that it was sent with.
_SENT = "sent"
MEANINGS: dict[Status, str] = {
    "corrected": "a person changed the entities",
    "confirmed": "a person saved the entities as they were",
    "annotated": "a person marked entities where there had been no gold",
    "unchanged": "nobody has saved anything",
    "conflict": "people disagree",
    "skipped": "a person skipped it",
    "draft": "a person has begun and not saved",
    "open": "there is no annotation, or the one that was sent was deleted",
}


class Opinion(NamedTuple):
    """What one person says about a section."""

    person: str
    when: str
    entities: tuple[Entity, ...]


@dataclass(frozen=True, slots=True)
class Review:
    """What became of a section.

    Args:
        task: The task's id on the server; None if it has not been on one.
        document: The document's id.
        index: The number of the section in it.
        section: The section, with the entities that hold now: people's where they agree, else those that were sent.
        status: What people did.
        opinions: What each of them said who said something, the latest last.
        sent: The entities that it was sent with; None if it was sent without gold.
        problems: What is wrong with what people left, in words.
        extra: The document's other fields.
    """

    task: int | None
    document: str
    index: int
    section: Section
    status: Status
    opinions: tuple[Opinion, ...]
    sent: tuple[Entity, ...] | None
    problems: tuple[str, ...]
    extra: Mapping[str, Any]

    @property
    def key(self) -> str:
        """The section's id."""
        return section_key(self.document, self.index)


def meta_of(task: Mapping[str, Any]) -> dict[str, Any] | None:
    """Returns what nertool keeps in a task; None for a task that isn't nertool's."""
    meta = task.get("meta")
    facts = meta.get(META_KEY) if isinstance(meta, dict) else None
    data = task.get("data")
    if not isinstance(facts, dict) or not isinstance(data, dict) or not isinstance(data.get(TEXT), str):
        return None
    document, index = facts.get("document"), facts.get("index")
    if not isinstance(document, str) or type(index) is not int:
        return None
    return facts if data.get(ID_FIELD) == section_key(document, index) else None


def has_peoples_work(task: Mapping[str, Any], also_ours: Iterable[frozenset[Mention]] = ()) -> bool:
    """Tells whether people have left anything in a task, drafts and skips included.

    Args:
        task: The whole task, with annotations and drafts.
        also_ours: What else our own annotation may say, beside what `meta` tells.
    """
    meta = meta_of(task)
    if meta is None or task.get("drafts") or task.get("comment_count"):
        return True
    ours = _ours(meta, task["data"][TEXT]) | set(also_ours)
    annotations = task.get("annotations", [])
    if meta.get("gold") is not None and not annotations:
        return True  # somebody has deleted the one that came with the task
    return len(annotations) > 1 or any(_is_persons(annotation, task["data"][TEXT], ours) for annotation in annotations)


def read_review(task: Mapping[str, Any], users: Mapping[int, str]) -> Review | None:
    """Reads what people did with a section; None for a task that isn't nertool's.

    Args:
        task: An exported task.
        users: Address of each user, by id.
    """
    meta = meta_of(task)
    if meta is None:
        return None
    text = task["data"][TEXT]
    sent = sent_entities(meta, text)
    ours = _ours(meta, text)
    latest: dict[str, Opinion] = {}
    problems: list[str] = []
    standing: tuple[Entity, ...] | None = None  # what our own annotation says
    cancelled = False
    for annotation in sorted(task.get("annotations", []), key=lambda one: str(one.get("updated_at"))):
        if annotation.get("was_cancelled"):
            cancelled = True
            continue
        entities, wrong = read_result(annotation.get("result"), text)
        problems += wrong
        entities = restore(entities, sent or ())
        if _is_persons(annotation, text, ours):
            person = _name(annotation.get("updated_by") or annotation.get("completed_by"), users)
            latest[person] = Opinion(person, str(annotation.get("updated_at")), entities)
        else:
            standing = entities
    opinions = tuple(sorted(latest.values(), key=lambda opinion: opinion.when))
    different = {mentions(opinion.entities) for opinion in opinions}
    status: Status
    if len(different) > 1:
        status = "conflict"
    elif different:
        said = different.pop()
        status = "annotated" if sent is None else "confirmed" if said == mentions(sent) else "corrected"
    elif cancelled:
        status = "skipped"
    elif task.get("drafts"):
        status = "draft"
    else:
        status = "open" if standing is None else "unchanged"
    holds: tuple[Entity, ...] = () if status == "open" else standing if standing is not None else sent or ()
    if status in REVIEWED:
        holds = opinions[-1].entities
    section = Section(meta.get("name", ""), text, holds, meta.get("section_extra", {}))
    number = task.get("id")
    return Review(
        None if number is None else int(number), meta["document"], meta["index"], section, status, opinions, sent,
        tuple(dict.fromkeys(problems)), meta.get("document_extra", {}),
    )  # fmt: skip


def read_reviews(tasks: Iterable[Mapping[str, Any]], users: Mapping[int, str]) -> list[Review]:
    """Reads all sections, sorted; tasks that are copies of one section count as one, with the opinions of all.

    What people did with a copy that has another text is not used, and is a problem of the section.
    """
    by_section: dict[str, dict[str, Any]] = {}
    others: defaultdict[str, list[str]] = defaultdict(list)
    for task in tasks:
        if meta_of(task) is not None:
            first = by_section.setdefault(task["data"][ID_FIELD], {**task, "annotations": [], "drafts": []})
            if first["data"][TEXT] == task["data"][TEXT]:
                first["annotations"] += task.get("annotations", [])
                first["drafts"] += task.get("drafts", [])
            elif has_peoples_work(task):
                said = f"task {task.get('id')} has another text for this section; what people did there is not used"
                others[task["data"][ID_FIELD]].append(said)
    found = (read_review(task, users) for task in by_section.values())
    reviews = [replace(one, problems=(*one.problems, *others[one.key])) for one in found if one is not None]
    return sorted(reviews, key=lambda review: (review.document, review.index))


def reviewed_documents(reviews: Iterable[Review], *, only_reviewed: bool) -> list[Document]:
    """Puts the sections together into documents again, each with its status, who and when in its metadata.

    Args:
        reviews: The sections.
        only_reviewed: Leave out those about which people have not said what is right.
    """
    by_document: dict[str, list[Review]] = defaultdict(list)
    for review in reviews:
        if not only_reviewed or review.status in REVIEWED:
            by_document[review.document].append(review)
    documents = []
    for identifier in sorted(by_document):
        parts = sorted(by_document[identifier], key=lambda review: review.index)
        document = Document(identifier, tuple(map(_noted, parts)), parts[-1].extra)
        people = sorted({opinion.person for part in parts if part.status in REVIEWED for opinion in part.opinions})
        counts = Counter(part.status for part in parts)
        documents.append(with_review(document, {str(k): n for k, n in counts.items()}, people) if people else document)
    return documents


def sent_before_review(section: Section) -> tuple[Entity, ...] | None:
    """Returns the entities that a section from `pull` was sent with, before people corrected or confirmed them.

    `None` if people have not reviewed it, had no entities to begin with, or an older nertool pulled it.

    Raises:
        NertoolError: If what is kept in its metadata can't be read.
    """
    facts = section_review(section)
    if facts.get("status") == "confirmed":
        return section.entities
    if facts.get("status") != "corrected" or facts.get(_SENT) is None:
        return None
    try:
        return sent_entities({"gold": facts[_SENT]}, section.text)
    except (KeyError, TypeError, ValueError) as error:
        raise NertoolError(
            f"metadata.{SECTION_METADATA}.{_SENT} of the section {section.name!r} is not what ls-sync pull writes",
            "pull it again, or take it out",
        ) from error


def describe(review: Review) -> dict[str, Any]:
    """Returns what `review.json` tells about a section that somebody should look at."""
    return {
        "section": review.key,
        "task": review.task,
        "status": review.status,
        "problems": list(review.problems),
        "opinions": [
            {"person": one.person, "when": one.when, "entities": [_plain(entity) for entity in one.entities]}
            for one in review.opinions
        ],
    }


def checked(annotation: Mapping[str, Any]) -> bool:
    """Tells whether a person ticked an annotation as right."""
    result = annotation.get("result")
    return any(
        isinstance(raw, dict)
        and raw.get("from_name") == REVIEW
        and CHECKED in (raw.get("value") or {}).get("choices", ())
        for raw in (result if isinstance(result, list) else ())
    )


def _ours(meta: Mapping[str, Any], text: str) -> set[frozenset[Mention]]:
    """Returns what our own annotation may say: what was sent, or before it, if a push was cut in two."""
    said = (sent_entities({"gold": meta.get(name)}, text) for name in ("gold", "gold_before"))
    return {mentions(entities) for entities in said if entities is not None}


def _is_persons(annotation: Mapping[str, Any], text: str, ours: set[frozenset[Mention]]) -> bool:
    """Label Studio's editor notes how long a person took (`lead_time`); imports and our own changes don't."""
    if annotation.get("was_cancelled") or annotation.get("lead_time") is not None or checked(annotation):
        return True
    return mentions(read_result(annotation.get("result"), text)[0]) not in ours


def _name(author: Any, users: Mapping[int, str]) -> str:
    """Returns who it was; some exports say it in full."""
    if isinstance(author, int):
        return users.get(author, f"user {author}")
    return str(author.get("email") or author.get("id")) if isinstance(author, dict) else str(author)


def _noted(review: Review) -> Section:
    facts: dict[str, Any] = {"section": review.index, "status": review.status}
    if review.task is not None:
        facts["task"] = review.task
    if review.opinions and review.status in REVIEWED:
        facts |= {"people": sorted({one.person for one in review.opinions}), "when": review.opinions[-1].when}
    if review.status == "corrected":  # a confirmed section's entities are those that were sent
        facts[_SENT] = [pack_entity(entity, review.section.text) for entity in review.sent or ()]
    metadata = {**review.section.extra.get("metadata", {}), SECTION_METADATA: facts}
    return replace(review.section, extra={**review.section.extra, "metadata": metadata})


def _plain(entity: Entity) -> dict[str, Any]:
    return {"class": entity.label, "spans": [list(span) for span in entity.spans], "match": entity.match}


def agreement_pairs(reviews: Sequence[Review]) -> list[tuple[int, tuple[Entity, ...], tuple[Entity, ...]]]:
    """Returns its document's number, what people say and what was sent, for each reviewed section sent with gold."""
    numbers = {name: i for i, name in enumerate(sorted({review.document for review in reviews}))}
    return [
        (numbers[review.document], review.section.entities, review.sent)
        for review in reviews
        if review.status in REVIEWED and review.sent is not None
    ]
