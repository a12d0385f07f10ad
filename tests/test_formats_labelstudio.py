"""Label Studio's lists of tasks, ours and other people's."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings

from nertool.documents import Document, Entity, Section, Span, document_to_json
from nertool.formats import ReadReport, Record, read_documents
from nertool.formats import label_studio_json as ls
from nertool.formats.base import RELATIONS
from nertool.labelling_config import make_config
from nertool.labelling_tasks import mentions
from nertool.reviews import sent_before_review
from tests.document_strategies import documents

TEXT = "🧬 lung and liver cancer"
LUNG, CANCER = (
    Entity("organ", (Span(2, 6),), "lung", "llm"),
    Entity("disease", (Span(2, 6), Span(17, 23)), "lung cancer"),
)
DOCUMENT = Document(
    "pmid/1",
    (
        Section("title", TEXT, (CANCER, LUNG), {"metadata": {"source": "x"}}),
        Section("empty", ""),
        Section("body", "lung\r\nlung", (replace(LUNG, spans=(Span(6, 10),), score=0.5),)),
    ),
    {"metadata": {"year": 2020}},
)


def read(content: Any, folder: Path) -> list[Record]:
    file = folder / "a.labelstudio.json"
    file.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return list(ls.read_label_studio(file))


def write(folder: Path, *some: Document) -> list[dict[str, Any]]:
    with ls.LabelStudioWriter(folder / "written.labelstudio.json") as writer:
        for document in some:
            writer.write(document)
    tasks: list[dict[str, Any]] = json.loads((folder / "written.labelstudio.json").read_bytes())
    return tasks


def region(start: int, end: int, *labels: str, text: str | None = None, to_name: str = "text", **facts: Any) -> Any:
    value = {"start": start, "end": end, "text": TEXT[start:end] if text is None else text, "labels": list(labels)}
    return {"id": f"{start}-{end}", "from_name": "ner", "to_name": to_name, "type": "labels", "value": value} | facts


def relation(first: str, second: str, *labels: str) -> Any:
    return {"type": "relation", "from_id": first, "to_id": second, "direction": "right", "labels": list(labels)}


def annotation(*result: Any, when: str = "2024-01-01T00:00:00Z", **facts: Any) -> Any:
    return {"id": 1, "result": list(result), "was_cancelled": False, "ground_truth": False, "updated_at": when} | facts


def task(*annotations: Any, **facts: Any) -> Any:
    return {"id": 7, "data": {"text": TEXT}, "annotations": list(annotations), "predictions": [], "meta": {}} | facts


def only(records: list[Record]) -> tuple[Document, dict[str, int]]:
    (record,) = records
    assert record.document is not None, record.problems
    return record.document, dict(record.notes)


# What nertool writes


@settings(max_examples=150, deadline=None)
@given(document=documents())
def test_nothing_is_lost_but_what_is_counted(document: Document, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tasks")
    write(folder, document)
    records = list(ls.read_label_studio(folder / "written.labelstudio.json"))
    if not document.sections:
        assert ls.label_studio_losses(document) == {"documents without sections (left out)": 1}
        assert not records
        return
    assert not ls.label_studio_losses(document)
    again, notes = only(records)
    assert document_to_json(again) == document_to_json(document)
    assert not notes


def test_a_file_of_several_documents_is_read_by_its_ending(tmp_path: Path) -> None:
    others = [replace(DOCUMENT, id=f"d{number}") for number in (3, 1, 2)]
    tasks = write(tmp_path, *others)
    assert [one["data"]["nertool_id"] for one in tasks[:4]] == ["d3#0", "d3#1", "d3#2", "d1#0"]
    report = ReadReport()
    again = list(read_documents(tmp_path / "written.labelstudio.json", report))
    assert [document_to_json(one) for one in again] == [document_to_json(one) for one in others]
    assert (report.documents, report.sections, report.entities) == (3, 9, 9)


def test_the_tasks_of_a_document_come_together_and_in_order(tmp_path: Path) -> None:
    tasks = write(tmp_path, DOCUMENT, replace(DOCUMENT, id="other"))
    records = read(tasks[::-1], tmp_path)
    assert [record.document and record.document.id for record in records] == ["other", "pmid/1"]
    assert records[1].document == DOCUMENT


def test_no_documents_are_an_empty_list(tmp_path: Path) -> None:
    assert write(tmp_path) == []


def test_sections_of_a_pull_that_are_out_of_order_are_counted(tmp_path: Path) -> None:
    numbered = [
        Section("s", f"text {number}", (), {"metadata": {"label_studio": {"section": number, "status": "corrected"}}})
        for number in (4, 2)
    ]
    document = Document("d", tuple(numbered))
    assert ls.label_studio_losses(document) == {"documents whose sections got back into the order of their numbers": 1}
    again, _ = only(read(write(tmp_path, document), tmp_path))
    assert again == Document("d", tuple(numbered[::-1]))
    ordered = Document("d", tuple(numbered[::-1]))
    assert [one["data"]["nertool_id"] for one in write(tmp_path, ordered)] == ["d#2", "d#4"]
    assert document_to_json(again) == document_to_json(ordered)


def test_the_sdks_own_types_take_what_is_written(tmp_path: Path) -> None:
    """The labelling interface of Label Studio's SDK checks annotations against a configuration."""
    pytest.importorskip("label_studio_sdk")
    from label_studio_sdk.label_interface import LabelInterface

    interface = LabelInterface(make_config(["organ", "disease"]))
    for one in write(tmp_path, DOCUMENT):
        assert interface.validate_annotation(one["annotations"][0])


