"""The commands as people and scripts run them: end to end, with bad input, killed and resumed."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from safetensors.torch import load_file

from nertool import sources
from nertool.cli import app
from nertool.commands import options
from nertool.document_parsing import parse_document
from tests.cli_helpers import in_an_empty_folder, nertool, refuse, start, succeed, wait_for  # noqa: F401
from tests.conftest import make_backbone, make_corpus, write_documents

SMALL = ["--set", "windows.max_tokens=32", "--set", "windows.overlap_tokens=8"]
TRAIN = [*SMALL, "--set", "train.epochs=3", "--set", "train.learning_rate=0.003", "--set", "train.tokens_per_batch=256"]


@pytest.fixture
def run(corpus: tuple[Path, Path], backbone: Path, tmp_path: Path) -> Path:
    """A trained run."""
    succeed(
        "train", "--train", corpus[0], "--eval", corpus[1], "--output", tmp_path / "run", "--model", backbone, *TRAIN
    )
    return tmp_path / "run"


def test_from_documents_to_predictions(tmp_path: Path, backbone: Path) -> None:
    documents = write_documents(tmp_path / "documents", make_corpus(40))
    report = json.loads(succeed("split", documents, "split", "--fractions", "0.7,0.2,0.1", "--json").stdout)
    assert report["counts"]["documents"] == {"train": 28, "eval": 8, "test": 4}
    cached = json.loads(succeed("cache", "split/train", "cache", "--model", backbone, *SMALL, "--json").stdout)
    assert cached["counts"]["documents"] == 28
    settings = [
        *SMALL,
        "--set",
        "train.epochs=25",
        "--set",
        "train.learning_rate=0.005",
        "--set",
        "train.tokens_per_batch=256",
    ]
    trained = json.loads(
        succeed(
            "train",
            "--train",
            "cache",
            "--eval",
            "split/eval",
            "--output",
            "run",
            "--model",
            backbone,
            *settings,
            "--json",
        ).stdout
    )
    assert trained["micro_f1"] > 0.9
    assert {path.name for path in Path("run").iterdir()} == {
        ".nertool.json", "checkpoints", "metrics.jsonl", "model", "run.json", "settings.json", "tensorboard",
    }  # fmt: skip
    metrics = json.loads(
        succeed("evaluate", "run/model", "split/test", "--predictions", "gold-and-found", "--json").stdout
    )
    assert metrics["micro_f1"] > 0.9 and metrics["scheme"] == "strict"
    assert set(metrics["schemes"]) == {"strict", "overlap", "kazu"}
    table = succeed("evaluate", "run/model", "split/test").stderr
    assert "disease" in table and "all (micro)" in table
    Path("texts").mkdir()
    Path("texts/a.txt").write_text("EGFR in lung cancer")
    predicted = json.loads(succeed("predict", "run/model", "texts", "predictions", "--json").stdout)
    assert predicted["documents"] == 1
    found = parse_document(Path("predictions/a.json").read_bytes()).document.sections[0].entities
    assert {(e.label, e.match) for e in found} >= {("gene", "EGFR"), ("disease", "lung cancer")}
    assert all(e.score is not None for e in found)


def test_a_model_folder_is_whole_and_loads_with_transformers(run: Path) -> None:
    from transformers import AutoModelForTokenClassification

    names = {path.name for path in (run / "model").iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "README.md", "nertool.json"} <= names
    assert not [
        path for path in run.rglob("*") if path.suffix in (".pt", ".pkl", ".pickle") or path.name == "pytorch_model.bin"
    ]
    config = json.loads((run / "model/config.json").read_text())
    assert config["problem_type"] == "multi_label_classification"
    assert config["id2label"] == {"0": "disease", "1": "drug", "2": "gene", "3": "organ"}
    assert AutoModelForTokenClassification.from_pretrained(run / "model").num_labels == 4
    card = (run / "model/README.md").read_text()
    assert "24 documents" in card and "| gene |" in card


def test_the_best_model_is_the_best_evaluation(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    values = {line["step"]: line["micro_f1"] for line in lines if line["kind"] == "eval"}
    facts = json.loads((run / "model/nertool.json").read_text())
    assert facts["scores"]["micro_f1"] == max(values.values())
    assert values[facts["step"]] == max(values.values())


def test_early_stopping_is_success(corpus: tuple[Path, Path], backbone: Path) -> None:
    """KAZU ends it with a RuntimeError."""
    flat = ["--set", "train.learning_rate=1e-12", "--set", "train.epochs=50", "--set", "train.patience=2"]
    result = succeed(
        "train",
        "--train",
        corpus[0],
        "--eval",
        corpus[1],
        "--output",
        "run",
        "--model",
        backbone,
        *TRAIN,
        *flat,
        "--json",
    )
    summary = json.loads(result.stdout)
    assert summary["stopped_early"]
    lines = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    assert sum(line["kind"] == "eval" for line in lines) == 3
    assert Path("run/model/model.safetensors").is_file()


def test_training_is_on_train_labels_and_eval_labels_and_says_what_can_not_be_learned(
    tmp_path: Path, corpus: tuple[Path, Path], backbone: Path
) -> None:
    """KAZU reads its labels from the test set; a class that one side lacks breaks it."""
    for folder, old, new in ((corpus[1], "drug", "rare"), (corpus[0], "organ", "common")):
        for file in folder.iterdir():
            file.write_text(file.read_text().replace(f'"entity_class":"{old}"', f'"entity_class":"{new}"'))
    result = succeed("train", "--train", corpus[0], "--eval", corpus[1], "--output", "run", "--model", backbone, *TRAIN)
    facts = json.loads(Path("run/model/nertool.json").read_text())
    assert facts["scheme"]["labels"] == ["common", "disease", "drug", "gene", "organ", "rare"]
    assert "'rare' is not in the training documents" in result.stderr
    assert "'common' is not in the eval split" in result.stderr


def test_an_eval_cache_serves_like_its_documents(corpus: tuple[Path, Path], backbone: Path) -> None:
    succeed("cache", corpus[0], "train-cache", "--model", backbone, *SMALL)
    succeed("cache", corpus[1], "eval-cache", "--model", backbone, *SMALL)
    for output, train_data, eval_data in (("a", corpus[0], corpus[1]), ("b", "train-cache", "eval-cache")):
        succeed("train", "--train", train_data, "--eval", eval_data, "--output", output, "--model", backbone, *TRAIN)
    first, second = (load_file(f"{name}/model/model.safetensors") for name in "ab")
    assert all((first[key] == second[key]).all() for key in first)


def test_a_finished_run_is_not_trained_again_and_not_overwritten(
    run: Path, corpus: tuple[Path, Path], backbone: Path
) -> None:
    command = ("train", "--train", corpus[0], "--eval", corpus[1], "--output", run, "--model", backbone, *TRAIN)
    assert "holds a finished run" in refuse(*command)
    before = (run / "model/model.safetensors").stat().st_mtime_ns
    assert "finished already" in succeed(*command, "--resume").stderr
    assert (run / "model/model.safetensors").stat().st_mtime_ns == before
    (run / "notes.txt").write_text("mine")
    assert "notes.txt" in refuse(*command, "--force")
    assert (run / "model/model.safetensors").is_file()
    (run / "notes.txt").unlink()
    succeed(*command, "--force")


def test_a_run_is_not_mixed_with_other_settings_or_data(run: Path, corpus: tuple[Path, Path], backbone: Path) -> None:
    command = [
        "train",
        "--train",
        corpus[0],
        "--eval",
        corpus[1],
        "--output",
        run,
        "--model",
        backbone,
        *TRAIN,
        "--resume",
    ]
    assert "train.seed was 42, now 43" in refuse(*command, "--set", "train.seed=43")
    next(corpus[0].iterdir()).unlink()
    assert "the train documents have changed" in refuse(*command)


def test_a_folder_of_the_users_is_never_touched(tmp_path: Path, corpus: tuple[Path, Path], backbone: Path) -> None:
    """KAZU deletes what is in the folder, a user's files too."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    for force in ([], ["--force"]):
        refuse(
            "train", "--train", corpus[0], "--eval", corpus[1], "--output", mine, "--model", backbone, *TRAIN, *force
        )
        refuse("cache", corpus[0], mine, "--model", backbone, *SMALL, *force)
        refuse("split", corpus[0], mine, *force)
        refuse("convert", corpus[0], mine, *force)
    assert [path.name for path in mine.iterdir()] == ["thesis.txt"]


