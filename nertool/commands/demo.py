"""`nertool demo`: the whole workflow on the sample documents."""

import time
from pathlib import Path
from typing import Annotated, Any

import typer

from nertool.commands.options import Force, Json, command

_TREES = (
    "documents/",
    "split/",
    "cache/",
    "run/",
    "predictions/",
    ".documents.partial/",
    ".cache.partial/",
    ".split.partial/",
    ".predictions.partial/",
)
# 60 documents are few: more passes over them, still within a few minutes.
_SETTINGS = {"model.name": "minilm", "train.epochs": 12, "train.evaluations_per_epoch": 0.25}


@command
def demo(
    output: Annotated[Path, typer.Argument(metavar="OUT", help="The folder to make.")] = Path("nertool-demo"),
    force: Force = False,
    json: Json = False,
) -> None:
    """Run the whole workflow on sample documents: offline, in a few minutes on a laptop.

    Needs the small backbone of the extra `offline`.

    nertool demo
    """
    from nertool.commands.score_tables import show_report
    from nertool.console import duration, print_json, say, say_whole

    begun = time.monotonic()
    report = run_demo(output, force=force)
    if json:
        print_json(report)
        return
    say("")
    show_report(report)
    say(f"\nDone in {duration(time.monotonic() - begun)}.")
    say("The sample documents were written for this and share their vocabulary; real texts are harder.")
    say("Next, with texts of your own (or documents: KAZU's JSON, or nertool convert corpus.PubTator documents):")
    say_whole(
        "  nertool annotate texts documents --llm NAME --dry-run\n"
        "  nertool split documents split\n"
        "  nertool train --train split/train --eval split/eval --output run --model minilm\n"
        "  nertool evaluate run/model split/test\n"
        "  nertool predict run/model texts predictions"
    )


def run_demo(output: Path, *, force: bool = False) -> dict[str, Any]:
    """Runs one command after the other; goes on where an interrupted demo was.

    Args:
        output: The folder to make.
        force: Remove the one of an older demo.

    Returns:
        The evaluation on the test split.

    Raises:
        NertoolError: If the backbone isn't installed or the folder can't be used.
    """
    from nertool import __version__
    from nertool.commands.annotate import run_annotate, show_reconciliation
    from nertool.commands.cache import run_cache
    from nertool.commands.evaluate import run_evaluate
    from nertool.commands.predict import run_predict
    from nertool.commands.split import run_split
    from nertool.commands.train import run_train
    from nertool.console import say
    from nertool.errors import InterruptedBySignalError, NertoolError
    from nertool.files import MANIFEST_NAME, check_output, read_json, remove_own, write_manifest
    from nertool.model import backbone_path
    from nertool.settings import load_settings

    backbone_path("minilm")
    settings = load_settings(options=_SETTINGS, environment={})
    manifest = output / MANIFEST_NAME
    if force or not manifest.is_file() or read_json(manifest).get("command") != "demo":
        check_output(output, force=force)
        remove_own(output)
        output.mkdir(exist_ok=True)
        write_manifest(output, "demo", trees=_TREES, nertool_version=__version__)
    elif read_json(manifest)["nertool_version"] != __version__:
        raise NertoolError(f"{output} is of another nertool version", "--force to make it anew")
    documents = output / "documents"
    say(f"1 of 6: making documents of the texts in {sample_data()} and recorded answers of an LLM")
    if not documents.is_dir():
        recorded = sample_data() / "responses.jsonl"
        result = run_annotate(sample_data() / "texts", documents, settings, responses=recorded)
        show_reconciliation(result["reconciliation"])
    say("2 of 6: splitting them")
    if not (output / "split").is_dir():
        run_split(documents, output / "split", settings)
    say("3 of 6: tokenising the training documents")
    run_cache(output / "split/train", output / "cache", settings)
    say("4 of 6: training")
    try:
        run_train(output / "cache", output / "split/eval", output / "run", settings, resume=True)
    except InterruptedBySignalError as error:
        raise InterruptedBySignalError(error.signal_number, "the same command goes on where it was") from error
    say("5 of 6: evaluating on the test documents")
    report = run_evaluate(output / "run/model", output / "split/test", settings, into_card=True).report
    say("6 of 6: predicting the raw texts")
    if not (output / "predictions").is_dir():
        run_predict(output / "run/model", sample_data() / "texts", output / "predictions", settings)
    return report


def sample_data() -> Path:
    """Returns the folder of the sample documents: in the package, or beside it in a checkout."""
    package = Path(__file__).parents[1]
    inside = package / "sample_data"
    return inside if inside.is_dir() else package.parent / "sample_data"
