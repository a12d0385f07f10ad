"""The whole `audit` command."""

import json
import os
import signal
from pathlib import Path

import numpy as np
import orjson
import pytest

from nertool.auditing import folds_of_windows, write_audit
from nertool.cache_building import build_cache
from nertool.commands.ls_push import _read_queue
from nertool.documents import Document, Entity, Section, Span
from nertool.errors import NertoolError
from nertool.formats import ReadReport, read_documents
from nertool.labelling_tasks import make_items
from nertool.model import load_tokenizer, new_model
from nertool.provenance import annotators, section_annotators, with_audit, with_review
from nertool.run_folder import is_finished_audit, open_audit
from nertool.runs import labelled_task
from nertool.settings import DataSettings, ModelSettings, Settings, WindowSettings
from nertool.suspects import Suspect, corrected
from nertool.windows import SectionTokenizer
from tests.cli_helpers import in_an_empty_folder, refuse, start, succeed, wait_for  # noqa: F401
from tests.conftest import make_corpus, write_documents

FILES = ("suspects.jsonl", "queue.txt", "corrected.jsonl")
FEW = ["--set", "audit.folds=2", "--set", "audit.epochs=2", "--set", "windows.max_tokens=32"]
FEW += ["--set", "windows.overlap_tokens=8", "--set", "train.learning_rate=0.01", "--set", "train.tensorboard=false"]


@pytest.fixture
def documents(tmp_path: Path) -> Path:
    """Documents with one error each in two of them: a gene without its entity, and a drug as a gene."""
    corpus = make_corpus(24)
    values = [orjson.loads(orjson.dumps(one)) for one in map(_to_json, corpus)]
    title = values[3]["sections"][0]
    title["entities"] = [one for one in title["entities"] if one["entity_class"] != "gene"]
    drug = next(one for one in values[7]["sections"][1]["entities"] if one["entity_class"] == "drug")
    drug["entity_class"] = "gene"
    folder = tmp_path / "documents"
    folder.mkdir()
    for value in values:
        (folder / f"{value['idx']}.json").write_bytes(orjson.dumps(value))
    return folder


def _to_json(document):  # type: ignore[no-untyped-def]
    from nertool.documents import document_to_json

    return document_to_json(document)


def audit(documents: Path, backbone: Path, out: str, *more: str) -> list[str]:
    return ["audit", str(documents), out, "--model", str(backbone), *FEW, *more]


def test_the_errors_are_found_and_put_right(documents: Path, backbone: Path) -> None:
    enough = ["--set", "audit.epochs=12", "--set", "data.duplicate_similarity=1.0"]
    summary = json.loads(succeed(*audit(documents, backbone, "audit", *enough, "--json")).stdout)
    lines = [orjson.loads(line) for line in Path("audit/suspects.jsonl").read_bytes().splitlines()]
    assert len(lines) == summary["suspects"]
    assert [line["score"] for line in lines] == sorted((line["score"] for line in lines), reverse=True)
    missing = next(line for line in lines if line["document"] == "doc-003" and line["kind"] == "missing")
    assert missing["section"] == 0 and missing["suggestion"]["class"] == "gene"
    wrong = next(line for line in lines if line["document"] == "doc-007" and line["kind"] == "wrong class")
    assert wrong["entity"]["class"] == "gene" and wrong["suggestion"]["class"] == "drug"
    assert {missing["document"], wrong["document"]} <= {line["document"] for line in lines[:4]}
    originals = list(read_documents(documents, ReadReport()))
    items = {item.key: item for document in originals for item in make_items(document, has_gold=True)}
    queue = _read_queue(Path("audit/queue.txt"), items)
    assert {"doc-003#0", "doc-007#1"} <= set(queue[:4])
    fixed = {one.id: one for one in read_documents(Path("audit/corrected.jsonl"), ReadReport())}
    assert fixed.keys() == {one.id for one in originals}
    labels = {one.label for one in fixed["doc-003"].sections[0].entities}
    assert ("gene" in labels) == (missing["score"] >= summary["min_score"])
    changed = [line for line in lines if line["score"] >= summary["min_score"]]
    assert (
        summary["corrected"]
        == len(changed)
        == sum(
            fixed[name].extra["metadata"]["nertool_audit"]["changes"] for name in {line["document"] for line in changed}
        )
    )
    assert summary["all_classes"]["entities"] == sum(len(s.entities) for one in originals for s in one.sections)
    assert not Path("audit/work").exists()


