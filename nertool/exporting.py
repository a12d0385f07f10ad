"""A trained model → a folder for another engine, verified before it may be called finished."""

import math
import platform
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from nertool.artefacts import CARD_FILE, NERTOOL_FILE, write_facts
from nertool.console import say
from nertool.documents import Section
from nertool.engines import Longs, Tagger
from nertool.errors import NertoolError
from nertool.extras import is_installed
from nertool.files import file_digest
from nertool.inference import Prepared, load_exported, load_tagger, prepare
from nertool.kazu_export import write_kazu
from nertool.model import NerModel, save_model
from nertool.onnx_export import linear_layers, to_fp16, to_int8, write_onnx
from nertool.openvino_export import write_openvino
from nertool.packing import padded_batches
from nertool.settings import PredictSettings
from nertool.verification import Parity, compare, refer, tokens_per_second
from nertool.workers import usable_cores

PRECISIONS = {
    "onnx": ("fp32", "fp16", "int8"),
    "openvino": ("fp32", "bf16", "int8"),
    "hf": ("fp32", "fp16", "bf16"),
    "kazu": ("fp32",),
}
# The first one must run the export as the original; the others are offered where they do.
ENGINES = {"onnx": ("onnxruntime", "openvino"), "openvino": ("openvino",), "hf": ("torch",), "kazu": ("torch",)}
# The largest difference of two logits that comes of another order of summing, not of another precision.
_SAME = 1e-2
_LEAST_DECISIONS = 20
_TOKENS_PER_CALIBRATION_BATCH = 1024
# Long texts are shared out in pieces of about a window.
_CHARACTERS_PER_PIECE = 1500
_CPU = torch.device("cpu")


@dataclass(frozen=True, slots=True)
class Texts:
    """Texts by which an export is judged.

    Args:
        calibration: For int8: these show how large activations get, and which layers int8 hurts.
        judged: The verdict is on these.
    """

    calibration: Prepared
    judged: Prepared


def share_out(sections: Sequence[Section], tagger: Tagger, windows: int) -> Texts:
    """Takes about so many windows of some sections, from all over them, every other one for calibration.

    Raises:
        NertoolError: If there is no text for both.
    """
    pieces = [piece for section in sections for piece in _pieces(section)]
    order = np.random.default_rng(0).permutation(len(pieces))[:windows]
    if len(order) < 2:
        raise NertoolError(
            "there is too little text to compare the export with the original", "name more with --parity"
        )
    chosen = [pieces[i] for i in order]
    return Texts(prepare(chosen[::2], tagger), prepare(chosen[1::2], tagger))


def _pieces(section: Section) -> Iterator[Section]:
    """Cuts a long text at blanks."""
    text = section.text.strip()
    while text:
        end = text.find(" ", _CHARACTERS_PER_PIECE)
        piece, text = (text, "") if end < 0 else (text[:end], text[end + 1 :].lstrip())
        yield Section(section.name, piece)


def export(
    model: NerModel,
    folder: Path,
    form: str,
    precision: str,
    texts: Texts,
    least_agreement: float,
    facts: dict[str, Any],
    check: Callable[[Tagger], dict[str, float]] | None = None,
) -> dict[str, Any]:
    """Writes an exported model into an empty folder, and compares its decisions with the original's.

    Args:
        model: The trained model, on the CPU.
        folder: Gets the files.
        form: `onnx`, `openvino`, `hf` or `kazu`.
        precision: One of `PRECISIONS`.
        texts: Texts by which it is judged, better not those that it was trained on.
        least_agreement: The share of equal decisions below which the export fails, in [0, 1]; 0 judges nothing.
        facts: What `nertool.json` should tell of the original.
        check: Judges the exported model in its own way, too; returns scores to note.

    Returns:
        What `nertool.json` tells of the export: parity, layers kept in higher precision, speed, size.

    Raises:
        NertoolError: If the exported model decides otherwise too often.
    """
    original = model.tagger(_CPU, torch.float32)
    exported: dict[str, Any] = {"format": form, "precision": precision, "pad_id": model.tokenizer.pad_id}
    if form == "kazu":
        write_kazu(model, folder)
    elif form == "hf":
        _write_hf(model, folder, precision)
    else:
        (folder / "tokenizer.json").write_text(model.tokenizer.backend.to_str(), encoding="utf-8")
        exported |= _write_for_engine(model, folder, form, precision, texts, least_agreement)
    # People change the settings of KAZU's step, and nertool the card.
    own = (NERTOOL_FILE, CARD_FILE)
    files = [path for path in sorted(folder.iterdir()) if path.name not in own and path.suffix != ".yaml"]
    facts = {**facts, "files": {path.name: file_digest(path) for path in files}}
    exported |= {
        "bytes": sum(path.stat().st_size for path in files),
        "parity": {},
        "tokens_per_second": {},
        "measured_on": f"{usable_cores()} cores ({platform.machine()})",
    }
    say("comparing it with the original")
    judged = refer(original, texts.judged)
    first, *others = ENGINES[form]
    for engine in (first, *(name for name in others if is_installed(name))):
        # Judged is what `predict` loads: the folder.
        exported["tokens_per_second"] = {**exported["tokens_per_second"], engine: 0}
        write_facts(folder, model.decisions, {**facts, "export": exported})
        tagger = load_tagger(folder, PredictSettings(engine=engine, device="cpu", precision="fp32"))
        found = compare(judged, tagger)
        try:
            _judge(found, engine, precision, least_agreement)
        except NertoolError:
            if engine == first:
                raise
            del exported["tokens_per_second"][engine]
            continue
        if engine == first and check is not None:
            exported["f1"] = check(tagger)
        speeds = tokens_per_second({engine: tagger, "original": original}, texts.judged)
        exported["parity"][engine] = found.to_json()
        exported["tokens_per_second"][engine] = speeds[engine]
        exported["tokens_per_second_of_original"] = speeds["original"]
    write_facts(folder, model.decisions, {**facts, "export": exported})
    return exported


