"""What people did, read from exported tasks as the server writes them."""

from dataclasses import replace
from typing import Any

import pytest

from nertool.document_parsing import parse_document
from nertool.documents import Document, Entity, Section, Span, dump_document
from nertool.errors import NertoolError
from nertool.labelling_tasks import Item, make_items, make_result, make_task, mentions
from nertool.provenance import annotators, section_annotators, with_provenance, without_provenance, without_review
from nertool.reviews import (
    Review,
    has_peoples_work,
    meta_of,
    read_review,
    read_reviews,
    reviewed_documents,
    sent_before_review,
)

TEXT = "lung and liver cancer"
LUNG, LIVER = Entity("organ", (Span(0, 4),), "lung", "llm"), Entity("organ", (Span(9, 14),), "liver", "llm")
USERS = {1: "tool@example.org", 2: "ann@example.org", 3: "bo@example.org"}


def annotation(*entities: Entity, person: int = 2, when: str = "2026-01-02", **facts: Any) -> dict[str, Any]:
    result = make_result(entities, TEXT)
    return {"id": 1, "result": result, "completed_by": person, "updated_at": when, "lead_time": 1.5} | facts


def task(*annotations: dict[str, Any], gold: tuple[Entity, ...] | None = (LUNG, LIVER), **facts: Any) -> dict[str, Any]:
    made = make_task(Item("d", 0, Section("body", TEXT, gold or ()), gold is not None))
    ours = [
        {"id": 9, "completed_by": 1, "updated_at": "2026-01-01", "lead_time": None, **one}
        for one in made.pop("annotations", [])
    ]
    return {"id": 5, **made, "annotations": [*ours, *annotations], "drafts": [], **facts}


def read(*annotations: dict[str, Any], **facts: Any) -> Review:
    review = read_review(task(*annotations, **facts), USERS)
    assert review is not None
    return review


@pytest.mark.parametrize(
    ("annotations", "facts", "status", "holds"),
    [
        ([], {}, "unchanged", (LUNG, LIVER)),
        ([annotation(LUNG, LIVER)], {}, "confirmed", (LUNG, LIVER)),
        ([annotation(LUNG)], {}, "corrected", (LUNG,)),
        ([annotation()], {}, "corrected", ()),
        ([annotation(LUNG, lead_time=None)], {}, "corrected", (LUNG,)),  # through the API, by a script
        ([annotation(LUNG), annotation(LIVER, person=3)], {}, "conflict", (LUNG, LIVER)),
        ([annotation(LUNG), annotation(LUNG, person=3)], {}, "corrected", (LUNG,)),
        ([annotation(LUNG), annotation(LIVER, when="2026-01-03")], {}, "corrected", (LIVER,)),  # the same person
        ([annotation(was_cancelled=True)], {}, "skipped", (LUNG, LIVER)),
        ([annotation(was_cancelled=True), annotation(LUNG, person=3)], {}, "corrected", (LUNG,)),
        ([], {"drafts": [{"result": []}]}, "draft", (LUNG, LIVER)),
        ([], {"gold": None}, "open", ()),
        ([annotation(LUNG)], {"gold": None}, "annotated", (LUNG,)),
        ([annotation()], {"gold": ()}, "confirmed", ()),
        ([], {"gold": ()}, "unchanged", ()),
    ],
)  # fmt: skip
def test_statuses(annotations: list[Any], facts: dict[str, Any], status: str, holds: tuple[Entity, ...]) -> None:
    review = read(*annotations, **facts)
    assert review.status == status
    assert mentions(review.section.entities) == mentions(holds)
    assert has_peoples_work(task(*annotations, **facts)) == (status not in ("unchanged", "open"))


def test_a_gold_annotation_that_somebody_deleted_stays_deleted() -> None:
    deleted = task()
    deleted["annotations"] = []
    review = read_review(deleted, USERS)
    assert review is not None
    assert (review.status, review.section.entities) == ("open", ())
    assert has_peoples_work(deleted)


def test_copies_of_a_section_are_one_with_the_opinions_of_all() -> None:
    tasks = [task(annotation(LUNG)), {**task(annotation(LIVER, person=3)), "id": 6}, {"data": {}, "meta": {}}]
    (review,) = read_reviews(tasks, USERS)
    assert (review.status, len(review.opinions)) == ("conflict", 2)


def test_work_on_another_text_of_a_section_is_told_and_not_used() -> None:
    other = {**task(annotation(LIVER, person=3)), "id": 6}
    other["data"] = {**other["data"], "text": f"{TEXT}!"}
    untouched = {**task(), "id": 7, "data": other["data"]}
    (review,) = read_reviews([task(annotation(LUNG)), other, untouched], USERS)
    assert (review.status, review.section.text, len(review.opinions)) == ("corrected", TEXT, 1)
    assert review.problems == ("task 6 has another text for this section; what people did there is not used",)


