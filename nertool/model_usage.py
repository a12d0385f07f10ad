"""How to use a model, with nertool and without it: a section of the model card. Tests run its code, but for KAZU's."""

from collections.abc import Iterator, Mapping
from typing import Any

from nertool.markdown import code_block

_TRANSFORMERS = """\
import json
from pathlib import Path

import torch
from transformers import AutoModelForTokenClassification, AutoTokenizer

thresholds = json.loads(Path("MODEL", "nertool.json").read_text(encoding="utf-8"))["thresholds"]
tokenizer = AutoTokenizer.from_pretrained("MODEL")
model = AutoModelForTokenClassification.from_pretrained("MODEL", dtype=torch.float32)
text = "EGFR mutations in lung cancer"
inputs = tokenizer(text, return_offsets_mapping=True, return_tensors="pt")
with torch.inference_mode():
    logits = model(input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"]).logits[0]
for (start, end), probabilities in zip(inputs["offset_mapping"][0].tolist(), logits.sigmoid().tolist()):
    named = {model.config.id2label[channel]: value for channel, value in enumerate(probabilities)}
    found = [label for label in thresholds if named[label] >= thresholds[label]]
    if end > start and found:
        print(text[start:end], *found)
"""
_ENGINE = """\
import json
from pathlib import Path

import numpy as np
import {engine}
from tokenizers import Tokenizer

facts = json.loads(Path("MODEL", "nertool.json").read_text(encoding="utf-8"))
text = "EGFR mutations in lung cancer"
encoded = Tokenizer.from_file("MODEL/tokenizer.json").encode(text)
ids = np.array([encoded.ids], np.int64)
inputs = {{"input_ids": ids, "attention_mask": np.ones_like(ids)}}
{run}
for (start, end), row in zip(encoded.offsets, logits[0]):
    named = dict(zip(facts["scheme"]["labels"], 1 / (1 + np.exp(-row))))
    found = [label for label, value in named.items() if value >= facts["thresholds"][label]]
    if end > start and found:
        print(text[start:end], *found)
"""
_RUN = {
    "onnx": ("onnxruntime", 'logits = onnxruntime.InferenceSession("MODEL/{file}").run(["logits"], inputs)[0]'),
    "openvino": ("openvino", 'logits = openvino.compile_model("MODEL/{file}", "CPU")(inputs)["logits"]'),
}
_KAZU = """\
import os

import hydra
from omegaconf import OmegaConf

os.environ["NERTOOL_KAZU_MODEL"] = "MODEL"
step = hydra.utils.instantiate(OmegaConf.load("MODEL/kazu_step.yaml"))
"""
_NERTOOL = """\
from pathlib import Path

from nertool.documents import Document, Section
from nertool.inference import load_tagger, predict_documents
from nertool.settings import PredictSettings

tagger = load_tagger(Path("MODEL"), PredictSettings())
document = Document("1", (Section("title", "EGFR mutations in lung cancer"),))
for documents in predict_documents(tagger, [document], documents_per_chunk=256):
    for entity in documents[0].sections[0].entities:
        print(entity.label, entity.match, entity.score)
"""
# The formats that are named for what runs them.
ENGINE_FORMATS = frozenset(_RUN)


def usage(facts: Mapping[str, Any]) -> Iterator[str]:
    """Yields the lines of the section of the model card.

    Args:
        facts: What `nertool.json` tells.
    """
    form = facts.get("export", {}).get("format", "hf")
    windows = facts["windows"]
    yield "## Use"
    yield ""
    yield "`MODEL` is the folder that this file is in. With nertool, on texts of any length:"
    yield ""
    yield from code_block("shell", "nertool predict MODEL texts predictions\n")
    yield "or from Python:"
    yield ""
    yield from code_block("python", _NERTOOL)
    if form == "kazu":
        yield "In KAZU, which has to be installed, this makes the step of a pipeline:"
        yield ""
        yield from code_block("python", _KAZU)
        yield (
            "The thresholds are in the weights. KAZU's own word processor finds other boundaries in places; "
            "`kazu_step.yaml` says how to have nertool's."
        )
        yield ""
        return
    if form == "hf":
        yield "Without nertool, with transformers, this shows which tokens have which class:"
        yield ""
        yield from code_block("python", _TRANSFORMERS)
    else:
        engine, run = _RUN[form]
        yield f"Without nertool, with {engine}, numpy and tokenizers, this shows which tokens have which class:"
        yield ""
        yield from code_block("python", _ENGINE.format(engine=engine, run=run.format(file=facts["export"]["model"])))
    begin = (
        " The channels after those of the classes say where an entity begins, which keeps touching ones apart."
        if facts["scheme"]["begin"]
        else ""
    )
    yield (
        "Tokens are not entities yet. nertool takes the mean logit of each word's tokens, lets a word be inside a "
        f"class from its threshold on, and makes a boundary where there is no space cost {facts['switch_cost']:g} "
        f"logits; long texts it reads in windows of {windows['max_tokens']} tokens that overlap by "
        f"{windows['overlap_tokens']}. Without it, that is yours to do.{begin}"
    )
    yield ""