def test_a_failed_command_with_force_leaves_the_older_output(
    tmp_path: Path, corpus: tuple[Path, Path], backbone: Path, run: Path
) -> None:
    for command in (
        ("predict", run / "model", corpus[1], "out"),
        ("cache", corpus[1], "cache", "--model", backbone, *SMALL),
        ("evaluate", run / "model", corpus[1], "--predictions", "found"),
        ("convert", corpus[1], "copy"),
        ("split", corpus[1], "split"),
    ):
        succeed(*command)
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    next(corpus[1].iterdir()).write_text("{")
    for command in (
        ("predict", run / "model", corpus[1], "out"),
        ("predict", tmp_path / "typo", corpus[0], "out"),
        ("cache", corpus[1], "cache", "--model", backbone, *SMALL),
        ("evaluate", run / "model", corpus[1], "--predictions", "found"),
        ("convert", corpus[1], "copy"),
        ("split", corpus[1], "split"),
    ):
        refuse(*command, "--force")
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before


def test_an_output_is_never_the_input(corpus: tuple[Path, Path], backbone: Path, run: Path) -> None:
    succeed("convert", corpus[0], "docs")
    for command in (
        ("predict", run / "model", "docs", "docs"),
        ("cache", "docs", "docs", "--model", backbone, *SMALL),
        ("evaluate", run / "model", "docs", "--predictions", "docs"),
        ("convert", "docs", "docs"),
        ("split", "docs", "docs"),
    ):
        assert "is the input, too" in refuse(*command, "--force")
    assert len(list(Path("docs").glob("doc-*.json"))) == 24


