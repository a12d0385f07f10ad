"""Valid inputs for every reader, small ones, to begin with."""

import gzip
import json
import zlib
from collections import Counter
from pathlib import Path
from typing import Any

import zstandard

from nertool.documents import Document, Entity, Section, Span, document_to_json, dump_document
from nertool.entity_classes import DEFAULT_CLASSES
from nertool.formats import FORMATS
from nertool.run_folder import _fingerprint
from nertool.settings import Settings

TEXT = "🧬 IL-2 in lung and liver cancer."
BRAT_SEPARATOR = b"\n=====\n"  # between an annotation file and its text
ANSWERS = Path(__file__).parents[1] / "nasty_answers.jsonl"
SAMPLES = Path(__file__).parents[2] / "sample_data"


def _entity(label: str, *spans: tuple[int, int], **facts: Any) -> Entity:
    match = " ".join(TEXT[start:end] for start, end in spans)
    return Entity(label, tuple(Span(*span) for span in spans), match, **facts)


DOCUMENTS = [
    Document(
        "pmid/1",
        (
            Section(
                "title",
                TEXT,
                (
                    _entity("gene", (2, 6), extra={"metadata": {"identifiers": "3558", "found": ["exact", 1]}}),
                    _entity("gene", (2, 6), namespace="gpt", score=0.75, extra={"metadata": {"score": 0.75}}),
                    _entity("disease", (10, 14), (25, 31)),
                    _entity("organ | 'x'", (19, 24)),
                    _entity("disease", (19, 31)),
                ),
                {"metadata": {"page": 3, "label_studio": {"section": 0, "status": "corrected", "people": ["a"]}}},
            ),
            Section(
                "abstract", "Two\nlines.\r\n\tIL-2\u00a0e\u0301.\n", extra={"sentence_spans": [{"start": 0, "end": 4}]}
            ),
        ),
        {
            "metadata": {
                "year": 2020,
                "nertool_annotation": {"models": ["llm"], "prompts": ["ab12"], "counts": {}},
                "nertool_review": {"people": ["a", "b"], "sections": {"corrected": 1, "open": 1}},
                "nertool_prediction": {"model": "m", "model_digest": "ab"},
            }
        },
    ),
    Document("2", (Section("text", "aspirin", (Entity("drug", (Span(0, 7),), "aspirin"),)),)),
    Document("3", ()),
]


def document_seeds(name: str, ending: str, folder: Path) -> list[bytes]:
    """Returns the documents as nertool writes them in a format, each alone and all in one file."""
    seeds = []
    for number, some in enumerate([DOCUMENTS, *([one] for one in DOCUMENTS)]):
        path = folder / f"{number}{ending}"
        with FORMATS[name].writer(path) as writer:
            for document in some:
                writer.write(document)
        for file in sorted(path.glob(f"*{ending}")) if path.is_dir() else [path]:
            data = file.read_bytes()
            if name == "brat":
                data += BRAT_SEPARATOR + file.with_suffix(".txt").read_bytes()
            seeds.append(data)
    return seeds


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