# What people did with it


def test_corrections_are_read_as_ls_sync_pull_reads_them(tmp_path: Path) -> None:
    tasks = write(tmp_path, DOCUMENT)
    for number, one in enumerate(tasks):
        one["id"] = 40 + number
    person = {"completed_by": {"id": 3, "email": "ann@example.org"}, "lead_time": 3.5}
    fixed = annotation(region(2, 6, "organ"), when="2025-01-01", **person)
    tasks[0]["annotations"].append(fixed)
    document, notes = only(read(tasks, tmp_path))
    assert document.sections[0].entities == (LUNG,)  # with its namespace, as it was sent
    assert document.sections[2].entities == DOCUMENT.sections[2].entities
    assert sent_before_review(document.sections[0]) == DOCUMENT.sections[0].entities
    del document.sections[0].extra["metadata"]["label_studio"]["sent"]
    assert document.sections[0].extra["metadata"] == {
        "source": "x",
        "label_studio": {
            "section": 0, "status": "corrected", "task": 40, "people": ["ann@example.org"], "when": "2025-01-01",
        },
    }  # fmt: skip
    assert document.extra["metadata"]["nertool_review"]["people"] == ["ann@example.org"]
    assert not notes


def test_a_disagreement_leaves_the_section_as_it_was_and_is_counted(tmp_path: Path) -> None:
    tasks = write(tmp_path, replace(DOCUMENT, sections=DOCUMENT.sections[:1]))
    tasks[0]["annotations"] += [
        annotation(region(2, 6, "organ"), completed_by=1, lead_time=1.0),
        annotation(completed_by=2, lead_time=1.0),
        annotation(completed_by=3, was_cancelled=True),
    ]
    tasks[0]["drafts"] = [{"result": []}]
    tasks[0]["predictions"] = [{"result": [], "model_version": "m"}]
    document, notes = only(read(tasks, tmp_path))
    assert mentions(document.sections[0].entities) == mentions([LUNG, CANCER])
    assert notes == {ls.DISAGREEMENT: 1, ls.CANCELLED: 1, ls.DRAFTS: 1, ls.PREDICTIONS: 1}


def test_a_region_that_people_deleted_leaves_a_relation_that_joins_nothing(tmp_path: Path) -> None:
    tasks = write(tmp_path, replace(DOCUMENT, sections=DOCUMENT.sections[:1]))
    tasks[0]["annotations"] = [
        annotation(region(2, 6, "disease"), relation("2-6", "gone", "continues"), lead_time=1, completed_by=1)
    ]
    document, notes = only(read(tasks, tmp_path))
    assert mentions(document.sections[0].entities) == {("disease", (Span(2, 6),))}
    assert notes == {ls.LOOSE: 1}


