"""`predict` in bulk: the same bytes however it is done, killed, shared out or resumed."""

import io
import json
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import zstandard
from click.testing import Result
from typer.testing import CliRunner

from nertool import bulk_prediction
from nertool.cli import app
from nertool.formats import ReadReport, read_documents
from tests.cli_helpers import in_an_empty_folder, nertool, refuse, start, succeed, wait_for  # noqa: F401
from tests.conftest import make_backbone, make_corpus, write_documents

CHUNKS = ["--set", "predict.documents_per_chunk=3"]
OPTIONS = ["--set", "windows.max_tokens=32", "--set", "windows.overlap_tokens=8", "--set", "train.tokens_per_batch=300"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained `model`, `documents`, and what predicting them in one go gives: `whole.jsonl`."""
    folder = tmp_path_factory.mktemp("bulk")
    make_backbone(folder / "backbone")
    write_documents(folder / "train", make_corpus(24))
    write_documents(folder / "documents", make_corpus(20))
    succeed(
        "train", "--train", folder / "train", "--eval", folder / "train", "--output", folder / "run", "--model",
        folder / "backbone", *OPTIONS, "--set", "train.learning_rate=0.003", "--set", "train.epochs=12",
    )  # fmt: skip
    shutil.copytree(folder / "run/model", folder / "model")
    succeed("predict", folder / "model", folder / "documents", folder / "whole.jsonl", *CHUNKS)
    return folder


def lines(path: Path) -> list[bytes]:
    data = path.read_bytes()
    return (zstandard.open(io.BytesIO(data)).read() if path.suffix == ".zst" else data).splitlines()


def documents(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in lines(path)]


def entities(path: Path) -> list[list[tuple[str, str]]]:
    return [
        [
            (entity["entity_class"], entity["match"])
            for section in one["sections"]
            for entity in section.get("entities", [])
        ]
        for one in documents(path)
    ]


def test_several_processes_give_the_same_bytes_as_one(folder: Path) -> None:
    result = json.loads(
        succeed(
            "predict", folder / "model", folder / "documents", "two.jsonl", *CHUNKS, "--workers", 2, "--json"
        ).stdout
    )
    assert (result["documents"], result["runs_on"].split(" in ")[0]) == (20, "torch on cpu")
    assert Path("two.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()


def test_parts_together_are_the_whole(folder: Path) -> None:
    succeed("predict", folder / "model", folder / "documents", "parts", *CHUNKS, "--documents-per-file", 5)
    parts = sorted(Path("parts").glob("part-*"))
    assert [(part.name, len(lines(part))) for part in parts] == [
        ("part-00000.jsonl.zst", 6), ("part-00001.jsonl.zst", 6), ("part-00002.jsonl.zst", 6),
        ("part-00003.jsonl.zst", 2),
    ]  # fmt: skip
    assert [line for part in parts for line in lines(part)] == lines(folder / "whole.jsonl")
    assert len(list(read_documents(Path("parts"), ReadReport()))) == 20


def test_shards_together_are_the_whole_and_are_never_mixed_with_others(folder: Path) -> None:
    command = ["predict", folder / "model", folder / "documents", "out", *CHUNKS]
    for number in (3, 1, 2):
        result = json.loads(succeed(*command, "--shard", f"{number}/3", "--json").stdout)
        assert result["output"] == f"out/part-{number:05d}-of-00003.jsonl.zst"
    found = [line for part in sorted(Path("out").glob("part-*")) for line in lines(part)]
    assert sorted(found) == sorted(lines(folder / "whole.jsonl"))
    assert "exists" in refuse(*command, "--shard", "1/3")
    message = refuse(*command, "--shard", "1/3", "--min-score", "0.5")
    assert "were made otherwise (min_score: None there, 0.5 now)" in message
    assert "parts: 3 there, 4 now" in refuse(*command, "--shard", "4/4")
    succeed(*command, "--shard", "1/3", "--min-score", "0.5", "--force")
    for wrong in ("0/3", "4/3", "1", "a/b", "-1/3"):
        assert "is no shard" in refuse(*command, f"--shard={wrong}")
    assert "makes a folder" in refuse("predict", folder / "model", folder / "documents", "o.jsonl", "--shard", "1/3")


def test_a_shard_without_documents_is_an_empty_part(folder: Path) -> None:
    for number in (1, 2, 3):
        succeed("predict", folder / "model", folder / "documents/doc-000.json", "out", "--shard", f"{number}/3")
    assert sorted(len(lines(part)) for part in Path("out").glob("part-*")) == [0, 0, 1]


def test_a_file_without_documents_is_said_and_a_pipe_may_be_empty(folder: Path) -> None:
    Path("empty.jsonl").write_bytes(b"\n")
    assert "empty.jsonl holds no documents" in refuse("predict", folder / "model", "empty.jsonl", "out.jsonl")
    empty = piped(folder, b"")
    assert (empty.exit_code, empty.stdout) == (0, "")


def test_what_another_engine_began_is_not_mixed_with(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["predict", folder / "model", folder / "documents", "out.jsonl", *CHUNKS]
    real, calls = bulk_prediction.ChunkPredictor.predict_all, []

    def some(self: Any, chunks: Any) -> Any:
        for chunk in real(self, chunks):
            calls.append(chunk)
            if len(calls) == 3:
                raise KeyboardInterrupt
            yield chunk

    with monkeypatch.context() as patch:
        patch.setattr(bulk_prediction.ChunkPredictor, "predict_all", some)
        assert nertool(*command).exit_code == 130
    Path(".out.jsonl.partial/runs_on.json").write_text('"abacus in Latin"')
    assert "predicted by abacus in Latin, now it is torch on cpu" in refuse(*command)


def test_only_some_entities_are_wanted(folder: Path) -> None:
    predict = ["predict", folder / "model", folder / "documents"]
    every = entities(folder / "whole.jsonl")
    succeed(*predict, "genes.jsonl", "--labels", "gene, organ")
    wanted = [[entity for entity in found if entity[0] in ("gene", "organ")] for found in every]
    assert entities(Path("genes.jsonl")) == wanted != every
    scores = sorted(
        entity["metadata"]["score"]
        for one in documents(folder / "whole.jsonl")
        for section in one["sections"]
        for entity in section.get("entities", [])
    )
    cut = scores[len(scores) // 2]
    succeed(*predict, "certain.jsonl", "--min-score", cut)
    assert sum(map(len, entities(Path("certain.jsonl")))) == sum(score >= cut for score in scores)
    facts = documents(Path("certain.jsonl"))[0]["metadata"]["nertool_prediction"]
    assert facts["min_score"] == cut and facts["model"] == "model" and len(facts["model_digest"]) == 16
    message = refuse(*predict, "none.jsonl", "--labels", "gene,disaese")
    assert "the model has no class 'disaese' (did you mean 'disease'?)" in message


def test_entities_that_are_there_can_be_kept(folder: Path) -> None:
    gold = write_documents(Path("gold"), make_corpus(3))
    succeed("predict", folder / "model", gold, "kept.jsonl", "--keep")
    succeed("predict", folder / "model", gold, "new.jsonl")
    before = {document.id: document for document in read_documents(gold, ReadReport())}
    for kept, new in zip(
        read_documents(Path("kept.jsonl"), ReadReport()), read_documents(Path("new.jsonl"), ReadReport()), strict=True
    ):
        for section, given, predicted in zip(kept.sections, before[kept.id].sections, new.sections, strict=True):
            places = [(entity.label, entity.spans) for entity in given.entities]
            added = [(e.label, e.spans) for e in predicted.entities if (e.label, e.spans) not in places]
            assert section.entities[: len(places)] == given.entities
            assert [(e.label, e.spans) for e in section.entities] == places + added


def test_lines_in_and_lines_out(folder: Path) -> None:
    texts = "BRCA1 in lung cancer\n\nEGFR kinase 😀\n".encode()
    command = [sys.executable, "-m", "nertool", "predict", str(folder / "model"), "-", "-"]
    result = subprocess.run(command, input=texts, capture_output=True, check=True)
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(one["idx"], one["sections"][0]["text"]) for one in found] == [
        ("line-1", "BRCA1 in lung cancer"),
        ("line-3", "EGFR kinase 😀"),
    ]
    assert found[0]["sections"][0]["entities"]
    assert piped(folder, (folder / "whole.jsonl").read_bytes()).stdout_bytes == (folder / "whole.jsonl").read_bytes()
    bad = piped(folder, b'{"sections": [}\n')
    assert bad.exit_code == 2 and "stdin.jsonl:1" in bad.stderr and not bad.stdout
    assert "go with none of" in refuse("predict", folder / "model", folder / "documents", "-", "--json")


def piped(folder: Path, lines: bytes) -> Result:
    return CliRunner().invoke(app, ["predict", str(folder / "model"), "-", "-"], input=lines)


def test_an_output_that_another_command_is_making_is_left_alone(folder: Path) -> None:
    from nertool.files import exclusive

    with exclusive(Path("out.jsonl")):
        assert "another nertool" in refuse("predict", folder / "model", folder / "documents", "out.jsonl")


def test_rows_of_datasets_are_refused_as_an_output(folder: Path) -> None:
    message = refuse("predict", folder / "model", folder / "documents", "out.datasets.jsonl")
    assert "then nertool convert" in message


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
def test_ten_kills_at_random_moments_end_in_the_same_bytes(folder: Path, workers: int, tmp_path: Path) -> None:
    source = write_documents(tmp_path / "many", make_corpus(1500))
    command = ["predict", folder / "model", source, "out.jsonl.zst", *CHUNKS, "--workers", workers]
    began = time.monotonic()
    succeed(*command[:3], "whole.jsonl.zst", *command[4:])
    seconds = time.monotonic() - began
    chance = random.Random(workers)
    for _ in range(10):
        process = start(*command)
        time.sleep(chance.uniform(0.3, 1.0) * max(seconds, 4.0))
        process.kill()
        process.communicate()
        if Path("out.jsonl.zst").exists():
            break
    if not Path("out.jsonl.zst").exists():
        succeed(*command)
    assert Path("out.jsonl.zst").read_bytes() == Path("whole.jsonl.zst").read_bytes()
    ids = [one["idx"] for one in documents(Path("out.jsonl.zst"))]
    assert len(ids) == len(set(ids)) == 1500
    assert not list(Path().glob(".out*"))


@pytest.mark.slow
def test_ray_gives_the_same_bytes_though_a_worker_is_killed(folder: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    psutil = pytest.importorskip("psutil")
    source = write_documents(tmp_path / "many", make_corpus(800))
    (tmp_path / "one").mkdir()
    shutil.copy(folder / "whole.jsonl", tmp_path / "one/a.jsonl")  # a source of many chunks, and sources of one chunk
    for file in source.iterdir():
        if int(file.stem.split("-")[1]) >= 20:
            shutil.copy(file, tmp_path / "one")
    command = ["predict", folder / "model", tmp_path / "one", "--set", "predict.documents_per_chunk=8"]
    succeed(*command, "whole.jsonl.zst")
    process = start(*command, "ray.jsonl.zst", "--engine", "ray", "--workers", 2, "--json", RAY_ADDRESS="local")
    wait_for(lambda: list(Path(".ray.jsonl.zst.partial").glob("chunk-*")), process)
    killed = [
        child
        for child in psutil.Process(process.pid).children(recursive=True)
        if "MapWorker" in " ".join(child.cmdline())
    ][:1]
    for child in killed:
        child.kill()
    stdout, stderr = process.communicate(timeout=300)
    assert process.returncode == 0, stderr
    assert json.loads(stdout)["documents"] == len(list((tmp_path / "one").iterdir())) - 1 + 20
    assert killed
    assert Path("ray.jsonl.zst").read_bytes() == Path("whole.jsonl.zst").read_bytes()


def test_ray_must_be_installed_and_no_gpu_is_invented(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from nertool import extras

    monkeypatch.setattr(extras.importlib.util, "find_spec", lambda name: None)
    message = refuse("predict", folder / "model", folder / "documents", "out.jsonl", "--engine", "ray")
    assert "ray is not installed" in message and "nertool[ray]" in message


def test_the_marks_of_a_run_go_away_with_it(folder: Path) -> None:
    succeed("predict", folder / "model", folder / "documents", "out.jsonl", *CHUNKS)
    assert [path.name for path in Path().iterdir()] == ["out.jsonl"]
