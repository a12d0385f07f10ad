"""Tiny backbones built in code, and documents that exercise what is hard."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may reach for a hub
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models are slower on several threads, and tests run side by side

import orjson
import pytest

from nertool.documents import Document, Entity, Section, Span, document_to_json
from nertool.model import load_tokenizer
from nertool.windows import SectionTokenizer

WORDS = [
    "the", "of", "in", "and", "lung", "liver", "cancer", "brca", "##1", "##2", "egfr", "mutation", "patients", "with",
    "aspirin", "tumou", "##r", "cells", "treated", "hepat", "##itis", "gene", "kinase", "erk", "muta", "##tions",
]  # fmt: skip


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew")


def make_backbone(folder: Path, *, cased: bool = False, layers: int = 2, seed: int = 0) -> Path:
    """Writes a random BERT with a local WordPiece vocabulary, as a Hugging Face folder."""
    import torch
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    letters = [chr(code) for code in range(33, 127)] + list("αβγδκμé")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *letters, *(f"##{x}" for x in letters), *WORDS]
    index = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    backend = Tokenizer(models.WordPiece(index, unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer(lowercase=not cased)
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", index["[CLS]"]), ("[SEP]", index["[SEP]"])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="[UNK]", pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", model_max_length=64,
    )  # fmt: skip
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(index), hidden_size=32, num_hidden_layers=layers, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=64,
    )  # fmt: skip
    folder.mkdir(parents=True, exist_ok=True)
    BertModel(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer BERT with 64 positions."""
    return make_backbone(tmp_path_factory.mktemp("backbone") / "tiny")


@pytest.fixture(scope="session")
def tokenizer(backbone: Path) -> SectionTokenizer:
    return load_tokenizer(str(backbone))


def entity(text: str, label: str, *mentions: str, nth: int = 0) -> Entity:
    """Returns the entity of the n-th place of a mention; several mentions make a discontinuous one."""
    spans = []
    position = -1
    for _ in range(nth + 1):
        position = text.index(mentions[0], position + 1)
    for mention in mentions:
        position = text.index(mention, position)
        spans.append(Span(position, position + len(mention)))
        position += len(mention)
    return Entity(label, tuple(spans), " ".join(mentions))


def write_documents(folder: Path, documents: list[Document]) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for document in documents:
        (folder / f"{document.id}.json").write_bytes(orjson.dumps(document_to_json(document)))
    return folder


def make_corpus(count: int, *, first: int = 0) -> list[Document]:
    """Returns small documents that a tiny model can learn by heart: genes, diseases, drugs and organs."""
    genes, diseases, drugs = (
        ["BRCA1", "EGFR", "ERK", "BRCA2"],
        ["lung cancer", "liver cancer", "hepatitis"],
        ["aspirin"],
    )
    documents = []
    for number in range(first, first + count):
        gene, disease, drug = genes[number % 4], diseases[number % 3], drugs[0]
        title = f"{gene} in {disease}"
        body = f"The {gene} gene and {drug} in patients with {disease} . Cells {number} treated with {drug} ."
        sections = []
        for name, text in (("title", title), ("body", body)):
            entities = [entity(text, "gene", gene), entity(text, "disease", disease)]
            organ = disease.split()[0]
            if organ != "hepatitis":
                entities.append(entity(text, "organ", organ))
            if name == "body":
                entities += [entity(text, "drug", drug), entity(text, "drug", drug, nth=1)]
            sections.append(Section(name, text, tuple(sorted(entities, key=lambda e: (e.start, e.end)))))
        documents.append(Document(f"doc-{number:03d}", tuple(sections)))
    return documents


@pytest.fixture
def corpus(tmp_path: Path) -> tuple[Path, Path]:
    """Training and eval documents on disk."""
    return write_documents(tmp_path / "train", make_corpus(24)), write_documents(
        tmp_path / "eval", make_corpus(6, first=24)
    )
