"""What breaks while a model is trained: kills, full disks, lost folders."""

import json
import os
import pty
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from nertool.cache_building import build_cache
from nertool.checkpoints import STATE_FILE, latest_checkpoint
from nertool.files import read_json
from nertool.tracking import Tracker
from tests.cli_helpers import refuse, start, succeed, wait_for
from tests.conftest import make_corpus
from tests.test_cli import SMALL, write_documents

KILLS = 50


@pytest.fixture
def command(tmp_path: Path, backbone: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.chdir(tmp_path)
    documents = make_corpus(20)
    train, evaluated = (write_documents(tmp_path / name, part) for name, part in
                        (("train", documents[:14]), ("eval", documents[14:])))  # fmt: skip
    return [
        "train", "--train", str(train), "--eval", str(evaluated), "--model", str(backbone), *SMALL,
        "--set", "train.learning_rate=0.003", "--set", "train.tokens_per_batch=256", "--set", "model.dropout=0.1",
    ]  # fmt: skip


# Runs nertool and notes in a file what it is at: training, evaluating, or saving a state or a model.
NOTING = """
import os, sys
from nertool import cli, runs
place = os.open(sys.argv[1], os.O_WRONLY | os.O_CREAT)
def noted(function, stage):
    def call(*arguments, **options):
        os.pwrite(place, stage, 0)
        result = function(*arguments, **options)
        os.pwrite(place, b"training  ", 0)
        return result
    return call
runs.evaluate_split = noted(runs.evaluate_split, b"evaluating")
runs.save_checkpoint = noted(runs.save_checkpoint, b"saving    ")
runs.Session._write_model = noted(runs.Session._write_model, b"keeping   ")
os.pwrite(place, b"training  ", 0)
cli.app(sys.argv[2:])
"""


@pytest.mark.slow
def test_fifty_kills_in_training_evaluating_and_saving_change_nothing(command: list[str]) -> None:
    """A checkpoint after every step and an evaluation after every third: kills hit all three."""
    often = ["--set", "train.checkpoint_every_seconds=0", "--set", "train.evaluate_every_steps=3"]
    long = [*command, *often, "--set", "train.epochs=100", "--set", "train.patience=1000"]
    long += ["--set", "train.learning_rate=0.0003"]  # so slow that the best model changes where the kills are
    succeed(*long, "--output", "whole")
    chance = random.Random(11)
    kills, hit = [], Counter[str]()
    for number in range(KILLS):
        arguments = [*long, "--output", "cut", *(["--resume"] if number else [])]
        process = subprocess.Popen([sys.executable, "-c", NOTING, "stage", *arguments], stderr=subprocess.PIPE)
        for _ in range(chance.randint(1, 3)):  # steps since it was started
            before = newest("cut")
            until(lambda before=before: newest("cut") != before, process)
        aim = ("training", "evaluating", "saving")[number % 3]
        until(lambda aim=aim: stage() == aim, process)
        process.kill()
        process.communicate()
        hit[stage()] += 1
        kills.append(newest("cut"))
    succeed(*long, "--output", "cut", "--resume")
    assert len(set(kills)) > KILLS / 2  # at different steps
    assert all(hit[name] >= KILLS / 10 for name in ("training", "evaluating", "saving")), hit
    scores = [line["micro_f1"] or 0.0 for line in read_metrics("whole") if line["step"] < int(kills[-1][5:13])]
    assert len(set(accumulate(scores, max))) > 5  # the best model changed between them
    assert end_of(Path("whole")) == end_of(Path("cut"))


def until(ready: Callable[[], bool], process: "subprocess.Popen[bytes]") -> None:
    while not ready():
        assert process.poll() is None, process.communicate()
        time.sleep(0.0005)  # so short that what lasts only milliseconds is hit


def stage() -> str:
    return Path("stage").read_text().strip()


def end_of(run: Path) -> dict[str, Any]:
    """Returns all that must be the same at the end of two runs: bytes of the best model and of the last state."""
    checkpoint = latest_checkpoint(run / "checkpoints")
    assert checkpoint is not None
    state = read_json(checkpoint / STATE_FILE)
    del state["progress"]["train_seconds"]
    ends: dict[str, Any] = {file.name: file.read_bytes() for file in checkpoint.glob("*.safetensors")}
    assert sorted(ends) == ["model.safetensors", "optimizer.safetensors", "random.safetensors"]
    best = [(run / "model" / name).read_bytes() for name in ("model.safetensors", "nertool.json")]
    return {**ends, "best": best, "state": state, "metrics": read_metrics(str(run))}


def newest(run: str) -> str:
    return max((path.name for path in Path(run).glob("checkpoints/step-*")), default="")


def read_metrics(run: str) -> list[dict[str, Any]]:
    """Returns what was evaluated; the losses of a resumed run are means over the steps since."""
    return [line for line in read_lines(run) if line["kind"] == "eval"]


def read_lines(run: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(run, "metrics.jsonl").read_text().splitlines()]


def test_a_disk_that_fills_up_while_training_keeps_the_last_checkpoint(command: list[str], tmp_path: Path) -> None:
    succeed(*command, "--output", "whole", "--set", "train.epochs=6", "--set", "train.tensorboard=false")
    used = sum(file.stat().st_size for file in Path("whole").rglob("*") if file.is_file())
    disk = tmp_path / "disk"
    disk.mkdir()
    size = used // 1024 + 40  # enough for what a run leaves, not for a second checkpoint beside the first
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(disk)], check=False).returncode:
        pytest.skip("mounting a tmpfs is not allowed here")
    try:
        filling = [*command, "--output", str(disk / "run"), "--set", "train.epochs=6"]
        filling += ["--set", "train.checkpoint_every_seconds=0", "--set", "train.tensorboard=false"]
        message = refuse(*filling)
        assert "can't be saved" in message and "No space left on device" in message
        assert "checkpoints/step-00000001 is intact" in message and "--resume" in message
        (saved,) = (disk / "run/checkpoints").iterdir()
        assert saved.name == "step-00000001" and load_file(saved / "model.safetensors")
        subprocess.run(["mount", "-o", f"remount,size={4 * size}k", str(disk)], check=True)
        succeed(*filling, "--resume")
        assert (disk / "run/model/model.safetensors").read_bytes() == Path("whole/model/model.safetensors").read_bytes()
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_place_where_tensorboard_cannot_write_is_named(command: list[str]) -> None:
    Path("run").mkdir()
    succeed(*command, "--output", "run", "--set", "train.epochs=1")
    state = json.loads(Path("run/run.json").read_text())
    Path("run/run.json").write_text(json.dumps({**state, "finished": False}))
    shutil.rmtree("run/tensorboard")
    Path("run/tensorboard").write_text("in the way")
    message = refuse(*command, "--output", "run", "--set", "train.epochs=1", "--resume")
    assert "run/tensorboard: TensorBoard files can't be written there" in message
    assert "train.tensorboard=false" in message


