"""The model card of a model, `README.md`: made of what its `nertool.json` tells, and of nothing else.

A part of which nothing is known is left out. What comes from documents or people (classes, names of files and of
annotators) is shown as it is, whatever Markdown or YAML it may hold.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from nertool.console import counted
from nertool.markdown import enumeration, plain, table, yaml_string
from nertool.model_usage import ENGINE_FORMATS, usage

# What nertool knows to be models of English; of others nobody has told it.
_ENGLISH = ("sentence-transformers/all-MiniLM-L6-v2", "microsoft/BiomedNLP-BiomedBERT-base-uncased-abstract")
_LABELS_IN_TITLE = 6


def model_card(facts: Mapping[str, Any]) -> str:
    """Returns the model card.

    Args:
        facts: What `nertool.json` tells; see docs/reference/data-formats.md.
    """
    parts = (
        _front_matter(facts),
        ["<!-- Made by nertool of nertool.json, and anew whenever that changes. -->", ""],
        _summary(facts),
        _data(facts),
        _scores(facts),
        _beside_teacher(facts),
        _export(facts),
        _size_and_speed(facts),
        usage(facts),
        _limits(facts),
        _settings(facts),
    )
    return "\n".join(line for part in parts for line in part)


def _front_matter(facts: Mapping[str, Any]) -> Iterator[str]:
    """Hugging Face's metadata; the licence is not for nertool to say."""
    form = facts.get("export", {}).get("format")
    base = facts.get("base_model")
    yield "---"
    if base in _ENGLISH:
        yield "language: en"
    yield f"library_name: {form if form in ENGINE_FORMATS else 'transformers'}"
    yield "pipeline_tag: token-classification"
    yield "tags:"
    for tag in ("nertool", "biomedical", "named-entity-recognition", "multi-label"):
        yield f"- {tag}"
    if base:
        yield f"base_model: {yaml_string(base)}"
    own = [one for one in facts.get("evaluations", []) if _is_of_this_model(one, facts)]
    if own:
        yield "model-index:"
        yield f"- name: {yaml_string(_title(facts))}"
        yield "  results:"
    for one in own:
        name = one["name"] or "unnamed"
        yield "  - task:"
        yield "      type: token-classification"
        yield "      name: Named entity recognition"
        yield "    dataset:"
        yield f"      type: {yaml_string(re.sub(r'[^A-Za-z0-9._-]+', '-', name).strip('-') or 'unnamed')}"
        yield f"      name: {yaml_string(name)}"
        yield "    metrics:"
        for metric, key, scheme in (
            ("precision", "micro_precision", "strict"), ("recall", "micro_recall", "strict"),
            ("f1", "micro_f1", "strict"), ("f1", "mean_f1", "strict"), ("f1", "micro_f1", "overlap"),
        ):  # fmt: skip
            value = one["schemes"][scheme][key]
            if value is not None:
                yield f"    - type: {metric}"
                yield f"      value: {value:.4f}"
                yield f"      name: {key.replace('_f1', ' F1').replace('_', ' ')}, {scheme}"
    yield "---"
    yield ""


def _summary(facts: Mapping[str, Any]) -> Iterator[str]:
    yield f"# {plain(_title(facts))}"
    yield ""
    labels = facts["scheme"]["labels"]
    yield (
        f"Finds mentions of {len(labels)} {'class' if len(labels) == 1 else 'classes'} in biomedical text: "
        f"{enumeration(map(plain, labels))}. Each token gets one probability for each class, so that mentions may "
        "nest, overlap and have several classes. It finds mentions; it doesn't link them to identifiers."
    )
    yield ""
    exported = facts.get("export")
    form = f", and exported to {_FORMS[exported['format']]} in {exported['precision']}" if exported else ""
    yield f"{_origin(facts)} with nertool {plain(facts['nertool_version'])}{form}."
    yield ""


_FORMS = {"onnx": "ONNX", "openvino": "OpenVINO", "hf": "Hugging Face's format", "kazu": "KAZU's format"}


def _title(facts: Mapping[str, Any]) -> str:
    labels = facts["scheme"]["labels"]
    return f"Biomedical entities: {', '.join(labels) if len(labels) <= _LABELS_IN_TITLE else f'{len(labels)} classes'}"


