"""What KAZU loads and makes of it: the folder, nertool's decoding in KAZU's step, and KAZU's own beside its rules."""

import json
import os
import random
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoModelForTokenClassification, AutoTokenizer, PreTrainedTokenizerFast

import nertool
from nertool.artefacts import change_thresholds
from nertool.decoding import decode
from nertool.documents import Document, Section
from nertool.errors import NertoolError
from nertool.inference import predict_sections, prepare
from nertool.kazu_export import offsets_without_blanks, write_kazu
from nertool.kazu_processor import NertoolWordProcessor
from nertool.labels import make_scheme
from nertool.model import NerModel, load_model, new_model, save_model
from nertool.settings import ModelSettings, WindowSettings
from nertool.windows import SectionTokenizer
from tests.cli_helpers import in_an_empty_folder, succeed  # noqa: F401
from tests.conftest import make_corpus, write_documents

WINDOWS = WindowSettings(max_tokens=64, overlap_tokens=9)

# Brackets, hyphens and other symbols between and inside mentions, blanks of all kinds, special tokens spelt out.
TEXTS = (
    "BRCA1 in lung cancer",
    "The (BRCA1) gene (EGFR) in liver cancer (hepatitis) .",
    "BRCA1-induced lung cancer-cells, aspirin/ERK; EGFR(BRCA2)ERK",
    "aspirin;aspirin (lung) cancer (in) liver (cancer) x",
    "  two  blanks\n\nand lung\tcancer \n",
    "[SEP] in lung cancer [PAD] x[CLS]y",
    "(ERK) ERK) (ERK ()ERK(; ;ERK",
    "5 °C ± 2 % of β-κ±EGFR→ERK in liver\u00a0cancer",
    "lung",
    " \n ",
    "",
)


def random_model(backbone: Path, *, begin: bool = False) -> NerModel:
    """A model that finds much, of each class about as often as not, and entities that change within words."""
    model = new_model(ModelSettings(name=str(backbone)), WINDOWS, make_scheme(["drug", "gene", "organ"], begin=begin))
    torch.manual_seed(1)
    with torch.no_grad():
        model.network.get_submodule("classifier").weight.normal_(0, 0.4)  # type: ignore[operator, union-attr]
        model.network.get_submodule("classifier").bias.normal_(0, 0.4)  # type: ignore[operator, union-attr]
    model.network.eval()
    return replace(model, decisions=replace(model.decisions, thresholds=(0.2, 0.5, 0.65)))


def export(model: NerModel, name: str = "out") -> Path:
    folder = Path(name).resolve()
    folder.mkdir()
    write_kazu(model, folder)
    return folder


def random_texts(count: int) -> list[str]:
    """Short ones of mentions and symbols in any order, with and without blanks."""
    rng = random.Random(0)
    parts = ["BRCA1", "lung", "cancer", "of", "aspirin", "tumour", "(", ")", ";", "-", ",", "±", "é", "\n", " ", "  "]
    return ["".join(rng.choice(parts) + rng.choice(["", " "]) for _ in range(rng.randint(1, 14))) for _ in range(count)]


def test_the_folder_holds_what_kazu_loads_and_the_model_stays_as_it_is(backbone: Path) -> None:
    model = random_model(backbone, begin=True)
    before = {name: tensor.clone() for name, tensor in model.network.state_dict().items()}
    settings = model.network.config.to_dict()
    folder = export(model)
    assert sorted(path.name for path in folder.iterdir()) == [
        "config.json", "kazu_step.yaml", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
    ]  # fmt: skip
    assert model.network.config.to_dict() == settings
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.network.state_dict().items())

    exported = AutoModelForTokenClassification.from_pretrained(folder).eval()
    assert exported.config.id2label == {0: "drug", 1: "gene", 2: "organ", 3: "O"}
    ids = torch.randint(5, 150, (3, 20))
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    with torch.no_grad():
        ours = model.network(input_ids=ids, attention_mask=mask).logits
        theirs = exported(input_ids=ids, attention_mask=mask).logits
    expected = ours[..., :3] - torch.logit(torch.tensor([0.2, 0.5, 0.65]))
    torch.testing.assert_close(theirs[..., :3], expected)
    assert not theirs[..., 3].any()

    tokenizer = AutoTokenizer.from_pretrained(folder, config=exported.config)
    assert tokenizer.model_input_names == ["input_ids", "attention_mask"]
    assert tokenizer.model_max_length > 1e20
    assert tokenizer.padding_side == "right"
    for text in TEXTS:
        bare = model.tokenizer.tokenize([text])
        assert tokenizer(text).input_ids == [*model.tokenizer.prefix, *bare.ids.tolist(), *model.tokenizer.suffix]
    assert tokenizer("x", padding="max_length", max_length=5).input_ids[3:] == [model.tokenizer.pad_id] * 2


