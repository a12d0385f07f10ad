"""`predict` in bulk: the same bytes however it is done, killed, shared out or resumed."""

import io
import json
import logging
import os
import random
import re
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import zstandard
from click.testing import Result
from typer.testing import CliRunner

from nertool import bulk_prediction
from nertool.chunks import Check
from nertool.cli import app
from nertool.errors import NertoolError
from nertool.formats import ReadReport, read_documents
from nertool.prediction_output import check_parts
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
    assert "were made otherwise (min_score: 0.0 there, 0.5 now)" in message
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
    begin(command, monkeypatch)
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


def interrupt_after(chunks: int, patch: pytest.MonkeyPatch) -> None:
    """Makes the next run stop, as by Ctrl-C, after so many saved chunks."""
    real = bulk_prediction.ChunkPredictor.predict_all

    def some(self: Any, given: Any) -> Any:
        for number, chunk in enumerate(real(self, given)):
            if number == chunks:
                raise KeyboardInterrupt
            yield chunk

    patch.setattr(bulk_prediction.ChunkPredictor, "predict_all", some)


def begin(command: list[Any], monkeypatch: pytest.MonkeyPatch, chunks: int = 3) -> list[str]:
    """Runs a command that is interrupted; returns the names of the chunks that it leaves."""
    with monkeypatch.context() as patch:
        interrupt_after(chunks, patch)
        assert nertool(*command).exit_code == 130
    return saved(command[3])


def saved(output: Any) -> list[str]:
    return sorted(path.name for path in Path(f".{output}.partial").glob("chunk-*"))