def test_a_pulled_section_keeps_its_number_though_others_were_left_out() -> None:
    (document,) = reviewed_documents([replace(read(annotation(LUNG)), index=3)], only_reviewed=True)
    assert [item.key for item in make_items(document, has_gold=True)] == ["d#3"]
    again = make_task(make_items(document, has_gold=True)[0])
    assert again["meta"]["nertool"].get("section_extra") == {"metadata": {"label_studio": {"section": 3}}}
    forgotten = without_provenance(document)
    assert [item.key for item in make_items(forgotten, has_gold=True)] == ["d#3"]
    assert "nertool_review" not in forgotten.extra["metadata"]
    assert "status" not in forgotten.sections[0].extra["metadata"]["label_studio"]


def test_the_gold_annotation_edited_in_place_is_the_editors() -> None:
    edited = task()
    edited["annotations"] = [annotation(LUNG, person=1, updated_by=3)]
    review = read_review(edited, USERS)
    assert review is not None
    assert (review.status, review.opinions[0].person) == ("corrected", "bo@example.org")
    assert review.section.entities == (LUNG,)  # with its namespace, as it was sent


def test_a_push_that_was_cut_between_its_two_steps_is_no_correction() -> None:
    cut = task(gold=(LUNG,))
    cut["annotations"][0]["result"] = make_result((LUNG, LIVER), TEXT)
    assert has_peoples_work(cut)
    cut["meta"]["nertool"]["gold_before"] = task()["meta"]["nertool"]["gold"]
    review = read_review(cut, USERS)
    assert review is not None
    assert review.status == "unchanged"
    assert mentions(review.section.entities) == mentions([LUNG, LIVER])
    assert not has_peoples_work(cut)


@pytest.mark.parametrize(
    "change", [{"meta": {}}, {"meta": None}, {"data": {"text": 3}}, {"data": {"text": TEXT, "nertool_id": "x"}}]
)
def test_tasks_of_others_are_not_ours(change: dict[str, Any]) -> None:
    assert meta_of({**task(), **change}) is None
    assert read_review({**task(), **change}, USERS) is None
    assert has_peoples_work({**task(), **change})


def test_documents_tell_who_reviewed_them() -> None:
    first, second = read(annotation(LUNG)), replace(read(), index=1)
    (document,) = reviewed_documents([second, first], only_reviewed=False)
    assert [section.extra["metadata"]["label_studio"]["status"] for section in document.sections] == [
        "corrected",
        "unchanged",
    ]
    assert document.extra["metadata"]["nertool_review"] == {
        "sections": {"corrected": 1, "unchanged": 1}, "people": ["ann@example.org"],
    }  # fmt: skip
    assert set(annotators(document)) == {"a person in Label Studio", "llm"}
    (only,) = reviewed_documents([second, first], only_reviewed=True)
    assert len(only.sections) == 1
    assert list(annotators(only)) == ["a person in Label Studio"]
    assert reviewed_documents([second], only_reviewed=True) == []
    (plain,) = reviewed_documents([second], only_reviewed=False)
    assert isinstance(plain, Document)
    assert "metadata" not in plain.extra


def pulled(review: Review) -> Section:
    """Returns the section as it is read from what `pull` wrote."""
    (document,) = reviewed_documents([review], only_reviewed=False)
    return parse_document(dump_document(document)).document.sections[0]


def test_a_corrected_section_keeps_what_people_were_shown() -> None:
    scored = replace(LIVER, score=0.75, match="Liver", extra={"metadata": {"x": 1}})
    section = pulled(read(annotation(LUNG), gold=(LUNG, scored)))
    assert section.entities == (LUNG,)
    assert sent_before_review(section) == (LUNG, scored)
    assert sent_before_review(pulled(read(annotation(LUNG), gold=()))) == ()
    assert sent_before_review(pulled(read(annotation(LUNG, LIVER)))) == (LUNG, LIVER)  # confirmed
    for review in (read(), read(annotation(LUNG), gold=None), read(annotation(LUNG), annotation(LIVER, person=3))):
        assert sent_before_review(pulled(review)) is None
    assert sent_before_review(without_review(section)) is None  # another model's entities are in it now
    assert sent_before_review(Section("body", TEXT, (LUNG,))) is None


@pytest.mark.parametrize("sent", ["x", [1], [{"label": "organ"}], [{"label": "organ", "spans": [[1]]}]])
def test_what_people_were_shown_may_be_damaged(sent: Any) -> None:
    section = pulled(read(annotation(LUNG)))
    section.extra["metadata"]["label_studio"]["sent"] = sent
    with pytest.raises(NertoolError, match=r"label_studio\.sent of the section 'body'"):
        sent_before_review(section)


def test_who_says_what_is_right_in_a_section() -> None:
    sections = (pulled(read(annotation(LUNG))), pulled(read()), Section("body", TEXT, (LUNG,)))
    corrected = "people in Label Studio: corrected"
    plain = Document("d", sections)
    assert section_annotators(plain) == [corrected, "llm", "llm"]
    by_llm = with_provenance(plain, {"models": ["m"], "prompts": ["p"]})
    assert section_annotators(by_llm) == [corrected, *["the LLM m with prompt p"] * 2]
    assert section_annotators(Document("d", (Section("body", TEXT),))) == ["not known"]