def _origin(facts: Mapping[str, Any]) -> str:
    backbone = plain(facts.get("backbone") or "a model that it doesn't name")
    if "teacher" not in facts:
        return f"Fine-tuned from {backbone}"
    teacher = facts["teacher"]
    # Before cards were made of this, the teacher was a path.
    name = re.split(r"[/\\]", teacher)[-1] if isinstance(teacher, str) else teacher["name"]
    more = facts.get("unlabelled", {}).get("documents")
    texts = f", also from {counted(more, 'document')} without gold entities," if more else ""
    return f"Distilled from the model {plain(name)} into a student ({backbone}){texts}"


def _data(facts: Mapping[str, Any]) -> Iterator[str]:
    if "train" not in facts:
        return
    train, evaluated = facts["train"], facts.get("eval", {})
    who = train.get("annotators") or dict.fromkeys(facts.get("annotators", []))
    yield "## Data"
    yield ""
    yield f"- Trained on {_documents(train)}, annotated by {_annotators(who, train['documents'])}."
    if train.get("left_out"):
        suspect = counted(train["left_out"], "suspect annotation")
        yield f"- Left out of the loss: {suspect}, as an audit of these documents found."
    if evaluated:
        step = f", after step {facts['step']:,}" if "step" in facts else ""
        names = evaluated.get("annotators")
        by = f", annotated by {_annotators(names, evaluated['documents'])}" if names else ""
        yield f"- The best state of the training was chosen on {_documents(evaluated)}{by}{step}."
    if "tuned" in facts:
        tuned = facts["tuned"]
        name = re.split(r"[/\\]", tuned.get("documents") or "")[-1]
        yield f"- The thresholds were chosen on {counted(tuned['count'], 'document')}{_named(name)}."
    yield from _split(facts.get("split"))
    yield ""
    if "classes" in train:
        yield from table(
            ["class", "entities in train", "in eval", "threshold"],
            [
                [
                    plain(label), *(f"{side.get('classes', {}).get(label, 0):,}" for side in (train, evaluated)),
                    f"{facts['thresholds'][label]:g}",
                ]
                for label in facts["scheme"]["labels"]
            ],
        )  # fmt: skip


def _split(split: Mapping[str, Any] | None) -> Iterator[str]:
    if split is None:
        return
    documents = split["documents"]
    sides = enumeration(f"{number:,} for {side}" for side, number in sorted(documents.items(), key=_side) if number)
    together = (
        f"{counted(split['documents_in_groups'], 'document')} in {counted(split['equal_groups'], 'group')} of equal "
        f"and {counted(split['similar_groups'], 'group')} of nearly equal texts, each kept on one side"
        if split["documents_in_groups"]
        else "no two of them are equal or nearly so"
    )
    yield f"- Split by `nertool split`, seed {split['seed']}: {sides} documents; {together}."
    unseen = [
        f"{100 * facts['share']:.1f} % of the {facts['entities']:,} in {side}"
        for side, facts in sorted(split["unseen_mentions"].items(), key=_side)
        if facts["share"] is not None
    ]
    if unseen:
        yield f"- Mentions with a text and class that train never has: {enumeration(unseen)}."


def _side(item: tuple[str, Any]) -> int:
    return ("train", "eval", "test").index(item[0])


def _scores(facts: Mapping[str, Any]) -> Iterator[str]:
    evaluations = facts.get("evaluations", [])
    if not evaluations:
        return
    yield "## Scores"
    yield ""
    yield (
        "*Strict*: a prediction is right if its class and all its boundaries are. *Overlap*: if its class is and the "
        "two share a character; each counts once. *KAZU* is what KAZU's own scorer says, which leaves out gold "
        "entities of classes that it doesn't find in a section and lets one prediction count several times: it is too "
        "high, and there to be set beside numbers published for KAZU."
    )
    yield ""
    for one in evaluations:
        yield from _evaluation(one, facts)


def _is_of_this_model(evaluation: Mapping[str, Any], facts: Mapping[str, Any]) -> bool:
    return not evaluation["of_original"] and evaluation["thresholds"] == facts["thresholds"]