def test_a_section_without_gold_takes_the_prediction_that_came_with_it(tmp_path: Path) -> None:
    (one,) = write(tmp_path, replace(DOCUMENT, sections=DOCUMENT.sections[:1]))
    del one["annotations"]
    one["meta"]["nertool"]["gold"] = None
    one["predictions"] = [{"model_version": "run@3", "result": [region(2, 6, "organ", score=0.75)]}]
    document, notes = only(read([one], tmp_path))
    (entity,) = document.sections[0].entities
    assert (entity.label, entity.namespace, entity.score) == ("organ", "run@3", 0.75)
    assert not notes


def test_copies_of_a_section_are_read_as_one(tmp_path: Path) -> None:
    tasks = write(tmp_path, DOCUMENT)
    document, notes = only(read([*tasks, tasks[0]], tmp_path))
    assert document == DOCUMENT
    assert notes == {ls.COPIES: 1}


def test_two_texts_for_one_section_are_a_problem(tmp_path: Path) -> None:
    tasks = write(tmp_path, DOCUMENT, replace(DOCUMENT, id="good"))
    second = json.loads(json.dumps(tasks[0])) | {"id": 99}
    second["data"]["text"] += "!"
    bad, good = read([*tasks, second], tmp_path)
    assert [str(problem) for problem in bad.problems] == [
        "task 99: has another text than [0], which is the same section"
    ]
    assert good.document == replace(DOCUMENT, id="good")


def test_a_misplaced_region_makes_its_document_invalid_and_only_that(tmp_path: Path) -> None:
    tasks = write(tmp_path, DOCUMENT, replace(DOCUMENT, id="good"))
    tasks[0]["id"] = 99
    tasks[0]["annotations"][0]["result"][0]["value"]["start"] += 1
    bad, good = read(tasks, tmp_path)
    assert bad.place.endswith("a.labelstudio.json[0]")
    assert [str(problem) for problem in bad.problems] == [
        "task 99: the region 'lung' is at 3–6, where the text says 'ung'"
    ]
    assert [one["data"]["nertool_id"] for one in json.loads(bad.raw)] == ["pmid/1#0", "pmid/1#1", "pmid/1#2"]
    assert good.document == replace(DOCUMENT, id="good")


@pytest.mark.parametrize(
    "damage",
    [
        {"gold": 3},
        {"gold": [{"label": "x"}]},
        {"gold": [{"label": "x", "spans": [[0, "y"]]}]},
        {"section_extra": {"unknown": 1}},
        {"section_extra": []},
        {"document_extra": "x"},
        {"name": None},
    ],
)
def test_what_is_damaged_in_meta_is_a_problem(tmp_path: Path, damage: dict[str, Any]) -> None:
    tasks = write(tmp_path, replace(DOCUMENT, sections=DOCUMENT.sections[:1]), replace(DOCUMENT, id="good"))
    tasks[0]["meta"]["nertool"] |= damage
    bad, good = read(tasks, tmp_path)
    assert bad.document is None
    assert bad.problems
    assert good.document is not None


# What others export


def test_an_export_of_others_is_read_with_a_document_for_each_task(tmp_path: Path) -> None:
    first = task(annotation(region(2, 6, "organ", "site"), region(17, 23, "disease")), meta={"batch": 2})
    first["data"] = {"pmid": 12, "text": TEXT}
    records = read([first, task(id="x-1")], tmp_path)
    assert [record.place.rpartition("/")[2] for record in records] == ["a.labelstudio.json[0]", "a.labelstudio.json[1]"]
    one, other = (record.document for record in records)
    assert one is not None
    assert one.id == "7"
    assert one.extra == {"metadata": {"batch": 2, "pmid": 12}}
    assert [(entity.label, entity.spans, entity.match) for entity in one.sections[0].entities] == [
        ("organ", ((2, 6),), "lung"),
        ("site", ((2, 6),), "lung"),
        ("disease", ((17, 23),), "cancer"),
    ]
    assert {entity.namespace for entity in one.sections[0].entities} == {"label_studio"}
    assert other == Document("x-1", (Section("text", TEXT),))


