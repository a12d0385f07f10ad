"""Model cards: that they tell what was measured, all of it and nothing else, whatever classes and files are called."""

import contextlib
import io
import json
import re
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt
from markdown_it.token import Token

from nertool.artefacts import add_facts, keep_evaluation, model_digest, read_facts
from nertool.documents import Section, Span
from nertool.inference import load_tagger, prepare, token_logits
from nertool.kept_scores import kept_evaluation
from nertool.matching import SectionPair
from nertool.model_card import model_card
from nertool.provenance import with_provenance
from nertool.settings import PredictSettings
from tests.cli_helpers import in_an_empty_folder, nertool, refuse, succeed  # noqa: F401
from tests.conftest import entity, make_backbone, make_corpus, write_documents

OPTIONS = [
    "--set", "windows.max_tokens=32", "--set", "windows.overlap_tokens=8", "--set", "train.tokens_per_batch=300",
    "--set", "train.learning_rate=0.003", "--set", "train.precision=fp32",
]  # fmt: skip
FP32 = ["--set", "predict.precision=fp32"]
KEY = "a-secret-key"


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained model (`run/model`) and the split that it learned from; an LLM annotated a part."""
    folder = tmp_path_factory.mktemp("someones_home")
    make_backbone(folder / "tiny")
    documents = make_corpus(36)
    asked = [with_provenance(document, {"models": ["m|1"], "prompts": ["ab12"]}) for document in documents[:9]]
    write_documents(folder / "documents", [*asked, *documents[9:], replace(documents[20], id="copy")])
    succeed("split", folder / "documents", folder / "split", "--fractions", "0.6,0.2,0.2")
    succeed(
        "train", "--train", folder / "split/train", "--eval", folder / "split/eval", "--output", folder / "run",
        "--model", folder / "tiny", *OPTIONS, "--set", "train.epochs=12", "--set", f"annotate.api_key={KEY}",
        "--set", "label_studio.url=http://labels.hospital.example",
    )  # fmt: skip
    return folder


@pytest.fixture
def model(trained: Path) -> Path:
    """A copy of the model, to change."""
    return shutil.copytree(trained / "run/model", Path("model"))


def card_of(folder: Path) -> str:
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert card == model_card(read_facts(folder))
    check(card)
    return card


def check(card: str) -> dict[str, Any]:
    """Makes sure that a card is sound, and returns its metadata."""
    front, body = re.fullmatch(r"---\n(.*?)\n---\n(.*)", card, re.DOTALL).groups()  # type: ignore[union-attr]
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    kinds = [token.type for token in tokens]
    for number, kind in enumerate(kinds):
        if kind == "heading_close":
            below = kinds[number + 1 : number + 2]
            assert below and (below != ["heading_open"] or tokens[number + 1].tag > tokens[number].tag), body
    assert [token.content for token in flat(tokens) if token.type.startswith("html")] == [
        "<!-- Made by nertool of nertool.json, and anew whenever that changes. -->\n"
    ]
    for token in tokens:
        if token.type == "fence" and token.info == "python":
            compile(token.content, "card", "exec")
    metadata: dict[str, Any] = yaml.safe_load(front)
    return metadata


def flat(tokens: Sequence[Token]) -> list[Token]:
    return [one for token in tokens for one in (token, *(token.children or ()))]


def shown(token: Token) -> str:
    """Returns what readers see of inline text."""
    return "".join(child.content for child in token.children or ())


def tables(card: str) -> dict[str, list[dict[str, str]]]:
    """Returns the tables as rows, below the nearest heading."""
    body = card.split("\n---\n", 1)[1]
    tokens = MarkdownIt("commonmark").enable("table").parse(body)
    found: dict[str, list[dict[str, str]]] = {}
    heading, cells, heads = "", [], []
    for token, after in zip(tokens, [*tokens[1:], None], strict=True):
        if token.type == "heading_open" and after:
            heading = shown(after)
        elif token.type in ("th_open", "td_open") and after:
            cells.append(shown(after))
        elif token.type == "tr_close":
            if heads:
                found[heading].append(dict(zip(heads, cells, strict=True)))
            else:
                heads, found[heading] = cells, []
            cells = []
        elif token.type == "table_close":
            heads = []
    return found


def run_code(card: str, folder: Path, number: int) -> list[str]:
    """Runs the n-th piece of Python of a card; returns the lines that it prints."""
    tokens = MarkdownIt("commonmark").parse(card.split("\n---\n", 1)[1])
    code = [token.content for token in tokens if token.type == "fence" and token.info == "python"][number]
    with contextlib.redirect_stdout(io.StringIO()) as output:
        exec(code.replace("MODEL", str(folder)), {})
    return output.getvalue().splitlines()


def expected_rate(report: dict[str, Any], scheme: str, key: str, intervals: dict[str, Any]) -> str:
    value = report["schemes"][scheme][key]
    if value is None:
        return "–"
    interval = intervals.get(key)
    return f"{value:.3f}" + (f" ({interval['low']:.3f}–{interval['high']:.3f})" if interval else "")


def check_scores(rows: list[dict[str, str]], folder: Path, documents: Path) -> None:
    """Sets a table of scores beside what `evaluate --json` says."""
    reports = {
        scheme: json.loads(succeed("evaluate", folder, documents, "--json", "--scheme", scheme, *FP32).stdout)
        for scheme in ("strict", "overlap")
    }
    report = reports["strict"]
    intervals = {scheme: one["confidence_intervals"] for scheme, one in reports.items()} | {"kazu": {}}
    names = {"disease": "disease", "drug": "drug", "gene": "gene", "organ": "organ", "all (micro)": "micro"}
    assert [row["class"] for row in rows] == [*names, "mean of the classes"]
    for row in rows[:-1]:
        name = names[row["class"]]
        assert row["gold entities"] == str(report[f"{name}_support"])
        for rate in ("precision", "recall"):
            assert row[f"{rate}, strict"] == expected_rate(report, "strict", f"{name}_{rate}", intervals["strict"])
        for scheme, head in (("strict", "strict"), ("overlap", "overlap"), ("kazu", "KAZU")):
            assert row[f"F1, {head}"] == expected_rate(report, scheme, f"{name}_f1", intervals[scheme])
    for scheme, head in (("strict", "strict"), ("overlap", "overlap"), ("kazu", "KAZU")):
        assert rows[-1][f"F1, {head}"] == expected_rate(report, scheme, "mean_f1", intervals[scheme])


def test_a_trained_models_card_has_its_scores_on_the_eval_split_by_all_schemes(trained: Path) -> None:
    card = card_of(trained / "run/model")
    check_scores(tables(card)["On eval"], trained / "run/model", trained / "split/eval")
    assert "The best state of the training was chosen by these documents" in card


def test_a_trained_models_card_tells_of_its_data(trained: Path) -> None:
    card = card_of(trained / "run/model")
    split = json.loads((trained / "split/split.json").read_bytes())
    counts = split["counts"]["documents"]
    for row in tables(card)["Data"]:
        numbers = split["classes"][row["class"]]["counts"]
        assert (row["entities in train"], row["in eval"]) == (str(numbers["train"]), str(numbers["eval"]))
        assert row["threshold"] == "0.5"
    by_llm = sum(f"doc-{number:03}" in split["documents"]["train"] for number in range(9))
    assert f"Trained on {counts['train']} documents with {split['counts']['entities']['train']} entities" in card
    who = f"nertool ({counts['train'] - by_llm} of them) and the LLM m\\|1 with prompt ab12 ({by_llm} of them)"
    assert f"annotated by {who}." in card
    assert f"{counts['train']} for train, {counts['eval']} for eval and {counts['test']} for test documents" in card
    assert "2 documents in 1 group of equal and 0 groups of nearly equal texts, each kept on one side" in card
    unseen = split["unseen_mentions"]["eval"]["overall"]
    assert f"{100 * unseen['share']:.1f} % of the {unseen['entities']} in eval" in card
    assert "It learned from an LLM's annotations" in card
    assert "- train.learning_rate = 0.003\n" in card
    assert "Fine-tuned from tiny with nertool" in card
    parameters = read_facts(trained / "run/model")["parameters"]
    size = (trained / "run/model/model.safetensors").stat().st_size
    assert f"{parameters / 1e6:.1f} million parameters; {size / 1e6:.1f} MB of weights" in card


def test_a_split_is_told_for_a_cache_of_it_and_not_for_other_documents(trained: Path) -> None:
    common = ["--model", trained / "tiny", *OPTIONS]
    succeed("cache", trained / "split/train", "cache", "--model", trained / "tiny", *OPTIONS[:4])
    one = ["train", "--eval", trained / "split/eval", *common, "--set", "train.epochs=1"]
    succeed(*one, "--train", "cache", "--output", "one")
    facts, known = read_facts(Path("one/model")), read_facts(trained / "run/model")
    assert facts["split"] == known["split"]
    assert {**facts["train"], "name": "train"} == known["train"]
    assert facts["representation"] == known["representation"]
    succeed(*one, "--train", trained / "documents", "--output", "two")
    assert "split" not in read_facts(Path("two/model"))
    card_of(Path("two/model"))


def test_nothing_tells_of_the_machine_or_of_secrets(trained: Path) -> None:
    for name in ("README.md", "nertool.json"):
        text = (trained / "run/model" / name).read_text(encoding="utf-8")
        for secret in (str(trained), trained.name, KEY, "hospital"):
            assert secret not in text


def test_scores_are_kept_once_for_each_set_of_documents(trained: Path, model: Path) -> None:
    digest = model_digest(model)
    result = succeed("evaluate", model, trained / "split/test", "--into-card", *FP32)
    assert "kept in model/README.md" in result.stderr
    card = card_of(model)
    check_scores(tables(card)["On test"], model, trained / "split/test")
    succeed("evaluate", model, trained / "split/test", "--into-card", *FP32, "--scheme", "overlap")
    assert card_of(model) == card
    assert model_digest(model) == digest
    write_documents(Path("more"), make_corpus(3, first=40))
    succeed("evaluate", model, "more", *FP32)
    assert card_of(model) == card
    succeed("evaluate", model, "more", "--into-card", *FP32)
    assert list(tables(card_of(model))) == ["Data", "On eval", "On test", "On more"]
    assert "no model card" in refuse("evaluate", "more", "more", "--into-card")


def test_scores_that_are_kept_at_the_same_time_are_all_kept(model: Path) -> None:
    known = read_facts(model)["evaluations"][0]

    def keep(number: int) -> None:
        keep_evaluation(model, {**known, "name": f"n{number}", "digest": f"{number}"})

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(keep, range(16)))
    assert {one["name"] for one in read_facts(model)["evaluations"]} == {"eval", *(f"n{n}" for n in range(16))}
    card_of(model)
    assert not list(model.glob(".*lock"))


def test_metadata_is_what_hugging_face_reads(trained: Path, model: Path) -> None:
    succeed("evaluate", model, trained / "split/test", "--into-card", *FP32)
    report = json.loads(succeed("evaluate", model, trained / "split/test", "--json", *FP32).stdout)
    read = ModelCard(card_of(model)).data
    assert (read.library_name, read.pipeline_tag) == ("transformers", "token-classification")
    assert read.license is None and read.base_model is None and read.language is None
    assert {"nertool", "named-entity-recognition"} <= set(read.tags or ())
    values = {(one.dataset_name, one.metric_name): one.metric_value for one in read.eval_results or ()}
    assert values["test", "micro F1, strict"] == round(report["micro_f1"], 4)
    assert values["test", "mean F1, strict"] == round(report["mean_f1"], 4)
    assert values["test", "micro F1, overlap"] == round(report["schemes"]["overlap"]["micro_f1"], 4)
    assert {name for name, _ in values} == {"eval", "test"}


def test_what_is_known_of_a_backbone_of_the_hub() -> None:
    facts = {**minimal(["x"]), "backbone": "minilm", "base_model": "sentence-transformers/all-MiniLM-L6-v2"}
    assert check(model_card(facts))["language"] == "en"
    facts["base_model"] = "somebody/else"
    assert "language" not in check(model_card(facts))
    assert check(model_card(facts))["base_model"] == "somebody/else"


def test_scores_with_other_thresholds_are_no_longer_the_models(trained: Path, model: Path) -> None:
    succeed("evaluate", model, trained / "split/test", "--into-card", *FP32)
    add_facts(model, thresholds=dict.fromkeys(["disease", "drug", "gene", "organ"], 0.6))
    card = card_of(model)
    assert card.count("Measured with other thresholds") == 2
    assert "model-index" not in check(card)
    assert {row["threshold"] for row in tables(card)["Data"]} == {"0.6"}
    succeed("evaluate", model, trained / "split/test", "--into-card", *FP32)
    card = card_of(model)
    assert card.count("Measured with other thresholds") == 1
    assert {one["dataset"]["name"] for one in check(card)["model-index"][0]["results"]} == {"test"}


def test_tuning_is_told_of(trained: Path, model: Path) -> None:
    succeed("evaluate", model, trained / "split/test", "--tune-thresholds", "--into-card", *FP32)
    card = card_of(model)
    count = json.loads((trained / "split/split.json").read_bytes())["counts"]["documents"]["test"]
    assert f"The thresholds were chosen on {count} documents, named test." in card
    assert card.count("The thresholds were chosen on these documents") == 1


@pytest.mark.parametrize(
    ("form", "precision"), [("hf", "bf16"), ("onnx", "fp32"), ("openvino", "fp32"), ("kazu", "fp32")]
)
def test_an_export_carries_the_card_on(trained: Path, model: Path, form: str, precision: str) -> None:
    pytest.importorskip({"onnx": "onnxscript", "openvino": "openvino"}.get(form, "torch"))
    succeed("evaluate", model, trained / "split/test", "--into-card", *FP32)
    before = tables(card_of(model))
    options = ["--format", form, "--precision", precision, "--eval", trained / "split/eval"]
    options += ["--parity", trained / "split/train"]
    report = json.loads(succeed("export", model, "packed", *options, "--json", "--max-f1-drop", "1").stdout)
    card = card_of(Path("packed"))
    found = tables(card)
    assert found["Data"] == before["Data"]
    for name in ("eval", "test"):
        assert found[f"On {name} (the original, before it was exported)"] == before[f"On {name}"]
    assert "model-index" not in check(card)
    assert check(card)["library_name"] == ("transformers" if form in ("hf", "kazu") else form)
    first = next(iter(report["parity"]))
    assert f"In {first}, {100 * report['parity'][first]['equal_decisions']:.2f} %" in card
    assert f"{report['f1']['export']:.4f}, the original's {report['f1']['original']:.4f}" in card
    assert f"{report['tokens_per_second'][first]:,} tokens per second in {first} on " in card
    assert f"{report['bytes'] / 1e6:.1f} MB with the tokenizer" in card
    # A new card is no damage.
    succeed("evaluate", "packed", trained / "split/test", "--into-card", *FP32)
    card = card_of(Path("packed"))
    check_scores(tables(card)["On test"], Path("packed"), trained / "split/test")
    assert [one["dataset"]["name"] for one in check(card)["model-index"][0]["results"]] == ["test"]
    if form != "kazu":
        check_code(card, Path("packed"))
    assert ("kazu_step.yaml" in card) == (form == "kazu")


def test_the_code_of_a_trained_models_card_runs(trained: Path) -> None:
    check_code(card_of(trained / "run/model"), trained / "run/model")


def check_code(card: str, folder: Path) -> None:
    """Runs the code of a card; it must find what nertool finds, token by token."""
    tagger = load_tagger(folder, PredictSettings(precision="fp32"))
    prepared = prepare([Section("title", "EGFR mutations in lung cancer")], tagger)
    text = prepared.sections[0].text
    inside = 1 / (1 + np.exp(-token_logits(tagger, prepared))) >= 0.5
    labels = tagger.decisions.scheme.labels
    wanted = [
        " ".join([text[start:end], *(label for label, yes in zip(labels, row, strict=True) if yes)])
        for start, end, row in zip(prepared.tokens.starts, prepared.tokens.ends, inside, strict=True)
        if row.any()
    ]
    assert wanted, "the text must hold something that this model finds"
    assert run_code(card, folder, 1) == wanted
    assert any(line.startswith("gene EGFR 0.") for line in run_code(card, folder, 0))


# Anything that files may hold and file names may be made of.
NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
NASTY = st.sampled_from(
    ["a|b", "<script>x</script>", "*a*", "`a", "[a](b)", "a\nb", "#", "_x_", "&amp;", '"', "\\", "- a", "---", "$x$"]
)


def minimal(labels: list[str]) -> dict[str, Any]:
    """Returns what the `nertool.json` of a model of nobody knows what tells."""
    return {
        "format": 2, "nertool_version": "0.1.0", "scheme": {"labels": labels, "begin": False},
        "thresholds": dict.fromkeys(labels, 0.5), "switch_cost": 1.0,
        "windows": {"max_tokens": 512, "overlap_tokens": 64},
    }  # fmt: skip


@settings(max_examples=60, deadline=None)
@given(st.lists(NAMES | NASTY, min_size=1, max_size=4, unique=True), NAMES | NASTY, NAMES | NASTY)
def test_any_name_is_shown_as_it_is(labels: list[str], name: str, who: str) -> None:
    labels = sorted(labels)
    one = entity("some text", "", "some")
    gold = [type(one)(label, (Span(0, 4),), "some") for label in labels]
    described = {"name": name, "digest": "0" * 64, "documents": 1, "entities": len(gold), "annotators": {who: 1}}
    facts = minimal(labels)
    kept = kept_evaluation(
        [SectionPair(0, tuple(gold), tuple(gold[:1]))], labels, described, facts["thresholds"], 0, 0
    )  # fmt: skip
    sides = {side: {**described, "classes": dict.fromkeys(labels, 3)} for side in ("train", "eval")}
    card = model_card({**facts, **sides, "step": 1, "backbone": who, "evaluations": [kept]})
    metadata = check(card)
    result = metadata["model-index"][0]["results"][0]
    assert result["dataset"]["name"] == name
    found = tables(card)

    def seen(text: str) -> str:
        return " ".join("".join(char if char.isprintable() else " " for char in text).split())

    assert [row["class"] for row in found["Data"]] == [seen(label) for label in labels]
    scored = found[f"On {seen(name)}".rstrip()]
    assert sorted(row["class"] for row in scored[: len(labels)]) == sorted(map(seen, labels))


def test_a_model_of_an_older_nertool_has_a_card() -> None:
    card = model_card(minimal(["x"]))
    check(card)
    assert "Finds mentions of 1 class in" in card
    older = {
        **minimal(["x", "y"]), "annotators": ["the LLM m"], "train": {"documents": 1, "entities": 2},
        "eval": {"documents": 3, "entities": 1}, "teacher": "/home/ann/run/model",
        "backbone": "3 layers of the teacher", "unlabelled": {"documents": 5}, "step": 7,
    }  # fmt: skip
    card = model_card(older)
    check(card)
    assert "Trained on 1 document with 2 entities, annotated by the LLM m." in card
    assert "/home" not in card and "It learned from an LLM's annotations" in card
    assert "also from 5 documents without gold entities" in card


def test_format_1_gets_a_threshold_for_each_class(trained: Path, model: Path) -> None:
    facts = read_facts(model)
    del facts["thresholds"], facts["evaluations"]
    (model / "nertool.json").write_text(json.dumps({**facts, "format": 1, "threshold": 0.4}))
    succeed("evaluate", model, trained / "split/test", "--into-card", *FP32)
    changed = read_facts(model)
    assert changed["thresholds"] == dict.fromkeys(["disease", "drug", "gene", "organ"], 0.4)
    assert "threshold" not in changed and changed["format"] == 2
    card_of(model)


def test_intervals_are_left_out_where_there_are_none(trained: Path) -> None:
    pairs = [SectionPair(0, (), ())]
    facts = minimal(["x"])
    described = {"name": "a", "digest": "1", "documents": 1, "entities": 0, "annotators": {}}
    kept = kept_evaluation(pairs, ["x"], described, facts["thresholds"], 1000, 42)
    card = model_card({**facts, "evaluations": [kept]})
    check(card)
    rows = tables(card)["On a"]
    assert [row["F1, strict"] for row in rows] == ["–", "–", "–"]