def test_training_goes_on_without_tensorboard_when_its_folder_is_removed(command: list[str]) -> None:
    long = [*command, "--output", "run", "--set", "train.epochs=25", "--set", "train.patience=1000"]
    process = start(*long)
    wait_for(lambda: Path("run/metrics.jsonl").is_file() and read_lines("run"), process)
    shutil.rmtree("run/tensorboard")
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 0 and stderr.count("no more TensorBoard files") == 1, stderr
    assert "Traceback" not in stderr and "Exception" not in stderr
    assert read_lines("run")[-1]["kind"] == "eval" and not Path("run/tensorboard").exists()


def test_tensorboard_shows_what_metrics_jsonl_holds_after_a_resumption_too(tmp_path: Path) -> None:
    first = Tracker(tmp_path, lines=0, step=0, tensorboard=True)
    for step in range(1, 5):
        first.write(step, "train", {"loss": 1 / step, "learning_rate": 2.0**-step})
    first.write(4, "eval", {"micro_f1": 0.25, "scheme": "strict", "Gene_f1": None})
    first.close()
    time.sleep(1.1)  # their names tell by the second which of two files is the later one
    second = Tracker(tmp_path, lines=3, step=3, tensorboard=True)  # step 4 is done again
    second.write(4, "train", {"loss": 0.125})
    second.close()
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert sorted(shown.Tags()["scalars"]) == ["eval/micro_f1", "train/learning_rate", "train/loss"]
    for tag in shown.Tags()["scalars"]:
        kind, name = tag.split("/")
        lines = [line for line in read_lines(str(tmp_path)) if line["kind"] == kind and name in line]
        assert [point.step for point in shown.Scalars(tag)] == [line["step"] for line in lines]
        assert [point.value for point in shown.Scalars(tag)] == pytest.approx([line[name] for line in lines])


