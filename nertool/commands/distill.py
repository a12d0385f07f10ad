"""`nertool distill`: a small model that learns from a big one."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from nertool.commands.options import (
    Config,
    Device,
    Force,
    Json,
    LsProject,
    Set,
    SkipInvalid,
    command,
    settings_from,
)
from nertool.commands.together import Tell

if TYPE_CHECKING:
    from nertool.cache_building import Scan
    from nertool.distributed import World
    from nertool.documents import Document
    from nertool.engines import Tagger
    from nertool.model import NerModel
    from nertool.settings import Settings
    from nertool.teacher_logits import Halves
    from nertool.window_cache import WindowCache


@command
def distill(
    teacher: Annotated[Path, typer.Argument(metavar="TEACHER", help="The model folder of a training run.")],
    train_data: Annotated[Path, typer.Option("--train", help="Documents or a cache to learn from.")],
    eval_data: Annotated[Path, typer.Option("--eval", help="Documents or a cache that choose the best student.")],
    output: Annotated[Path, typer.Option("--output", help="The run's folder; OUTPUT/model gets the best student.")],
    student: Annotated[
        str | None,
        typer.Option("--student", help="The student's backbone, with the teacher's tokenizer.", show_default=False),
    ] = None,
    student_layers: Annotated[
        int | None,
        typer.Option("--student-layers", metavar="N", help="Or so many of the teacher's layers.", show_default=False),
    ] = None,
    unlabelled: Annotated[
        Path | None, typer.Option("--unlabelled", help="More texts (.txt) or documents, which the teacher annotates.")
    ] = None,
    logits: Annotated[
        Path | None,
        typer.Option(
            "--logits",
            help="Folder for what the teacher says, to share among students; else in OUTPUT.",
        ),
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an interrupted run, if there is one.")] = False,
    device: Device = None,
    ls_project: LsProject = None,
    skip_invalid: SkipInvalid = None,
    force: Force = False,
    json: Json = False,
    config: Config = None,
    assignments: Set = None,
) -> None:
    """Make a small model of a big one: it learns from the gold entities and from what its teacher says.

    nertool distill run/model --train split/train --eval split/eval --unlabelled texts --student-layers 3 --output small
    """  # fmt: skip
    from nertool.commands.score_tables import show_beside_teacher
    from nertool.console import print_json, say, suggest

    options = {
        "distill.student": student,
        "distill.student_layers": student_layers,
        "train.device": device,
        "data.skip_invalid": skip_invalid,
    }
    settings = settings_from(config, assignments, options)
    report = run_distill(
        teacher, train_data, eval_data, output, settings, unlabelled=unlabelled, logits=logits, resume=resume,
        force=force, ls_project=ls_project,
    )  # fmt: skip
    if report is None:
        return
    if json:
        print_json(report)
    else:
        show_beside_teacher(report)
        say(f"model: {report['model']}")
        small = ["--format", "onnx", "--precision", "int8", "--eval", eval_data]
        suggest("export", report["model"], "packed", *small)


def run_distill(
    teacher_folder: Path,
    train_data: Path,
    eval_data: Path,
    output: Path,
    settings: "Settings",
    *,
    unlabelled: Path | None = None,
    logits: Path | None = None,
    resume: bool = False,
    force: bool = False,
    ls_project: str | None = None,
) -> dict[str, Any] | None:
    """Distills a model.

    Args:
        teacher_folder: A model that nertool trained.
        train_data: Documents with gold entities, or a cache of them made with the teacher's windows.
        eval_data: Documents, or a cache.
        output: The run's folder.
        settings: The `Settings`; classes, windows and thresholds are the teacher's, whatever they say.
        unlabelled: Further texts or documents; entities that these have are not looked at.
        logits: Where the teacher's logits are kept; by default in the run's folder.
        resume: Go on with an interrupted run.
        force: Remove an older run.
        ls_project: The Label Studio project in which a sample of the eval split is shown after each evaluation.

    Returns:
        The report that `--json` prints; None in all processes but the first, where there are several.

    Raises:
        NertoolError: If inputs are invalid or don't fit.
        InterruptedBySignalError: After saving, if a signal came in.
    """
    from functools import partial

    from nertool.commands.together import lead_or_follow
    from nertool.errors import NertoolError

    if bool(settings.distill.student) == (settings.distill.student_layers is not None):
        raise NertoolError("distill needs either --student or --student-layers", "such as --student-layers 3")
    if settings.distill.student and settings.distill.student_intermediate_size is not None:
        raise NertoolError("distill.student_intermediate_size goes with --student-layers only", "leave one of them out")
    logits = logits or output / "logits"
    if logits != output / "logits" and output.resolve() in logits.resolve().parents:
        raise NertoolError(f"--logits {logits} is inside {output}, which --force removes", "name a folder beside it")

    lead = partial(
        _lead, teacher_folder, train_data, eval_data, output, settings, unlabelled=unlabelled, logits=logits,
        resume=resume, force=force, ls_project=ls_project,
    )  # fmt: skip
    follow = partial(_follow, teacher_folder, eval_data, output, settings)
    return lead_or_follow(output, settings, lead, follow, resume=resume, force=force, ls_project=ls_project)


def _lead(  # noqa: PLR0915 (what a run needs, in the order in which it needs it)
    teacher_folder: Path,
    train_data: Path,
    eval_data: Path,
    output: Path,
    settings: "Settings",
    world: "World",
    tell: Tell,
    *,
    unlabelled: Path | None,
    logits: Path,
    resume: bool,
    force: bool,
    ls_project: str | None,
) -> dict[str, Any]:
    from nertool.artefacts import model_digest, weights_digest
    from nertool.cache_building import scan
    from nertool.commands.cache import show_cache
    from nertool.commands.showing import showing_evaluations
    from nertool.commands.together import data_facts, training_cache
    from nertool.console import counted, progress, say
    from nertool.devices import choose_device, choose_precision, seed_everything
    from nertool.distillation import Lesson, distillation_task
    from nertool.formats import ReadReport
    from nertool.formats.reading import report_reading, write_rejected
    from nertool.model import load_model
    from nertool.run_folder import open_run, summary_of
    from nertool.runs import check_metric, train_run
    from nertool.sources import Source

    device = choose_device(settings.train.device, world.gpu)
    teacher = load_model(teacher_folder)
    settings = _with_the_teachers(settings, teacher)
    check_metric(settings.train.metric, teacher.scheme.labels)
    reading = ReadReport()
    train_source, eval_source = (Source(path, settings, reading) for path in (train_data, eval_data))
    more_source = Source(unlabelled, settings, reading, texts=True, labelled=False) if unlabelled else None
    eval_documents = eval_source.read_all()
    eval_scan = scan(eval_documents)
    with progress("reading", None, "documents") as advance:
        train_scan = train_source.scan(advance)
        more_scan = more_source.scan(advance) if more_source else None
    for source in (train_source, more_source):  # caches that don't fit are refused before the run's folder is made
        if source is not None:
            source.open_cache(teacher.tokenizer, teacher.scheme)
    _check_classes(teacher, {train_data: train_scan, eval_data: eval_scan})
    seed_everything(settings.train.seed)
    student = make_student(teacher, settings)
    digests = {"teacher": model_digest(teacher_folder), "train": train_scan.digest, "eval": eval_scan.digest}
    if more_scan:
        digests["unlabelled"] = more_scan.digest
    finished = open_run(output, settings, digests, resume=resume, force=force, command="distill")
    if finished:
        say(f"{output} is finished already")
        tell({"finished": True})
        return _report(output, teacher_folder, eval_documents, settings, summary_of(output))
    write_rejected(reading, output / "rejected.jsonl")
    report_reading(reading)
    teacher.to(device)
    tagger = teacher.tagger(
        device, choose_precision(settings.train.precision, device), settings.predict.tokens_per_batch
    )
    cache = training_cache(train_source, train_scan, output / "cache", teacher.tokenizer, teacher.scheme, settings)
    show_cache(cache.info)
    caches = {"train": cache}
    if more_source and more_scan:
        caches["unlabelled"] = training_cache(
            more_source, more_scan, output / "unlabelled", teacher.tokenizer, teacher.scheme, settings
        )
        tokens = counted(len(caches["unlabelled"].tokens), "token")
        say(f"{counted(more_scan.documents, 'document')} without gold, {tokens}")
    weights = weights_digest(teacher_folder)
    lessons = [Lesson(cache, _ask(tagger, cache, logits, name, weights), name == "train")
               for name, cache in caches.items()]  # fmt: skip
    if not settings.distill.hidden_weight:
        teacher.network.cpu()  # all is said, and the student needs the memory
    places = [{"cache": str(lesson.cache.path), "labelled": lesson.labelled} for lesson in lessons]
    tell({"lessons": places, "logits": str(logits), "teacher": weights, "eval": eval_scan.digest})
    facts = {
        **_backbone_facts(teacher_folder, settings),
        "teacher": {"name": _model_name(teacher_folder), "digest": digests["teacher"]},
        "unlabelled": {"documents": more_scan.documents if more_scan else 0},
        **data_facts((train_data, train_scan), (eval_data, eval_scan), cache, settings, "distill"),
    }
    task = distillation_task(lessons, student, settings.distill, tagger)
    with showing_evaluations(output, eval_documents, teacher.scheme.labels, settings, ls_project) as show:
        summary = train_run(output, student, task, eval_documents, settings, facts, world, show)
    return _report(output, teacher_folder, eval_documents, settings, summary)


def _report(
    output: Path, teacher: Path, eval_documents: "list[Document]", settings: "Settings", summary: dict[str, Any]
) -> dict[str, Any]:
    """Returns the report of a finished run; makes it, if it was killed before."""
    from nertool.artefacts import add_facts
    from nertool.files import read_json, write_json
    from nertool.run_folder import REPORT_FILE

    path = output / REPORT_FILE
    if not path.is_file():
        compared = compare(teacher, output / "model", eval_documents, settings)
        add_facts(output / "model", beside_teacher=_beside_teacher(compared, settings.evaluate.scheme))
        write_json(path, {**summary, **compared})
    report: dict[str, Any] = read_json(path)
    return report


def _beside_teacher(compared: dict[str, Any], scheme: str) -> dict[str, Any]:
    """Returns what the student's card tells of the comparison."""

    def side(name: str) -> dict[str, Any]:
        facts = compared[name]
        scores = {key: facts["scores"][key] for key in ("micro_f1", "mean_f1")}
        return {**scores, **{key: facts[key] for key in ("parameters", "megabytes", "tokens_per_second")}}

    return {"teacher": side("teacher"), "student": side("student"), "scheme": scheme}


