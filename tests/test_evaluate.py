"""What `evaluate` tells beyond the scores, through the command. A model's part of it: tests/test_thresholds.py."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nertool.commands.score_tables import show_report
from nertool.documents import Document, Entity, Section, Span
from nertool.labelling_tasks import make_items, make_result, make_task
from nertool.matching import SCHEMES, SectionPair
from nertool.metrics import evaluation_report, score
from nertool.provenance import with_provenance
from nertool.reviews import read_reviews, reviewed_documents
from tests.cli_helpers import in_an_empty_folder, refuse, succeed  # noqa: F401
from tests.conftest import make_corpus, write_documents


def change(documents: list[Document], changed: Any) -> list[Document]:
    """Gives each section other entities: those that `changed` makes of its own, for the k-th section of all."""
    sections = iter(range(10_000))
    return [
        replace(d, sections=tuple(replace(s, entities=tuple(changed(next(sections), s.entities))) for s in d.sections))
        for d in documents
    ]


def without_first(number: int, entities: tuple[Entity, ...]) -> tuple[Entity, ...]:
    return entities[1:]


def without_first_of_every_third(number: int, entities: tuple[Entity, ...]) -> tuple[Entity, ...]:
    return entities[number % 3 == 0 :]


def evaluated(*args: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(succeed("evaluate", *args, "--json").stdout)
    return found


@pytest.fixture
def gold() -> Path:
    return write_documents(Path("gold"), make_corpus(12))


@pytest.fixture
def fewer() -> Path:
    return write_documents(Path("fewer"), change(make_corpus(12), without_first))


@pytest.fixture
def better() -> Path:
    return write_documents(Path("better"), change(make_corpus(12), without_first_of_every_third))


def test_a_baseline_of_documents(gold: Path, fewer: Path, better: Path) -> None:
    report = evaluated(better, gold, "--baseline", fewer)
    comparison = report["comparison"]
    assert (comparison["baseline"], comparison["kind"]) == ("fewer", "predictions")
    alone, before = evaluated(better, gold), evaluated(fewer, gold)
    assert "comparison" not in alone
    assert comparison["metrics"].keys() == {
        "micro_f1", "mean_f1", "micro_precision", "micro_recall", "gene_f1", "disease_f1", "drug_f1", "organ_f1"
    }  # fmt: skip
    for key, facts in comparison["metrics"].items():
        assert (facts["value"], facts["baseline"]) == (alone[key], before[key])
        assert facts["difference"] == alone[key] - before[key]
    micro = comparison["metrics"]["micro_f1"]
    assert 0 < micro["low"] <= micro["difference"] <= micro["high"]
    assert micro["p_value"] < 0.01
    assert comparison["metrics"]["drug_f1"]["p_value"] == 1.0  # they find the same drugs
    turned = evaluated(fewer, gold, "--baseline", better)["comparison"]["metrics"]["micro_f1"]
    assert turned["difference"] == -micro["difference"]


def test_a_baseline_of_other_gold(gold: Path, fewer: Path, better: Path) -> None:
    report = evaluated(better, gold, "--baseline-gold", fewer, "--scheme", "overlap")
    comparison = report["comparison"]
    assert (comparison["baseline"], comparison["kind"]) == ("fewer", "gold")
    before = evaluated(better, fewer, "--scheme", "overlap")
    for key, facts in comparison["metrics"].items():
        assert (facts["value"], facts["baseline"]) == (report[key], before[key])


def test_what_can_not_be_compared_is_refused_before_anything_is_predicted(gold: Path, fewer: Path) -> None:
    assert "two comparisons" in refuse("evaluate", fewer, gold, "--baseline", fewer, "--baseline-gold", gold)
    assert "not a model" in refuse("evaluate", fewer, gold, "--baseline", "nowhere")
    some = write_documents(Path("some"), make_corpus(3))
    assert "some lacks 18 sections" in refuse("evaluate", fewer, gold, "--baseline", some)
    assert "some lacks 18 sections" in refuse("evaluate", fewer, gold, "--baseline-gold", some)


def test_errors_add_up_to_the_strict_scores_whatever_the_scheme(gold: Path, fewer: Path) -> None:
    for scheme in SCHEMES:
        report = evaluated(gold, fewer, "--scheme", scheme)
        kinds = report["errors"]["kinds"]
        wrong = {label: sum(texts.values()) for label, texts in evaluated(gold, fewer)["false_positives"].items()}
        assert kinds["invented"] == {"gold": 0, "predicted": 24, "classes": wrong}
        assert sum(facts["gold"] for facts in kinds.values()) == 0
        assert report["errors"]["confusion"]["(none)"] == wrong


def test_seen_mentions_are_told_with_the_training_documents(gold: Path, better: Path) -> None:
    assert evaluated(better, gold)["groups"]["seen in training"] is None
    train = write_documents(Path("train"), make_corpus(2))
    groups = evaluated(better, gold, "--train", train)["groups"]
    known = {(e.label, e.match) for d in make_corpus(2) for s in d.sections for e in s.entities}
    entities = [(e.label, e.match) for d in make_corpus(12) for s in d.sections for e in s.entities]
    assert groups["seen in training"]["seen"]["support"] == sum(one in known for one in entities)
    assert groups["seen in training"]["unseen"]["support"] == sum(one not in known for one in entities)
    assert set(groups["section"]) == {"title", "body"}
    assert set(groups["provenance"]) == {"nertool"}
    assert "nowhere" in refuse("evaluate", better, gold, "--train", "nowhere")


def pulled(sent: list[Document], corrected: list[Document]) -> list[Document]:
    """Returns what `pull` writes: of every document people saved the title, and have not seen the body."""
    tasks = []
    for before, after in zip(sent, corrected, strict=True):
        for number, (item, section) in enumerate(zip(make_items(before, has_gold=True), after.sections, strict=True)):
            task = {"id": len(tasks), "drafts": [], **make_task(item)}
            if number == 0:
                task["annotations"].append(
                    {"result": make_result(section.entities, section.text), "completed_by": 2, "lead_time": 3.0}
                )
            tasks.append(task)
    return reviewed_documents(read_reviews(tasks, {2: "ann@example.org"}), only_reviewed=False)


def test_documents_that_carry_both_gold_sets(better: Path) -> None:
    full = make_corpus(12)
    sent = change(full, lambda number, entities: entities[1:] if number % 4 == 0 else entities)
    by_llm = [with_provenance(document, {"models": ["m"], "prompts": ["p"]}) for document in sent]
    report = evaluated(better, write_documents(Path("pulled"), pulled(by_llm, full)))
    both = report["gold_sets"]
    assert (both["sections"], both["documents"]) == (12, 12)
    assert both["sent_by"] == {"the LLM m with prompt p": 12}
    found = change(full, without_first_of_every_third)

    def titles(gold: list[Document], predicted: list[Document]) -> list[SectionPair]:
        return [
            SectionPair(number, one.sections[0].entities, other.sections[0].entities)
            for number, (one, other) in enumerate(zip(gold, predicted, strict=True))
        ]

    against = {
        "predicted_against_sent": titles(sent, found),
        "predicted_against_people": titles(full, found),
        "sent_against_people": titles(full, sent),
    }
    labels = {e.label for d in full for s in d.sections for e in s.entities}
    for name, pairs in against.items():
        assert both["scores"][name] == {scheme: score(pairs, labels, scheme).to_json() for scheme in SCHEMES}
    micro = both["comparison"]["micro_f1"]
    assert micro["value"] == both["scores"]["predicted_against_people"]["strict"]["micro_f1"]
    assert micro["baseline"] == both["scores"]["predicted_against_sent"]["strict"]["micro_f1"]
    assert set(report["groups"]["provenance"]) == {
        "people in Label Studio: confirmed", "people in Label Studio: corrected", "the LLM m with prompt p"
    }  # fmt: skip
    shown = succeed("evaluate", better, "pulled").stderr
    assert "12 sections that people corrected or confirmed" in shown
    assert "what was sent against people's" in shown


def test_documents_that_people_have_not_seen_have_one_gold_set(gold: Path, fewer: Path) -> None:
    assert evaluated(fewer, gold)["gold_sets"] is None


def test_calibration_needs_scores(gold: Path) -> None:
    assert evaluated(gold, gold)["calibration"] is None
    scored = change(make_corpus(12), lambda _, entities: (replace(entity, score=0.75) for entity in entities))
    report = evaluated(write_documents(Path("scored"), scored), gold)
    assert report["calibration"]["expected_calibration_error"] == 0.25
    assert report["threshold_curves"] is report["thresholds"] is None


def test_two_annotations_agree_as_strict_and_overlap_say_side_by_side(gold: Path) -> None:
    """An LLM's annotations against people's: both schemes are in the table and in the JSON."""
    shorter = change(
        make_corpus(12),
        lambda _, entities: (
            replace(e, spans=(e.spans[0]._replace(end=e.end - 1),), match=e.match[:-1]) if e.label == "drug" else e
            for e in entities
        ),
    )
    llm = write_documents(Path("llm"), shorter)
    report = evaluated(llm, gold)
    assert (report["drug_f1"], report["schemes"]["overlap"]["drug_f1"]) == (0.0, 1.0)
    (drug,) = [line for line in succeed("evaluate", llm, gold).stderr.splitlines() if " drug " in line and "│" in line]
    assert [cell.strip() for cell in drug.strip("│").split("│")] == [
        "drug", "0.000", "0.000", "0.000", "0.000–0.000", "1.000", "24"
    ]  # fmt: skip


def test_the_tables_fit_on_a_screen_and_say_what_the_json_says(
    gold: Path, fewer: Path, better: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = evaluated(better, gold, "--baseline", fewer)
    shown = succeed("evaluate", better, gold, "--baseline", fewer).stderr
    assert len(shown.splitlines()) < 50
    rows = {line.split("  ")[0].strip("│ "): line for line in shown.splitlines()}
    for label in ("gene", "disease", "drug", "organ"):
        interval = report["confidence_intervals"][f"{label}_f1"]
        assert any(
            f"{report[f'{label}_f1']:.3f}" in line and f"{interval['low']:.3f}–{interval['high']:.3f}" in line
            for line in shown.splitlines()
            if f" {label} " in line
        )
    assert str(report["errors"]["kinds"]["missed"]["gold"]) in rows["missed"]
    show_report(evaluation_report([], ["gene"], bootstrap_samples=0) | {"counts": report["counts"]})  # as in training
    assert "–" in capsys.readouterr().err


def test_markup_in_names_is_text() -> None:
    odd = [Document("d", (Section("[red]", "[bold]x", (Entity("[blink]", (Span(0, 6),), "[bold]"),)),))]
    folder = write_documents(Path("odd"), [*odd, replace(odd[0], id="e")])
    assert "[blink]" in succeed("evaluate", folder, folder, "--baseline", folder).stderr


def test_mentions_seen_in_training_are_those_of_the_runs_own_cache_only(gold: Path, backbone: Path) -> None:
    held = write_documents(Path("held"), make_corpus(4, first=12))
    few = ["--model", backbone, "--set", "train.epochs=1", "--set", "windows.max_tokens=32"]
    few += ["--set", "windows.overlap_tokens=8", "--set", "train.tensorboard=false"]
    succeed("train", "--train", gold, "--eval", held, "--output", "run", *few)
    stderr = succeed("evaluate", "run/model", held).stderr
    assert stderr.endswith(f"next: nertool export run/model packed --format onnx --precision int8 --eval {held}\n")
    shutil.copytree(held, "eval")
    assert "--eval eval\n" in succeed("evaluate", "run/model", held).stderr, "what chose the model judges its export"
    assert "next:" not in succeed("evaluate", held, held).stderr
    groups = evaluated("run/model", held)["groups"]
    entities = [one for d in make_corpus(4, first=12) for s in d.sections for one in s.entities]
    assert sum(one["support"] for one in groups["seen in training"].values()) == len(entities)
    shutil.rmtree("run/cache")
    succeed("cache", held, "run/cache", *few[:2], *few[4:8])
    assert evaluated("run/model", held)["groups"]["seen in training"] is None
    assert evaluated("run/model", held, "--train", gold)["groups"] == groups
