"""Sections and entities as Label Studio's tasks, regions and relations, and back.

A task is one section. An entity of one span is a region; entities on the same span are one region with several classes.
A discontinuous entity is a region for each part, joined by relations in text order. What Label Studio has no place for
(an entity's namespace and metadata, a document's own fields) travels in the task's `meta`, out of people's way.

Offsets are Unicode code points on both sides. The server checks next to nothing, so it is checked here, both ways.
"""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from heapq import nsmallest
from itertools import pairwise
from typing import Any

from nertool.documents import Document, Entity, Section, Span, match_text
from nertool.errors import NertoolError
from nertool.labelling_config import JOIN_RELATION, LABELS, TEXT
from nertool.provenance import SECTION_METADATA, without_review

ID_FIELD = "nertool_id"
META_KEY = "nertool"
META_FORMAT = 1
NAMESPACE = "label_studio"
# A project can be named by its number, too: `id:7`.
BY_ID = "id:"
_SHORTEST_TITLE, _LONGEST_TITLE = 3, 50
# What two entities have to have in common to be the same mention.
Mention = tuple[str, tuple[Span, ...]]


@dataclass(frozen=True, slots=True)
class Item:
    """A section that people are to look at.

    Args:
        document: The document's id.
        index: The number of the section in it, from 0.
        section: The section; its entities are the gold that is shown, if there is gold.
        has_gold: Whether the entities are annotations, or the section just hasn't been annotated.
        extra: The document's other fields.
    """

    document: str
    index: int
    section: Section
    has_gold: bool
    extra: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """What tells this section from all others, in every project."""
        return section_key(self.document, self.index)


def section_key(document: str, index: int) -> str:
    """Returns the id of a section: the document's id, `#` and the section's number from 0."""
    return f"{document}#{index}"


def make_items(document: Document, *, has_gold: bool) -> list[Item]:
    """Returns what `numbered_items` does, without the places."""
    return [item for _, item in numbered_items(document, has_gold=has_gold)]


def numbered_items(document: Document, *, has_gold: bool) -> list[tuple[int, Item]]:
    """Returns the sections of a document that have text, each with its place in it and its number as an item."""
    return [
        (place, Item(document.id, number, section, has_gold, document.extra))
        for place, (number, section) in enumerate(zip(section_numbers(document), document.sections, strict=True))
        if section.text.strip()
    ]


def section_numbers(document: Document) -> list[int]:
    """Returns the number of each section.

    It is its place, unless the document came from `pull`, which may have left others out: then it is the number that
    the section had.
    """
    facts = [section.extra.get("metadata", {}).get(SECTION_METADATA) for section in document.sections]
    numbers: list[Any] = [fact.get("section") if isinstance(fact, dict) else None for fact in facts]
    if not all(type(number) is int for number in numbers) or len(set(numbers)) < len(numbers):
        return list(range(len(document.sections)))
    return numbers


def check_title(name: str) -> None:
    """Refuses a name that Label Studio would refuse as a title."""
    if not name.startswith(BY_ID) and not _SHORTEST_TITLE <= len(name.strip()) <= _LONGEST_TITLE:
        raise NertoolError(
            f"{name!r} can't be a project's title: Label Studio wants {_SHORTEST_TITLE} to {_LONGEST_TITLE} characters",
            "choose another --project" if name else "name one: --project NAME",
        )


def sample_order(key: str) -> bytes:
    """Sections with the least of these are the sample: always the same ones, whatever else is there."""
    return hashlib.sha256(key.encode()).digest()


def choose_sample(items: Iterable[Item], count: int | None) -> list[Item]:
    """Returns as many items, always the same ones of the same collection; None: all of them."""
    if count is None:
        return list(items)
    return sorted(nsmallest(count, items, key=lambda item: sample_order(item.key)), key=lambda item: item.key)


def task_data(item: Item) -> dict[str, Any]:
    """Returns what a task shows."""
    return {"text": item.section.text, "title": f"{item.document} – {item.section.name}", ID_FIELD: item.key}


def task_meta(item: Item) -> dict[str, Any]:
    """Returns what a task keeps for `pull`: the section as it was sent, but for its text."""
    text = item.section.text
    facts: dict[str, Any] = {
        "format": META_FORMAT,
        "document": item.document,
        "index": item.index,
        "name": item.section.name,
        "gold": [pack_entity(one, text) for one in sort_entities(item.section.entities)] if item.has_gold else None,
    }
    if item.extra:
        facts["document_extra"] = dict(item.extra)
    if extra := without_review(item.section).extra:
        facts["section_extra"] = dict(extra)
    return facts