def _backbone_facts(teacher: Path, settings: "Settings") -> dict[str, Any]:
    """Returns what the student was made of."""
    from nertool.artefacts import read_facts
    from nertool.model import hub_name, shown_name

    if name := settings.distill.student:
        return {"backbone": shown_name(name), "base_model": hub_name(name)}
    layers = f"{settings.distill.student_layers} layers of the teacher"
    return {"backbone": layers, "base_model": read_facts(teacher).get("base_model")}


def _model_name(folder: Path) -> str:
    """Returns what to call a model: by its folder, or by its run, whose models are all called `model`."""
    from nertool.files import last_part

    path = folder.absolute()
    return last_part(path.parent if path.name == "model" else path)


def _follow(
    teacher_folder: Path, eval_data: Path, output: Path, settings: "Settings", world: "World", job: dict[str, Any]
) -> None:
    """What the other processes do: open what the first one made, and train with it."""
    from nertool.commands.together import read_eval
    from nertool.devices import choose_device, choose_precision, seed_everything
    from nertool.distillation import Lesson, distillation_task
    from nertool.model import load_model
    from nertool.runs import train_run
    from nertool.teacher_logits import open_logits
    from nertool.window_cache import open_cache

    teacher = load_model(teacher_folder)
    settings = _with_the_teachers(settings, teacher)
    seed_everything(settings.train.seed)
    student = make_student(teacher, settings)
    device = choose_device(settings.train.device, world.gpu)
    if settings.distill.hidden_weight:  # else the first process has asked it everything
        teacher.to(device)
    tagger = teacher.tagger(
        device, choose_precision(settings.train.precision, device), settings.predict.tokens_per_batch
    )
    lessons = []
    for place in job["lessons"]:
        cache = open_cache(Path(place["cache"]))
        name = "train" if place["labelled"] else "unlabelled"
        logits = open_logits(Path(job["logits"]), name, cache, tagger, job["teacher"])
        lessons.append(Lesson(cache, logits, place["labelled"]))
    eval_documents = read_eval(eval_data, settings, job)
    task = distillation_task(lessons, student, settings.distill, tagger)
    train_run(output, student, task, eval_documents, settings, {}, world)