PUBTATOR = [
    b"1|t|IL-2 in lung\n1|a|A cancer.\n1\t0\t4\tIL-2\tGene\t3558\n1\t15\t21\tcancer\tDisease\tD009369\n1\tCID\tD1\tD2\n\n",
    "2|t|Seiné β|x\r\n2|a|\r\n2\t0\t6\tSeiné\tX\r\n\r\n3|t|x\r\n".encode(),
]
BIOC = [
    b'<?xml version="1.0" encoding="UTF-8"?><!DOCTYPE collection SYSTEM "BioC.dtd"><collection><source>x</source><date/><key/>'
    b'<document><id>1</id><infon key="a">b</infon><passage><infon key="type">title</infon><offset>0</offset>'
    b'<sentence><infon key="s">1</infon><offset>0</offset><text>IL-2 is.</text><annotation id="1"><infon key="type">gene</infon>'
    b'<location offset="0" length="4"/><text>IL-2</text></annotation></sentence><sentence><offset>9</offset><text>Two.</text>'
    b'</sentence></passage><relation id="r"><infon key="type">x</infon><node refid="1" role="a"/></relation></document></collection>',
    _json(
        {
            "PubTator3": [
                {
                    "id": "1",
                    "infons": {},
                    "passages": [
                        {
                            "infons": {"type": "title", "section_type": "TITLE"},
                            "offset": 0,
                            "text": "🧬 IL-2",
                            "annotations": [
                                {
                                    "id": "2",
                                    "infons": {"identifier": "3558", "type": "Gene"},
                                    "text": "IL-2",
                                    "locations": [{"offset": 3, "length": 4}],
                                }
                            ],
                        }
                    ],
                }
            ]
        }
    ),
]
BRAT = [
    b"T1\tGene 2 6\tIL-2\nT2\tDisease 10 14;25 31\tlung cancer\nA1\tNegation T1\nN1\tReference T1 UMLS:C1\tIL-2\n"
    b"R1\tX Arg1:T1 Arg2:T2\t\nE1\tBind:T1\n*\tEquiv T1 T2\n#1\tAnnotatorNotes T1\tsure\n"
    + BRAT_SEPARATOR
    + TEXT.encode(),
]
CONLL = [
    b"-DOCSTART- -X- -X- O\n\nIL-2 NNP B-NP B-GENE\nis VBZ O O\n. . O O\n\nA\tO\nb\tI-X\nc\tE-X\n# comment\nd\tS-Y\n",
    b"IL-2 U-gene\nlung L-organ\n\n\nx O\n",
]
_REGION = {
    "id": "a",
    "from_name": "label",
    "to_name": "text",
    "type": "labels",
    "value": {"start": 2, "end": 6, "text": "IL-2", "labels": ["gene"]},
}
LABEL_STUDIO = [
    _json(
        [
            {
                "id": 7,
                "data": {"text": TEXT, "pmid": 3},
                "annotations": [
                    {
                        "id": 1,
                        "result": [
                            _REGION,
                            {
                                **_REGION,
                                "id": "b",
                                "value": {"start": 10, "end": 14, "text": "lung", "labels": ["disease"]},
                            },
                            {
                                "type": "relation",
                                "from_id": "a",
                                "to_id": "b",
                                "direction": "right",
                                "labels": ["part of"],
                            },
                            {"type": "choices", "from_name": "c", "to_name": "text", "value": {"choices": ["yes"]}},
                        ],
                        "was_cancelled": False,
                        "ground_truth": True,
                        "updated_at": "2024-01-01T00:00:00Z",
                        "completed_by": {"email": "a@b"},
                    }
                ],
                "predictions": [{"model_version": "m", "score": 0.5, "result": [{**_REGION, "score": 0.5}]}],
                "drafts": [],
                "meta": {},
            }
        ]
    ),
    _json(
        [{"id": 7, "text": TEXT, "label": [_REGION["value"]], "annotator": 1, "annotation_id": 2, "updated_at": "x"}]
    ),
]
DATASETS = [
    b'{"text": "IL-2 in lung", "entities": [{"label": "gene", "start": 0, "end": 4}], "other": 1}\n'
    b'{"tokens": ["IL-2", "is"], "ner_tags": ["B-gene", "O"]}\n',
]
KAZU = [
    _json(
        {
            "idx": 7,
            "sections": [
                {
                    "name": "t",
                    "text": "ab",
                    "entities": [
                        {
                            "match": "a",
                            "entity_class": "x",
                            "spans": [{"start": 0, "end": 1.0}],
                            "namespace": "n",
                            "mention_confidence": 100,
                            "_id": "i",
                            "mappings": [],
                            "metadata": {"score": float("nan")},
                            "start": 0,
                            "end": 1,
                        }
                    ],
                }
            ],
        }
    ),
]


def lines() -> bytes:
    """Returns the documents as JSON lines."""
    return b"".join(dump_document(document) + b"\n" for document in DOCUMENTS)


def zst(data: bytes) -> bytes:
    """Compresses in two frames."""
    half = len(data) // 2
    return b"".join(zstandard.ZstdCompressor(write_checksum=True).compress(part) for part in (data[:half], data[half:]))


def gz(data: bytes) -> bytes:
    """Compresses fast."""
    return gzip.compress(data, 1, mtime=0)


def answer_seeds() -> list[bytes]:
    """Returns answers of all shapes."""
    cases = map(json.loads, ANSWERS.read_text(encoding="utf-8").strip().split("\n"))
    return [case["answer"].encode(errors="surrogatepass") for case in cases]