def make_task(item: Item) -> dict[str, Any]:
    """Returns the task of a section, ready for import, with the gold as its annotation."""
    task: dict[str, Any] = {"data": task_data(item), "meta": {META_KEY: task_meta(item)}}
    if item.has_gold:
        task["annotations"] = [{"result": make_result(item.section.entities, item.section.text), "ground_truth": True}]
    return task


def make_prediction(task: int, version: str, entities: Sequence[Entity], text: str) -> dict[str, Any]:
    """Returns a model's prediction for a task, ready for import; its score is the mean of its regions'."""
    prediction: dict[str, Any] = {"task": task, "model_version": version, "result": make_result(entities, text)}
    scores = [entity.score for entity in entities if entity.score is not None]
    if scores:
        prediction["score"] = round(sum(scores) / len(scores), 4)
    return prediction


def make_result(entities: Iterable[Entity], text: str) -> list[dict[str, Any]]:
    """Returns the regions and relations of entities, in text order.

    Of equal entities there is one, the most certain.

    The score of a region with several classes is the lowest of theirs.
    """
    regions: list[dict[str, Any]] = []
    relations: list[dict[str, Any]] = []
    merged: dict[Span, list[Entity]] = defaultdict(list)
    by_score = sorted(entities, key=lambda entity: -1.0 if entity.score is None else entity.score)
    for entity in sort_entities({(entity.label, entity.spans): entity for entity in by_score}.values()):
        if len(entity.spans) == 1:
            merged[entity.spans[0]].append(entity)
            continue
        parts = [_region([entity], span, text) for span in entity.spans]
        regions += parts
        relations += [
            {
                "type": "relation",
                "from_id": first["id"],
                "to_id": second["id"],
                "direction": "right",
                "labels": [JOIN_RELATION],
            }
            for first, second in pairwise(parts)
        ]
    regions += [_region(group, span, text) for span, group in merged.items()]
    regions.sort(key=lambda region: (region["value"]["start"], -region["value"]["end"], region["id"]))
    return regions + relations


def read_result(result: Any, text: str) -> tuple[tuple[Entity, ...], list[str]]:
    """Reads the entities of an annotation, as people may have left it.

    Any relation between regions of the same classes joins them, whatever it is called: the people who draw one mean
    that. Without a score or a namespace of their own; `restore` brings back what was known of an entity.

    Args:
        result: The annotation's `result`.
        text: The task's text.

    Returns:
        The entities, sorted, and what is wrong with the rest, in words.
    """
    problems: list[str] = []
    regions: dict[str, tuple[Span, frozenset[str]]] = {}
    relations: list[tuple[str, str]] = []
    for raw in result if isinstance(result, list) else []:
        if not isinstance(raw, dict):
            problems.append("an entry of the annotation is no object")
        elif raw.get("type") == "relation":
            relations.append((str(raw.get("from_id")), str(raw.get("to_id"))))
        elif is_region(raw):
            _read_region(raw, text, regions, problems)
    groups = _join(regions, relations, problems)
    found = {
        (label, tuple(sorted({regions[part][0] for part in group})))
        for group in groups
        for label in regions[group[0]][1]
    }
    entities = [Entity(label, spans, match_text(text, spans), NAMESPACE) for label, spans in found]
    return sort_entities(entities), problems


def is_region(raw: Mapping[str, Any]) -> bool:
    """Tells whether an entry of an annotation labels a part of a text."""
    value = raw.get("value")
    return raw.get("type") == LABELS + "s" or (isinstance(value, dict) and LABELS + "s" in value)


def mentions(entities: Iterable[Entity]) -> frozenset[Mention]:
    """Returns what the entities say, whatever their order, namespaces and scores."""
    return frozenset((entity.label, entity.spans) for entity in entities)


def sort_entities(entities: Iterable[Entity]) -> tuple[Entity, ...]:
    """Sorts entities by place, longer ones first, then by class."""
    return tuple(sorted(entities, key=lambda entity: (entity.start, -entity.end, entity.spans, entity.label)))


def sent_entities(meta: Mapping[str, Any], text: str) -> tuple[Entity, ...] | None:
    """Returns the gold that a task was sent with, in full; None if it was sent without."""
    packed = meta.get("gold")
    return None if packed is None else tuple(_unpack(entity, text) for entity in packed)