def test_a_run_folder_that_a_kill_left_half_made_can_be_used(
    corpus: tuple[Path, Path], backbone: Path, run: Path
) -> None:
    Path("again").mkdir()
    shutil.copy(run / ".nertool.json", "again")
    Path("again/.run.json.tmp").write_text("{")
    succeed("train", "--train", corpus[0], "--eval", corpus[1], "--output", "again", "--model", backbone, *TRAIN)
    Path("again/.run.json.tmp").write_text("{")
    train = ["train", "--train", corpus[0], "--eval", corpus[1], "--output", "again", "--model", backbone, *TRAIN]
    succeed(*train, "--force")
    assert json.loads(Path("again/run.json").read_text())["finished"]
    for more in ([], ["--force"], ["--resume"]):
        shutil.rmtree("again")
        Path("again").mkdir()
        Path("again/..nertool.json.tmp").write_text("{")
        succeed(*train, *more)


@pytest.mark.parametrize("options", [[], ["--skip-nonfinite"]])
def test_a_training_that_blows_up_names_the_documents_and_what_to_try(
    options: list[str], corpus: tuple[Path, Path], backbone: Path
) -> None:
    train = ["train", "--train", corpus[0], "--eval", corpus[1], "--output", "out", "--model", backbone, *TRAIN]
    message = refuse(*train, "--set", "train.learning_rate=1e30", "--set", "train.epochs=9", *options)
    assert re.search(
        r"the (loss|gradients' norm) is (nan|inf) at step \d+, with windows of \d+ documents: doc-0", message
    )
    assert "lower train.learning_rate" in message and "--resume --skip-nonfinite" in message
    assert ("was skipped" in message) == bool(options)


def test_a_signal_ends_a_command_even_inside_a_library_that_catches_exceptions(
    capsys: pytest.CaptureFixture[str],
) -> None:
    went_on = []

    @options.command
    def export() -> None:
        with suppress(Exception):  # as torch's exporter does
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(60)
        went_on.append(True)

    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises(typer.Exit) as end:
            export()
    finally:
        signal.signal(signal.SIGTERM, before)
    assert end.value.exit_code == 128 + signal.SIGTERM and not went_on
    assert "interrupted" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("MPS backend out of memory (MPS allocated: 8.11 GB, max allowed: 9.07 GB)."),
    ],
)
def test_a_device_without_memory_left_is_told_with_what_to_lower(
    error: RuntimeError, capsys: pytest.CaptureFixture[str]
) -> None:
    @options.command
    def train() -> None:
        raise error

    with pytest.raises(typer.Exit) as end:
        train()
    message = re.sub(r"\s+", " ", capsys.readouterr().err)
    assert end.value.exit_code == 2
    assert f"the device is out of memory: {error}" in message and "lower train.tokens_per_batch" in message


def test_another_runtime_error_is_not_taken_for_a_lack_of_memory() -> None:
    @options.command
    def train() -> None:
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        train()


def test_two_trainings_in_one_folder_are_refused(corpus: tuple[Path, Path], backbone: Path) -> None:
    train = ["train", "--train", corpus[0], "--eval", corpus[1], "--output", "out", "--model", backbone, *TRAIN]
    process = start(*train, "--set", "train.epochs=200", "--set", "train.checkpoint_every_seconds=0")
    wait_for(lambda: list(Path("out").glob("checkpoints/step-*")), process)
    assert "another nertool is working on out" in refuse(*train, "--set", "train.epochs=200", "--resume")
    process.kill()
    process.communicate()
    succeed(*train, "--force")