def test_the_step_has_the_sizes_that_kazu_accepts(backbone: Path) -> None:
    model = random_model(backbone)
    for number, (windows, sizes) in enumerate({(64, 9): (64, 8), (33, 30): (32, 28), (32, 0): (32, 0)}.items()):
        chosen = WindowSettings(max_tokens=windows[0], overlap_tokens=windows[1])
        folder = export(replace(model, decisions=replace(model.decisions, windows=chosen)), f"out{number}")
        step = yaml.safe_load((folder / "kazu_step.yaml").read_text(encoding="utf-8"))
        assert (step["max_sequence_length"], step["stride"]) == sizes
        assert step["tokenized_word_processor"]["labels"] == ["drug", "gene", "organ", "O"]


def test_a_class_that_kazu_never_shows_is_refused(backbone: Path) -> None:
    model = new_model(ModelSettings(name=str(backbone)), WINDOWS, make_scheme(["O", "gene"]))
    with pytest.raises(NertoolError, match="never shows entities of a class called O"):
        export(model)
    assert not list(Path("out").iterdir())


def byte_level(*, trim: bool = False) -> PreTrainedTokenizerFast:
    """A tokenizer of ModernBERT's kind, which counts the blank before a word to it."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=330, special_tokens=SPECIAL, initial_alphabet=alphabet)
    result = trained(backend, trainer)
    if trim:  # as RoBERTa's
        after = processors.RobertaProcessing(("[SEP]", 3), ("[CLS]", 2), trim_offsets=True, add_prefix_space=False)
        result.backend_tokenizer.post_processor = after
    return result


def metaspace(scheme: str = "always") -> PreTrainedTokenizerFast:
    """A tokenizer of DeBERTa's kind, which counts the blank before a word to it, too."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

    backend = Tokenizer(models.Unigram())
    backend.normalizer = normalizers.Sequence([normalizers.Strip(), normalizers.Replace(Regex(r"\s+"), " ")])
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=SPECIAL, unk_token="[UNK]")
    return trained(backend, trainer)


SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]


def trained(backend: Any, trainer: Any) -> PreTrainedTokenizerFast:
    from tokenizers import processors

    backend.train_from_iterator([*TEXTS, *random_texts(200)], trainer)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIAL, strict=True))
    return PreTrainedTokenizerFast(tokenizer_object=backend, **names)


TOKENIZERS: dict[str, Callable[[], PreTrainedTokenizerFast]] = {
    "byte level": byte_level,
    "metaspace": metaspace,
    "roberta": lambda: byte_level(trim=True),
}


def with_tokenizer(model: NerModel, hub_tokenizer: PreTrainedTokenizerFast) -> NerModel:
    tokenizer = SectionTokenizer.wrap(hub_tokenizer.backend_tokenizer, hub_tokenizer.pad_token_id)
    return replace(model, tokenizer=tokenizer, hub_tokenizer=hub_tokenizer)


@pytest.mark.parametrize("kind", TOKENIZERS)
def test_no_blank_is_counted_to_a_word_and_the_tokens_are_the_same(kind: str, backbone: Path) -> None:
    model = with_tokenizer(random_model(backbone), TOKENIZERS[kind]())
    old = model.tokenizer.backend.encode("in lung", add_special_tokens=False)
    assert kind == "roberta" or any("in lung"[start:end].startswith(" ") for start, end in old.offsets)
    exported = AutoTokenizer.from_pretrained(export(model))
    for text in [*TEXTS, *random_texts(200)]:
        tokens = model.tokenizer.tokenize([text])
        found = exported(text, add_special_tokens=False, return_offsets_mapping=True)
        assert found.input_ids == tokens.ids.tolist(), text
        for (start, end), *ours in zip(found.offset_mapping, tokens.starts, tokens.ends, strict=True):
            assert text[start:end].strip() in ("", text[start:end])
            if ours[0] < ours[1]:
                assert [start, end] == ours, text


@pytest.mark.parametrize("scheme", ["never", "first"])
def test_a_tokenizer_that_would_make_other_tokens_is_refused(scheme: str) -> None:
    backend = metaspace(scheme).backend_tokenizer
    with pytest.raises(NertoolError, match="counts the blank before a word"):
        offsets_without_blanks(backend)