CLASSES = [
    b"[[class]]".join(DEFAULT_CLASSES.read_bytes().split(b"[[class]]")[:4]),
    b'[[class]]\nname = "gene"\naliases = ["genes", "proteins"]\ndescription = "x"\n',
]
SETTINGS = [
    b'[train]\nepochs = 3\nlearning_rate = 1e-4\nseed = 7\n[data]\nlabels = ["a", "b"]\nskip_invalid = true\nsplit_fractions = [0.8, 0.1, 0.1]\n'
    b'[annotate]\nmodel = "x"\nbase_url = "https://x.example/v1"\n[windows]\nmax_tokens = 128\noverlap_tokens = 16\n[predict]\ndevice = "cpu"\n',
]
ASSIGNMENTS = [
    b"train.epochs=3",
    b'data.labels=["a", "b"]\ntrain.learning_rate=1e-4\nannotate.base_url=https://x.example/v1\npredict.device=cpu',
    b"windows.max_tokens=64\nmodel.name=x\nlabel_studio.url=http://localhost\nevaluate.scheme=overlap\ntrain.patience=",
]
_DATA = {
    "annotators": {"nertool": 12},
    "classes": {"gene": 24},
    "digest": "ae",
    "documents": 12,
    "entities": 24,
    "name": "train",
}
_RATES = {"gene_f1": 1.0, "gene_precision": 1.0, "gene_recall": 1.0, "gene_support": 4}
_RATES |= {f"{kind}_{rate}": 1.0 for kind in ("micro", "mean") for rate in ("f1", "precision", "recall")} | {
    "micro_support": 4
}
_INTERVALS = {
    key: [0.5, 1.0]
    for key in ("micro_f1", "mean_f1", "micro_precision", "micro_recall", "gene_f1", "gene_precision", "gene_recall")
}
MODEL_FACTS: dict[str, Any] = {
    "format": 2,
    "nertool_version": "0.1.0",
    "torch_version": "2.13",
    "backbone": "minilm",
    "base_model": "sentence-transformers/all-MiniLM-L6-v2",
    "scheme": {"labels": ["gene"], "begin": False},
    "windows": {"max_tokens": 32, "overlap_tokens": 8},
    "thresholds": {"gene": 0.5},
    "switch_cost": 1.0,
    "parameters": 26756,
    "step": 16,
    "train": _DATA,
    "eval": _DATA,
    "scores": {"mean_f1": 1.0, "micro_f1": 1.0, "scheme": "strict"},
    "representation": {"ceiling_micro_f1": 1.0, "entities": 88, "kept": 88, "losses": {}},
    "settings": {"train": {"epochs": 4}},
    "evaluations": [
        {
            **{key: _DATA[key] for key in ("annotators", "digest", "documents", "entities", "name")},
            "level": 0.95,
            "of_original": False,
            "samples": 20,
            "thresholds": {"gene": 0.5},
            "schemes": {
                "strict": {**_RATES, "scheme": "strict", "intervals": _INTERVALS},
                "overlap": {**_RATES, "scheme": "overlap", "intervals": _INTERVALS},
                "kazu": {**_RATES, "scheme": "kazu"},
            },
        }
    ],
    "split": {
        "seed": 42,
        "documents": {"train": 12, "eval": 4, "test": 4},
        "equal_groups": 1,
        "similar_groups": 0,
        "documents_in_groups": 2,
        "unseen_mentions": {side: {"entities": 30, "share": 0.5, "unseen": 15} for side in ("eval", "test")},
    },
}
MODELS = [
    MODEL_FACTS,
    {
        **MODEL_FACTS,
        "export": {
            "format": "onnx",
            "precision": "int8",
            "model": "model.onnx",
            "pad_id": 0,
            "bytes": 100,
            "kept": [],
            "measured_on": "2 cores",
            "parity": {
                "onnxruntime": {
                    "decisions": 4,
                    "entities": 1,
                    "equal_decisions": 1.0,
                    "equal_entities": 1.0,
                    "largest_difference": 0.0,
                    "mean_difference": 0.0,
                }
            },
            "tokens_per_second": {"onnxruntime": 46852, "openvino": 39020},
            "tokens_per_second_of_original": 27808,
        },
        "files": {"tokenizer.json": "ab"},
        "teacher": {"name": "t", "parameters": 5},
    },
    {
        "format": 1,
        "scheme": {"labels": ["a", "b"], "begin": True},
        "windows": {"max_tokens": 32, "overlap_tokens": 8},
        "threshold": 0.5,
        "switch_cost": 1.0,
        "nertool_version": "0.0.1",
        "backbone": "x",
    },
]
MODEL_SEEDS = [_json(facts) for facts in MODELS]
CACHE = {
    "fingerprint": {
        "begin_channels": False,
        "documents": "ae",
        "format": 3,
        "labels": ["gene"],
        "max_tokens": 32,
        "overlap_tokens": 8,
        "tokenizer": "t",
    },
    "counts": {"documents": 3, "empty_sections": 0, "labels": {"gene": 2}, "sections": 3, "tokens": 10, "windows": 2},
    "annotators": {"nertool": 3},
    "bytes_per_token_id": 2,
    "representation": {
        "ceiling_micro_f1": 1.0,
        "entities": 8,
        "examples": {},
        "invented": 0,
        "kept": 8,
        "losses": {},
        "touching": 0,
    },
}
SPLIT = {
    "seed": 42,
    "fractions": {"asked": {"train": 0.6, "eval": 0.2, "test": 0.2}},
    "counts": {"documents": {"train": 3, "eval": 3, "test": 1}, "entities": {"train": 6, "eval": 6, "test": 1}},
    "classes": {
        label: {"counts": {"train": count, "eval": count, "test": 1}, "shares": {}}
        for label, count in Counter(
            one.label for it in DOCUMENTS for part in it.sections for one in part.entities
        ).items()
    },
    "duplicate_groups": [{"kind": "exact", "ids": ["a", "b"]}, {"kind": "near", "ids": ["c", "d"]}],
    "classes_in_a_single_document": {},
    "unseen_mentions": {
        side: {"overall": {"entities": 30, "share": 0.0, "unseen": 0}, "classes": {}} for side in ("eval", "test")
    },
    "documents": {"train": ["1"], "eval": ["2"], "test": []},
}
MANIFEST = {"command": "split", "files": ["split.json", "train/", "rejected.jsonl"]}
JOB = {
    "model": "m",
    "model_digest": "ab",
    "nertool_version": "0.1.0",
    "min_score": 0.0,
    "labels": [],
    "documents": "cd",
    "compression": ".zst",
}
SUSPECT = {
    "document": "d",
    "section": 0,
    "kind": "wrong class",
    "score": 0.9,
    "entity": {"class": "a", "spans": [[0, 2], [4, 5]], "text": "x"},
    "suggestion": {"class": "b", "spans": [[0, 2]], "text": "x"},
    "reason": "because",
    "evidence": {
        "log_odds": 2.0,
        "model_log_odds": 1.0,
        "others_as_annotated": {"in_document": 1, "elsewhere": 2},
        "others_as_suggested": {"in_document": 0, "elsewhere": 9},
    },
}
RESPONSES = [
    (SAMPLES / "responses.jsonl").read_bytes()[:3000],
    _json(
        {
            "key": "k",
            "document": "2",
            "section": 0,
            "text": None,
            "model": "m",
            "prompt": "p",
            "time": "t",
            "finish_reason": "stop",
            "usage": {"input": 5, "output": 6, "text_chars": 7},
            "response": '[{"entity_match": "aspirin", "entity_class": "drug"}]',
        }
    )
    + b'\n{"document": "pmid/1", "sections": [0, 1], "response": "[]"}\n'
    + b'{"document": "2", "section": 0, "start": 0, "end": 3, "response": "[]"}\n{"document": "2", "section": 0, "failure": "no"}\n',
]
QUEUE = [b"pmid/1#0\n2\npmid/1\n", b"pmid/1#1\r\n\r\n2#0"]
SPOOL = [
    b"".join(
        _json(line) + b"\n"
        for line in (
            {"spool": 1, "project": "p", "version": "v", "labels": ["gene"], "keep_versions": 2},
            {"index": 0, "has_gold": True},
            document_to_json(DOCUMENTS[1]),
            document_to_json(DOCUMENTS[1]),
        )
    )
]
HISTORY = [
    b'{"step": 1, "kind": "train", "loss": 0.5}\n{"step": 2, "kind": "eval", "micro_f1": 0.5, "mean_f1": null}\n'
]
PARQUET = [
    b'{"tokens": ["IL-2", "is"], "ner_tags": ["B-gene", "O"]}',
    b'{"text": "IL-2", "entities": [{"label": "g", "start": 0, "end": 4}], "o": 1.5}',
]
_LINE = {
    "documents": 1,
    "digests": "ab" * 32,
    "labels": {"gene": 1},
    "classes": ["gene"],
    "annotators": {"n": 1},
    "counts": {"sections": 1, "empty_sections": 0, "tokens": 5, "windows": 1},
    "representation": CACHE["representation"],
    "bytes": [10, 5, 20, 50],
    "checksums": [zlib.crc32(bytes(length)) for length in (10, 5, 20, 50)],  # of nothing but zeros
}
JOURNAL = (
    _json(CACHE["fingerprint"]) + b"\n" + _json(_LINE) + b"\n" + _json({**_LINE, "bytes": [20, 10, 40, 100]}) + b"\n"
)


def run_facts(command: str) -> bytes:
    """Returns what `run.json` or `audit.json` tells of a finished run with the default settings."""
    data = {"train": {"train": "a", "eval": "b"}, "audit": {"documents": "a"}}[command]
    facts = _fingerprint(command, Settings(), data)
    return _json({"nertool_version": "0.1.0", "finished": True, "summary": {"micro_f1": 1.0}, **facts})
