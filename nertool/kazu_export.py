"""A model → a folder that KAZU's step for NER loads as it is: weights, config, tokenizer, and the step's settings.

Source: KAZU 2.4.0, `kazu/steps/ner/hf_token_classification.py` and `tokenized_word_processor.py`. How the step's spans
    differ from nertool's, and `kazu_processor.NertoolWordProcessor`, which gives nertool's, are in the documentation.
"""

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import torch

from nertool.artefacts import Decisions
from nertool.errors import NertoolError
from nertool.files import write_atomic, write_json
from nertool.kazu_processor import OUTSIDE
from nertool.model import NerModel, save_network
from nertool.windows import SectionTokenizer, take_texts_literally

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

STEP_FILE = "kazu_step.yaml"
MODEL_VARIABLE = "NERTOOL_KAZU_MODEL"

# Texts of which a changed tokenizer has to make the same tokens: symbols, blanks of all kinds, other scripts.
_PROBES = (
    "The TNF-α-induced kinase (ERK1/2), 5 °C ± 2 %, p.Val600Glu; c.1799T>A.",
    "  two  blanks\n\nand lines \t. ",
    "1-(2-chloroethyl)-urea→NAD(P)H 细胞 café e\u0301",
    "BRCA1",
    " ",
    "[SEP] x",
)


def write_kazu(model: NerModel, folder: Path) -> None:
    """Writes what KAZU loads: config.json, model.safetensors, tokenizer.json, tokenizer_config.json, kazu_step.yaml.

    Args:
        model: The model; it stays as it is.
        folder: An existing empty folder; the caller makes it appear whole.

    Raises:
        NertoolError: If KAZU can't show one of the classes, or can't use the tokenizer.
    """
    decisions = model.decisions
    if OUTSIDE in decisions.scheme.labels:
        raise NertoolError(
            f"KAZU never shows entities of a class called {OUTSIDE}: that is its name for what is outside of all",
            "give the class another name in the documents, and train again",
        )
    if (len(model.tokenizer.prefix), len(model.tokenizer.suffix)) != (1, 1):
        raise NertoolError(
            f"the tokenizer puts {model.tokenizer.special_tokens} special tokens around a text; KAZU takes off one at "
            "each end",
            "use a backbone of the BERT kind",
        )
    tokenizer = offsets_without_blanks(model.tokenizer.backend)
    network = network_for_kazu(model.network, decisions)
    save_network(network, folder)
    write_atomic(folder / "tokenizer.json", tokenizer.to_str().encode())
    write_json(folder / "tokenizer_config.json", _tokenizer_config(model.hub_tokenizer, model.tokenizer))
    write_atomic(folder / STEP_FILE, _step(decisions, model.tokenizer.special_tokens).encode())


def network_for_kazu(network: "PreTrainedModel", decisions: Decisions) -> "PreTrainedModel":
    """Returns a copy with the output layer that KAZU's step needs.

    KAZU takes a token for inside where its logit is above 0, so the thresholds of the classes go into the bias. Begin
    channels would be shown as classes, so they are left out. The last channel, `O`, is always 0: KAZU's evaluation
    can't do without a class of that name, its step passes over it, and beside it softmax still tells every logit (see
    `kazu_processor`).

    Args:
        network: With `channels` outputs; its `classifier` is a linear layer for every family that nertool trains.
        decisions: What the channels mean, and the thresholds.

    Returns:
        One with `labels + 1` outputs, on the same device: logits `(batch, tokens, labels + 1)`.
    """
    labels = decisions.scheme.labels
    count = len(labels)
    old = network.get_submodule("classifier")
    if not isinstance(old, torch.nn.Linear):
        raise TypeError(f"{type(network).__name__} has no linear output layer")  # `new_model` refuses such a one
    cut = torch.from_numpy(decisions.logit_thresholds).to(old.bias.device)
    new = torch.nn.Linear(old.in_features, count + 1, device=old.weight.device, dtype=old.weight.dtype)
    with torch.no_grad():
        new.weight.zero_()
        new.bias.zero_()
        new.weight[:count] = old.weight[:count]
        new.bias[:count] = old.bias[:count].double() - cut
    result = copy.deepcopy(network)
    result.set_submodule("classifier", new)
    result.config.id2label = dict(enumerate((*labels, OUTSIDE)))
    result.config.label2id = {label: channel for channel, label in result.config.id2label.items()}
    return result


