"""`nertool export`: a trained model for another engine, verified."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nertool.commands.options import Config, Force, Json, Set, SkipInvalid, command, settings_from

if TYPE_CHECKING:
    from nertool.documents import Document
    from nertool.engines import Tagger
    from nertool.settings import Settings


@command
def export(
    model: Annotated[Path, typer.Argument(metavar="MODEL", help="The model folder of a training run.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")],
    form: Annotated[str, typer.Option("--format", help="onnx, openvino, kazu or hf.")],
    precision: Annotated[
        str, typer.Option("--precision", help="fp32; fp16 (onnx, hf), bf16 (openvino, hf), int8 (onnx, openvino).")
    ] = "fp32",
    eval_data: Annotated[
        Path | None, typer.Option("--eval", help="Documents or a cache on which the export must score as well.")
    ] = None,
    parity: Annotated[
        Path | None,
        typer.Option(
            "--parity",
            help="Texts or documents on which it must decide alike, better not those of the training; else nertool's "
            "sample texts.",
        ),
    ] = None,
    max_f1_drop: Annotated[
        float | None,
        typer.Option("--max-f1-drop", metavar="DROP", help="The largest loss of strict micro F1.", show_default=False),
    ] = None,
    skip_invalid: SkipInvalid = None,
    force: Force = False,
    json: Json = False,
    config: Config = None,
    assignments: Set = None,
) -> None:
    """Write a model for another engine, small and fast; nothing is left if it doesn't decide like the original.

    nertool export run/model packed --format onnx --precision int8 --eval split/eval
    """
    from nertool.console import print_json, suggest
    from nertool.errors import NertoolError

    if max_f1_drop is not None and eval_data is None:
        raise NertoolError("--max-f1-drop needs --eval", "name documents with gold entities")
    options = {"export.max_f1_drop": max_f1_drop, "data.skip_invalid": skip_invalid}
    settings = settings_from(config, assignments, options)
    report = run_export(model, output, form, precision, settings, eval_data=eval_data, parity=parity, force=force)
    if json:
        print_json(report)
    else:
        show_export(report, output)
        if form != "kazu":
            suggest("predict", output, "TEXTS", "predictions")


def run_export(
    model_folder: Path,
    output: Path,
    form: str,
    precision: str,
    settings: "Settings",
    *,
    eval_data: Path | None = None,
    parity: Path | None = None,
    force: bool = False,
) -> dict[str, Any]:
    """Exports a model.

    Args:
        model_folder: A model that nertool trained.
        output: The folder to make.
        form: `onnx`, `openvino`, `kazu` or `hf`.
        precision: `fp32`, `fp16`, `bf16` or `int8`; not all formats have all.
        settings: The `Settings`.
        eval_data: Documents or a cache on which the F1 of both is compared.
        parity: Texts or documents on which the decisions of both are compared; by default the sample texts.
        force: Replace an older output.

    Returns:
        What `--json` prints; the same as `export` in the new `nertool.json`.

    Raises:
        NertoolError: If the model can't be exported, or the export is not good enough.
    """
    from functools import partial

    import torch

    from nertool.artefacts import read_facts
    from nertool.commands.demo import sample_data
    from nertool.console import say
    from nertool.errors import NertoolError
    from nertool.exporting import PRECISIONS, export, share_out
    from nertool.files import check_output, new_folder
    from nertool.formats import ReadReport
    from nertool.formats.reading import report_reading
    from nertool.model import load_model
    from nertool.sources import Source

    if precision not in PRECISIONS.get(form, ()):
        known = "; ".join(f"{name}: {', '.join(those)}" for name, those in PRECISIONS.items())
        raise NertoolError(f"there is no export of the format {form!r} in {precision!r}", known)
    check_output(output, force=force, source=model_folder)
    facts = read_facts(model_folder)
    if facts.get("export", {}).get("format", "hf") != "hf":
        raise NertoolError(f"{model_folder} is an export itself", "name the `model` folder of the training run")
    model = load_model(model_folder)
    original = model.tagger(torch.device("cpu"), torch.float32)
    reading = ReadReport()
    documents = Source(parity or sample_data() / "texts", settings, reading, texts=True).read_all()
    sections = [section for document in documents for section in document.sections]
    texts = share_out(sections, original, settings.export.parity_windows)
    eval_documents = Source(eval_data, settings, reading).read_all() if eval_data else []
    report_reading(reading)
    kept = {key: value for key, value in facts.items() if key in _KEPT_FACTS}
    kept["evaluations"] = [{**one, "of_original": True} for one in facts.get("evaluations", [])]
    check = partial(_check_f1, original, eval_documents, settings) if eval_data else None
    with new_folder(output, "export", force=force, source=model_folder) as folder:
        say(f"writing {form} in {precision}")
        return export(model, folder, form, precision, texts, settings.export.min_agreement, kept, check)


# What `nertool.json` tells of the training, which is true of its exports, too.
_KEPT_FACTS = (
    "scores", "backbone", "base_model", "teacher", "beside_teacher", "train", "eval", "unlabelled", "split",
    "representation", "settings", "annotators", "step", "tuned", "parameters", "torch_version",
)  # fmt: skip


def _check_f1(
    original: "Tagger", documents: "list[Document]", settings: "Settings", exported: "Tagger"
) -> dict[str, float]:
    """Scores original and export on the same documents.

    Raises:
        NertoolError: If the export loses too much, or the documents show nothing.
    """
    from nertool.errors import NertoolError
    from nertool.runs import evaluate_split, prepare_eval

    strict = settings.model_copy(update={"evaluate": settings.evaluate.model_copy(update={"scheme": "strict"})})
    scores = {
        name: evaluate_split(tagger, prepare_eval(documents, tagger), strict)["micro_f1"] or 0.0
        for name, tagger in (("original", original), ("export", exported))
    }
    if not scores["original"]:
        raise NertoolError(
            "the original finds no entity of the documents of --eval", "name documents with gold entities"
        )
    drop, most = scores["original"] - scores["export"], settings.export.max_f1_drop
    if drop > most:
        raise NertoolError(
            f"the export's strict micro F1 is {scores['export']:.4f}, the original's {scores['original']:.4f}: "
            f"{drop:.4f} lost, more than {most}",
            "a higher --precision, a higher export.min_agreement, or a larger --max-f1-drop",
        )
    return {**{key: round(value, 5) for key, value in scores.items()}, "documents": len(documents)}


def show_export(report: dict[str, Any], output: Path) -> None:
    """Shows people what the export is worth."""
    from nertool.console import say, size

    for engine, parity in report["parity"].items():
        say(
            f"{engine}: {parity['equal_decisions']:.2%} of {parity['decisions']:,} decisions and "
            f"{parity['equal_entities']:.2%} of {parity['entities']:,} entities like the original; logits differ by "
            f"{parity['mean_difference']:.4f} on average"
        )
        speed, before = report["tokens_per_second"][engine], report["tokens_per_second_of_original"]
        say(f"{engine}: {speed:,} tokens/s here; the original {before:,} in torch fp32")
    if report.get("kept"):
        say(f"{len(report['kept'])} layers that int8 hurt are in higher precision")
    if "f1" in report:
        say(f"strict micro F1 {report['f1']['export']:.4f}; the original {report['f1']['original']:.4f}")
    say(f"{size(report['bytes'])} written to {output}")