@pytest.mark.parametrize("kind", ["word pieces", *TOKENIZERS])
@pytest.mark.parametrize("switch_cost", [0.0, 1.5])
def test_nertools_decoding_in_kazu_is_nertools(kind: str, switch_cost: float, backbone: Path) -> None:
    """With the tokenizer that KAZU loads, words as KAZU cuts them, and softmax; KAZU itself isn't needed."""
    model = random_model(backbone)
    model = with_tokenizer(model, TOKENIZERS[kind]()) if kind in TOKENIZERS else model
    exported = AutoTokenizer.from_pretrained(export(model))
    labels, thresholds = model.scheme.labels, model.decisions.thresholds
    processor = NertoolWordProcessor([*labels, "O"], switch_cost)
    rng = np.random.default_rng(0)
    count = 0
    for text in [*TEXTS, *random_texts(100)]:
        tokens = model.tokenizer.tokenize([text])
        logits = rng.normal(0, 3, (len(tokens.ids), 3)).astype(np.float32)
        expected = decode(logits, tokens, model.scheme, thresholds, switch_cost)
        folded = torch.nn.functional.pad(torch.from_numpy(logits) - torch.logit(torch.tensor(thresholds)), (0, 1))
        encoding = exported(text, add_special_tokens=False, return_offsets_mapping=True)
        words = []
        for word in sorted(set(encoding.word_ids())):
            mine = [i for i, other in enumerate(encoding.word_ids()) if other == word]
            offsets = [encoding.offset_mapping[i] for i in mine]
            tokens_of_word = [encoding.tokens()[i] for i in mine]
            confidences = folded[mine].softmax(-1)
            words.append(SimpleNamespace(tokens=tokens_of_word, token_confidences=confidences, token_offsets=offsets))
        found = processor.spans(words, text)
        names = [labels[label] for label in expected.label]
        assert found == list(zip(expected.start.tolist(), expected.end.tolist(), names, strict=True)), text
        count += len(found)
    assert count > 200


def test_labels_without_kazus_outside_are_refused() -> None:
    with pytest.raises(NertoolError, match="lack O"):
        NertoolWordProcessor(["gene"])


# Runs the step of a folder as kazu_step.yaml has it, and with nertool's processor; one line of JSON for all.
RUN = """
import json, os, sys
answers, sys.stdout = sys.stdout, sys.stderr
import torch
torch.set_num_threads(1)
from hydra.utils import instantiate
from kazu.data import PROCESSING_EXCEPTION, Document
from kazu.pipeline import Pipeline
from omegaconf import OmegaConf

folder, texts, switch_cost = json.load(sys.stdin)
os.environ["NERTOOL_KAZU_MODEL"] = folder
result = {}
for name in ("stock", "nertool"):
    config = OmegaConf.load(folder + "/kazu_step.yaml")
    if name == "nertool":
        config.tokenized_word_processor = {
            "_target_": "nertool.kazu_processor.NertoolWordProcessor",
            "labels": config.tokenized_word_processor.labels,
            "switch_cost": switch_cost,
        }
    documents = [Document.create_simple_document(text) for text in texts]
    Pipeline(steps=[instantiate(config)])(documents)
    failed = [document.metadata for document in documents if PROCESSING_EXCEPTION in document.metadata]
    assert not failed, failed
    entities = [[entity for section in document.sections for entity in section.entities] for document in documents]
    assert all(e.match == text[e.start:e.end] for text, found in zip(texts, entities) for e in found)
    result[name] = [sorted([e.start, e.end, e.entity_class] for e in found) for found in entities]
print(json.dumps(result), file=answers)
"""