def test_a_metric_that_does_not_exist_is_refused_before_the_training(corpus: tuple[Path, Path], backbone: Path) -> None:
    train = ["train", "--train", corpus[0], "--eval", corpus[1], "--output", "out", "--model", backbone, *TRAIN]
    message = refuse(*train, "--set", "train.metric=micro_F1")
    assert "there is no metric 'micro_F1' (did you mean 'micro_f1'?)" in message
    assert not Path("out").exists()
    succeed(*train, "--set", "train.metric=gene_f1", "--set", "evaluate.scheme=kazu")


def test_a_cache_of_fewer_classes_is_refused(corpus: tuple[Path, Path], backbone: Path) -> None:
    succeed("cache", corpus[0], "cache", "--model", backbone, *SMALL, "--set", 'data.labels=["gene"]')
    train = ["train", "--train", "cache", "--eval", corpus[1], "--output", "out", "--model", backbone, *TRAIN]
    assert "without the classes disease, drug, organ" in refuse(*train)
    succeed(*train, "--set", 'data.labels=["gene"]')


def test_class_names_with_brackets_and_commas_are_shown_as_they_are(tmp_path: Path, backbone: Path) -> None:
    name = "gene [/human], or [bold]product"
    documents = make_corpus(20)
    folder = write_documents(tmp_path / "documents", documents)
    for file in folder.iterdir():
        file.write_text(file.read_text().replace('"entity_class":"gene"', f'"entity_class":"{name}"'))
    assert name in succeed("split", folder, "split").stderr
    train = ["train", "--train", "split/train", "--eval", "split/eval", "--output", "run", "--model", backbone, *TRAIN]
    succeed(*train)
    assert name in succeed("evaluate", "run/model", "split/test").stderr


BAD = {
    "malformed": b'{"sections": [{"text": "abc"',
    "past-the-end": b'{"idx": "x", "sections": [{"name": "t", "text": "abc", "entities": [{"match": "c",'
    b' "entity_class": "g", "namespace": "n", "spans": [{"start": 2, "end": 9}]}]}]}',
}


@pytest.mark.parametrize("kind", BAD)
def test_invalid_documents_are_all_named_and_nothing_is_made(
    kind: str, tmp_path: Path, corpus: tuple[Path, Path], backbone: Path, run: Path
) -> None:
    """KAZU prints and skips broken files, and lets an entity past the end label the rest of the section."""
    (corpus[0] / "bad-1.json").write_bytes(BAD[kind])
    (corpus[0] / "bad-2.json").write_bytes(BAD[kind].replace(b'"x"', b'"y"'))
    commands: dict[str, tuple[object, ...]] = {
        "split": ("split", corpus[0], "out"),
        "cache": ("cache", corpus[0], "out", "--model", backbone, *SMALL),
        "train": ("train", "--train", corpus[0], "--eval", corpus[1], "--output", "out", "--model", backbone, *TRAIN),
        "convert": ("convert", corpus[0], "out"),
        "predict": ("predict", run / "model", corpus[0], "out"),
        "evaluate": ("evaluate", run / "model", corpus[0], "--predictions", "out"),
    }
    for command in commands.values():
        message = refuse(*command)
        assert "2 invalid documents" in message and "bad-1.json" in message and "bad-2.json" in message
        assert "--skip-invalid" in message
        assert not Path("out").exists()
    succeed(*commands["convert"], "--skip-invalid")
    rejected = [json.loads(line) for line in Path("out/rejected.jsonl").read_text().splitlines()]
    assert len(rejected) == 2 and len(list(Path("out").glob("doc-*.json"))) == 24
    succeed("split", "out", "split-out", "--fractions", "0.9,0.1,0")  # rejected.jsonl is no document


def test_unknown_settings_are_refused_with_the_nearest_name(corpus: tuple[Path, Path], backbone: Path) -> None:
    message = refuse("cache", corpus[0], "out", "--model", backbone, "--set", "windows.max_token=9")
    assert "unknown setting 'windows.max_token' (did you mean 'windows.max_tokens'?)" in message
    Path("nertool.toml").write_text("[trian]\nepochs = 3\n")
    assert "nertool.toml: unknown settings section 'trian' (did you mean 'train'?)" in refuse("split", corpus[0], "out")


