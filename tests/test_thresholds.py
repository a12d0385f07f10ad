"""Thresholds of the classes."""

import json
from pathlib import Path

import numpy as np

from nertool.artefacts import Decisions
from nertool.decoding import decode
from nertool.documents import Document, Entity, Section, Span
from nertool.labels import make_scheme
from nertool.matching import SectionPair
from nertool.metrics import score
from nertool.settings import WindowSettings
from nertool.thresholds import (
    CANDIDATES,
    LEAST_ENTITIES,
    count_at_thresholds,
    threshold_curves,
    tune_thresholds,
)
from nertool.windows import SectionTokenizer
from tests.cli_helpers import in_an_empty_folder, refuse, succeed  # noqa: F401
from tests.conftest import make_backbone, make_corpus, write_documents

SCHEME = make_scheme(["disease", "gene"])
DECISIONS = Decisions(SCHEME, WindowSettings(), (0.5, 0.5), 0.0)


def words(tokenizer: SectionTokenizer, count: int, *, gold: float, right: float, wrong: float):  # type: ignore[no-untyped-def]
    """Sections of one word each; a share of them is a gold gene. Logits: those of the right ones and of the wrong."""
    sections, logits = [], []
    for number in range(count):
        is_gold = number < gold * count
        entities = (Entity("gene", (Span(0, 4),), "lung"),) if is_gold else ()
        sections.append(Section("s", "lung", entities))
        logits.append([-9.0, right if is_gold else wrong])
    return sections, tokenizer.tokenize([s.text for s in sections]), np.array(logits, np.float32)


def test_a_class_that_says_yes_too_rarely_gets_a_lower_threshold(tokenizer: SectionTokenizer) -> None:
    sections, tokens, logits = words(tokenizer, 100, gold=0.5, right=-1.0, wrong=-2.5)
    disease, gene = tune_thresholds(count_at_thresholds(logits, tokens, sections, DECISIONS), DECISIONS)
    assert disease == 0.5  # nothing is known of it
    assert 1 / (1 + np.exp(2.5)) < gene < 1 / (1 + np.exp(1.0))


def test_nothing_to_gain_or_too_few_entities_change_nothing(tokenizer: SectionTokenizer) -> None:
    sections, tokens, logits = words(tokenizer, 100, gold=0.5, right=4.0, wrong=-4.0)
    assert tune_thresholds(count_at_thresholds(logits, tokens, sections, DECISIONS), DECISIONS) == (0.5, 0.5)
    few = LEAST_ENTITIES - 1
    sections, tokens, logits = words(tokenizer, few, gold=1.0, right=-1.0, wrong=-2.5)
    assert tune_thresholds(count_at_thresholds(logits, tokens, sections, DECISIONS), DECISIONS) == (0.5, 0.5)


def test_candidates_are_even_in_log_odds() -> None:
    odds = [np.log(p / (1 - p)) for p in CANDIDATES]
    np.testing.assert_allclose(np.diff(odds), 0.25)
    assert 0.5 in [round(p, 6) for p in CANDIDATES]


def test_tuned_thresholds_are_kept_in_the_model_and_used(tmp_path: Path) -> None:
    backbone = make_backbone(tmp_path / "backbone")
    write_documents(Path("train"), make_corpus(24))
    write_documents(Path("eval"), make_corpus(16, first=24))
    changes = ("windows.max_tokens=32", "windows.overlap_tokens=8", "train.tokens_per_batch=200")
    options = [part for change in changes for part in ("--set", change)]
    succeed(
        "train", "--train", "train", "--eval", "eval", "--output", "run", "--model", backbone, *options,
        "--set", "train.epochs=8", "--set", "train.learning_rate=0.003", "--set", "model.threshold=0.995",
    )  # fmt: skip
    before = json.loads(succeed("evaluate", "run/model", "eval", "--json").stdout)
    tuned = succeed("evaluate", "run/model", "eval", "--tune-thresholds", "--json")
    assert "thresholds: " in tuned.stderr
    after = json.loads(tuned.stdout)
    assert after["micro_f1"] > before["micro_f1"]
    kept = json.loads(Path("run/model/nertool.json").read_bytes())
    assert set(kept["thresholds"]) == {"disease", "drug", "gene", "organ"} and min(kept["thresholds"].values()) < 0.9
    assert kept["tuned"]["count"] == 16
    again = json.loads(succeed("evaluate", "run/model", "eval", "--json").stdout)
    assert again["micro_f1"] == after["micro_f1"]
    assert after["thresholds"] == kept["thresholds"]
    for label, threshold in kept["thresholds"].items():  # the curve goes through what the model does
        here = [point for point in after["threshold_curves"][label] if point["threshold"] == threshold]
        assert [(point["precision"], point["recall"], point["f1"]) for point in here] == [
            (after[f"{label}_precision"], after[f"{label}_recall"], after[f"{label}_f1"])
        ] * len(here)
    assert sum(one["count"] for one in after["calibration"]["bins"]) == after["counts"]["predicted_entities"]
    given = json.loads(succeed("evaluate", "run/model", "eval", "--train", "train", "--json").stdout)
    assert after["groups"]["seen in training"] == given["groups"]["seen in training"]  # the run's cache
    chunks = ("--set", "predict.documents_per_chunk=3")
    compared = json.loads(succeed("evaluate", "run/model", "eval", "--baseline", "run/model", "--json", *chunks).stdout)
    assert compared["threshold_curves"] == after["threshold_curves"]
    assert {(one["difference"], one["p_value"]) for one in compared["comparison"]["metrics"].values()} == {(0.0, 1.0)}
    assert "no thresholds to tune" in refuse("evaluate", "train", "train", "--tune-thresholds")


