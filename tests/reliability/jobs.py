"""The commands that are put to the test, what they read, and what of their output must be the same each time."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson

from tests.conftest import make_backbone, make_corpus, write_documents
from tests.reliability.processes import ROOT, Ended, Hook, Running, fork, start

_WINDOWS = "--set windows.max_tokens=32 --set windows.overlap_tokens=8 --set data.workers=1"
_TRAINING = (
    f"{_WINDOWS} --set train.learning_rate=0.003 --set train.tokens_per_batch=256 --set model.dropout=0.1 "
    "--set train.tensorboard=false --set evaluate.bootstrap_samples=20 --set train.patience=1000"
)
_OFTEN = "--set train.checkpoint_every_seconds=0 --set train.evaluate_every_steps=6"
_CHUNKS = "--set predict.documents_per_chunk=3 --set predict.workers=1"
PROJECT = "PROJECT"
# What people may write themselves: another letter there is as good as the one before.
PEOPLES = ("all.jsonl", "responses.jsonl")

# Fields that tell when something was, how long it took, and which number a server gave it.
_TIMES = {
    "time", "first_answer", "last_answer", "train_seconds", "seconds", "tokens_per_second",
    "tokens_per_second_of_original", "task", "tasks",
}  # fmt: skip


@dataclass(frozen=True)
class Job:
    """A command; it reads below `in` and writes below `out`. `PROJECT` in its arguments is another one for each run.

    Args:
        name: What it is called in the table.
        line: What follows `nertool`.
        go_on: What is added when it is run again after a fault.
        asks: Whether it asks the stub of an LLM.
        few: Whether it is slow, or hardly another than one before, so that a run under each fault will do.
        grows: Whether its output is a folder that grows, not one that appears whole.
        damage: What it reads or goes on from, which is damaged to see what happens: patterns below its folder.
        begun: At which share of its moments a run is killed before what it left is damaged; None: it is not begun.
        then: A command that gets what this one made elsewhere, to be compared.
        only: The kinds of fault that make sense for it, if not all do.
    """

    name: str
    line: str
    go_on: tuple[str, ...] = ()
    asks: bool = False
    few: bool = False
    grows: bool = False
    damage: tuple[str, ...] = ()
    begun: float | None = None
    then: str = ""
    only: tuple[str, ...] = ()

    @property
    def arguments(self) -> tuple[str, ...]:
        """What follows `nertool`, word by word."""
        return tuple(self.line.split())

    @property
    def inputs(self) -> list[str]:
        """The files and folders that it reads."""
        words = [word.split("=")[-1] for word in self.arguments]
        return [word for word in words if word.startswith("in/")]


_MODEL = ("in/model/model.safetensors", "in/model/config.json", "in/model/tokenizer.json", "in/model/nertool.json")
JOBS = (
    Job("convert", "convert in/all.jsonl out/documents --to kazu", damage=("in/all.jsonl",)),
    Job("convert to a file", "convert in/documents out/all.bioc.xml"),
    Job(
        "annotate --responses",
        "annotate in/texts out/documents --responses in/responses.jsonl",
        damage=("in/responses.jsonl",),
    ),
    Job(
        "annotate",
        "annotate in/texts out/documents --llm stub --set annotate.concurrency=2",
        asks=True,
        grows=True,
        damage=("out/documents.responses.jsonl",),
        begun=0.6,
    ),
    Job("split", "split in/documents out/split --fractions 0.6,0.2,0.2"),
    Job(
        "cache",
        f"cache in/many out/cache --model in/backbone {_WINDOWS}",
        damage=("out/.cache.partial/*",),
        begun=0.7,
    ),
    Job(
        "train",
        "train --train in/split/train --eval in/split/eval --output out/run --model in/backbone "
        f"--set train.epochs=8 {_TRAINING} {_OFTEN}",
        ("--resume",),
        grows=True,
        damage=(
            "out/run/checkpoints/*/*",
            "out/run/*.json*",
            "out/run/.nertool.json",
            "out/run/cache/*",
            "in/split/split.json",
            "in/split/.nertool.json",
        ),
        begun=0.6,
    ),
    Job(
        "train on a cache",
        "train --train in/cache --eval in/split/eval --output out/run --model in/backbone "
        f"--set train.epochs=2 {_TRAINING}",
        ("--resume",),
        grows=True,
        damage=("in/cache/*",),
    ),
    Job(
        "distill",
        "distill in/model --train in/split/train --eval in/split/eval --output out/run --student-layers 1 "
        f"--unlabelled in/texts --set train.epochs=3 {_TRAINING} {_OFTEN}",
        ("--resume",),
        grows=True,
        damage=("out/run/logits/*", *_MODEL),
        begun=0.6,
    ),
    Job("export", "export in/model out/packed --format hf --set export.min_agreement=0", damage=_MODEL),
    Job("export to ONNX", "export in/model out/packed --format onnx --set export.min_agreement=0", few=True),
    Job("predict", f"predict in/model in/documents out/documents {_CHUNKS}", damage=_MODEL),
    Job(
        "predict to a file",
        f"predict in/model in/documents out/documents.jsonl {_CHUNKS}",
        damage=("out/.documents.jsonl.partial/*",),
        begun=0.7,
    ),
    Job(
        "predict with ONNX",
        f"predict in/onnx in/documents out/documents {_CHUNKS}",
        few=True,
        damage=("in/onnx/*",),
    ),
    Job(
        "predict with OpenVINO",
        f"predict in/openvino in/documents out/documents {_CHUNKS}",
        few=True,
        damage=("in/openvino/*",),
    ),
    Job(
        "evaluate --predictions",
        "evaluate in/model in/documents --predictions out/predicted --set evaluate.bootstrap_samples=20",
        damage=_MODEL,
    ),
    Job(
        "audit",
        "audit in/documents out/audit --model in/backbone --set audit.folds=2 --set audit.epochs=2 "
        f"{_TRAINING} {_OFTEN}",
        grows=True,
        damage=("out/audit/work/*.json", "out/audit/*.json"),
        begun=0.8,
    ),
)
LABEL_STUDIO = (
    Job(
        "ls-sync push",
        f"ls-sync push in/documents --predictions model=in/predicted --project {PROJECT}",
        few=True,
        then=f"ls-sync pull out/pulled --project {PROJECT}",
        only=(
            "killed",
            "killed, new process",
            "terminated",
            "input read-only",
            "input vanishes",
            "input changes",
            "two at once",
        ),
    ),
    Job("ls-sync pull", "ls-sync pull out/documents --project Corpus"),
)


@dataclass
class Scene:
    """What all jobs read, made once, and how they run.

    Args:
        folder: Its `in` is copied for each trial.
        environment: Variables of all commands.
    """

    folder: Path
    environment: dict[str, str]
    numbers: Iterator[int] = field(default_factory=itertools.count)

    def new(self, job: Job) -> Path:
        """Makes the folder of a trial, with what the job reads in `in`, and an empty `out`."""
        trial = self.folder / "trials" / job.name.replace(" ", "-")
        shutil.rmtree(trial, ignore_errors=True)
        for name in ("in", "out"):
            (trial / name).mkdir(parents=True)
        for name in {"/".join(name.split("/")[:2]) for name in job.inputs}:
            copy = shutil.copytree if (self.folder / name).is_dir() else shutil.copy
            copy(self.folder / name, trial / name)
        (trial / ".project").write_text(f"Run {next(self.numbers)}")
        return trial

    def start(
        self, trial: Path, arguments: tuple[str, ...], hook: Hook | None = None, *, real: bool = False
    ) -> Running:
        """Starts a command, with the project of the trial; as people do, if it is to be a real process."""
        named = [(trial / ".project").read_text() if word == PROJECT else word for word in arguments]
        return start(trial, named, self.environment) if real else fork(trial, named, self.environment, hook)

    def run(self, trial: Path, arguments: tuple[str, ...], hook: Hook | None = None) -> Ended:
        """Runs a command to its end."""
        return self.start(trial, arguments, hook).wait()

    def must(self, trial: Path, line: str) -> None:
        """Runs a command that can't fail."""
        ended = self.run(trial, tuple(line.split()))
        if ended.status:
            raise RuntimeError(f"nertool {line}: {ended.status}\n{ended.stderr}")


