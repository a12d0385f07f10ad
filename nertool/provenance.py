"""Who annotated a document: kept in its metadata, and taken up by scores and model cards."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from nertool.documents import Document, Section

_KEY = "nertool_annotation"
_REVIEW_KEY = "nertool_review"
_PREDICTION_KEY = "nertool_prediction"
# In the metadata of a section: what people did with it in Label Studio, and its number in the document.
SECTION_METADATA = "label_studio"


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


def without_provenance(document: Document) -> Document:
    """Forgets how a document was annotated and reviewed, for one whose entities are replaced."""
    sections = tuple(map(without_review, document.sections))
    metadata = document.extra.get("metadata", {})
    kept = {key: value for key, value in metadata.items() if key not in (_KEY, _REVIEW_KEY, _PREDICTION_KEY)}
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
    metadata = document.extra.get("metadata", {})
    review = metadata.get(_REVIEW_KEY)
    if isinstance(review, dict) and review.get("people"):
        yield (
            f"{len(review['people'])} people in Label Studio"
            if len(review["people"]) > 1
            else "a person in Label Studio"
        )
        if not set(review.get("sections", ())) - {"corrected", "confirmed", "annotated"}:
            return  # they have seen all of it
    predicted = metadata.get(_PREDICTION_KEY)
    if isinstance(predicted, dict) and "model" in predicted:
        yield f"the model {predicted['model']}"
    facts = metadata.get(_KEY)
    if isinstance(facts, dict) and isinstance(facts.get("models"), list) and facts["models"]:
        prompts = facts.get("prompts") or []
        prompt = f" with prompt {', '.join(map(str, prompts))}" if prompts else ""
        yield from (f"the LLM {model}{prompt}" for model in facts["models"])
    elif not isinstance(predicted, dict):
        yield from {entity.namespace for section in document.sections for entity in section.entities}