def restore(entities: Sequence[Entity], sent: Sequence[Entity]) -> tuple[Entity, ...]:
    """Gives entities that were sent just so their namespace, score and metadata back; the others are people's.

    If nothing has changed, they are in the order in which they were sent.
    """
    if mentions(entities) == mentions(sent):
        return tuple(sent)
    known: dict[Mention, list[Entity]] = defaultdict(list)
    for entity in sent:
        known[entity.label, entity.spans].append(entity)
    return tuple(one for entity in entities for one in known.get((entity.label, entity.spans), [entity]))


def check_items(items: Iterable[Item]) -> list[str]:
    """Returns what the server would take without a word and no browser could show."""
    return [
        f"{item.key}: the text holds a NUL character"
        for item in items
        if "\0" in item.section.text or "\0" in item.section.name
    ]


def _region(group: Sequence[Entity], span: Span, text: str) -> dict[str, Any]:
    labels = sorted({entity.label for entity in group})
    of = repr([labels, span, group[0].spans])
    region: dict[str, Any] = {
        "id": hashlib.sha256(of.encode()).hexdigest()[:10],
        "type": LABELS + "s",
        "from_name": LABELS,
        "to_name": TEXT,
        "value": {"start": span.start, "end": span.end, "text": text[span.start : span.end], "labels": labels},
    }
    scores = [entity.score for entity in group if entity.score is not None]
    if scores:
        region["score"] = round(min(scores), 4)
    return region


def _read_region(
    raw: dict[str, Any], text: str, regions: dict[str, tuple[Span, frozenset[str]]], problems: list[str]
) -> None:
    value = raw.get("value")
    start, end, labels = (
        (value.get(name) for name in ("start", "end", LABELS + "s")) if isinstance(value, dict) else (None,) * 3
    )
    shown = repr(value.get("text") if isinstance(value, dict) else value)[:80]
    if not (type(start) is int and type(end) is int and 0 <= start < end <= len(text)):
        problems.append(
            f"the region {shown} is at {start}–{end}, which is no place in the text of {len(text)} characters"
        )
    elif (
        isinstance(value, dict) and isinstance(value.get("text"), str) and not same_text(text[start:end], value["text"])
    ):
        problems.append(f"the region {shown} is at {start}–{end}, where the text says {text[start:end]!r:.80}")
    elif not isinstance(labels, list) or not labels or not all(isinstance(label, str) and label for label in labels):
        problems.append(f"the region {shown} at {start}–{end} has no class")
    else:
        identifier = str(raw.get("id"))
        while identifier in regions:  # the server takes two of one id; neither is lost
            identifier += "'"
        regions[identifier] = (Span(start, end), frozenset(labels))


def same_text(found: str, said: str) -> bool:
    r"""Browsers normalise line ends when they copy a selection, so `\r\n` is `\n` in what a region says of itself."""
    return found == said or found.replace("\r\n", "\n").replace("\r", "\n") == said.replace("\\n", "\n").replace(
        "\r\n", "\n"
    )


def _join(
    regions: Mapping[str, tuple[Span, frozenset[str]]], relations: Iterable[tuple[str, str]], problems: list[str]
) -> list[list[str]]:
    """Returns the regions in groups, each the parts of one mention."""
    group = {identifier: [identifier] for identifier in regions}
    for first, second in relations:
        if first not in group or second not in group:
            problems.append("a relation refers to a region that is gone; what is left stands by itself")
        elif regions[first][1] != regions[second][1]:
            names = " and ".join(sorted({", ".join(sorted(regions[one][1])) for one in (first, second)}))
            problems.append(f"a relation joins regions of different classes ({names}); they stay apart")
        elif group[first] is not group[second]:
            joined = group[first] + group[second]
            for identifier in joined:
                group[identifier] = joined
    return list({id(parts): parts for parts in group.values()}.values())


def pack_entity(entity: Entity, text: str) -> dict[str, Any]:
    """Returns all of an entity, for a task's `meta`; `sent_entities` unpacks it."""
    packed: dict[str, Any] = {"label": entity.label, "spans": [list(span) for span in entity.spans]}
    if entity.namespace != NAMESPACE:
        packed["namespace"] = entity.namespace
    if entity.score is not None:
        packed["score"] = entity.score
    if entity.extra:
        packed["extra"] = dict(entity.extra)
    if entity.match != match_text(text, entity.spans):  # some tools keep another spelling there
        packed["match"] = entity.match
    return packed


def _unpack(packed: Mapping[str, Any], text: str) -> Entity:
    spans = tuple(Span(*span) for span in packed["spans"])
    return Entity(
        packed["label"],
        spans,
        packed.get("match", match_text(text, spans)),
        packed.get("namespace", NAMESPACE),
        packed.get("score"),
        packed.get("extra", {}),
    )