def test_one_threshold_of_an_older_model_is_that_of_all_classes() -> None:
    old = {"scheme": SCHEME.to_json(), "windows": {}, "threshold": 0.4, "switch_cost": 1.0}
    assert Decisions.from_json(old).thresholds == (0.4, 0.4)
    assert Decisions.from_json(DECISIONS.to_json()) == DECISIONS


def test_documents_without_sections_are_no_trouble(tokenizer: SectionTokenizer) -> None:
    nothing = tokenizer.tokenize([])
    assert not Document("x", ()).sections
    counts = count_at_thresholds(np.zeros((0, 2), np.float32), nothing, [], DECISIONS)
    assert not counts.any()
    assert tune_thresholds(counts, DECISIONS) == (0.5, 0.5)


def test_counts_at_thresholds_are_those_of_predictions_scored_one_threshold_at_a_time(
    tokenizer: SectionTokenizer,
) -> None:
    rng = np.random.default_rng(0)
    text = "lung and liver cancer in a mouse with a gene and a drug"
    spans = (Span(0, 4), Span(9, 14), Span(9, 21), Span(40, 44))
    sections = [
        Section(
            "s", text, tuple(Entity(str(rng.choice(["disease", "gene", "organ"])), (span,), "x") for span in spans) * 2
        )
        for _ in range(5)
    ]
    sections.append(Section("s", text, (Entity("gene", (spans[0], spans[3]), "x"),)))
    tokens = tokenizer.tokenize([section.text for section in sections])
    logits = rng.normal(0, 2, (len(tokens.ids), 2)).astype(np.float32)
    counts = count_at_thresholds(logits, tokens, sections, DECISIONS)
    curves = threshold_curves(counts, SCHEME.labels)
    assert list(curves) == ["disease", "gene", "micro"]
    for row, candidate in enumerate([*CANDIDATES, 0.5]):
        decoded = decode(logits, tokens, SCHEME, [candidate] * 2, 0.0)
        predicted: list[list[Entity]] = [[] for _ in sections]
        for number, label, start, end in zip(decoded.section, decoded.label, decoded.start, decoded.end, strict=True):
            predicted[number].append(Entity(SCHEME.labels[label], (Span(int(start), int(end)),), "x"))
        pairs = [SectionPair(0, one.entities, found) for one, found in zip(sections, predicted, strict=True)]
        scores = score(pairs, SCHEME.labels, "strict")
        assert scores.classes == ("disease", "gene", "organ")
        assert counts[row].tolist() == scores.counts[0].tolist()
        if row < len(CANDIDATES):
            flat = scores.to_json()
            for name, points in curves.items():
                expected = {what: flat[f"{name}_{what}"] for what in ("precision", "recall", "f1")}
                assert points[row] == {"threshold": round(candidate, 4), **expected}
    halves = [
        count_at_thresholds(logits[tokens.section_bounds[a] : tokens.section_bounds[b]], part, sections[a:b], DECISIONS)
        for a, b in ((0, 2), (2, 6))
        for part in [tokenizer.tokenize([section.text for section in sections[a:b]])]
    ]
    assert (sum(halves) == counts).all()