def test_what_is_done_outlives_runs_that_fail_before_they_predict(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = shutil.copytree(folder / "documents", Path("in"))
    command = ["predict", folder / "model", source, "out.jsonl", *CHUNKS]
    chunks = begin(command, monkeypatch)
    assert len(chunks) == 3
    with monkeypatch.context() as patch:
        patch.setattr(bulk_prediction, "check_chunk", lambda chunk: (_ for _ in ()).throw(KeyboardInterrupt))
        assert nertool(*command).exit_code == 130
    assert saved("out.jsonl") == chunks
    (source / "zzz.json").write_text("[]")
    assert "must be a JSON object" in refuse(*command)
    assert saved("out.jsonl") == chunks
    (source / "zzz.json").unlink()
    result = succeed(*command)
    assert "going on after 9 documents" in result.stderr
    assert Path("out.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()


def test_which_machine_it_was_is_no_reason_to_begin_anew_and_other_settings_are_told(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["predict", folder / "model", folder / "documents", "out.jsonl", *CHUNKS]
    begin(command, monkeypatch)
    with monkeypatch.context() as patch:
        interrupt_after(0, patch)
        result = nertool(*command, "--device", "cpu", "--set", "predict.engine=torch")
    assert "going on after 9 documents" in result.stderr and len(saved("out.jsonl")) == 3
    result = succeed(*command, "--min-score", "0.01", "--set", "predict.keep_entities=true")
    assert "9 documents of an earlier run are not used, as it was another one: keep_entities, min_score" in re.sub(
        r"\s+", " ", result.stderr
    )
    begin([*command, "--force"], monkeypatch)
    monkeypatch.setattr("nertool.__version__", "9.9")
    assert "another one: nertool_version" in succeed(*command, "--force").stderr
    found = {one["metadata"]["nertool_prediction"]["nertool_version"] for one in documents(Path("out.jsonl"))}
    assert found == {"9.9"}


def test_a_chunk_that_was_damaged_is_predicted_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["predict", folder / "model", folder / "documents", "out.jsonl", *CHUNKS]
    chunk = Path(".out.jsonl.partial", begin(command, monkeypatch)[1])
    chunk.write_bytes(chunk.read_bytes().replace(b"lung", b"lunG"))
    stderr = re.sub(r"\s+", " ", succeed(*command).stderr)
    assert f"{chunk} is damaged, so its 3 documents are predicted again" in stderr
    assert "going on after 6 documents" in stderr
    assert Path("out.jsonl").read_bytes() == (folder / "whole.jsonl").read_bytes()


@pytest.mark.parametrize("change", ["other text", "no document", "one less", "one more", "shorter"])
def test_documents_that_change_after_they_were_looked_at_are_not_mixed_in(
    change: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copy(folder / "whole.jsonl", "in.jsonl")
    before = Path("in.jsonl").read_bytes().splitlines(keepends=True)
    after = {
        "other text": [*before[:10], before[10].replace(b"in", b"on"), *before[11:]],
        "no document": [*before[:10], b"{}}\n", *before[11:]],
        "one less": [*before[:10], *before[11:]],
        "one more": [*before, before[0].replace(b'"doc-000"', b'"new"')],
        "shorter": before[:12],
    }[change]
    real = bulk_prediction.LocalEngine.predict

    def later(self: Any, reading: Any) -> Any:
        Path("in.jsonl").write_bytes(b"".join(after))
        return real(self, reading)

    with monkeypatch.context() as patch:
        patch.setattr(bulk_prediction.LocalEngine, "predict", later)
        message = refuse("predict", folder / "model", "in.jsonl", "out.jsonl", *CHUNKS)
    assert "changed while they were read" in message and not Path("out.jsonl").exists()
    succeed("predict", folder / "model", "in.jsonl", "out.jsonl", "--skip-invalid", *CHUNKS)
    succeed("predict", folder / "model", "in.jsonl", "afresh.jsonl", "--skip-invalid", *CHUNKS)
    assert Path("out.jsonl").read_bytes() == Path("afresh.jsonl").read_bytes()


def test_documents_that_change_while_repeated_ids_are_looked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = (folder / "whole.jsonl").read_bytes()
    Path("in.jsonl").write_bytes(data + data)
    real = Check.repeated_ids

    def later(self: Any, read: Any) -> Any:
        Path("in.jsonl").write_bytes(data[: len(data) // 2])
        return real(self, read)

    monkeypatch.setattr(Check, "repeated_ids", later)
    assert "changed while they were read" in refuse("predict", folder / "model", "in.jsonl", "out.jsonl", *CHUNKS)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_model_that_is_replaced_meanwhile_is_not_used(
    workers: int, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = shutil.copytree(folder / "model", Path("model"))
    real = bulk_prediction.LocalEngine.predict

    def later(self: Any, reading: Any) -> Any:
        facts = json.loads((model / "nertool.json").read_text())
        facts["thresholds"] = dict.fromkeys(facts["thresholds"], 0.99)
        (model / "nertool.json").write_text(json.dumps(facts))
        return real(self, reading)

    monkeypatch.setattr(bulk_prediction.LocalEngine, "predict", later)
    message = refuse("predict", model, folder / "documents", "out.jsonl", *CHUNKS, "--workers", workers)
    assert "is not the model that this command began with" in message


def test_an_output_may_have_the_name_of_a_file_of_ours(folder: Path) -> None:
    for name in ("rejected.jsonl", "stdin.jsonl"):
        succeed("predict", folder / "model", folder / "documents", name, *CHUNKS)
        assert Path(name).read_bytes() == (folder / "whole.jsonl").read_bytes()
    assert sorted(path.name for path in Path().iterdir()) == ["rejected.jsonl", "stdin.jsonl"]


def test_shards_of_other_chunks_or_other_documents_are_refused(folder: Path) -> None:
    source = shutil.copytree(folder / "documents", Path("in"))
    command = ["predict", folder / "model", source, "out", *CHUNKS]
    succeed(*command, "--shard", "1/3")
    message = refuse(*command, "--shard", "2/3", "--set", "predict.documents_per_chunk=4")
    assert "documents_per_chunk: 3 there, 4 now" in message
    (source / "one-more.json").write_bytes((source / "doc-000.json").read_bytes().replace(b"doc-000", b"doc-999"))
    message = refuse(*command, "--shard", "2/3")
    assert "files: 20 with" in message and "21 with" in message
    (source / "one-more.json").unlink()
    succeed(*command, "--shard", "2/3")


def test_shards_are_not_mixed_by_what_they_run_on(folder: Path) -> None:
    command = ["predict", folder / "model", folder / "documents", "out", *CHUNKS]
    succeed(*command, "--shard", "1/3")
    facts = json.loads(Path("out/.nertool-parts.json").read_text())
    assert facts["runs_on"].startswith("torch on cpu")
    Path("out/.nertool-parts.json").write_text(json.dumps({**facts, "runs_on": "abacus"}))
    assert "runs_on: abacus there, torch on cpu" in refuse(*command, "--shard", "2/3")
    assert not saved("out/part-00002-of-00003.jsonl.zst")


def test_forced_shards_leave_nothing_of_those_that_were_made_otherwise(folder: Path) -> None:
    command = ["predict", folder / "model", folder / "documents", "out", *CHUNKS]
    for number in (1, 2, 3):
        succeed(*command, "--shard", f"{number}/3")
    for number in (1, 2):
        succeed(*command, "--shard", f"{number}/2", "--force")
    assert sorted(path.name for path in Path("out").glob("part-*")) == [
        "part-00001-of-00002.jsonl.zst", "part-00002-of-00002.jsonl.zst",
    ]  # fmt: skip
    assert len(list(read_documents(Path("out"), ReadReport()))) == 20


def test_shards_do_not_go_into_a_folder_of_other_documents(folder: Path) -> None:
    succeed("predict", folder / "model", folder / "documents", "out", *CHUNKS)
    command = ["predict", folder / "model", folder / "documents", "out", "--shard", "1/3"]
    for options in ([], ["--force"]):
        assert "holds other files" in refuse(*command, *options)
    assert not list(Path("out").glob("*part*"))


def _check(folder: Path, number: int) -> str:
    try:
        check_parts(folder, {"number": number}, force=False)
    except NertoolError as error:
        return error.message
    return ""


def test_many_shards_may_begin_at_once() -> None:
    with ThreadPoolExecutor(8) as pool:
        for attempt in range(20):
            same = list(pool.map(_check, [Path(f"same-{attempt}")] * 8, [1] * 8))
            assert same == [""] * 8
            other = list(pool.map(_check, [Path(f"other-{attempt}")] * 8, range(8)))
            assert other.count("") == 1


def test_text_beside_annotations_is_a_part_of_the_input(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("in").mkdir()
    for number in range(4):
        Path(f"in/{number}.txt").write_text("BRCA1 in lung cancer")
        Path(f"in/{number}.ann").write_text("")
    command = ["predict", folder / "model", "in", "out.jsonl", "--set", "predict.documents_per_chunk=1"]
    begin(command, monkeypatch, 2)
    Path("in/0.txt").write_text("EGFR in lung cancer")
    succeed(*command)
    assert documents(Path("out.jsonl"))[0]["sections"][0]["text"] == "EGFR in lung cancer"


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


def test_a_ray_cluster_that_is_not_there_is_said(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    stdout = sys.stdout

    def nobody(**options: Any) -> None:
        raise ConnectionError("ray client connection timeout")

    monkeypatch.setattr(ray, "init", nobody)
    monkeypatch.setenv("RAY_ADDRESS", "192.0.2.1:6379")
    message = refuse("predict", folder / "model", folder / "documents", "out.jsonl", "--engine", "ray")
    assert "Ray can't be started or reached: ray client connection timeout" in message and "192.0.2.1:6379" in message
    assert sys.stdout is stdout and logging.root.manager.disable == logging.NOTSET


def test_ray_reads_by_paths_that_do_not_depend_on_where_a_process_is(folder: Path) -> None:
    Path("documents").symlink_to(folder / "documents")
    reading = bulk_prediction.Reading(Path("documents"), None, 7).absolute()
    os.chdir("/")
    assert [len(source.files) for source in reading.sources()] == [7, 7, 6]
    assert reading.path.name == "documents"


def test_the_marks_of_a_run_go_away_with_it(folder: Path) -> None:
    succeed("predict", folder / "model", folder / "documents", "out.jsonl", *CHUNKS)
    assert [path.name for path in Path().iterdir()] == ["out.jsonl"]
