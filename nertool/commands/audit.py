"""`nertool audit`: which annotations are most likely wrong."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nertool.commands.options import Config, Device, Force, Json, Model, Set, SkipInvalid, command, settings_from

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from nertool.cache_building import Scan
    from nertool.mention_counts import Lexicon, MentionCounts
    from nertool.settings import Settings
    from nertool.sources import Source
    from nertool.suspects import Suspect

    Find = Callable[[MentionCounts, Lexicon], tuple[list[Suspect], dict[str, Any]]]


@command
def audit(
    documents: Annotated[Path, typer.Argument(metavar="DOCS", help="Documents with entities, or a cache.")],
    output: Annotated[Path, typer.Argument(metavar="OUT", help="A folder for what is suspect.")],
    model: Model = None,
    judge: Annotated[
        Path | None,
        typer.Option(
            "--judge", metavar="MODEL", help="A trained model that has not learned from DOCS, instead of training some."
        ),
    ] = None,
    device: Device = None,
    skip_invalid: SkipInvalid = None,
    force: Force = False,
    json: Json = False,
    config: Config = None,
    assignments: Set = None,
) -> None:
    """Rank the annotations that are most likely wrong, for people to look at the worst first.

    Models are trained, each on four fifths of the documents, to judge the rest. OUT gets the ranked list, a queue for
    ls-sync push, and the documents with what is clearly wrong put right, to train on.

    nertool audit split/train audit --model minilm
    """
    from nertool.console import print_json

    options = {
        "model.name": model,
        "train.device": device,
        "predict.device": device,
        "data.skip_invalid": skip_invalid,
    }
    settings = settings_from(config, assignments, options)
    summary = run_audit(documents, output, settings, judge=judge, force=force)
    if json:
        print_json(summary)
    else:
        show_audit(summary, documents, output)


def run_audit(
    path: Path, output: Path, settings: "Settings", *, judge: Path | None = None, force: bool = False
) -> dict[str, Any]:
    """Looks for wrong annotations.

    Args:
        path: Documents with entities, or a cache.
        output: A folder; what a killed audit left there is gone on with.
        settings: The settings.
        judge: A model that has not learned from the documents; without one, models are trained by cross-fitting.
        force: Replace an older audit.

    Returns:
        The summary that `--json` prints, kept as `audit.json`.

    Raises:
        NertoolError: If inputs are invalid, or the output holds something else.
        InterruptedBySignalError: After saving, if a signal came in.
    """
    import shutil
    from functools import partial

    from nertool.auditing import write_audit
    from nertool.cache_building import scan
    from nertool.console import progress, say
    from nertool.errors import NertoolError
    from nertool.files import exclusive, read_json
    from nertool.formats import ReadReport
    from nertool.formats.reading import report_reading, write_rejected
    from nertool.mention_counts import count_mentions, lexicon_of
    from nertool.run_folder import AUDIT_FILE, is_finished_audit, open_audit
    from nertool.sources import Source

    for given in (path, judge):
        if given is not None and output.resolve() in (given.resolve(), *given.resolve().parents):
            raise NertoolError(f"{given} lies in the output, {output}", "choose another output")
    reading = ReadReport()
    source = Source(path, settings, reading)
    with progress("reading", None, "documents") as advance:
        scanned = scan(source.read(), advance)
    read_again = partial(source.read_again, scanned)
    digests = {"documents": scanned.digest} | ({"judge": _digest(judge, scanned.digest)} if judge else {})
    output.parent.mkdir(parents=True, exist_ok=True)
    with exclusive(output):
        if is_finished_audit(output, settings, digests, force=force):
            say(f"{output} is finished already")
            shutil.rmtree(output / "work", ignore_errors=True)  # a kill may have left it
            summary: dict[str, Any] = read_json(output / AUDIT_FILE)["summary"]
            return summary
        work = output / "work"
        find = _judge(judge, source, scanned, settings) if judge else _cross_fit(work, source, scanned, settings)
        open_audit(output, settings, digests, force=force)
        report_reading(reading)
        write_rejected(reading, output / "rejected.jsonl")
        lexicon = lexicon_of(read_again())
        counts = count_mentions(read_again(), lexicon)
        suspects, facts = find(counts, lexicon)
        summary = write_audit(output, read_again, suspects, settings.audit.min_score, facts)
        shutil.rmtree(work, ignore_errors=True)
    return summary


def _digest(model: Path, documents: str) -> str:
    """Returns the digest of the judging model, which must not have learned from the documents of another digest."""
    from nertool.artefacts import model_digest, read_facts
    from nertool.errors import NertoolError

    facts = read_facts(model)  # its message on a folder that is no model is better
    if facts.get("train", {}).get("digest") == documents:
        raise NertoolError(
            f"{model} was trained on these documents, and has learned their mistakes",
            "without --judge, models are trained that each have not seen what they judge",
        )
    return model_digest(model)


def _judge(folder: Path, source: "Source", scanned: "Scan", settings: "Settings") -> "Find":
    """Loads the judging model; returns what finds the suspects by it."""
    from nertool.auditing import judge, suspects_of
    from nertool.console import progress
    from nertool.inference import load_tagger

    tagger = load_tagger(folder, settings.predict)

    def find(counts: "MentionCounts", lexicon: "Lexicon") -> "tuple[list[Suspect], dict[str, Any]]":
        suspects: list[Suspect] = []
        done = 0
        with progress("judging", scanned.documents, "documents") as advance:
            for judged in judge(tagger, source.read_again(scanned), settings.predict.documents_per_chunk):
                suspects += suspects_of(judged, counts, lexicon)
                done += len(judged.documents)
                advance(done)
        return suspects, {"judge": folder.name, "not_judged": _unknown(scanned, tagger.decisions.scheme.labels)}

    return find


def _cross_fit(work: Path, source: "Source", scanned: "Scan", settings: "Settings") -> "Find":
    """Makes sure that models can be trained; returns what trains them and finds the suspects by them."""
    from functools import partial

    from nertool.auditing import CrossFit, cross_fitted_suspects, folds_of_windows, plan
    from nertool.commands.together import training_cache
    from nertool.console import say
    from nertool.devices import choose_device
    from nertool.labels import make_scheme
    from nertool.model import new_model

    choose_device(settings.train.device)
    scheme = make_scheme(settings.data.labels or scanned.labels, begin=settings.model.begin_channels)
    read_again = partial(source.read_again, scanned)
    fold_of = plan(read_again, settings)
    tokenizer = new_model(settings.model, settings.windows, scheme).tokenizer
    source.open_cache(tokenizer, scheme)

    def find(counts: "MentionCounts", lexicon: "Lexicon") -> "tuple[list[Suspect], dict[str, Any]]":
        work.mkdir(exist_ok=True)
        cache = training_cache(source, scanned, work / "cache", tokenizer, scheme, settings)
        of_window = folds_of_windows(cache, read_again(), fold_of, tokenizer)
        fit = CrossFit(work, read_again, fold_of, cache, of_window, scanned, scheme, settings)
        suspects, scores = cross_fitted_suspects(fit, counts, lexicon)
        mean = sum(scores) / len(scores)
        say(f"models of the other folds agree with the annotations at a strict micro F1 of {mean:.3f}")
        return suspects, {"micro_f1_of_folds": scores, "not_judged": _unknown(scanned, scheme.labels)}

    return find


def _unknown(scanned: "Scan", labels: "Sequence[str]") -> dict[str, int]:
    """Returns the classes that a model doesn't know → number of entities."""
    return {label: count for label, count in sorted(scanned.labels.items()) if label not in labels}