def _judge(parity: Parity, engine: str, precision: str, least_agreement: float) -> None:
    if not math.isfinite(parity.largest_difference) or (precision == "fp32" and parity.largest_difference > _SAME):
        raise NertoolError(
            f"the export's logits in {engine} differ by up to {parity.largest_difference:.3f} from the original's",
            "that is a defect of nertool or of an installed package; please report it with the model's config.json",
        )
    if least_agreement and parity.decisions < _LEAST_DECISIONS:
        raise NertoolError(
            f"the model finds too little in the texts to compare the export with it: {parity.decisions} decisions",
            "name texts like those that it was made for, with --parity",
        )
    if parity.equal_decisions < least_agreement:
        raise NertoolError(
            f"the exported model agrees with the original on {parity.equal_decisions:.1%} of {parity.decisions:,} "
            f"decisions, less than {least_agreement:.1%}",
            "a higher --precision, or export.min_agreement if that is good enough for you",
        )


def _write_hf(model: NerModel, folder: Path, precision: str) -> None:
    dtype = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[precision]
    network = type(model.network)(model.network.config)
    network.load_state_dict(model.network.state_dict())
    save_model(replace(model, network=network.eval().to(dtype)), folder, {})


def _write_for_engine(
    model: NerModel, folder: Path, form: str, precision: str, texts: Texts, least_agreement: float
) -> dict[str, Any]:
    """Writes the files of an engine; returns the model's file and the layers that are in higher precision."""
    plain = folder / "plain.onnx"
    if form == "onnx":
        path = folder / "model.onnx"
        write_onnx(model.network, plain)
        layers = linear_layers(plain)
    else:
        path = folder / "model.xml"
        layers = [name for name, part in model.network.named_modules() if isinstance(part, torch.nn.Linear)]
    windows = calibration_batches(texts.calibration, model)

    def write(keep: Sequence[str]) -> None:
        if form == "openvino":
            write_openvino(model.network, path, precision, windows, keep)
        elif precision == "fp32":
            plain.rename(path)
        elif precision == "fp16":
            to_fp16(plain, path)
        else:
            to_int8(plain, path, keep)

    kept: list[str] = []
    if precision == "int8":
        reference = refer(model.tagger(_CPU, torch.float32), texts.calibration)

        def measure(keep: Sequence[str]) -> Parity:
            write(keep)
            exported = {"model": path.name, "precision": precision, "pad_id": model.tokenizer.pad_id}
            tagger = load_exported(folder, exported, ENGINES[form][0], model.decisions)
            return compare(reference, tagger)

        kept = _keep_what_hurts(layers, measure, least_agreement)
    else:
        write(kept)
    plain.unlink(missing_ok=True)
    return {"model": path.name, "kept": kept}


def _keep_what_hurts(
    layers: Sequence[str], measure: Callable[[Sequence[str]], Parity], least_agreement: float
) -> list[str]:
    """Finds as few layers as possible to keep in higher precision, so that an int8 model agrees with the original.

    Layers are tried in groups, one for each place in a block (all queries, all feed-forward outputs, …): first how
    far the logits are off if only that group is kept; then the best groups together, one more at a time, until the
    decisions agree.

    Args:
        layers: The linear layers.
        measure: Writes the model with some layers kept, and compares it with the original on the calibration texts.
        least_agreement: The share of equal decisions to reach.

    Returns:
        The layers kept; the model is written so.
    """
    # A little more than is asked for, as other texts will be a little worse.
    wanted = least_agreement + (1 - least_agreement) / 4
    found = measure([])
    if found.equal_decisions >= wanted:
        return []
    groups = layer_groups(layers)
    say(f"int8 agrees on {found.equal_decisions:.1%} of the decisions; looking for layers that it hurts")
    off = {name: measure(group).mean_difference for name, group in groups.items()}
    kept: list[str] = []
    for name in sorted(off, key=lambda name: off[name]):
        kept += groups[name]
        found = measure(kept)
        say(f"  with {name} in higher precision: {found.equal_decisions:.1%}")
        if found.equal_decisions >= wanted:
            break
    return kept


def layer_groups(layers: Sequence[str]) -> dict[str, list[str]]:
    """Puts together the linear layers that stand at the same place of every block: their names but for the number."""
    groups: dict[str, list[str]] = {}
    for layer in layers:
        place = ".".join(part for part in layer.split(".") if not part.isdigit())
        groups.setdefault(place, []).append(layer)
    return groups


def calibration_batches(prepared: Prepared, model: NerModel) -> list[tuple[Longs, Longs]]:
    """Returns the windows of some texts as ids and masks, in batches of about one length."""
    windows, ids, budget = prepared.windows, prepared.tokens.ids, _TOKENS_PER_CALIBRATION_BATCH
    batches = padded_batches(
        ids, windows.starts, windows.lengths, model.tokenizer, model.decisions.windows.max_tokens, budget
    )
    return [(batch_ids, mask) for _, batch_ids, mask in batches]