def test_a_killed_audit_ends_like_one_that_was_not(documents: Path, backbone: Path) -> None:
    succeed(*audit(documents, backbone, "whole"))
    process = start(*audit(documents, backbone, "killed"))
    wait_for(lambda: Path("killed/work/1.json").exists(), process)
    process.kill()
    process.communicate()
    assert not Path("killed/queue.txt").exists()
    second = start(*audit(documents, backbone, "killed"))
    wait_for(lambda: Path("killed/work/2/run.json").exists(), second)
    os.kill(second.pid, signal.SIGTERM)
    _, talk = second.communicate()
    if second.returncode != 0:
        assert second.returncode == 143 and "the same command goes on" in talk
    assert "fold 1 of 2" not in talk
    succeed(*audit(documents, backbone, "killed"))
    for name in FILES:
        assert Path("whole", name).read_bytes() == Path("killed", name).read_bytes()
    Path("killed/work").mkdir()  # as a kill at the very end leaves it
    assert "finished already" in succeed(*audit(documents, backbone, "killed")).stderr
    assert not Path("killed/work").exists()


def test_what_another_audit_made_is_not_mixed_up(documents: Path, backbone: Path, tmp_path: Path) -> None:
    succeed(*audit(documents, backbone, "audit"))
    message = refuse(*audit(documents, backbone, "audit", "--set", "audit.folds=3"))
    assert "audit.folds was 2, now 3" in message and "--force" in message
    other = write_documents(tmp_path / "other", make_corpus(24))
    assert "the documents have changed" in refuse(*audit(other, backbone, "audit"))
    succeed(*audit(other, backbone, "audit", "--force"))
    Path("audit/mine.txt").write_text("x")
    assert "mine.txt" in refuse(*audit(documents, backbone, "audit", "--force"))
    Path("full").mkdir()
    Path("full/mine.txt").write_text("x")
    assert "not empty" in refuse(*audit(documents, backbone, "full"))


def test_a_given_model_judges_without_training(documents: Path, backbone: Path, corpus: tuple[Path, Path]) -> None:
    train, held = corpus
    succeed(
        "train", "--train", train, "--eval", held, "--output", "run", "--model", backbone, "--set", "train.epochs=6",
        "--set", "train.learning_rate=0.01", "--set", "windows.max_tokens=32", "--set", "windows.overlap_tokens=8",
        "--set", "data.labels=[\"gene\",\"drug\"]",
    )  # fmt: skip
    result = succeed("audit", documents, "audit", "--judge", "run/model", "--json")
    summary = json.loads(result.stdout)
    assert summary["judge"] == "model" and set(summary["not_judged"]) == {"disease", "organ"}
    lines = [orjson.loads(line) for line in Path("audit/suspects.jsonl").read_bytes().splitlines()]
    assert ("doc-003", "missing", "gene") in {
        (line["document"], line["kind"], (line["entity"] or line["suggestion"])["class"]) for line in lines
    }
    assert "has learned their mistakes" in refuse("audit", train, "other", "--judge", "run/model")
    assert not Path("other").exists()
    shown = succeed("audit", documents, "again", "--judge", "run/model").stderr
    assert "the class 'organ' was not judged" in shown and "nertool ls-sync push" in shown


def test_too_few_documents_are_refused_before_any_training(documents: Path, backbone: Path) -> None:
    message = refuse(*audit(documents, backbone, "audit", "--set", "audit.folds=30"))
    assert "too few for 30 folds" in message
    assert "is not a model folder" in refuse("audit", documents, "other", "--judge", "nowhere")
    refuse(*audit(documents, Path("nowhere"), "audit"))
    refuse(*audit(documents, backbone, "audit", "--set", "windows.max_tokens=4096"))
    assert not Path("audit").exists()  # so that the right command isn't taken for another audit


def test_what_is_read_is_never_replaced(documents: Path, backbone: Path) -> None:
    before = sorted(path.name for path in documents.iterdir())
    assert "lies in the output" in refuse(*audit(documents / before[0], backbone, str(documents), "--force"))
    assert sorted(path.name for path in documents.iterdir()) == before


def test_an_audit_goes_on_with_the_same_folds_only(tmp_path: Path) -> None:
    data = {"documents": "a"}
    open_audit(tmp_path / "audit", Settings(), data, force=False)
    other = Settings(data=DataSettings(duplicate_similarity=0.5))
    with pytest.raises(NertoolError, match=r"data\.duplicate_similarity was 0\.\d+, now 0\.5"):
        is_finished_audit(tmp_path / "audit", other, data, force=False)
    (tmp_path / "audit" / "audit.json").unlink()  # as a kill at the very beginning leaves it
    assert not is_finished_audit(tmp_path / "audit", other, data, force=False)


