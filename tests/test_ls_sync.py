"""`ls-sync` against a real Label Studio server (nox -s label_studio); nothing of the server is imitated."""

import itertools
import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from nertool.documents import Document, Entity, Section, Span, document_to_json, dump_document, match_text
from nertool.formats import ReadReport, read_documents
from nertool.labelling_config import make_config
from nertool.labelling_tasks import mentions
from tests.cli_helpers import in_an_empty_folder, nertool, refuse, start, succeed  # noqa: F401
from tests.conftest import entity, make_corpus, write_documents
from tests.faulty_proxy import FaultyProxy
from tests.label_studio_server import EMAIL, PASSWORD, LabelStudioServer
from tests.test_cli import SMALL
from tests.test_labelling_tasks import HARD_TEXTS

pytestmark = pytest.mark.label_studio

NUMBERS = itertools.count()
SAMPLE = Path(__file__).parents[1] / "sample_data"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabelStudioServer]:
    python = Path(os.environ["LABEL_STUDIO_PYTHON"])
    with LabelStudioServer(
        python, tmp_path_factory.mktemp("label-studio") / "data", Path(os.environ["LABEL_STUDIO_TEMPLATE"])
    ) as running:
        yield running


@pytest.fixture(autouse=True)
def settings(server: LabelStudioServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NERTOOL_LABEL_STUDIO__URL", server.url)
    monkeypatch.setenv("NERTOOL_LABEL_STUDIO__TOKEN", server.token)


@pytest.fixture
def project() -> str:
    return f"Test {next(NUMBERS)} of {os.getpid()}"


def pushed(*args: object) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(succeed("ls-sync", "push", *args, "--json").stdout)
    return result


def pulled(project: str, *args: object) -> tuple[dict[str, Document], dict[str, Any]]:
    output = f"pulled-{next(NUMBERS)}"
    report = json.loads(succeed("ls-sync", "pull", output, "--project", project, *args, "--json").stdout)
    return {one.id: one for one in read_documents(Path(output), ReadReport())}, report


def exported(server: LabelStudioServer, url: str) -> dict[str, dict[str, Any]]:
    """All tasks by their section; fails if one is there twice."""
    number = url.split("/")[-2]
    tasks: Any = server.ask("GET", f"/api/projects/{number}/export?exportType=JSON&download_all_tasks=true")
    assert len({task["data"]["nertool_id"] for task in tasks}) == len(tasks)
    return {task["data"]["nertool_id"]: task for task in tasks}


def versions(server: LabelStudioServer, url: str) -> Any:
    return server.ask("GET", f"/api/projects/{url.split('/')[-2]}/model-versions/")


def edit(server: LabelStudioServer, task: dict[str, Any], change: Callable[[list[Any]], list[Any]]) -> None:
    """Changes the first annotation of a task as the editor does: it reorders regions and notes where they come from."""
    annotation = task["annotations"][0]
    result = [{**one, "origin": "manual"} for one in reversed(change(annotation["result"]))]
    server.ask("PATCH", f"/api/annotations/{annotation['id']}/", {
        "result": result, "lead_time": 12.5, "was_cancelled": False, "draft_id": 0, "parent_prediction": None,
        "parent_annotation": None, "project": task["project"], "started_at": "2026-01-01T00:00:00.000Z",
    })  # fmt: skip


def region(text: str, start: int, end: int, label: str, identifier: str) -> dict[str, Any]:
    value = {"start": start, "end": end, "text": text[start:end], "labels": [label]}
    return {"id": identifier, "type": "labels", "from_name": "label", "to_name": "text", "value": value}


def with_predictions(documents: list[Document], keep: Callable[[int], bool]) -> list[Document]:
    """The documents with some of their entities, as a model finds them."""
    return [
        replace(
            document,
            sections=tuple(
                replace(
                    section,
                    entities=tuple(replace(one, score=0.75) for i, one in enumerate(section.entities) if keep(i)),
                )
                for section in document.sections
            ),
        )
        for document in documents
    ]


def test_a_converted_file_is_imported_and_its_export_is_read_back(
    server: LabelStudioServer, project: str, tmp_path: Path
) -> None:
    sections = [Section(name, text) for name, text in HARD_TEXTS.items()]
    documents = [*make_corpus(3), Document("a/b #é😀", (*sections, Section("empty", ""), Section("blank", " \n")))]
    docs = write_documents(tmp_path / "docs", documents[:-1])
    (docs / "odd.json").write_bytes(dump_document(documents[-1]))
    succeed("convert", docs, "ours.labelstudio.json")
    labels = sorted({one.label for document in documents for section in document.sections for one in section.entities})
    made: Any = server.ask("POST", "/api/projects/", {"title": project, "label_config": make_config(labels)})
    tasks = json.loads(Path("ours.labelstudio.json").read_bytes())
    done: Any = server.ask("POST", f"/api/projects/{made['id']}/import", tasks)
    assert done["task_count"] == done["annotation_count"] == len(tasks) == sum(len(one.sections) for one in documents)
    export = server.ask("GET", f"/api/projects/{made['id']}/export?exportType=JSON&download_all_tasks=true")
    Path("export.labelstudio.json").write_text(json.dumps(export))
    again = list(read_documents(Path("export.labelstudio.json"), ReadReport()))
    assert [document_to_json(one) for one in again] == [document_to_json(one) for one in documents]


def test_push_again_a_new_version_peoples_edits_another_push_and_pull(
    server: LabelStudioServer, project: str, tmp_path: Path
) -> None:
    documents = make_corpus(6)
    docs = write_documents(tmp_path / "docs", documents)
    first = write_documents(tmp_path / "run@100", with_predictions(documents, lambda i: i % 2 == 0))
    second = write_documents(tmp_path / "run@200", with_predictions(documents, lambda i: i != 0))

    done = pushed(docs, "--predictions", first, "--project", project)
    assert (done["created"], done["predictions"]) == (12, {"run@100": {"sent": 12, "unchanged": 0}})
    again = pushed(docs, "--predictions", first, "--project", project)
    assert (again["created"], again["updated"], again["unchanged"]) == (0, 0, 12)
    assert again["predictions"] == {"run@100": {"sent": 0, "unchanged": 12}}
    third = pushed(docs, "--predictions", second, "--project", project)
    assert versions(server, done["url"]) == {"run@100": 12, "run@200": 12}
    assert third["created"] == 0

    tasks = exported(server, done["url"])
    one, two, skipped, begun, extra = (tasks[f"doc-00{i}#1"] for i in range(5))
    edit(server, one, lambda result: result[1:])  # one entity deleted
    added = region(two["data"]["text"], 0, 3, "drug", "mine")
    edit(server, two, lambda result: [*result, added])
    server.ask(
        "POST", f"/api/tasks/{skipped['id']}/annotations/", {"result": [], "was_cancelled": True, "lead_time": 1}
    )
    server.ask("POST", f"/api/tasks/{begun['id']}/drafts", {"result": [added], "lead_time": 2})
    for label in ("drug", "gene"):  # as two people with one account: the later one counts
        server.ask("POST", f"/api/tasks/{extra['id']}/annotations/", {
            "result": [region(extra["data"]["text"], 0, 3, label, "x")], "lead_time": 1, "was_cancelled": False,
        })  # fmt: skip
    confirmed = tasks["doc-005#1"]
    tick = {"from_name": "review", "to_name": "text", "type": "choices", "id": "t", "value": {"choices": ["checked"]}}
    edit(server, confirmed, lambda result: [*result, tick])

    # Another push, with documents that have changed: people's work stays, the rest follows.
    changed = [
        replace(document, sections=tuple(replace(s, entities=s.entities[:1]) for s in document.sections))
        for document in documents
    ]
    write_documents(docs, changed)
    last = pushed(docs, "--predictions", second, "--project", project)
    assert last["updated"] == 6  # the titles
    assert {one["section"] for one in last["conflicts"]} == {f"doc-00{i}#1" for i in range(6)}
    assert pushed(docs, "--project", project)["unchanged"] == 6

    found, report = pulled(project)
    statuses = {"corrected": 3, "confirmed": 1, "skipped": 1, "draft": 1, "unchanged": 6}
    assert {name: n for name, n in report["statuses"].items() if n} == statuses
    assert report["people"] == [EMAIL]
    bodies = [documents[i].sections[1] for i in range(6)]
    gone = {(label, spans) for label, spans in mentions(bodies[0].entities)}
    first_region = one["annotations"][0]["result"][0]["value"]
    gone = {m for m in gone if (m[1][0].start, m[0]) != (first_region["start"], first_region["labels"][0])}
    assert mentions(found["doc-000"].sections[1].entities) == gone
    assert mentions(found["doc-001"].sections[1].entities) == mentions(bodies[1].entities) | {("drug", (Span(0, 3),))}
    assert mentions(found["doc-004"].sections[1].entities) == {("gene", (Span(0, 3),))}
    for i in (2, 3, 5):
        assert mentions(found[f"doc-00{i}"].sections[1].entities) == mentions(bodies[i].entities)
    for i in range(6):
        assert mentions(found[f"doc-00{i}"].sections[0].entities) == mentions(changed[i].sections[0].entities)
    facts = found["doc-000"].sections[1].extra["metadata"]["label_studio"]
    assert (facts["status"], facts["people"]) == ("corrected", [EMAIL])
    assert facts["when"].startswith("20")

    only, _ = pulled(project, "--reviewed")
    assert {(d, s.name) for d, one in only.items() for s in one.sections} == {
        (f"doc-00{i}", "body") for i in (0, 1, 4, 5)
    }
    # Agreement between what was shown and people: pull's own figure, and `evaluate` of the documents that were sent.
    succeed("ls-sync", "pull", "gold", "--project", project, "--reviewed")
    scores = json.loads(succeed("evaluate", write_documents(tmp_path / "sent", documents), "gold", "--json").stdout)
    assert scores["micro_f1"] == report["agreement_of_sent_entities"]["micro_f1"]
    assert scores["counts"]["annotators"] == {"a person in Label Studio": 4}
    assert refuse("ls-sync", "delete", "--project", project).count("people's work on 6 sections") == 1
    succeed("ls-sync", "delete", "--project", project, "--force")
    assert "no project" in refuse("ls-sync", "status", "--project", project)


def test_difficult_texts_labels_and_parts_are_exact_both_ways(
    server: LabelStudioServer, project: str, tmp_path: Path
) -> None:
    labels = ["gene, or \"product\" & 'x'", "<b>disease</b>", "ж, 药物"]
    documents = []
    rng = random.Random(3)
    for name, text in HARD_TEXTS.items():
        entities = {(rng.choice(labels), (Span(*sorted(rng.sample(range(len(text) + 1), 2))),)) for _ in range(6)} | {
            (labels[0], (Span(0, 2), Span(3, 5), Span(7, len(text))))
        }
        entities |= {(labels[1], (Span(0, 2),)), (labels[2], (Span(0, 2),))}
        made = tuple(Entity(label, spans, match_text(text, spans)) for label, spans in sorted(entities))
        documents.append(Document(f"{name} ../?#", (Section("a/b", text, made),)))
    docs = tmp_path / "docs.jsonl"
    from nertool.documents import dump_document

    docs.write_bytes(b"".join(dump_document(one) + b"\n" for one in documents))
    done = pushed(docs, "--predictions", f"same={docs}", "--project", project)
    tasks = exported(server, done["url"])
    for document in documents:
        task = tasks[f"{document.id}#0"]
        assert task["data"]["text"] == document.sections[0].text
        edit(server, task, lambda result: result)  # what the editor sends back
    found, report = pulled(project)
    assert report["problems"] == 0
    assert report["statuses"]["confirmed"] == len(HARD_TEXTS)
    for document in documents:
        assert found[document.id].sections[0].text == document.sections[0].text
        assert mentions(found[document.id].sections[0].entities) == mentions(document.sections[0].entities)
    again = pushed(docs, "--predictions", f"same={docs}", "--project", project)
    assert again["predictions"]["same"] == {"sent": 0, "unchanged": len(documents)}


def test_predictions_pass_label_studios_own_check(server: LabelStudioServer, tmp_path: Path) -> None:
    from label_studio_sdk.label_interface import LabelInterface

    from nertool.labelling_config import make_config
    from nertool.labelling_tasks import make_prediction

    interface = LabelInterface(make_config(["gene", "disease", "drug", "organ"]))
    for document in make_corpus(3):
        for section in document.sections:
            prediction = make_prediction(1, "v@1", section.entities, section.text)
            assert interface.validate_prediction(prediction, return_errors=True) == []


def test_documents_come_back_with_everything_that_label_studio_has_no_place_for(project: str, tmp_path: Path) -> None:
    text = "lung and liver cancer"
    made = Entity("disease", (Span(0, 4), Span(15, 21)), "LUNG CANCER", "llm", 0.5, {"mappings": [{"idx": "D1"}]})
    section = Section("body", text, (made,), {"sentence_spans": [{"start": 0, "end": 21}], "metadata": {"a": 1}})
    document = Document("d", (Section("empty", ""), section), {"metadata": {"licence": "x"}})
    pushed(write_documents(tmp_path / "docs", [document]), "--project", project)
    found, _ = pulled(project)
    (back,) = found["d"].sections
    assert (back.entities, back.entities[0].extra["mappings"]) == ((made,), [{"idx": "D1"}])
    assert back.extra["sentence_spans"] == section.extra["sentence_spans"]
    assert back.extra["metadata"]["a"] == 1
    assert found["d"].extra["metadata"] == {"licence": "x"}


def test_texts_are_sent_without_gold_and_annotated(server: LabelStudioServer, project: str, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for i in range(3):
        (tmp_path / f"texts/t{i}.txt").write_text(f"BRCA1 in mouse {i}")
    predicted = [
        Document(f"t{i}", (Section("text", f"BRCA1 in mouse {i}", (entity("BRCA1", "gene", "BRCA1"),)),))
        for i in range(3)
    ]
    done = pushed(tmp_path / "texts", "--predictions", write_documents(tmp_path / "m", predicted), "--project", project)
    tasks = exported(server, done["url"])
    assert [task["annotations"] for task in tasks.values()] == [[], [], []]
    text = tasks["t0#0"]["data"]["text"]
    result = [region(text, 9, 14, "species", "m")]
    server.ask("POST", f"/api/tasks/{tasks['t0#0']['id']}/annotations/", {"result": result, "lead_time": 3})
    found, report = pulled(project)
    assert {name: n for name, n in report["statuses"].items() if n} == {"annotated": 1, "open": 2}
    assert mentions(found["t0"].sections[0].entities) == {("species", (Span(9, 14),))}
    assert pushed(tmp_path / "texts", "--project", project)["conflicts"] == []


def test_sample_errors_and_queue(server: LabelStudioServer, project: str, tmp_path: Path) -> None:
    documents = make_corpus(10)
    docs = write_documents(tmp_path / "docs", documents)
    right = write_documents(tmp_path / "right", documents)
    wrong = write_documents(tmp_path / "wrong", [*with_predictions(documents[:2], lambda i: i > 0), *documents[2:]])
    queue = tmp_path / "queue.txt"
    queue.write_text("doc-007\n\ndoc-003#1\n")
    done = pushed(docs, "--queue", queue, "--sample", 5, "--project", project)
    tasks = exported(server, done["url"])
    assert len(tasks) == 5
    in_order = sorted((task["id"], key) for key, task in tasks.items())
    assert [key for _, key in in_order[:3]] == ["doc-007#0", "doc-007#1", "doc-003#1"]
    assert [task["data"].get("queue") for _, task in sorted(tasks.items()) if task["data"].get("queue")] == [
        "00003", "00001", "00002",
    ]  # fmt: skip
    number = done["url"].split("/")[-2]
    (tab,) = [tab for tab in server.ask("GET", f"/api/dm/views/?project={number}") if tab["data"]["title"] == "Queue"]
    shown = server.ask("GET", f"/api/tasks/?project={number}&view={tab['id']}")
    assert [task["data"]["nertool_id"] for task in shown["tasks"]] == ["doc-007#0", "doc-007#1", "doc-003#1"]
    assert pushed(docs, "--queue", queue, "--sample", 5, "--project", project)["created"] == 0
    assert "did you mean 'doc-003" in _refused_queue(docs, tmp_path, project)

    other = pushed(docs, "--predictions", right, "--predictions", wrong, "--errors-only", "--project", f"{project} e")
    assert set(exported(server, other["url"])) == {f"doc-00{i}#{k}" for i in range(2) for k in range(2)}
    assert pushed(docs, "--sample", 3, "--project", f"{project} e")["created"] in range(4)


def _refused_queue(docs: Path, tmp_path: Path, project: str) -> str:
    (tmp_path / "bad.txt").write_text("doc-0030\n")
    return refuse("ls-sync", "push", docs, "--queue", tmp_path / "bad.txt", "--project", project)


def test_old_versions_of_a_run_go_and_others_stay(server: LabelStudioServer, project: str, tmp_path: Path) -> None:
    documents = make_corpus(2)
    docs = write_documents(tmp_path / "docs", documents)
    options: list[object] = []
    for name in ("run@9", "run@10", "run@100", "other@1", "mine"):
        options += ["--predictions", f"{name}={docs}"]
    done = pushed(docs, *options, "--project", project)
    assert set(versions(server, done["url"])) == {"run@9", "run@10", "run@100", "other@1", "mine"}
    done = pushed(docs, "--predictions", f"run@200={docs}", "--project", project, "--keep-versions", 2)
    assert set(versions(server, done["url"])) == {"run@100", "run@200", "other@1", "mine"}
    assert done["versions_removed"] == ["run@9", "run@10"]
    done = pushed(docs, "--predictions", f"run@50={docs}", "--project", project, "--keep-versions", 1)
    assert done["versions_removed"] == []  # those of another run of the name, or of before it began anew, stay


def test_predictions_that_changed_are_replaced_and_copies_removed(
    server: LabelStudioServer, project: str, tmp_path: Path
) -> None:
    documents = make_corpus(3)
    docs = write_documents(tmp_path / "docs", documents)
    done = pushed(docs, "--predictions", f"m={docs}", "--project", project)
    tasks = exported(server, done["url"])
    number = done["url"].split("/")[-2]
    copy = {"task": tasks["doc-000#0"]["id"], "model_version": "m", "result": []}
    server.ask("POST", f"/api/projects/{number}/import/predictions", [copy])
    task = {key: tasks["doc-001#0"][key] for key in ("data", "meta")}
    task["annotations"] = [{"result": tasks["doc-001#0"]["annotations"][0]["result"]}]
    server.ask("POST", f"/api/projects/{number}/import", [task])
    done = pushed(docs, "--predictions", f"m={docs}", "--project", project)
    assert (done["copies_removed"], done["predictions"]["m"]) == (1, {"sent": 0, "unchanged": 6})
    changed = write_documents(tmp_path / "changed", with_predictions(documents, lambda i: i == 0))
    done = pushed(docs, "--predictions", f"m={changed}", "--project", project)
    assert done["predictions"]["m"] == {"sent": 6, "unchanged": 0}
    assert versions(server, done["url"]) == {"m": 6}


def test_a_change_of_the_gold_that_was_cut_off_is_finished(
    server: LabelStudioServer, project: str, tmp_path: Path
) -> None:
    documents = make_corpus(1)
    docs = write_documents(tmp_path / "docs", documents)
    done = pushed(docs, "--project", project)
    changed = [
        replace(documents[0], sections=tuple(replace(s, entities=s.entities[:1]) for s in documents[0].sections))
    ]
    write_documents(docs, changed)

    def rule(method: str, path: str, before: int) -> str | None:
        return "413" if method == "PATCH" and "/api/annotations/" in path else None  # after `meta` was changed

    with FaultyProxy(server.port, rule) as proxy, pytest.MonkeyPatch.context() as patch:
        patch.setenv("NERTOOL_LABEL_STUDIO__URL", proxy.url)
        refuse("ls-sync", "push", docs, "--project", project)
        assert proxy.faults
    found, report = pulled(project)
    assert report["statuses"]["unchanged"] == 2
    assert pushed(docs, "--project", project)["updated"] == 2
    assert pushed(docs, "--project", project)["unchanged"] == 2
    found, report = pulled(project)
    assert report["statuses"]["unchanged"] == 2
    assert [mentions(s.entities) for s in found["doc-000"].sections] == [
        mentions(s.entities) for s in changed[0].sections
    ]
    assert all("gold_before" not in task["meta"]["nertool"] for task in exported(server, done["url"]).values())


def test_gold_for_texts_that_were_sent_without(server: LabelStudioServer, project: str, tmp_path: Path) -> None:
    documents = make_corpus(2)
    docs = write_documents(tmp_path / "docs", with_predictions(documents, lambda i: False))
    pushed(docs, "--predictions", write_documents(tmp_path / "m", documents), "--project", project)
    write_documents(docs, documents)
    with FaultyProxy(
        server.port, lambda m, p, n: "504 after" if m == "POST" and p.endswith("annotations/") else None
    ) as proxy:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("NERTOOL_LABEL_STUDIO__URL", proxy.url)
            done = pushed(docs, "--project", project)
        assert len(proxy.faults) == 4
    tasks = exported(server, f"{server.url}/projects/{done['url'].split('/')[-2]}/data")
    assert [len(task["annotations"]) for task in tasks.values()] == [1, 1, 1, 1]
    assert pulled(project)[1]["statuses"]["unchanged"] == 4


def test_pulled_documents_pushed_back_change_nothing(server: LabelStudioServer, project: str, tmp_path: Path) -> None:
    documents = make_corpus(2)
    done = pushed(write_documents(tmp_path / "docs", documents), "--project", f" {project} ")
    for key in ("doc-000#1", "doc-001#1"):
        edit(server, exported(server, done["url"])[key], lambda result: result[1:])
    for name, options in (("all", []), ("some", ["--reviewed"])):
        succeed("ls-sync", "pull", name, "--project", project, *options)
        again = pushed(name, "--project", project)
        assert (again["created"], again["conflicts"]) == (0, [])
        assert len(exported(server, done["url"])) == 4
    assert {n: k for n, k in pulled(project)[1]["statuses"].items() if k} == {"corrected": 2, "unchanged": 2}


def test_a_spool_file_that_cannot_be_sent_does_not_keep_the_others(
    server: LabelStudioServer, project: str, tmp_path: Path
) -> None:
    from nertool.labelling_spool import Spooled, write_spool
    from nertool.labelling_tasks import make_items

    items = tuple(make_items(make_corpus(1)[0], has_gold=True))
    server.ask("POST", "/api/projects/", {"title": f"{project} x", "label_config": "<View/>"})
    for name in (f"{project} x", project):
        write_spool(tmp_path / "s", Spooled(name, "run@1", (), None, items, {one.key: () for one in items}))
    assert "was not made by nertool" in refuse("ls-sync", "push", "--from", tmp_path / "s")
    assert len(list((tmp_path / "s").iterdir())) == 1
    assert json.loads(succeed("ls-sync", "status", "--project", project, "--json").stdout)["versions"] == {"run@1": 2}


def test_texts_without_any_class(project: str, tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("BRCA1")
    assert "name them: --set" in refuse("ls-sync", "push", tmp_path / "t.txt", "--project", project)
    done = pushed(tmp_path / "t.txt", "--project", project, "--set", 'data.labels=["gene"]')
    assert done["created"] == 1


def test_new_classes_and_changed_texts(server: LabelStudioServer, project: str, tmp_path: Path) -> None:
    documents = make_corpus(3)
    docs = write_documents(tmp_path / "docs", documents)
    done = pushed(docs, "--project", project)
    edit(server, exported(server, done["url"])["doc-002#0"], lambda result: result[:1])
    titles = {d.id: f"{d.id} has p53" for d in documents}
    new = [
        replace(d, sections=(Section("title", titles[d.id], (entity(titles[d.id], "protein", "p53"),)), d.sections[1]))
        for d in documents
    ]
    done = pushed(write_documents(docs, new), "--project", project)
    assert (done["created"], done["updated"], [one["section"] for one in done["conflicts"]]) == (2, 2, ["doc-002#0"])
    found, _ = pulled(project)
    assert [found[d.id].sections[0].text == d.sections[0].text for d in new] == [True, True, False]
    assert mentions(found["doc-000"].sections[0].entities) == mentions(new[0].sections[0].entities)


# Trouble

IMPORT = "/import"
PREDICTIONS = "/import/predictions"


def once(suffix: str, fault: str, times: int = 1) -> Callable[[str, str, int], str | None]:
    """The first requests of this kind go wrong."""
    return lambda method, path, before: fault if method == "POST" and path.endswith(suffix) and before < times else None


@pytest.mark.parametrize("suffix", [IMPORT, PREDICTIONS])
@pytest.mark.parametrize(
    "fault", ["504 after", "cut after", "cut before", "413", "429", "401", "500", "html", "silence"]
)
def test_whatever_goes_wrong_in_between_everything_is_there_once(
    server: LabelStudioServer, project: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str, suffix: str
) -> None:
    documents = make_corpus(20)
    docs = write_documents(tmp_path / "docs", documents)
    with FaultyProxy(server.port, once(suffix, fault), silence_seconds=30.0 if suffix == IMPORT else 6.0) as proxy:
        monkeypatch.setenv("NERTOOL_LABEL_STUDIO__URL", proxy.url)
        monkeypatch.setenv("NERTOOL_LABEL_STUDIO__TASKS_PER_REQUEST", "15")
        monkeypatch.setenv("NERTOOL_LABEL_STUDIO__TIMEOUT_SECONDS", "4")
        done = pushed(docs, "--predictions", f"m@1={docs}", "--project", project)
        assert proxy.faults
    tasks = exported(server, f"{server.url}/projects/{done['url'].split('/')[-2]}/data")
    assert len(tasks) == 40
    assert all(len(task["annotations"]) == 1 for task in tasks.values())
    predictions: Any = server.ask("GET", f"/api/predictions/?project={done['url'].split('/')[-2]}")
    assert sorted(one["task"] for one in predictions) == sorted(task["id"] for task in tasks.values())


def test_a_project_is_made_once_though_the_answer_is_lost(
    server: LabelStudioServer, project: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = write_documents(tmp_path / "docs", make_corpus(2))
    with FaultyProxy(server.port, once("/api/projects/", "504 after")) as proxy:
        monkeypatch.setenv("NERTOOL_LABEL_STUDIO__URL", proxy.url)
        pushed(docs, "--project", project)
        assert proxy.faults
    monkeypatch.setenv("NERTOOL_LABEL_STUDIO__URL", server.url)
    titles = [one["title"] for one in json.loads(succeed("ls-sync", "list", "--json").stdout)]
    assert titles.count(project) == 1


def test_the_server_dies_and_comes_back(
    server: LabelStudioServer, project: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = write_documents(tmp_path / "docs", make_corpus(60))
    died = threading.Event()

    def rule(method: str, path: str, before: int) -> None:
        if path.endswith(IMPORT) and before == 2 and not died.is_set():
            died.set()
            server.stop()
            threading.Timer(3, server.start).start()

    with FaultyProxy(server.port, rule) as proxy:
        monkeypatch.setenv("NERTOOL_LABEL_STUDIO__URL", proxy.url)
        monkeypatch.setenv("NERTOOL_LABEL_STUDIO__TASKS_PER_REQUEST", "20")
        done = pushed(docs, "--predictions", f"m@1={docs}", "--project", project)
    assert died.is_set()
    number = done["url"].split("/")[-2]
    assert len(exported(server, f"/projects/{number}/data")) == 120
    assert versions(server, f"/projects/{number}/data") == {"m@1": 120}


@pytest.mark.slow
def test_ten_kills_of_a_push(server: LabelStudioServer, project: str, tmp_path: Path) -> None:
    documents = make_corpus(150)
    docs = write_documents(tmp_path / "docs", documents)
    command = ["ls-sync", "push", docs, "--predictions", f"m@1={docs}", "--project", project,
               "--set", "label_studio.tasks_per_request=20"]  # fmt: skip
    chance = random.Random(4)
    begun = time.monotonic()
    process = start(*command)
    _, errors = process.communicate()
    assert process.returncode == 0, errors
    whole = time.monotonic() - begun
    succeed("ls-sync", "delete", "--project", project)
    for _ in range(10):
        process = start(*command)
        time.sleep(1.0 + chance.random() * max(0.5, whole - 1.0) * 0.6)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    done = pushed(*command[2:])
    tasks = exported(server, done["url"])
    assert len(tasks) == 300
    assert all(len(task["annotations"]) == 1 for task in tasks.values())
    assert versions(server, done["url"]) == {"m@1": 300}
    found, report = pulled(project)
    assert report["statuses"]["unchanged"] == 300
    for document in documents:
        for section, back in zip(document.sections, found[document.id].sections, strict=True):
            assert mentions(section.entities) == mentions(back.entities)


@pytest.mark.slow
def test_five_thousand_sections(project: str, tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    docs = write_documents(tmp_path / "docs", make_corpus(2500))
    for name, command in {
        "push": ["push", docs, "--predictions", f"m@1={docs}", "--project", project],
        "push again": ["push", docs, "--predictions", f"m@1={docs}", "--project", project],
        "pull": ["pull", tmp_path / "out", "--project", project],
    }.items():
        begun = time.monotonic()
        succeed("ls-sync", *command)
        record_property(name, round(time.monotonic() - begun, 1))
        print(f"5,000 sections, {name}: {time.monotonic() - begun:.1f} s")  # noqa: T201
    assert len(list((tmp_path / "out").glob("doc-*.json"))) == 2500


def test_a_body_that_is_too_large_is_halved_and_one_section_alone_is_named(
    server: LabelStudioServer, project: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = write_documents(tmp_path / "docs", make_corpus(30))
    limit = 20_000
    with FaultyProxy(server.port, lambda *_: None) as proxy:
        plain = proxy._forward
        monkeypatch.setattr(
            proxy, "_forward", lambda request, body: (413, {}, b"<html>") if len(body) > limit else plain(request, body)
        )
        monkeypatch.setenv("NERTOOL_LABEL_STUDIO__URL", proxy.url)
        assert pushed(docs, "--project", project)["created"] == 60
        long = Document("long", (Section("body", "word " * 10_000),))
        docs = write_documents(tmp_path / "long", [long])
        assert "long#0 is too large for the server" in refuse("ls-sync", "push", docs, "--project", project)


def test_two_people_who_disagree_are_a_conflict_until_they_agree(
    server: LabelStudioServer, project: str, tmp_path: Path
) -> None:
    document = make_corpus(1)[0]
    done = pushed(write_documents(tmp_path / "docs", [document]), "--project", project)
    task = exported(server, done["url"])["doc-000#0"]
    text = task["data"]["text"]
    ann, bo = (server.join(f"{name}-{next(NUMBERS)}@example.org") for name in ("ann", "bo"))
    for person, label in ((ann, "drug"), (bo, "gene")):
        server.ask("POST", f"/api/tasks/{task['id']}/annotations/", {
            "result": [region(text, 0, 3, label, "x")], "lead_time": 1, "was_cancelled": False,
        }, person.token)  # fmt: skip
    found, report = pulled(project)
    assert report["people"] == sorted([ann.email, bo.email])
    assert (report["statuses"]["conflict"], report["agreement_of_sent_entities"]) == (1, None)
    (notable,) = report["to_look_at"]
    assert [one["entities"][0]["class"] for one in notable["opinions"]] == ["drug", "gene"]
    assert mentions(found["doc-000"].sections[0].entities) == mentions(document.sections[0].entities)

    mine = exported(server, done["url"])["doc-000#0"]["annotations"][2]
    result = [region(text, 0, 3, "drug", "x")]
    server.ask("PATCH", f"/api/annotations/{mine['id']}/", {"result": result, "lead_time": 2}, bo.token)
    found, report = pulled(project, "--reviewed")
    assert report["statuses"]["corrected"] == 1
    assert mentions(found["doc-000"].sections[0].entities) == {("drug", (Span(0, 3),))}
    assert found["doc-000"].sections[0].extra["metadata"]["label_studio"]["people"] == sorted([ann.email, bo.email])


# Settings and secrets


def test_both_kinds_of_tokens_work_and_what_is_wrong_is_said(
    server: LabelStudioServer, project: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    docs = write_documents(tmp_path / "docs", make_corpus(2))
    monkeypatch.setenv("NERTOOL_LABEL_STUDIO__TOKEN", server.personal_token)
    pushed(docs, "--project", project)
    monkeypatch.setenv("NERTOOL_LABEL_STUDIO__TOKEN", "0123456789" * 4)
    assert "refuses the token" in refuse("ls-sync", "list")
    monkeypatch.delenv("NERTOOL_LABEL_STUDIO__TOKEN")
    assert "NERTOOL_LABEL_STUDIO__TOKEN" in refuse("ls-sync", "list")
    monkeypatch.setenv("NERTOOL_LABEL_STUDIO__TOKEN", server.token)
    monkeypatch.setenv("NERTOOL_LABEL_STUDIO__URL", "http://127.0.0.1:9")
    assert "doesn't answer" in refuse("ls-sync", "list")
    monkeypatch.setenv("NERTOOL_LABEL_STUDIO__URL", f"{server.url}/somewhere")
    assert "there is no Label Studio at" in refuse("ls-sync", "list")
    monkeypatch.setenv("NERTOOL_LABEL_STUDIO__URL", "localhost:8080")
    assert "an address looks like" in refuse("ls-sync", "list")
    with FaultyProxy(server.port, lambda *_: "html") as proxy:
        monkeypatch.setenv("NERTOOL_LABEL_STUDIO__URL", proxy.url)
        assert "stands behind a log-in page" in refuse("ls-sync", "list")


def test_legacy_tokens_switched_off(server: LabelStudioServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import httpx
    from label_studio_sdk import LabelStudio

    with httpx.Client() as http:
        client = LabelStudio(base_url=server.url, api_key=server.personal_token, httpx_client=http)
        values = {"api_token_ttl_days": 3650, "api_tokens_enabled": True}
        try:
            client.jwt_settings.update(**values, legacy_api_tokens_enabled=False)
            assert "API Tokens Settings" in refuse("ls-sync", "list")
        finally:
            client.jwt_settings.update(**values, legacy_api_tokens_enabled=True)


def test_projects_are_found_by_their_name_and_only_our_own_are_touched(
    server: LabelStudioServer, project: str, tmp_path: Path
) -> None:
    docs = write_documents(tmp_path / "docs", make_corpus(2))
    server.ask("POST", "/api/projects/", {"title": project, "label_config": "<View/>"})
    assert "was not made by nertool" in refuse("ls-sync", "push", docs, "--project", project)
    assert "was not made by nertool" in refuse("ls-sync", "delete", "--project", project)
    other = f"{project} b"
    pushed(docs, "--project", other)
    assert f"did you mean '{other}'" in refuse("ls-sync", "pull", "out", "--project", f"{project} bb")
    server.ask("POST", "/api/projects/", {"title": other, "description": "[nertool]", "label_config": "<View/>"})
    message = refuse("ls-sync", "status", "--project", other)
    assert "2 projects called" in message
    number = message.partition("id:")[2].split()[0]
    assert json.loads(succeed("ls-sync", "status", "--project", f"id:{number}", "--json").stdout)["title"] == other
    for _ in range(35):  # more than a page
        server.ask("POST", "/api/projects/", {"title": "filler", "label_config": "<View/>"})
    pushed(docs, "--project", f"{project} c")
    assert pushed(docs, "--project", f"{project} c")["created"] == 0


# Training


@pytest.fixture
def training(tmp_path: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch) -> list[object]:
    monkeypatch.chdir(tmp_path)
    documents = make_corpus(20)
    train, evaluated = write_documents(tmp_path / "t", documents[:14]), write_documents(tmp_path / "e", documents[14:])
    return ["train", "--train", train, "--eval", evaluated, "--model", backbone, *SMALL, "--set", "train.epochs=4"]


def test_a_training_shows_each_evaluation(
    server: LabelStudioServer, project: str, training: list[object], tmp_path: Path
) -> None:
    _, errors = (process := start(*training, "--output", "run", "--ls-project", project)).communicate()
    assert process.returncode == 0, errors
    deadline = time.monotonic() + 60
    while list(Path("run/label_studio").glob("*.spool.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.2)
    status = json.loads(succeed("ls-sync", "status", "--project", project, "--json").stdout)
    assert status["statuses"]["unchanged"] == 12
    steps = [
        json.loads(line)["step"] for line in Path("run/metrics.jsonl").read_text().splitlines() if '"eval"' in line
    ]
    assert status["versions"] == {f"run@{step}": 12 for step in steps}
    succeed("evaluate", "run/model", tmp_path / "e", "--ls-project", project)
    succeed("predict", "run/model", tmp_path / "e", "predicted", "--ls-project", project)
    assert (
        json.loads(succeed("ls-sync", "status", "--project", project, "--json").stdout)["statuses"]["unchanged"] == 12
    )
    assert not Path("label-studio-spool").exists()


@pytest.mark.parametrize("fault", ["silence", "500", "cut before", "absent"])
def test_training_is_the_same_without_a_server_that_works(
    server: LabelStudioServer, project: str, training: list[object], monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    def seconds(*args: object) -> float:
        begun = time.monotonic()
        process = subprocess.run(["true"], check=True) if not args else start(*training, *args)
        if isinstance(process, subprocess.Popen):
            _, errors = process.communicate()
            assert process.returncode == 0, errors
            seconds.errors = errors  # type: ignore[attr-defined]
        return time.monotonic() - begun

    without = seconds("--output", "plain")
    with FaultyProxy(server.port, lambda *_: fault, silence_seconds=300) as proxy:
        monkeypatch.setenv("NERTOOL_LABEL_STUDIO__TIMEOUT_SECONDS", "20")
        url = "http://127.0.0.1:9" if fault == "absent" else proxy.url
        monkeypatch.setenv("NERTOOL_LABEL_STUDIO__URL", url)
        took = seconds("--output", "shown", "--ls-project", project)
    assert took < without + 12
    plain, shown = (load_file(f"{run}/model/model.safetensors") for run in ("plain", "shown"))
    assert plain.keys() == shown.keys()
    assert all(bool((plain[name] == shown[name]).all()) for name in plain)
    errors = seconds.errors  # type: ignore[attr-defined]
    assert errors.count("ls-sync push --from shown/label_studio") == 1, errors
    spooled = list(Path("shown/label_studio").glob("*.spool.jsonl"))
    assert len(spooled) == 4
    monkeypatch.setenv("NERTOOL_LABEL_STUDIO__URL", server.url)
    deadline = time.monotonic() + 60
    while Path("shown/.label_studio.lock").exists() and time.monotonic() < deadline:
        time.sleep(0.5)  # the process that is left waits for its answer
    succeed("ls-sync", "push", "--from", "shown/label_studio")
    status = json.loads(succeed("ls-sync", "status", "--project", project, "--json").stdout)
    assert len(status["versions"]) == 4
    assert not list(Path("shown/label_studio").glob("*.spool.jsonl"))


def test_the_token_appears_nowhere(
    server: LabelStudioServer, project: str, training: list[object], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = []

    def note(*args: object) -> None:
        result = nertool(*args)
        assert result.exit_code in (0, 2), result.exception
        texts.append(result.output + result.stderr + repr(result.exception))
        error = result.exception
        while error is not None:
            texts.append(repr(error))
            error = error.__cause__ or error.__context__

    docs = write_documents(tmp_path / "docs", make_corpus(2))
    canaries = [server.token, server.personal_token, "c4n4ry" * 7]
    for token in canaries:
        monkeypatch.setenv("NERTOOL_LABEL_STUDIO__TOKEN", token)
        for fault in (None, "500", "401", "html", "413", "cut after", "cut before"):
            with FaultyProxy(
                server.port, lambda _m, path, _n, fault=fault: fault if "whoami" not in path else None
            ) as proxy:
                monkeypatch.setenv("NERTOOL_LABEL_STUDIO__URL", proxy.url)
                monkeypatch.setenv("NERTOOL_LABEL_STUDIO__PATIENCE_SECONDS", "1")
                note("ls-sync", "push", docs, "--project", project)
                note("ls-sync", "status", "--project", project)
                assert proxy.faults or fault is None or token == canaries[2]
        note("ls-sync", "list", "--set", f"label_studio.tokn={token}")
        note("ls-sync", "list", "--set", f"label_studio.token={token}\nx")
    monkeypatch.setenv("NERTOOL_LABEL_STUDIO__TOKEN", "c4n4ry" * 7)
    monkeypatch.setenv("NERTOOL_LABEL_STUDIO__URL", server.url)
    note(*training, "--output", "run", "--ls-project", project)
    canaries += [server.personal_token.split(".")[1], "c4n4ry"]
    written = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert any(b"refuses the token" in content for content in written)
    for canary in canaries:
        assert [text for text in texts if canary in text] == []
        assert not any(canary.encode() in content for content in written)


# A person at the pages

CHROMIUM = Path("/usr/bin/chromium")
SECTION = "air-pollution-stroke-delhi#1"


@pytest.mark.skipif(not CHROMIUM.exists(), reason="no Chromium (Debian's package chromium)")
def test_a_correction_made_with_the_mouse_comes_back(
    server: LabelStudioServer, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """With `--update-golden` the screenshots go into the documentation."""
    project = "Sample documents"
    documents = list(read_documents(SAMPLE / "documents", ReadReport()))
    worse = write_documents(tmp_path / "run@100", with_predictions(documents, lambda i: i % 5 != 1))
    better = write_documents(tmp_path / "run@200", with_predictions(documents, lambda i: i % 9 != 4))
    done = pushed(SAMPLE / "documents", "--predictions", worse, "--predictions", better, "--project", project)
    task = exported(server, done["url"])[SECTION]
    page = f"/projects/{done['url'].split('/')[-2]}/data?task={task['id']}"
    shots = {name: str(tmp_path / f"ls-sync-{name}.png") for name in ("correction", "compare")}
    job = {
        "url": server.url, "email": EMAIL, "password": PASSWORD, "chromium": str(CHROMIUM),
        "steps": [
            ["open", page], ["delete", "Delhi"], ["mark", "measurement", "12,300 adults"],
            ["check"], ["shot", shots["correction"]], ["save"], ["open", page], ["compare"], ["shot", shots["compare"]],
        ],
    }  # fmt: skip
    (tmp_path / "job.json").write_text(json.dumps(job))
    command = [os.environ["LABEL_STUDIO_PYTHON"], "-m", "tests.label_studio_browser", str(tmp_path / "job.json")]
    subprocess.run(command, check=True, cwd=SAMPLE.parent)
    found, report = pulled(project, "--reviewed")
    assert report["statuses"]["corrected"] == 1
    (document,) = found.values()
    (before,) = [one for one in documents if one.id == document.id]
    text = before.sections[1].text
    start, place = text.index("12,300 adults"), text.index("Delhi")
    expected = mentions(before.sections[1].entities) | {("measurement", (Span(start, start + 13),))}
    assert mentions(document.sections[0].entities) == expected - {("place", (Span(place, place + 5),))}
    if request.config.getoption("--update-golden"):
        for shot in shots.values():
            (SAMPLE.parent / "docs/howto" / Path(shot).name).write_bytes(Path(shot).read_bytes())