def test_tasks_without_ids_get_them_from_their_texts(tmp_path: Path) -> None:
    tasks = [{"data": {"text": "IL-2"}}, {"data": {"text": "TP53"}}]
    ids = [record.document and record.document.id for record in read(tasks, tmp_path)]
    assert ids == [record.document and record.document.id for record in read(tasks, tmp_path)]
    assert len(set(ids)) == 2


@pytest.mark.parametrize(
    ("data", "to_name", "field"),
    [
        ({"title": "short", "article": TEXT}, "text", "article"),  # where the texts of the regions stand
        ({"text": "a different and longer text than that", "body": TEXT}, "text", "body"),
        ({"one": TEXT, "text": TEXT, "two": TEXT}, "two", "two"),
        ({"one": TEXT, "text": TEXT}, "shown", "text"),
        ({"one": TEXT, "longer": f"{TEXT} in mice"}, "shown", "longer"),
    ],
)
def test_the_text_is_found_whatever_it_is_called(tmp_path: Path, data: Any, to_name: str, field: str) -> None:
    labelled = task(annotation(region(2, 6, "organ", to_name=to_name)), data=data)
    document, _ = only(read([labelled], tmp_path))
    assert [(section.name, section.text) for section in document.sections] == [(field, data[field])]
    assert document.extra["metadata"] == {name: value for name, value in data.items() if name != field}


def test_two_texts_that_are_labelled_are_two_sections(tmp_path: Path) -> None:
    result = [
        region(0, 4, "organ", text="lung", to_name="t1"),
        region(2, 6, "organ", to_name="t2"),
        region(17, 23, "disease", to_name="t2"),
    ]
    document, _ = only(read([task(annotation(*result), data={"title": "lung", "body": TEXT})], tmp_path))
    assert [(section.name, len(section.entities)) for section in document.sections] == [("title", 1), ("body", 2)]


def test_of_several_annotations_the_starred_one_counts_or_else_the_latest(tmp_path: Path) -> None:
    old, new = annotation(region(2, 6, "old"), when="2024-01-02"), annotation(region(2, 6, "new"), when="2024-02-01")
    skipped = annotation(region(2, 6, "skipped"), when="2025-01-01", was_cancelled=True)
    prediction = {"result": [region(2, 6, "model")], "model_version": "m"}

    def label(*annotations: Any) -> tuple[str, dict[str, int]]:
        document, notes = only(read([task(*annotations, predictions=[prediction, 12])], tmp_path))
        return document.sections[0].entities[0].label, notes

    assert label(new, old, skipped) == ("new", {ls.BESIDE: 1, ls.CANCELLED: 1, ls.PREDICTIONS: 2})
    assert label(new, {**old, "ground_truth": True})[0] == "old"
    assert label(skipped) == ("model", {ls.CANCELLED: 1, ls.PREDICTIONS: 1})


def test_an_annotation_that_says_that_there_is_nothing_counts_more_than_a_prediction(tmp_path: Path) -> None:
    document, notes = only(read([task(annotation(), predictions=[{"result": [region(2, 6, "x")]}])], tmp_path))
    assert document.sections[0].entities == ()
    assert notes == {ls.PREDICTIONS: 1}


def test_predictions_keep_their_scores_and_the_models_name(tmp_path: Path) -> None:
    result = [
        region(2, 6, "disease", score=0.9), region(17, 23, "disease", score=0.4), region(11, 16, "organ"),
        relation("2-6", "17-23", "continues"),
    ]  # fmt: skip
    older = {"result": [], "created_at": "2023-01-01"}
    prediction = {"result": result, "model_version": "bert-2", "score": 0.7, "created_at": "2024-01-01"}
    document, notes = only(read([task(predictions=[older, prediction])], tmp_path))
    found = {entity.match: (entity.score, entity.namespace) for entity in document.sections[0].entities}
    assert found == {"lung cancer": (0.4, "bert-2"), "liver": (0.7, "bert-2")}
    assert notes == {ls.PREDICTIONS: 1}