def _with_the_teachers(settings: "Settings", teacher: "NerModel") -> "Settings":
    """Returns the settings with the teacher's windows and classes."""
    model = settings.model.model_copy(update={"begin_channels": teacher.scheme.begin})
    data = settings.data.model_copy(update={"labels": teacher.scheme.labels})
    return settings.model_copy(update={"windows": teacher.decisions.windows, "model": model, "data": data})


def _check_classes(teacher: "NerModel", scans: "dict[Path, Scan]") -> None:
    from nertool.errors import NertoolError

    for path, scanned in scans.items():
        if unknown := sorted(set(scanned.labels) - set(teacher.scheme.labels)):
            raise NertoolError(
                f"the documents of {path} have classes that the teacher doesn't know: {', '.join(unknown)}",
                "a student learns the teacher's classes: train a teacher with all of them first",
            )


def make_student(teacher: "NerModel", settings: "Settings") -> "NerModel":
    """Returns the student that the settings describe, not trained yet."""
    from nertool.students import student_of_backbone, student_of_layers

    if settings.distill.student_layers is not None:
        wanted = settings.distill
        return student_of_layers(
            teacher, settings.distill.student_layers, settings.model, wanted.student_intermediate_size
        )
    return student_of_backbone(teacher, settings.model.model_copy(update={"name": settings.distill.student}))