def offsets_without_blanks(backend: "Tokenizer") -> "Tokenizer":
    """Returns a tokenizer that makes the same tokens, of which none counts the blank before a word to it.

    BERT's and RoBERTa's are so already. Byte-level ones of today (ModernBERT) and those of SentencePiece (DeBERTa) are
    not, and KAZU would show ` BRCA1`.

    Raises:
        NertoolError: If it can't be changed, or would make other tokens then.
    """
    if not any(_shows_blanks(backend, text) for text in _PROBES):
        return backend
    facts = orjson.loads(backend.to_str())
    before = facts["pre_tokenizer"] or {"type": None}
    steps = {step["type"]: step for step in before.get("pretokenizers", [before])}
    if "ByteLevel" in steps:
        trim = {**steps["ByteLevel"], "trim_offsets": True}  # its add_prefix_space says whether the first blank is real
        facts["post_processor"] = _sequence("processors", trim, facts["post_processor"])
    elif "Metaspace" in steps:
        # Every piece gets its mark anyway, so the blanks may go before that. A mark alone then stands for no blank, but
        # for the letter after it, as the text's first one always did; `kazu_processor` knows.
        cut = {"type": "Split", "pattern": {"String": " "}, "behavior": "Removed", "invert": False}
        facts["pre_tokenizer"] = _sequence("pretokenizers", cut, before)
    changed = type(backend).from_str(orjson.dumps(facts).decode())
    take_texts_literally(changed)
    for text in _PROBES:
        if _shows_blanks(changed, text) or not _are_the_same(_pieces(backend, text), _pieces(changed, text)):
            raise NertoolError(
                f"the tokenizer counts the blank before a word to the word, as in {text!r}; KAZU would show it, and "
                "to change that would change the tokens",
                "export to another format, or train another backbone, such as BERT or RoBERTa",
            )
    return changed


def _sequence(key: str, *steps: Any) -> dict[str, Any]:
    return {"type": "Sequence", key: [step for step in steps if step is not None]}


def _shows_blanks(backend: "Tokenizer", text: str) -> bool:
    pieces = [text[start:end] for start, end in backend.encode(text, add_special_tokens=False).offsets]
    return any(piece.strip() not in ("", piece) for piece in pieces)


def _pieces(backend: "Tokenizer", text: str) -> list[tuple[int, str]]:
    """Returns each token's id and what it shows but for blanks."""
    encoding = backend.encode(text, add_special_tokens=False)
    return [
        (token, text[start:end].strip()) for token, (start, end) in zip(encoding.ids, encoding.offsets, strict=True)
    ]


def _are_the_same(old: list[tuple[int, str]], new: list[tuple[int, str]]) -> bool:
    """Says whether the tokens are the same, and show the same where they showed more than blanks."""
    return len(old) == len(new) and all(a[0] == b[0] and a[1] in ("", b[1]) for a, b in zip(old, new, strict=True))


def _tokenizer_config(hub_tokenizer: "PreTrainedTokenizerFast", tokenizer: SectionTokenizer) -> dict[str, Any]:
    """Returns tokenizer_config.json, which has no model_max_length: KAZU would pad all texts to it, twice over."""
    special = {name: str(token) for name, token in hub_tokenizer.special_tokens_map.items() if isinstance(token, str)}
    return {
        **special,
        "pad_token": tokenizer.backend.id_to_token(tokenizer.pad_id),
        "tokenizer_class": "PreTrainedTokenizerFast",  # tokenizer.json as it is; a family's own class may make it anew
        "model_input_names": [
            "input_ids",
            "attention_mask",
        ],  # KAZU gives the network these; it was trained with no others
        "padding_side": "right",
        "truncation_side": "right",
        "clean_up_tokenization_spaces": False,
        "split_special_tokens": True,  # `[SEP]` in a text is text, as it is to nertool
    }


def _step(decisions: Decisions, special_tokens: int) -> str:
    """Returns the configuration of KAZU's step for hydra; strings in JSON are strings in YAML."""
    size = decisions.windows.max_tokens // 2 * 2  # KAZU refuses odd ones
    stride = min(decisions.windows.overlap_tokens, size - special_tokens - 1) // 2 * 2
    labels = orjson.dumps([*decisions.scheme.labels, OUTSIDE]).decode()
    return f"""\
# A step of KAZU 2.4.0 with this model, for hydra.
_target_: kazu.steps.ner.hf_token_classification.TransformersModelForTokenClassificationNerStep
# This folder. KAZU hands the path to transformers as it is: it is absolute, or relative to where KAZU is started, never
# to this file; and a folder that isn't there is taken for a model's name on the Hugging Face hub.
path: ${{oc.env:{MODEL_VARIABLE}}}
batch_size: 4
stride: {stride}  # how many tokens neighbouring windows share
max_sequence_length: {size}  # every text is padded to this
tokenized_word_processor:
  _target_: kazu.steps.ner.tokenized_word_processor.TokenizedWordProcessor
  use_multilabel: true
  labels: {labels}
# With nertool installed beside KAZU, in the place of the three lines above, for nertool's own decoding:
#  _target_: nertool.kazu_processor.NertoolWordProcessor
#  switch_cost: {decisions.switch_cost}
#  labels: {labels}
"""
