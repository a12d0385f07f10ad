"""Who annotated a document: kept in its metadata, and taken up by scores and model cards."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from nertool.documents import Document, Section

_KEY = "nertool_annotation"
_REVIEW_KEY = "nertool_review"
_PREDICTION_KEY = "nertool_prediction"
_AUDIT_KEY = "nertool_audit"
# In the metadata of a section: what people did with it in Label Studio, and its number in the document.
SECTION_METADATA = "label_studio"
# Its statuses in which people have said what is right.
REVIEWED = frozenset(["corrected", "confirmed", "annotated"])


def with_provenance(document: Document, facts: dict[str, Any]) -> Document:
    """Notes how an LLM annotated a document: `models`, `prompts`, `settings`, `answers` and more."""
    metadata = {**document.extra.get("metadata", {}), _KEY: facts}
    return replace(document, extra={**document.extra, "metadata": metadata})


def with_review(document: Document, sections: dict[str, int], people: list[str]) -> Document:
    """Notes that people looked at a document: how many sections have which status, and who they are."""
    metadata = {**document.extra.get("metadata", {}), _REVIEW_KEY: {"sections": sections, "people": people}}
    return replace(document, extra={**document.extra, "metadata": metadata})


def with_prediction(document: Document, facts: dict[str, Any]) -> Document:
    """Notes which model predicted entities of a document: `model`, `model_digest` and more."""
    metadata = {**document.extra.get("metadata", {}), _PREDICTION_KEY: facts}
    return replace(document, extra={**document.extra, "metadata": metadata})


def with_audit(document: Document, facts: dict[str, Any]) -> Document:
    """Notes that entities of a document were changed because an audit found them suspect: `changes` and more.

    The sections that it changed should be `without_review`; they count no more as seen by people.
    """
    metadata = {**document.extra.get("metadata", {}), _AUDIT_KEY: facts}
    review = metadata.get(_REVIEW_KEY)
    if isinstance(review, dict):
        statuses = (section_review(section).get("status") or "audited" for section in document.sections)
        metadata[_REVIEW_KEY] = {**review, "sections": dict(Counter(statuses))}
    return replace(document, extra={**document.extra, "metadata": metadata})


def without_provenance(document: Document) -> Document:
    """Forgets how a document was annotated and reviewed, for one whose entities are replaced."""
    sections = tuple(map(without_review, document.sections))
    metadata = document.extra.get("metadata", {})
    ours = (_KEY, _REVIEW_KEY, _PREDICTION_KEY, _AUDIT_KEY)
    kept = {key: value for key, value in metadata.items() if key not in ours}
    extra = document.extra if len(kept) == len(metadata) else {**document.extra, "metadata": kept}
    return replace(document, sections=sections, extra=extra)


def without_review(section: Section) -> Section:
    """Forgets what people did with a section; its number in the document is kept."""
    metadata = section.extra.get("metadata", {})
    facts = metadata.get(SECTION_METADATA)
    if not isinstance(facts, dict) or set(facts) <= {"section"}:
        return section
    kept = {"section": facts["section"]} if "section" in facts else {}
    return replace(section, extra={**section.extra, "metadata": {**metadata, SECTION_METADATA: kept}})


def annotators(document: Document) -> Iterator[str]:
    """Yields who annotated a document, in words: LLMs, or else the namespaces of its entities."""
    review = document.extra.get("metadata", {}).get(_REVIEW_KEY)
    people = review.get("people") if isinstance(review, dict) else None
    if isinstance(people, list) and people:
        yield f"{len(people)} people in Label Studio" if len(people) > 1 else "a person in Label Studio"
        statuses = review.get("sections", {})
        if isinstance(statuses, dict) and not statuses.keys() - REVIEWED:
            return  # they have seen all of it
    yield from makers(document)


def makers(document: Document) -> Iterator[str]:
    """Yields who annotated a document before people looked at it, in words."""
    metadata = document.extra.get("metadata", {})
    if isinstance(metadata.get(_AUDIT_KEY), dict):
        yield "nertool audit, which corrected some"
    predicted = metadata.get(_PREDICTION_KEY)
    if isinstance(predicted, dict) and "model" in predicted:
        yield f"the model {predicted['model']}"
    facts = metadata.get(_KEY)
    if isinstance(facts, dict) and isinstance(facts.get("models"), list) and facts["models"]:
        prompts = facts.get("prompts")
        prompt = f" with prompt {', '.join(map(str, prompts))}" if isinstance(prompts, list) and prompts else ""
        yield from (f"the LLM {model}{prompt}" for model in facts["models"])
    elif not isinstance(predicted, dict):
        yield from {entity.namespace for section in document.sections for entity in section.entities}


def section_annotators(document: Document) -> list[str]:
    """Returns for each section, in words, who says what is right in it: people, or whoever was there before them."""
    statuses = [str(section_review(section).get("status")) for section in document.sections]
    others = [section for section, status in zip(document.sections, statuses, strict=True) if status not in REVIEWED]
    before = " and ".join(sorted(makers(replace(document, sections=tuple(others))))) or "not known"
    return [f"people in Label Studio: {status}" if status in REVIEWED else before for status in statuses]


def section_review(section: Section) -> dict[str, Any]:
    """Returns what is noted of people's work on a section; nothing if none is."""
    facts = section.extra.get("metadata", {}).get(SECTION_METADATA)
    return facts if isinstance(facts, dict) else {}