def _ask(tagger: "Tagger", cache: "WindowCache", folder: Path, name: str, digest: str) -> "Halves":
    from nertool.console import progress
    from nertool.teacher_logits import teacher_logits

    with progress(f"asking the teacher ({name})", len(cache.windows), "windows") as advance:
        return teacher_logits(folder, name, cache, tagger, digest, advance)


def compare(teacher: Path, student: Path, documents: "list[Document]", settings: "Settings") -> dict[str, Any]:
    """Returns teacher and student side by side, on the eval split: scores, sizes and speeds.

    Both run on the same windows, as a student has its teacher's tokenizer.
    """
    from nertool.inference import load_tagger
    from nertool.runs import evaluate_split, prepare_eval
    from nertool.verification import tokens_per_second

    sides: dict[str, dict[str, Any]] = {}
    folders = {"teacher": teacher, "student": student}
    by_torch = settings.predict.model_copy(update={"engine": "torch"})
    taggers = {name: load_tagger(folder, by_torch) for name, folder in folders.items()}
    split = prepare_eval(documents, taggers["teacher"])
    for name, tagger in taggers.items():
        metrics = evaluate_split(tagger, split, settings)
        network: Any = tagger.engine.network  # type: ignore[attr-defined]
        sides[name] = {
            "scores": {key: value for key, value in metrics.items() if isinstance(value, int | float | None)},
            "parameters": sum(parameter.numel() for parameter in network.parameters()),
            "megabytes": round(sum(file.stat().st_size for file in folders[name].glob("*.safetensors")) / 1e6, 1),
        }
    for name, speed in tokens_per_second(taggers, split.prepared).items():
        sides[name]["tokens_per_second"] = speed
    metric = settings.train.metric
    of_teacher, of_student = (sides[name]["scores"][metric] for name in ("teacher", "student"))
    return {**sides, "retained": of_student / of_teacher if of_teacher and of_student is not None else None}