def _evaluation(one: Mapping[str, Any], facts: Mapping[str, Any]) -> Iterator[str]:
    exported = " (the original, before it was exported)" if one["of_original"] else ""
    yield f"### On {plain(one['name'] or 'documents without a name')}{exported}"
    yield ""
    digest = f" (SHA-256 {one['digest'][:12]}…)" if one["digest"] else ""
    who = f", annotated by {_annotators(one['annotators'], one['documents'])}" if one["annotators"] else ""
    gold = counted(one["entities"], "gold entity", "gold entities")
    yield f"{counted(one['documents'], 'document')} with {gold}{digest}{who}."
    if one["digest"] and one["digest"] == facts.get("eval", {}).get("digest"):
        yield "The best state of the training was chosen by these documents, so expect a little less on new ones."
    if one["digest"] and one["digest"] == facts.get("tuned", {}).get("digest"):
        yield "The thresholds were chosen on these documents, so expect a little less on new ones."
    if one["thresholds"] != facts["thresholds"]:
        yield "**Measured with other thresholds than those that the model has now.**"
    if _asked(one["annotators"]):
        yield "An LLM's annotation is no truth: this tells how well the model does what the LLM does."
    strict, overlap, kazu = (one["schemes"][scheme] for scheme in ("strict", "overlap", "kazu"))
    intervals = "intervals" in strict and one["samples"]
    if intervals:
        yield (
            f"In brackets: {100 * one['level']:.0f} % intervals from {one['samples']:,} bootstrap samples of the "
            "documents."
        )
    yield ""
    names = [key.removesuffix("_support") for key in strict if key.endswith("_support") and key != "micro_support"]
    rows = []
    for name in (*names, "micro"):
        shown = "**all (micro)**" if name == "micro" else plain(name)
        numbers = [_rate(strict, f"{name}_{rate}") for rate in ("precision", "recall", "f1")]
        others = [_rate(overlap, f"{name}_f1"), _rate(kazu, f"{name}_f1")]
        rows.append([shown, f"{strict[f'{name}_support']:,}", *numbers, *others])
    means = [_rate(scores, "mean_f1") for scores in (strict, overlap, kazu)]
    rows.append(["**mean of the classes**", "", "", "", *means])
    heads = ["class", "gold entities", "precision, strict", "recall, strict", "F1, strict", "F1, overlap", "F1, KAZU"]
    yield from table(heads, rows)


def _rate(scores: Mapping[str, Any], key: str) -> str:
    value, interval = scores.get(key), scores.get("intervals", {}).get(key)
    if value is None:
        return "–"
    return f"{value:.3f}" + (f" ({interval[0]:.3f}–{interval[1]:.3f})" if interval else "")


def _beside_teacher(facts: Mapping[str, Any]) -> Iterator[str]:
    compared = facts.get("beside_teacher")
    if compared is None:
        return
    sides = [compared["teacher"], compared["student"]]
    yield "## Beside its teacher"
    yield ""
    yield (
        f"On the documents that chose the student ({compared['scheme']}), in torch on the machine that trained it"
        f"{'; the student before it was exported' if 'export' in facts else ''}."
    )
    yield ""
    rows = [
        ["micro F1", *(_rate(side, "micro_f1") for side in sides)],
        ["mean F1", *(_rate(side, "mean_f1") for side in sides)],
        ["parameters", *(f"{side['parameters'] / 1e6:.1f} M" for side in sides)],
        ["size", *(f"{side['megabytes']:.1f} MB" for side in sides)],
        ["speed", *(f"{side['tokens_per_second']:,} tokens/s" for side in sides)],
    ]
    yield from table(["", "teacher", "student"], rows)


