"""Two processes that train one model, against one process that takes as many batches per step."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from nertool.batches import epoch_batches
from nertool.distributed import World, join_world
from nertool.formats.kazu import KazuWriter
from nertool.window_cache import open_cache
from tests.cli_helpers import refuse, succeed
from tests.conftest import make_corpus
from tests.test_training_failures import end_of

SETTINGS = [
    "--set", "train.epochs=2", "--set", "train.tokens_per_batch=110", "--set", "windows.max_tokens=32",
    "--set", "windows.overlap_tokens=8", "--set", "train.learning_rate=3e-3", "--set", "train.tensorboard=false",
    "--set", "train.precision=fp32",
]  # fmt: skip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    documents = make_corpus(24)
    for name, part in (("train", documents[:17]), ("eval", documents[17:])):
        with KazuWriter(folder / name) as writer:
            for document in part:
                writer.write(document)
    return folder


def command(corpus: Path, backbone: Path, output: Path, *more: str) -> list[str]:
    return [
        "train", "--train", str(corpus / "train"), "--eval", str(corpus / "eval"), "--output", str(output),
        "--model", str(backbone), *SETTINGS, *more,
    ]  # fmt: skip


def start(processes: int, arguments: list[str]) -> "subprocess.Popen[str]":
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.Popen(
        [*torchrun, "-m", "nertool", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "TERM": "dumb", "OMP_NUM_THREADS": "1"},
        start_new_session=True,
    )


def run(processes: int, arguments: list[str]) -> tuple[int, str, str]:
    process = start(processes, arguments)
    out, err = process.communicate(timeout=240)
    return process.returncode, out, err


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model/model.safetensors")


def losses(output: Path) -> list[float]:
    lines = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if line["kind"] == "train"]


def test_two_processes_train_what_one_does_with_twice_the_batches(corpus: Path, backbone: Path, tmp_path: Path) -> None:
    no_dropout = ["--set", "model.dropout=0"]
    one = ["--set", "train.accumulate_batches=2"]
    summary = json.loads(succeed(*command(corpus, backbone, tmp_path / "one", *no_dropout, *one, "--json")).stdout)
    status, out, err = run(2, command(corpus, backbone, tmp_path / "two", *no_dropout, "--json"))
    assert status == 0, err
    both = json.loads(out)  # one document, so only the first process printed
    windows = open_cache(tmp_path / "one/cache").windows
    batches = len(epoch_batches(windows["length"].astype(np.int64) + 2, 110, 42, 0))
    assert batches % 2 == 1  # in the last step of the epoch one process has none
    assert both["steps"] == summary["steps"]
    assert len(re.findall("training .* 2 processes", err)) == 1
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("hidden_weight", [0, 1])
def test_two_processes_distill_what_one_does(corpus: Path, backbone: Path, tmp_path: Path, hidden_weight: int) -> None:
    no_dropout = ["--set", "model.dropout=0", "--set", f"distill.hidden_weight={hidden_weight}"]
    succeed(*command(corpus, backbone, tmp_path / "teacher"))
    given = command(corpus, backbone, tmp_path / "x", *no_dropout)
    given = ["distill", str(tmp_path / "teacher/model"), *given[1:], "--student-layers", "1"]
    given = [item for item in given if item not in ("--model", str(backbone))]

    def into(name: str, *more: str) -> list[str]:
        return [str(tmp_path / name) if item == str(tmp_path / "x") else item for item in [*given, *more]]

    succeed(*into("one", "--set", "train.accumulate_batches=2"))
    status, out, err = run(2, into("two", "--json"))
    assert status == 0, err
    assert json.loads(out)["student"]["parameters"] > 0
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    for name, tensor in first.items():
        torch.testing.assert_close(second[name], tensor, rtol=0, atol=1e-4)
    (tmp_path / "two/report.json").unlink()  # as after a kill while teacher and student were compared
    status, _, err = run(2, into("two", "--resume"))
    assert status == 0 and (tmp_path / "two/report.json").is_file(), err


@pytest.mark.slow
def test_a_killed_run_of_two_goes_on_to_the_same_end_and_not_with_another_number(
    corpus: Path, backbone: Path, tmp_path: Path
) -> None:
    often = ["--set", "train.checkpoint_every_seconds=0", "--set", "train.epochs=12", "--set", "train.patience=99"]
    status, _, err = run(2, command(corpus, backbone, tmp_path / "whole", *often))
    assert status == 0, err
    cut = command(corpus, backbone, tmp_path / "cut", *often)
    process = start(2, cut)
    while not list((tmp_path / "cut").glob("checkpoints/step-0000000[2-9]")):
        assert process.poll() is None, process.communicate()
        time.sleep(0.005)
    kill_all(tmp_path / "cut", process)
    assert not json.loads((tmp_path / "cut/run.json").read_text())["finished"]
    alone = refuse(*cut, "--resume")
    assert "begun by 2 processes, not 1" in alone and "--nproc-per-node 2" in alone
    status, _, err = run(2, [*cut, "--resume"])
    assert status == 0 and "resuming at step" in err, err
    assert end_of(tmp_path / "whole") == end_of(tmp_path / "cut")


@pytest.mark.slow
def test_a_signal_to_torchrun_saves_a_checkpoint(corpus: Path, backbone: Path, tmp_path: Path) -> None:
    arguments = command(corpus, backbone, tmp_path / "run", "--set", "train.epochs=60", "--set", "train.patience=1000")
    process = start(2, arguments)
    while not (tmp_path / "run/metrics.jsonl").is_file() or not (tmp_path / "run/metrics.jsonl").stat().st_size:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate(timeout=60)
    (saved,) = re.findall(r"saved at step ([\d,]+)", err)
    assert process.returncode == 1, err  # torchrun's own
    assert list((tmp_path / "run/checkpoints").glob(f"step-{int(saved.replace(',', '')):08d}*"))
    status, _, err = run(2, [*arguments, "--resume"])
    assert status == 0 and f"resuming at step {saved} of" in err, err


@pytest.mark.slow
def test_a_signal_to_all_processes_saves_a_checkpoint_too(corpus: Path, backbone: Path, tmp_path: Path) -> None:
    """Batch systems send it to each; torchrun then sends it once more."""
    many = ["--set", "train.epochs=400", "--set", "train.patience=1000"]
    process = start(2, command(corpus, backbone, tmp_path / "run", *many))
    while not (tmp_path / "run/metrics.jsonl").is_file() or not (tmp_path / "run/metrics.jsonl").stat().st_size:
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    subprocess.run(["pkill", "-TERM", "-f", f"nertool.*--output {tmp_path / 'run'}"], check=True)
    _, err = process.communicate(timeout=60)
    assert len(re.findall("saved at step", err)) == 1, err


def test_bad_input_ends_all_processes(corpus: Path, backbone: Path, tmp_path: Path) -> None:
    arguments = command(corpus, backbone, tmp_path / "run")
    arguments[2] = str(tmp_path / "missing")
    status, out, err = run(2, arguments)
    assert status != 0 and out == "" and err.count(f"{tmp_path / 'missing'} does not exist") == 1
    assert err.count("Traceback") == 1  # torchrun's own


@pytest.mark.slow
def test_a_loss_that_is_no_number_is_reported_once(corpus: Path, backbone: Path, tmp_path: Path) -> None:
    wild = ["--set", "train.learning_rate=1e30", "--set", "train.epochs=20"]
    status, _, err = run(2, command(corpus, backbone, tmp_path / "run", *wild))
    assert status != 0 and len(re.findall(r"Error: the (loss|gradients)", err)) == 1, err


SLOW_TO_NAME = """
import sys, time
from nertool import cli, runs
named = runs.documents_of_windows
def slowly(*arguments):
    time.sleep(3)
    open(sys.argv[-1], "w").close()
    return named(*arguments)