def test_stale_and_foreign_caches_are_refused(tmp_path: Path, corpus: tuple[Path, Path], backbone: Path) -> None:
    succeed("cache", corpus[0], "cache", "--model", backbone, *SMALL)
    other = make_backbone(tmp_path / "cased", cased=True)
    train = ("train", "--train", "cache", "--eval", corpus[1], "--output", "run")
    assert "the tokenizer has changed" in refuse(*train, "--model", other, *TRAIN)
    assert "max_tokens is 32 there, not 16" in refuse(
        *train, "--model", backbone, *TRAIN, "--set", "windows.max_tokens=16"
    )
    assert not Path("run").exists()
    next(corpus[0].iterdir()).unlink()
    assert "the documents have changed" in refuse("cache", corpus[0], "cache", "--model", backbone, *SMALL)


@pytest.mark.parametrize("command", ["convert", "split", "cache", "train", "predict"])
def test_an_unwritable_output_is_refused_before_the_work(
    command: str, tmp_path: Path, corpus: tuple[Path, Path], backbone: Path, run: Path
) -> None:
    (tmp_path / "file").write_text("in the way")
    output = tmp_path / "file/out"
    commands: dict[str, tuple[object, ...]] = {
        "convert": ("convert", corpus[0], output),
        "split": ("split", corpus[0], output),
        "cache": ("cache", corpus[0], output, "--model", backbone, *SMALL),
        "train": ("train", "--train", corpus[0], "--eval", corpus[1], "--output", output, "--model", backbone, *TRAIN),
        "predict": ("predict", run / "model", corpus[0], output),
    }
    message = refuse(*commands[command])
    assert "cannot write" in message or "Not a directory" in message


def test_models_that_can_not_be_used_are_refused(tmp_path: Path, corpus: tuple[Path, Path], run: Path) -> None:
    assert "did you mean" in refuse("evaluate", run, corpus[1])
    broken = shutil.copytree(run / "model", tmp_path / "broken")
    (broken / "model.safetensors").unlink()
    assert "model.safetensors is missing" in refuse("evaluate", broken, corpus[1])
    assert "model.safetensors is missing" in refuse("predict", broken, corpus[1], "out")
    (broken / "model.safetensors").write_bytes(b"\0" * 100)
    assert "model.safetensors is not the file that was written there" in refuse("evaluate", broken, corpus[1])
    assert "not a model folder" in refuse("evaluate", tmp_path / "nothing", corpus[1])
    backbone = make_backbone(tmp_path / "no-weights")
    (backbone / "model.safetensors").unlink()
    message = refuse("train", "--train", corpus[0], "--eval", corpus[1], "--output", "out", "--model", backbone, *TRAIN)
    assert "cannot load the model" in message and not Path("out/model").exists()
    message = refuse("cache", corpus[0], "out", "--model", "no/such-model", *SMALL)
    assert "hub" in message and "--model minilm" in message


def test_windows_longer_than_the_backbone_are_refused(corpus: tuple[Path, Path], backbone: Path) -> None:
    message = refuse("train", "--train", corpus[0], "--eval", corpus[1], "--output", "out", "--model", backbone)
    assert "512" in message and "64 positions" in message and "windows.max_tokens=64" in message


def test_a_checkpoint_of_another_architecture_is_refused(
    tmp_path: Path, corpus: tuple[Path, Path], backbone: Path
) -> None:
    """KAZU trains DeBERTa v1 with attention weights left random."""
    broken = shutil.copytree(backbone, tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    from safetensors.torch import save_file

    save_file({k: v for k, v in weights.items() if "query" not in k}, broken / "model.safetensors", {"format": "pt"})
    message = refuse("train", "--train", corpus[0], "--eval", corpus[1], "--output", "out", "--model", broken, *TRAIN)
    assert "lacks 4 tensors" in message


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="mounts a small file system")
def test_a_full_disk_gives_one_message_and_leaves_nothing_half_written(
    tmp_path: Path, corpus: tuple[Path, Path], backbone: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        train = ("train", "--train", corpus[0], "--eval", corpus[1], "--model", backbone, *TRAIN)
        for command in (
            ("convert", corpus[0], disk / "out"),
            ("convert", corpus[0], disk / "out.jsonl"),
            ("split", corpus[0], disk / "out"),
            (*train, "--output", disk / "out"),
        ):
            message = refuse(*command)
            assert "No space left on device" in message and "free some space" in message
            assert not (disk / "out.jsonl").exists() and not list(disk.glob("out/model/*"))
            for path in disk.iterdir():
                shutil.rmtree(path) if path.is_dir() else path.unlink()
    finally:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGKILL, -9), (signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)],
)
def test_an_interrupted_training_resumes_to_the_same_bits(
    number: int, status: int, corpus: tuple[Path, Path], backbone: Path
) -> None:
    slow = [
        *TRAIN,
        "--set",
        "train.epochs=12",
        "--set",
        "train.checkpoint_every_seconds=0",
        "--set",
        "model.dropout=0.1",
    ]
    command = ["train", "--train", corpus[0], "--eval", corpus[1], "--model", backbone, *slow]
    succeed(*command, "--output", "whole")
    process = start(*command, "--output", "cut")
    wait_for(lambda: list(Path("cut").glob("checkpoints/step-0000001*")), process)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == status, stderr
    assert stdout == ""
    if status > 0:
        assert "saved at step" in stderr and "--resume" in stderr and "Traceback" not in stderr
    assert not json.loads(Path("cut/run.json").read_text())["finished"]
    assert "--resume to go on" in refuse(*command, "--output", "cut")
    assert "resuming at step" in succeed(*command, "--output", "cut", "--resume").stderr
    whole, cut = (load_file(f"{name}/model/model.safetensors") for name in ("whole", "cut"))
    assert all((whole[key] == cut[key]).all() for key in whole)
    lines = [Path(f"{name}/metrics.jsonl").read_text().splitlines() for name in ("whole", "cut")]
    evals = [[json.loads(line) for line in part if '"eval"' in line] for part in lines]
    assert evals[0] == evals[1]


