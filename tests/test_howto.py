"""The commands of the how-to pages are run, each block in a folder with what the pages take for granted."""

import gzip
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from nertool.documents import Document, Section
from tests.cli_helpers import in_an_empty_folder, succeed  # noqa: F401
from tests.conftest import make_backbone, make_corpus, write_documents
from tests.page_commands import Shell, blocks

ROOT = Path(__file__).parents[1]
PAGES = sorted((ROOT / "docs" / "howto").glob("*.md"))

# What a test can't run, or needn't as another one does.
NOT_RUN = {
    r"^(pip|python3 -m venv|~/label-studio/bin/\S+) ": "installs",
    r"^export NERTOOL_LABEL_STUDIO": "needs an account in Label Studio",
    r"nertool ls-sync |--ls-project ": "needs a Label Studio server: tests/test_ls_sync.py, nox -s label_studio",
    r"nertool annotate (?!.*(--dry-run|--responses))": "asks an LLM, which costs: tests/test_annotate.py with a stub",
    r"^torchrun ": "starts processes that need a free port: tests/test_distributed.py",
    r"^tensorboard ": "serves until it is stopped",
    r"^srun ": "needs Slurm",
    r"^ray start|--engine ray": "needs Ray: tests/test_bulk_prediction.py",
    r"--device cuda": "needs a GPU",
    r"nertool doctor": "looks at this machine and the network: tests/test_doctor.py",
}
# The pages' names and numbers, and tiny ones that stand for them here.
REWRITES = {
    r"--model \S+": "",  # the tiny one, by NERTOOL_MODEL__NAME
    r"/data/": "",
    r"\$SLURM_ARRAY_TASK_ID/\d+": "1/2",
    r"train\.epochs=\d+": "train.epochs=1",
    r"tokens_per_batch=\d+": "tokens_per_batch=300",
    r'"Gene", "Disease"|"Gene"': '"gene"',
}
SETTINGS = {
    "NERTOOL_WINDOWS__MAX_TOKENS": "32",
    "NERTOOL_WINDOWS__OVERLAP_TOKENS": "8",
    "NERTOOL_TRAIN__TOKENS_PER_BATCH": "300",
    "NERTOOL_TRAIN__LEARNING_RATE": "0.003",
    "NERTOOL_TRAIN__EPOCHS": "8",
    "NERTOOL_AUDIT__EPOCHS": "1",
    "NERTOOL_AUDIT__FOLDS": "2",
    "NERTOOL_EVALUATE__BOOTSTRAP_SAMPLES": "20",
}


@pytest.fixture(scope="module")
def settled(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with everything that the pages name, and the settings for a tiny model in the environment."""
    folder = tmp_path_factory.mktemp("settled")
    before = Path.cwd()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in SETTINGS.items():
            patch.setenv(name, value)
        backbone = make_backbone(tmp_path_factory.mktemp("backbone") / "tiny", layers=4)
        patch.setenv("NERTOOL_MODEL__NAME", str(backbone))
        os.chdir(folder)
        make_world()
        os.chdir(before)
        yield folder


def make_world() -> None:
    """Makes it in the working folder."""
    corpus = make_corpus(30)
    train, held_out, test = corpus[:20], corpus[20:25], corpus[25:]
    write_documents(Path("split/train"), train)
    write_documents(Path("split/eval"), held_out)
    for name in ("split/test", "checked", "corrected", "llm-documents"):
        write_documents(Path(name), test)
    for name in ("documents", "kazu-documents", "corpus", "new-documents"):
        write_documents(Path(name), make_corpus(12, first=40))
    bare = [Document(one.id, tuple(Section(s.name, s.text) for s in one.sections)) for one in make_corpus(9, first=60)]
    write_documents(Path("texts"), bare)
    Path("notes").mkdir()
    Path("notes/one.txt").write_text("BRCA1 in lung cancer", encoding="utf-8")
    for name in ("corpus.jsonl", "corpus.jsonl.zst", "corpus.PubTator", "collection.bioc.json"):
        succeed("convert", "documents", name)
    Path("collection.bioc.json").rename("collection.json")
    for name, form in (("ncbi-train.tsv", "conll"), ("project-1-at-2025-06-01.json", "labelstudio")):
        succeed("convert", "documents", name, "--to", form)
    with gzip.open("abstracts.jsonl.gz", "wt", encoding="utf-8") as lines:
        lines.write("BRCA1 in lung cancer\nEGFR in hepatitis\n")
    Path("my.toml").write_text("[train]\nepochs = 1\n", encoding="utf-8")
    shutil.copytree(ROOT / "sample_data", "sample_data")
    succeed("train", "--train", "split/train", "--eval", "split/eval", "--output", "run")
    for name in ("other-run", "small"):
        shutil.copytree("run", name)
    succeed("audit", "split/train", "audit")
    succeed("export", "run/model", "packed", "--format", "onnx", "--eval", "split/eval", "--parity", "split/train")


def excuse(line: str) -> str | None:
    """Returns why a line isn't run; None: it is."""
    return next((reason for pattern, reason in NOT_RUN.items() if re.search(pattern, line)), None)


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_commands_of_a_page_do_what_they_say(page: Path, settled: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    for number, block in enumerate(one for one in blocks(page) if one.language in ("shell", "python")):
        place = tmp_path / f"block-{number}"
        shutil.copytree(settled, place)
        os.chdir(place)
        if block.language == "python":
            if block.content.startswith("from pathlib"):  # KAZU's pipeline isn't installed here
                exec(compile(block.content, str(page), "exec"), {})
            continue
        shell = Shell(rewrites=REWRITES, replaces=True)
        for line in block.lines:
            if excuse(line) is None:
                shell.run(line)


def test_nothing_is_excused_that_no_page_says() -> None:
    lines = [line for page in PAGES for block in blocks(page) if block.language == "shell" for line in block.lines]
    for pattern in NOT_RUN:
        assert any(re.search(pattern, line) for line in lines), pattern


def test_most_lines_are_run() -> None:
    lines = [line for page in PAGES for block in blocks(page) if block.language == "shell" for line in block.lines]
    run = [line for line in lines if excuse(line) is None]
    assert len(run) > len(lines) / 2
    assert all(re.search(r"\bnertool ", line) for line in run), "what isn't nertool's is excused, with its reason"