runs.documents_of_windows = slowly
cli.app(sys.argv[1:-1])
"""


@pytest.mark.slow
def test_the_others_end_after_the_first_one_knows_what_to_say_of_the_loss(
    corpus: Path, backbone: Path, tmp_path: Path
) -> None:
    """torchrun ends all processes when one has ended, and kills after 30 seconds."""
    named = tmp_path / "named"
    wild = ["--set", "train.learning_rate=1e30", "--set", "train.epochs=20"]
    arguments = [sys.executable, "-c", SLOW_TO_NAME, *command(corpus, backbone, tmp_path / "run", *wild), str(named)]
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    first, second = (
        subprocess.Popen(
            arguments, stderr=subprocess.PIPE, text=True, env={**os.environ, **shared, "RANK": rank, "LOCAL_RANK": rank}
        )
        for rank in ("0", "1")
    )
    _, silent = second.communicate(timeout=120)
    assert second.returncode == 2 and "Error" not in silent and named.exists(), silent
    first.terminate()  # as torchrun does then
    _, said = first.communicate(timeout=60)
    assert first.returncode == 2 and re.search(r"Error: the (loss|gradients)", said), said


def test_one_process_has_nothing_to_exchange() -> None:
    with join_world() as world:
        assert world == World(0, 1)
        assert world.gather("x") == ["x"] and world.share(3) == 3 and world.largest(4, 5) == [4, 5]
        network = torch.nn.Linear(1, 1)
        assert world.wrap(network) is network


def kill_all(output: Path, process: "subprocess.Popen[str]") -> None:
    """Kills torchrun and its workers, which are in sessions of their own; their command lines name the output."""
    process.kill()
    while subprocess.run(["pkill", "-9", "-f", f"nertool.*--output {output}"], check=False).returncode == 0:
        time.sleep(0.02)
    process.communicate()
