"""The reference pages follow the code."""

import importlib.util
import re
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
            assert name in here, f"{page}: {name}"