def make_scene(folder: Path, environment: dict[str, str]) -> Scene:
    """Makes documents, a backbone, a trained model and its exports, recorded answers and a cache, if not there yet."""
    scene = Scene(folder, environment)
    if (folder / "in/responses.jsonl").is_file():  # made last
        return scene
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "in").mkdir(parents=True)
    corpus = make_corpus(20)
    write_documents(folder / "in/documents", corpus)
    write_documents(folder / "in/many", make_corpus(600))
    (folder / "in/texts").mkdir()
    for document in corpus[:12]:
        (folder / "in/texts" / f"{document.id}.txt").write_text("\n".join(s.text for s in document.sections))
    make_backbone(folder / "in/backbone")
    scene.must(folder, "convert in/documents in/all.jsonl")
    scene.must(folder, "split in/documents in/split --fractions 0.6,0.2,0.2")
    scene.must(folder, f"cache in/split/train in/cache --model in/backbone {_WINDOWS}")
    train = "train --train in/split/train --eval in/documents --model in/backbone --output run --set train.epochs=40"
    scene.must(folder, f"{train} {_TRAINING}")
    shutil.copytree(folder / "run/model", folder / "in/model")
    for form in ("onnx", "openvino"):
        scene.must(folder, f"export in/model in/{form} --format {form} --set export.min_agreement=0")
    scene.must(folder, "predict in/model in/documents in/predicted")
    scene.must(folder, "annotate in/texts annotated --llm stub")
    (folder / "annotated.responses.jsonl").rename(folder / "in/responses.jsonl")
    return scene