def test_only_relations_that_say_so_join_parts_and_all_else_is_counted(tmp_path: Path) -> None:
    result = [
        region(2, 6, "disease"), region(11, 16, "disease"), region(17, 23, "disease", meta={"text": ["sure?"]}),
        relation("2-6", "17-23", "continues"), relation("2-6", "11-16", "causes"), relation("2-6", "11-16"),
        {"id": "c", "from_name": "quality", "to_name": "text", "type": "choices", "value": {"choices": ["good"]}},
    ]  # fmt: skip
    document, notes = only(read([task(annotation(*result))], tmp_path))
    assert {entity.match for entity in document.sections[0].entities} == {"lung cancer", "liver"}
    assert notes == {RELATIONS: 2, ls.OTHER_KINDS: 1, ls.REMARKS: 1}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (region(3, 7, "x", text="lung"), "data.text: the region 'lung' is at 3–7, where the text says 'ung '"),
        (region(2, 60, "x"), "no place in the text of 23 characters"),
        (region(6, 2, "x", text=""), "no place in the text"),
        (region(2, 6, "x") | {"value": {"start": 2.5, "end": 6, "labels": ["x"]}}, "no place in the text"),
        (region(2, 6), "has no class"),
        (region(2, 6, "x") | {"value": None}, "no place in the text"),
        (region(2, 6, "x", to_name=["a"]) | {"value": {"start": 2, "end": 99, "labels": ["x"]}}, "no place"),
        ("region", "can't be read as a task of Label Studio"),
    ],
)  # fmt: skip
def test_regions_that_contradict_the_text_are_problems(tmp_path: Path, change: Any, words: str) -> None:
    bad, good = read([task(annotation(change, region(2, 6, "x"))), task(annotation(region(2, 6, "x")), id=8)], tmp_path)
    assert bad.document is None
    assert words in str(bad.problems[0])
    assert json.loads(bad.raw)[0]["id"] == 7
    assert good.document is not None


@pytest.mark.parametrize(
    "broken",
    [
        3, None, [], {}, {"data": {}}, {"data": {"text": 3}}, {"data": "text"}, {"data": None, "id": 1}, {"id": 5},
        task(data={"text": "\ud800"}), task(annotations=3), task(annotations=[3]), task(predictions=3),
        task(annotation(result=[[]])), task(annotation(result=3)), task(meta=3), task(drafts=3),
        task(annotation(region(2, 6, "\udc00"))),
    ],
)  # fmt: skip
def test_a_broken_task_is_a_problem_and_the_rest_goes_on(tmp_path: Path, broken: Any) -> None:
    bad, good = read([broken, task(id=8)], tmp_path)
    assert bad.document is None
    assert bad.problems
    assert json.loads(bad.raw) == [broken]
    assert good.document == Document("8", (Section("text", TEXT),))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[{", "not valid JSON"),
        (b'{"data": {}}', "a JSON list of tasks"),
        (b'["\xff"]', "not UTF-8"),
        (b"", "not valid JSON"),
    ],
)
def test_a_file_that_is_no_list_is_a_problem(tmp_path: Path, content: bytes, words: str) -> None:
    (record,) = read(content, tmp_path)
    assert record.document is None
    assert words in str(record.problems[0])
    assert record.raw == content


def test_a_byte_order_mark_is_skipped_and_nan_is_counted(tmp_path: Path) -> None:
    content = b"\xef\xbb\xbf" + json.dumps([task(data={"text": TEXT, "x": float("nan")})]).encode()
    document, notes = only(read(content, tmp_path))
    assert document.extra == {"metadata": {"x": None}}
    assert notes == {"NaN or infinite numbers, read as null": 1}