def show_audit(summary: dict[str, Any], documents: Path, output: Path) -> None:
    """Shows people how much is suspect, class by class, and the worst of it."""
    from nertool.console import counted, number_table, say, show
    from nertool.suspects import KINDS

    title = f"suspect from a score of {summary['min_score']:g} on"
    table = number_table("class", numbers=("entities", *KINDS), title=title, framed=True)
    for label, row in [*summary["classes"].items(), ("all", summary["all_classes"])]:
        if label == "all":
            table.add_section()
        table.add_row(label, f"{row['entities']:,}", *(f"{row[kind]:,}" for kind in KINDS))
    show(table)
    for one in summary["worst"]:
        said, suggested = one["entity"], one["suggestion"]
        what = f"{said['class']} {said['text']!r}" if said else f"{suggested['class']} {suggested['text']!r}"
        instead = f" → {suggested['class']} {suggested['text']!r}" if said and suggested else ""
        say(f"  {one['score']:.2f} {one['kind']}: {what}{instead} ({one['document']})")
        say(f"       {one['reason']}")
    for label, count in summary["not_judged"].items():
        say(f"note: the class {label!r} was not judged ({counted(count, 'entity', 'entities')})")
    say(f"{counted(summary['suspects'], 'suspect')}, the worst first: {output / 'suspects.jsonl'}")
    say(
        f"look at them: nertool ls-sync push {documents} --queue {output / 'queue.txt'} "
        f"--predictions suggested={output / 'corrected.jsonl'} --project NAME"
    )
    say(
        f"or leave out {counted(summary['corrected'], 'clear one')}: "
        f"nertool train --train {documents} --suspects {output} --eval EVAL --output RUN"
    )