@contextmanager
def llm_stub(log: Path) -> Iterator[str]:
    """Gives the address of a server that answers like an LLM, a little late."""
    command = [sys.executable, "-m", "tests.llm_stub", "--latency", "0.02", "--log", str(log)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdin is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.stdin.close()
            process.stdout.read()


def tree(folder: Path) -> dict[str, str]:
    """Returns what is in a folder: each file with what must be the same in it each time, each folder with nothing.

    Lock files don't count: a kill may leave one, which is empty and is taken by the next command that needs it.
    """
    found = {}
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.suffix == ".lock" and path.name.startswith("."):
            continue
        if path.is_file():
            try:
                found[name] = _stable(name, path.read_bytes())
            except ValueError:
                found[name] = "broken"
        elif path.is_dir() and not any(path.iterdir()):
            found[f"{name}/"] = ""
    return found


def _stable(name: str, data: bytes) -> str:
    if name.endswith("responses.jsonl"):  # in the order in which they came
        answers = (_without_times(json.loads(line)) for line in data.splitlines())
        return "\n".join(sorted(json.dumps(answer, sort_keys=True) for answer in answers))
    if name.endswith("metrics.jsonl"):  # losses are means since the last line, or since the resumption
        lines = [json.loads(line) for line in data.splitlines()]
        return "\n".join(json.dumps(line) for line in lines if line["kind"] == "eval")
    if name.endswith(".json"):
        return json.dumps(_without_times(orjson.loads(data)), sort_keys=True)
    if name.endswith("README.md"):
        return re.sub(rb"[\d,]+ (tokens/s|tokens per second|by the original)", rb"N \1", data).decode()
    return data.hex() if len(data) < 2**16 else str(hash(data))


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_times(item) for key, item in value.items() if key not in _TIMES}
    return [_without_times(item) for item in value] if isinstance(value, list) else value