def _export(facts: Mapping[str, Any]) -> Iterator[str]:
    exported = facts.get("export")
    if exported is None:
        return
    yield "## Export"
    yield ""
    yield f"To {_FORMS[exported['format']]} in {exported['precision']}, compared with the original:"
    yield ""
    for engine, parity in exported["parity"].items():
        yield (
            f"- In {engine}, {100 * parity['equal_decisions']:.2f} % of {parity['decisions']:,} decisions on tokens "
            f"and {100 * parity['equal_entities']:.2f} % of {parity['entities']:,} entities are the original's, on "
            "texts that may be unlike those of the training."
        )
    if exported.get("kept"):
        yield f"- {counted(len(exported['kept']), 'layer')} that int8 hurt stayed in higher precision."
    if "f1" in exported:
        f1 = exported["f1"]
        on = f" on {counted(f1['documents'], 'document')}" if "documents" in f1 else ""
        yield f"- Strict micro F1{on}: {f1['export']:.4f}, the original's {f1['original']:.4f}."
    yield ""


def _size_and_speed(facts: Mapping[str, Any]) -> Iterator[str]:
    exported = facts.get("export", {})
    size = exported.get("bytes") or facts.get("bytes")
    if size is None:
        return
    yield "## Size and speed"
    yield ""
    of = f"{facts['parameters'] / 1e6:.1f} million parameters; " if "parameters" in facts else ""
    yield f"- {of}{size / 1e6:.1f} MB{' with the tokenizer' if exported else ' of weights'}."
    where = f" on {plain(exported['measured_on'])}" if "measured_on" in exported else ""
    for engine, speed in exported.get("tokens_per_second", {}).items():
        yield f"- {speed:,} tokens per second in {engine}{where}, where it was exported."
    if "tokens_per_second_of_original" in exported:
        yield f"- {exported['tokens_per_second_of_original']:,} by the original there, in torch in fp32."
    yield ""


def _limits(facts: Mapping[str, Any]) -> Iterator[str]:
    yield "## Limits"
    yield ""
    known = facts.get("representation")
    if known and known["entities"]:
        losses = sorted(known["losses"].items())
        lost = enumeration(f"{plain(reason)} ({number:,})" for reason, number in losses if number)
        ceiling = known["ceiling_micro_f1"]
        yield (
            f"- One decision for each token and class can tell {known['kept']:,} of "
            f"{counted(known['entities'], 'training entity', 'training entities')} exactly"
            f"{f'; the others are lost for these reasons: {lost}' if lost else ''}. A perfect model of this kind would "
            f"reach a strict micro F1 of {ceiling:.3f} on them."
        )
    if _asked(facts.get("train", {}).get("annotators") or facts.get("annotators", [])):
        yield "- It learned from an LLM's annotations, mistakes included."
    unknown = sorted(
        label for label in facts["scheme"]["labels"] if not facts.get("train", {}).get("classes", {label: 1}).get(label)
    )
    if unknown:
        yield f"- No training document has {enumeration(map(plain, unknown), 'or')}: don't expect to find any."
    yield "- How well it does on texts of another kind or language is not known, unless a score above is from such."
    yield "- Nothing here says that it is fit for decisions about patients."
    yield "- The licences of the backbone and of the training documents hold; nertool doesn't know them."
    yield ""


def _settings(facts: Mapping[str, Any]) -> Iterator[str]:
    changed = facts.get("settings")
    if changed is None:
        return
    yield "## Settings that are not the defaults"
    yield ""
    for part, values in sorted(changed.items()):
        for key, value in sorted(values.items()):
            yield f"- {part}.{plain(key)} = {plain(repr(value))}"
    if not changed:
        yield "None."
    yield ""


def _asked(annotators: Iterable[str] | None) -> bool:
    return any(name.startswith("the LLM ") for name in annotators or ())


def _annotators(who: Mapping[str, int | None], documents: int) -> str:
    named = [
        plain(name) + (f" ({number:,} of them)" if number and number < documents else "")
        for name, number in sorted(who.items())
    ]
    return enumeration(named) or "nobody known"


def _documents(facts: Mapping[str, Any]) -> str:
    digest = f" (SHA-256 {facts['digest'][:12]}…)" if facts.get("digest") else ""
    entities = counted(facts["entities"], "entity", "entities")
    return f"{counted(facts['documents'], 'document')} with {entities}{_named(facts.get('name'))}{digest}"


def _named(name: str | None) -> str:
    return f", named {plain(name)}" if name else ""