def test_a_terminal_that_hangs_up_saves_a_checkpoint(command: list[str]) -> None:
    """As when an SSH connection is lost: SIGHUP comes, and nothing can be written to the terminal any more."""
    ours, theirs = pty.openpty()
    on_it = "import os, sys; os.login_tty(0); os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
    process = subprocess.Popen(
        [sys.executable, "-c", on_it, "-m", "nertool", *endless(command), "--output", "run"],
        stdin=theirs, env={**os.environ, "TERM": "xterm"},
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while b"loss" not in seen:
        seen += os.read(ours, 4096)
    os.close(ours)
    assert process.wait(60) == 129
    assert newest("run")


def test_under_nohup_a_hang_up_does_not_stop_training(command: list[str]) -> None:
    process = subprocess.Popen(
        ["nohup", sys.executable, "-m", "nertool", *endless(command), "--output", "run"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_for(lambda: Path("run/metrics.jsonl").is_file() and len(read_lines("run")) > 2, process)
    process.send_signal(signal.SIGHUP)
    before = len(read_lines("run"))
    wait_for(lambda: len(read_lines("run")) > before + 2, process)
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143 and "saved at step" in stderr


def endless(command: list[str]) -> list[str]:
    """Returns a training that goes on until it is stopped, and saves nothing before that."""
    return [*command, "--set", "train.epochs=3000", "--set", "train.evaluate_every_steps=1000000"]


def test_a_cache_that_vanished_is_missed_before_training_and_not_during_it(command: list[str]) -> None:
    succeed("cache", "train", "cached", "--model", command[6], *SMALL)
    from_cache = [*command[:2], "cached", *command[3:], "--output", "run", "--set", "train.epochs=300"]
    process = start(*from_cache, "--set", "train.checkpoint_every_seconds=0", "--set", "train.patience=1000")
    while not newest("run"):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    shutil.rmtree("cached")  # its files stay mapped
    first = newest("run")
    while newest("run") == first:
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    process.terminate()
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 143, stderr
    message = refuse(*from_cache, "--resume")
    assert "cached does not exist" in message


def test_a_cache_that_lost_a_file_is_named(command: list[str]) -> None:
    succeed("cache", "train", "cached", "--model", command[6], *SMALL)
    Path("cached/windows.bin").unlink()
    message = refuse(*command[:2], "cached", *command[3:], "--output", "run")
    assert "the cache cached is damaged: windows.bin" in message and "--force" in message


def test_documents_that_change_before_they_are_tokenised_are_not_trained_on(
    command: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def change_and_build(*arguments: object, **options: object) -> object:
        path = Path("train/doc-003.json")
        path.write_text(path.read_text().replace("Cells 3", "Cells 4"))
        return build_cache(*arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr("nertool.cache_building.build_cache", change_and_build)
    assert "train changed while it was read" in refuse(*command, "--output", "run", "--set", "train.epochs=1")
    assert not Path("run/model").exists()


def test_a_flipped_bit_in_a_cache_is_no_training(command: list[str]) -> None:
    succeed("cache", "train", "cached", "--model", command[6], *SMALL)
    targets = Path("cached/targets.bin")
    targets.write_bytes(bytes([targets.read_bytes()[0] ^ 1]) + targets.read_bytes()[1:])
    message = refuse(*command[:2], "cached", *command[3:], "--output", "run")
    assert "the cache cached is damaged: targets.bin" in message