def test_a_resumed_training_reads_its_documents_once(
    corpus: tuple[Path, Path], backbone: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["train", "--train", corpus[0], "--eval", corpus[1], "--model", backbone, "--output", "run", *TRAIN]
    succeed(*command)
    state = json.loads(Path("run/run.json").read_text())
    Path("run/run.json").write_text(json.dumps({**state, "finished": False}))
    read: Counter[str] = Counter()
    real = sources.read_documents

    def counting(path: Path, *args: Any, **options: Any) -> Any:
        read[path.name] += 1
        return real(path, *args, **options)

    monkeypatch.setattr(sources, "read_documents", counting)
    succeed(*command, "--resume")
    assert read == {"train": 1, "eval": 1}


def test_a_killed_cache_build_ends_byte_identical(tmp_path: Path, backbone: Path) -> None:
    documents = write_documents(tmp_path / "documents", make_corpus(1500))
    command = ["cache", documents, "--model", backbone, *SMALL]
    succeed(*command, "whole")
    process = start(*command, "cut")
    journal = Path(".cut.partial/journal.jsonl")
    wait_for(lambda: journal.is_file() and journal.stat().st_size > 0, process)
    process.kill()
    process.communicate()
    assert not Path("cut").exists()
    succeed(*command, "cut")
    for file in Path("whole").iterdir():
        assert file.read_bytes() == (Path("cut") / file.name).read_bytes()


def test_a_killed_prediction_goes_on_to_the_same_bytes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nertool.prediction_output import PredictionOutput

    documents = write_documents(tmp_path / "documents", make_corpus(20))
    chunks = ["--set", "predict.documents_per_chunk=3"]
    succeed("predict", run / "model", documents, "whole.jsonl", *chunks)
    real_write, calls = PredictionOutput.write, []

    def write(self: PredictionOutput, key: str, data: bytes, documents: int, *others: Any) -> None:
        calls.append(documents)
        if len(calls) == 4:
            raise KeyboardInterrupt
        real_write(self, key, data, documents, *others)

    with monkeypatch.context() as patch:
        patch.setattr(PredictionOutput, "write", write)
        result = nertool("predict", run / "model", documents, "cut.jsonl", *chunks)
    assert result.exit_code == 130 and not Path("cut.jsonl").exists()
    calls.clear()
    with monkeypatch.context() as patch:
        patch.setattr(PredictionOutput, "write", lambda self, *what: calls.append(what[2]) or real_write(self, *what))
        again = succeed("predict", run / "model", documents, "cut.jsonl", *chunks)
    assert calls == [3, 3, 3, 2] and "going on after 9 documents" in again.stderr
    assert Path("cut.jsonl").read_bytes() == Path("whole.jsonl").read_bytes()
    assert sorted(path.name for path in Path().iterdir()) == ["cut.jsonl", "whole.jsonl"]


def test_predicting_plain_texts_folders_and_compressed_files(run: Path) -> None:
    Path("texts").mkdir()
    for i in range(3):
        Path(f"texts/{i}.txt").write_text(f"BRCA{i} in lung cancer 😀 e\u0301")
    succeed("predict", run / "model", "texts", "out.jsonl.gz")
    succeed("predict", run / "model", "texts", "folder")
    assert sorted(path.name for path in Path("folder").glob("[!.]*.json")) == ["0.json", "1.json", "2.json"]
    report = json.loads(succeed("convert", "out.jsonl.gz", "again", "--json").stdout)
    assert report["read"]["documents"] == 3


@pytest.mark.parametrize(("platform", "fallback"), [("darwin", "1"), ("linux", "None")])
def test_on_a_mac_torch_is_told_before_it_loads_to_compute_on_the_cpu_what_the_gpu_lacks(
    platform: str, fallback: str, corpus: tuple[Path, Path], tmp_path: Path
) -> None:
    (tmp_path / "first/torch").mkdir(parents=True)
    told = "import os\nraise SystemExit(f\"fallback: {os.environ.get('PYTORCH_ENABLE_MPS_FALLBACK')}\")\n"
    (tmp_path / "first/torch/__init__.py").write_text(told)
    code = f"""
import sys
from nertool import cli
app, here, sys.platform = cli.app, sys.platform, {platform!r}
def on_this_platform(**options):
    sys.platform = here  # what is imported then is
    app(**options)
cli.app = on_this_platform
cli.main()
"""
    arguments = ["train", "--train", str(corpus[0]), "--eval", str(corpus[1]), "--output", "run"]
    environment = {name: value for name, value in os.environ.items() if name != "PYTORCH_ENABLE_MPS_FALLBACK"}
    result = subprocess.run(
        [sys.executable, "-c", code, *arguments], env={**environment, "PYTHONPATH": str(tmp_path / "first")},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.stderr == f"fallback: {fallback}\n"


def test_help_is_quick_because_nothing_heavy_is_imported() -> None:
    code = (
        "import sys, nertool.cli\n"
        "heavy = {'torch', 'transformers', 'numpy', 'pydantic', 'orjson', 'tensorboard', 'rensa'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def _commands() -> dict[str, Any]:
    """Returns all commands by name: `train`, `ls-sync push`."""
    group = typer.main.get_command(app)
    found = {}
    for name, command in group.commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", None)
        found.update({f"{name} {one}": of for one, of in inner.items()} if inner else {name: command})
    return found


@pytest.mark.parametrize("name", _commands())
def test_every_command_has_help_with_examples_that_it_understands(name: str) -> None:
    text = succeed(*name.split(), "--help").stdout
    assert text.index("\nOptions of many commands:\n") < text.index("\n  --json ") < text.index("\n  -h, --help ")
    examples = [line.strip() for line in text.splitlines() if line.startswith(f"  nertool {name}")]
    assert examples
    for example in examples:
        words = shlex.split(example.split(" > ")[0].replace("$SLURM_ARRAY_TASK_ID", "1"))
        command = _commands()[name]
        context = command.make_context(name, words[1 + len(name.split()) :])
        assert context.command is command


@pytest.mark.parametrize("columns", [30, 40, 60, 80, 120])
@pytest.mark.parametrize("name", ["", "train", "predict"])
def test_help_fits_the_terminal(name: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    lines = succeed(*name.split(), "--help").stdout.splitlines()
    # Examples and names of options are whole, so that they can be copied.
    longer = [line for line in lines if len(line) > columns and not line.startswith(("  nertool ", "  --"))]
    assert not longer
    assert "{" not in lines[0]


def test_help_lists_every_command_once_in_the_order_of_the_work() -> None:
    text = succeed("--help").stdout
    listed = re.findall(r"(?m)^  ([a-z][a-z-]*)  ", text[text.index("Begin:") :])
    assert sorted(listed) == sorted({name.split()[0] for name in _commands()})
    order = ["annotate", "split", "train", "evaluate", "distill", "export", "predict"]
    assert [name for name in listed if name in order] == order
    assert max(map(len, text.splitlines())) <= 80 and "..." not in text.split("Begin:")[1]


def test_wrong_names_of_commands_and_options_bring_the_right_ones() -> None:
    assert "Did you mean 'train'?" in refuse("trian")
    assert "Did you mean 'push'?" in refuse("ls-sync", "psuh")
    assert "--eval" in refuse("train", "--evla", "x")


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        ("nertool tr", ["train"]),
        ("nertool train --tr", ["--train"]),
        ("nertool ls-sync pu", ["push", "pull"]),
        ("nertool train --set train.ep", ["train.epochs="]),
        ("nertool settings wi", ["windows"]),
    ],
)
def test_shells_complete_commands_options_and_settings(words: str, completed: list[str]) -> None:
    process = start(_NERTOOL_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=str(words.count(" ")))
    stdout, stderr = process.communicate(timeout=60)
    assert stdout.split() == completed and stderr == ""


def test_completion_is_installed_for_the_shell(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    process = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m nertool --install-completion; true"],  # true: bash stays the parent
        env={**os.environ, "HOME": str(home), "SHELL": "/bin/bash"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "bash completion installed" in process.stdout, process.stderr
    assert "complete_bash" in (home / ".bash_completions/nertool.sh").read_text()


def test_each_command_says_which_comes_next_and_that_one_works(tmp_path: Path, backbone: Path) -> None:
    def follow(result: Any, *more: object) -> tuple[str, Any]:
        """Runs what the last line names, with more options, and returns its name."""
        line = result.stderr.splitlines()[-1]
        assert line.startswith("next: nertool ") and result.stderr.count("next: ") == 1
        name, *words = shlex.split(line.removeprefix("next: nertool "))
        return name, succeed(name, *(str(tmp_path / "texts") if word == "TEXTS" else word for word in words), *more)

    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("BRCA1 in lung cancer")
    documents = write_documents(tmp_path / "documents", make_corpus(24))
    model = ["--model", backbone, *TRAIN]
    split = succeed("split", documents, "split", "--fractions", "0.6,0.2,0.2")
    name, trained = follow(split, *model)
    assert name == "train" and Path("run/model").is_dir()
    assert follow(trained)[0] == "evaluate"
    assert follow(succeed("cache", "split/train", "cache", *model[:2], *SMALL), *TRAIN, "--force")[0] == "train"
    made = ["--train", "split/train", "--eval", "split/eval", "--output", "small", "--student-layers", "1", *TRAIN]
    name, exported = follow(
        succeed("distill", "run/model", *made), "--max-f1-drop", "1", "--set", "export.min_agreement=0"
    )
    assert name == "export" and follow(exported)[0] == "predict" and Path("predictions").is_dir()
    assert "next:" not in succeed("split", documents, "other", "--json").stderr


def test_after_annotate_comes_split(tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    (tmp_path / "texts/a.txt").write_text("BRCA1 in lung cancer")
    answer = {"document": "a", "section": 0, "response": '[{"entity_match": "BRCA1", "entity_class": "gene"}]'}
    Path("answers.jsonl").write_text(json.dumps(answer))
    command = ["annotate", tmp_path / "texts", "my documents", "--responses", "answers.jsonl"]
    assert succeed(*command).stderr.splitlines()[-1] == "next: nertool split 'my documents' split"
    assert "next:" not in succeed(*command, "--force", "--json").stderr


def test_output_is_plain_in_a_pipe(corpus: tuple[Path, Path]) -> None:
    process = start("split", corpus[0], "out", NO_COLOR="1")
    stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 0 and stdout == ""
    assert "\x1b" not in stderr and "disease" in stderr


def test_secrets_in_the_environment_appear_nowhere(corpus: tuple[Path, Path], backbone: Path) -> None:
    """KAZU prints the environment."""
    train = ["train", "--train", corpus[0], "--eval", corpus[1], "--model", backbone, *TRAIN]
    good = start(*train, "--output", "run", HF_TOKEN="canary-7391", MY_SECRET="canary-7391")
    bad = start(*train, "--output", "run", "--set", "x.y=1", HF_TOKEN="canary-7391", MY_SECRET="canary-7391")
    for process, status in ((good, 0), (bad, 2)):
        stdout, stderr = process.communicate(timeout=120)
        assert process.returncode == status, stderr
        assert "canary" not in stdout + stderr
    assert not [path for path in Path("run").rglob("*") if path.is_file() and b"canary-7391" in path.read_bytes()]


def test_an_evaluation_without_a_readable_document_is_an_error(run: Path) -> None:
    """KAZU's mean F1 is 0 then, without an exception."""
    Path("docs").mkdir()
    Path("docs/a.json").write_text("{")
    assert "holds no valid documents" in refuse("evaluate", run / "model", "docs", "--skip-invalid")


def test_a_run_is_scored_by_one_scheme(run: Path, corpus: tuple[Path, Path], backbone: Path) -> None:
    command = ["train", "--train", corpus[0], "--eval", corpus[1], "--output", run, "--model", backbone, *TRAIN]
    command.append("--resume")
    assert "evaluate.scheme was 'strict', now 'kazu'" in refuse(*command, "--set", "evaluate.scheme=kazu")


def test_usage_errors_exit_with_2() -> None:
    assert nertool("split").exit_code == 2
    assert nertool("no-such-command").exit_code == 2
    assert "three numbers" in refuse("split", ".", "out", "--fractions", "a,b")
    assert "unknown format 'pubtater' (did you mean 'pubtator'?)" in refuse("convert", ".", "out", "--to", "pubtater")
    assert "does not exist" in refuse("split", "nowhere", "out")