def run_kazu(folder: Path, texts: list[str], switch_cost: float) -> dict[str, list[list[tuple[int, int, str]]]]:
    """Returns the spans of each text, with KAZU's own processor and with nertool's."""
    python = os.environ.get("KAZU_PYTHON")
    if not python:
        pytest.skip("KAZU_PYTHON names no Python with kazu==2.4.0")
    own = str(Path(nertool.__file__).parents[1])
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONUTF8": "1", "PYTHONPATH": own}
    given = json.dumps([str(folder), texts, switch_cost])
    done = subprocess.run(
        [python, "-c", RUN], input=given, env=environment, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    return {name: [[tuple(span) for span in spans] for spans in of_texts] for name, of_texts in found.items()}


def kazus_rules(
    model: NerModel, texts: list[str], *, any_token: bool = True, brackets: str = "();"
) -> list[list[tuple[int, int, str]]]:
    """What KAZU's multi-label decoding makes of our model, written anew from what it does.

    A word is what the tokenizer's pre-tokenizer says. It has a class if any of its tokens has, and a span is a run of
    words that have it. But a word that goes on with a span, after a bracket or a semicolon, doesn't count to it: the
    span goes as far as the last one that does. With `any_token=False` the mean logit of the tokens decides instead.
    """
    result = []
    for text in texts:
        encoding = model.tokenizer.backend.encode(text)
        with torch.no_grad():
            logits = model.network(input_ids=torch.tensor([encoding.ids])).logits
        above = logits[0].double() - torch.logit(torch.tensor(model.decisions.thresholds).double())
        words: list[list[int]] = [[] for _ in {word for word in encoding.word_ids if word is not None}]
        for token, word in enumerate(encoding.word_ids):
            if word is not None:
                words[word].append(token)
        found = []
        for channel, label in enumerate(model.scheme.labels):
            start = end = -1  # no span is open
            for tokens in words:
                first, last = (encoding.offsets[token] for token in (tokens[0], tokens[-1]))
                values = above[tokens, channel]
                if not (values.max() if any_token else values.mean()) > 0:
                    found.append((start, end, label))
                    start = -1
                elif start < 0:
                    start, end = first[0], last[1]
                elif text[first[0] - 1] not in brackets:
                    end = last[1]
            found.append((start, end, label))
        result.append(sorted(span for span in found if span[0] >= 0))
    return result


def trained_model(backbone: Path) -> Path:
    """Trains on lung cancer and the like until it finds them; nested entities are among them."""
    train, evaluation = write_documents(Path("train"), make_corpus(24)), write_documents(Path("eval"), make_corpus(6))
    settings = {
        "windows.max_tokens": 64, "windows.overlap_tokens": 9, "train.tokens_per_batch": 200, "train.epochs": 16,
        "train.learning_rate": 0.003, "predict.precision": "fp32",
    }  # fmt: skip
    options = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    succeed("train", "--train", train, "--eval", evaluation, "--output", "run", "--model", backbone, *options)
    change_thresholds(Path("run/model"), (0.4, 0.5, 0.3, 0.6), {})
    return Path("run/model")


def random_model_folder(backbone: Path) -> Path:
    Path("random").mkdir()
    save_model(random_model(backbone), Path("random"), {})
    return Path("random")


def predict(folder: Path, texts: list[str]) -> list[list[tuple[int, int, str]]]:
    """Returns what `nertool predict` finds in each text."""
    documents = [Document(f"{i:04}", (Section("body", text),)) for i, text in enumerate(texts)]
    write_documents(Path("texts"), documents)
    succeed("predict", folder, "texts", "found", "--device", "cpu", "--set", "predict.precision=fp32")
    result = []
    for document in documents:
        found = json.loads(Path("found", f"{document.id}.json").read_bytes())["sections"][0].get("entities", [])
        result.append(sorted((e["spans"][0]["start"], e["spans"][0]["end"], e["entity_class"]) for e in found))
    return result


@pytest.mark.kazu
@pytest.mark.parametrize("make", [trained_model, random_model_folder])
def test_kazus_step_finds_what_we_say(make: Callable[[Path], Path], backbone: Path) -> None:
    folder = make(backbone)
    model = load_model(folder)
    corpus = [section.text for document in make_corpus(12) for section in document.sections]
    texts = [text for text in [*TEXTS, *corpus, *random_texts(150)] if len(model.tokenizer.tokenize([text]).ids) < 62]
    assert set(TEXTS) < set(texts)
    kazu = run_kazu(export(model), texts, model.decisions.switch_cost)

    ours = predict(folder, texts)
    assert kazu["nertool"] == ours
    assert any(a[0] <= b[0] and b[1] <= a[1] and a != b for spans in ours for a in spans for b in spans)  # nested
    if make is trained_model:
        assert ours[0] == [(0, 5, "gene"), (9, 13, "organ"), (9, 20, "disease")]

    # All that KAZU does otherwise is in its rules. Each matters here, and without them it is what we do.
    assert kazu["stock"] == kazus_rules(model, texts)
    assert kazu["stock"] != kazus_rules(model, texts, brackets="")
    assert kazu["stock"] != ours
    tagger = replace(model, decisions=replace(model.decisions, switch_cost=0.0)).tagger(
        torch.device("cpu"), torch.float32
    )
    plain = [text for text in texts if text.isascii()]  # KAZU's words of other symbols are other ones, such as β±
    sections = [Section("body", text) for text in plain]
    free = predict_sections(tagger, prepare(sections, tagger), 4096)
    without = kazus_rules(model, plain, any_token=False, brackets="")
    assert without == [sorted((e.start, e.end, e.label) for e in found) for found in free]
    if make is random_model_folder:
        assert kazus_rules(model, plain, brackets="") != without