def test_two_tasks_of_one_id_are_told(tmp_path: Path) -> None:
    read([task(), task(data={"text": "other"})], tmp_path)
    report = ReadReport()
    list(read_documents(tmp_path, report, skip_invalid=True))
    assert "already used by" in str(report.rejected[0].problems[0])


def test_a_list_that_is_read_as_a_document_says_how_to_read_it(tmp_path: Path) -> None:
    (tmp_path / "project-1.json").write_text(json.dumps([task()]))
    report = ReadReport()
    assert not list(read_documents(tmp_path, report, skip_invalid=True))
    assert "nertool convert --from labelstudio" in str(report.rejected[0].problems[0])
    assert list(read_documents(tmp_path / "project-1.json", ReadReport(), format_name="labelstudio"))


# Files that Label Studio's own converter made


@pytest.fixture
def converted(tmp_path: Path) -> dict[str, list[Any]]:
    """What Label Studio's converter makes of tasks as its server has them: JSON and JSON-MIN."""
    pytest.importorskip("label_studio_sdk")
    from label_studio_sdk.converter import Converter

    config = (
        '<View><Labels name="ner" toName="shown"><Label value="x"/></Labels><Text name="shown" value="$body"/></View>'
    )
    tasks = [
        task(
            annotation(region(2, 6, "organ", to_name="shown"), region(17, 23, "disease", to_name="shown"), id=1),
            annotation(region(11, 16, "organ", to_name="shown"), id=2, when="2025-01-01T00:00:00Z"),
            annotation(id=3, was_cancelled=True),
            data={"body": TEXT, "title": "t", "year": 2020},
        ),
        task(annotation(id=4), id=8, data={"body": f"{TEXT} again"}),
        task(id=9, data={"body": f"{TEXT} once more"}),
    ]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
    converter = Converter(config, str(tmp_path), download_resources=False)
    made = {}
    for name in ("JSON", "JSON_MIN"):
        converter.convert(str(tmp_path / "tasks.json"), str(tmp_path / name), name, is_dir=False)
        made[name] = json.loads((tmp_path / name / "result.json").read_text(encoding="utf-8"))
    return made


@pytest.mark.parametrize(("kind", "notes"), [("JSON", {ls.BESIDE: 1, ls.CANCELLED: 1}), ("JSON_MIN", {ls.BESIDE: 1})])
def test_exports_of_label_studios_own_converter_are_read(
    tmp_path: Path, converted: dict[str, list[Any]], kind: str, notes: dict[str, int]
) -> None:
    records = read(converted[kind], tmp_path)
    assert sum((Counter(record.notes) for record in records), Counter()) == notes
    found = [record.document for record in records]
    liver = Entity("organ", (Span(11, 16),), "liver", "label_studio")
    assert found == [
        Document("7", (Section("body", TEXT, (liver,)),)),
        Document("8", (Section("body", f"{TEXT} again"),)),
        Document("9", (Section("body", f"{TEXT} once more"),)),
    ]
    assert found[0] is not None
    assert found[0].extra == {"metadata": {"title": "t", "year": 2020}}


def test_label_studios_own_converter_reads_what_is_written(tmp_path: Path) -> None:
    pytest.importorskip("label_studio_sdk")
    from label_studio_sdk.converter import Converter

    tasks = [one | {"id": number} for number, one in enumerate(write(tmp_path, DOCUMENT))]
    (tmp_path / "tasks.json").write_text(json.dumps(tasks), encoding="utf-8")
    Converter(make_config(["organ", "disease"]), str(tmp_path), download_resources=False).convert(
        str(tmp_path / "tasks.json"), str(tmp_path / "conll"), "CONLL2003", is_dir=False
    )
    lines = (tmp_path / "conll/result.conll").read_text(encoding="utf-8").splitlines()
    # A token has one class there, so of the title, where "lung" has two, the disease's parts remain.
    assert [line for line in lines if " B-" in line] == [
        "lung -X- _ B-disease", "cancer -X- _ B-disease", "lung -X- _ B-organ",
    ]  # fmt: skip