def test_a_model_learns_nothing_of_the_documents_that_it_judges(backbone: Path, tmp_path: Path) -> None:
    """Not even how frequent a class is in them."""
    corpus, windows = make_corpus(8), WindowSettings(max_tokens=16, overlap_tokens=4)
    labels = ["disease", "drug", "gene", "organ"]
    biases = []
    tokenizer = load_tokenizer(str(backbone))
    for count in (4, 8):
        cache = build_cache(tmp_path / f"{count}", lambda n=count: corpus[:n], tokenizer, windows, labels=labels)
        model = new_model(ModelSettings(name=str(backbone)), windows, cache.scheme)
        fold_of = {document.id: int(number >= 4) for number, document in enumerate(corpus)}
        chosen = np.flatnonzero(folds_of_windows(cache, corpus[:count], fold_of, tokenizer) == 0)
        labelled_task(cache, model, chosen).begin()
        biases.append(model.network.get_submodule("classifier").bias.detach().numpy().copy())
    assert (biases[0] == biases[1]).all()


def test_ids_that_no_line_can_hold_are_left_out_of_the_queue(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entity = Entity("gene", (Span(0, 3),), "erk")
    corpus = [Document(name, (Section("title", "erk", (entity,)),)) for name in ("a\nb", " c", "d e#0")]
    suspects = [Suspect(one.id, 0, "spurious", entity, None, 5.0, 5.0, (0, 0), (0, 0)) for one in corpus]
    open_audit(tmp_path / "audit", Settings(), {}, force=False)
    write_audit(tmp_path / "audit", lambda: iter(corpus), suspects, 0.75, {})
    assert "lacks 2 sections" in capsys.readouterr().err
    items = {item.key: item for document in corpus for item in make_items(document, has_gold=True)}
    assert _read_queue(tmp_path / "audit" / "queue.txt", items) == ["d e#0#0"]


def test_what_an_audit_changes_is_no_more_said_to_be_of_people() -> None:
    entity = Entity("gene", (Span(0, 3),), "erk")
    noted = {"metadata": {"label_studio": {"section": 0, "status": "confirmed"}}}
    sections = (Section("title", "erk", (entity,), noted), Section("body", "erk", (entity,), noted))
    document = with_review(Document("d", sections), {"confirmed": 2}, ["Ann"])
    suspect = Suspect("d", 1, "spurious", entity, None, 5.0, 5.0, (0, 0), (0, 0))
    changed = with_audit(corrected(document, [suspect]), {"changes": 1})
    assert list(annotators(document)) == ["a person in Label Studio"]
    assert "nertool audit, which corrected some" in set(annotators(changed))
    assert section_annotators(changed)[0] == "people in Label Studio: confirmed"
    assert section_annotators(changed)[1].startswith("nertool audit")


def test_each_window_is_of_the_document_that_it_was_made_of(tokenizer: SectionTokenizer, tmp_path: Path) -> None:
    corpus = [*make_corpus(3), make_corpus(1)[0].__class__("empty", ()), *make_corpus(2, first=3)]
    windows = WindowSettings(max_tokens=16, overlap_tokens=4)
    whole = build_cache(tmp_path / "all", lambda: corpus, tokenizer, windows)
    fold_of = {document.id: number for number, document in enumerate(corpus)}
    owners = folds_of_windows(whole, corpus, fold_of, tokenizer)
    for number, document in enumerate(corpus):
        one = build_cache(tmp_path / f"{number}", lambda d=document: [d], tokenizer, windows, labels=["gene"])
        assert (owners == number).sum() == len(one.windows)
    assert (owners[1:] >= owners[:-1]).all()


def test_documents_that_vanish_before_the_end_are_missed(
    documents: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def lose_one(*arguments: object) -> object:
        (documents / "doc-005.json").unlink()
        return write_audit(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr("nertool.auditing.write_audit", lose_one)
    message = refuse(*audit(documents, backbone, "audit"))
    assert "documents changed while it was read" in message and "run the same command again" in message
    assert not Path("audit/corrected.jsonl").exists()
    assert not json.loads(Path("audit/audit.json").read_text())["finished"]
