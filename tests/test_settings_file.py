"""`nertool settings`: what holds, where it comes from, and a file to begin with."""

import json
import re
import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nertool.settings import SECRETS, Settings, load_settings
from nertool.settings_file import as_toml, template
from tests.cli_helpers import in_an_empty_folder, nertool, refuse, succeed  # noqa: F401

NAMES = {f"{section}.{key}" for section, part in Settings() for key, _ in part}


def test_each_setting_is_shown_with_its_value_and_where_it_comes_from(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("nertool.toml").write_text('[train]\nepochs = 3\nseed = 5\n[data]\nlabels = ["a, \\"b\\"", "c"]\n')
    monkeypatch.setenv("NERTOOL_TRAIN__SEED", "6")
    monkeypatch.setenv("NERTOOL_TRAIN__PATIENCE", "7")
    shown = json.loads(succeed("settings", "--json", "--set", "train.patience=8").stdout)
    assert {f"{section}.{key}" for section, values in shown.items() for key in values} == NAMES
    assert shown["train"]["epochs"] == {"value": 3, "origin": "nertool.toml"}
    assert shown["train"]["seed"] == {"value": 6, "origin": "NERTOOL_TRAIN__SEED"}
    assert shown["train"]["patience"] == {"value": 8, "origin": "--set"}
    assert shown["train"]["warmup_fraction"] == {"value": 0.1, "origin": "default"}
    assert shown["data"]["labels"]["value"] == ['a, "b"', "c"]
    others = [item for values in shown.values() for item in values.values() if item["origin"] != "default"]
    assert len(others) == 4


def test_what_is_shown_is_a_settings_file_that_sets_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NERTOOL_MODEL__NAME", 'folder "with" \\ # and \x7f')
    assignments = [
        "annotate.extra_body={a=[1, 2.5], 'b c'={d=true}}",
        "annotate.classes=x.toml",
        "train.learning_rate=1e-5",
    ]
    result = succeed("settings", "--show", *(word for text in assignments for word in ("--set", text)))
    assert result.stderr == ""
    Path("shown.toml").write_text(result.stdout)
    assert load_settings(Path("shown.toml"), environment={}) == load_settings(assignments=assignments)
    lines = result.stdout.splitlines()
    assert any(re.fullmatch(r"epochs = 8 +# default", line) for line in lines)
    assert any(re.fullmatch(r"learning_rate = 1e-05 +# --set", line) for line in lines)
    assert any(re.fullmatch(r"# seed is unset +# default", line) for line in lines)


def test_one_section_can_be_shown() -> None:
    assert list(json.loads(succeed("settings", "windows", "--json").stdout)) == ["windows"]
    assert list(tomllib.loads(succeed("settings", "windows").stdout)) == ["windows"]
    assert "unknown settings section 'window' (did you mean 'windows'?)" in refuse("settings", "window")


@pytest.mark.parametrize("options", [[], ["--json"]])
def test_of_secrets_it_is_shown_whether_they_are_set(options: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NERTOOL_ANNOTATE__API_KEY", "canary-5532")
    result = nertool("settings", *options, "--set", "annotate.base_url=https://host/v1")
    assert result.exit_code == 0 and "canary" not in result.output
    shown = json.loads(succeed("settings", "--json", "--set", "label_studio.token=canary-5532").stdout)
    assert shown["annotate"]["api_key"] == {"value": "set", "origin": "NERTOOL_ANNOTATE__API_KEY"}
    assert shown["label_studio"]["token"] == {"value": "set", "origin": "--set"}
    monkeypatch.delenv("NERTOOL_ANNOTATE__API_KEY")
    assert "# api_key is not set" in succeed("settings").stdout


def test_wrong_settings_are_an_error_and_nothing_is_shown() -> None:
    assert "did you mean 'train.epochs'?" in refuse("settings", "--set", "train.epoch=3")


def test_a_file_to_begin_with_changes_nothing_and_says_everything() -> None:
    succeed("settings", "--init")
    text = Path("nertool.toml").read_text()
    assert load_settings(environment={}) == Settings()
    for name in NAMES - SECRETS:
        section, _, key = name.partition(".")
        assert f"#{key} = " in text.split(f"[{section}]")[1].split("\n[")[0]
    assert not re.search(r"#?(api_key|token) =", text)


def test_what_is_commented_out_are_the_defaults() -> None:
    text = re.sub(r"(?m)^#(\w+ = )(?!# unset)", r"\1", template())
    assert text.count("\nepochs = 8") == 1
    values = tomllib.loads(text)
    Path("all.toml").write_text(text)
    assert load_settings(Path("all.toml"), environment={}) == Settings()
    given = {f"{section}.{key}" for section, part in values.items() for key in part}
    unset = {f"{section}.{key}" for section, part in Settings() for key, value in part if value is None}
    assert given | unset == NAMES and not given & unset


def test_a_file_that_is_there_is_replaced_only_by_force() -> None:
    Path("nertool.toml").write_text("[train]\nepochs = 3\n")
    assert "nertool.toml exists" in refuse("settings", "--init")
    assert Path("nertool.toml").read_text() == "[train]\nepochs = 3\n"
    result = succeed("settings", "train", "--init", "--config", "other/my.toml", "--json")
    assert json.loads(result.stdout) == {"output": "other/my.toml"}
    assert list(tomllib.loads(Path("other/my.toml").read_text())) == ["train"]
    succeed("settings", "--init", "--force")
    assert load_settings(environment={}) == Settings()
    assert "--set makes no sense" in refuse("settings", "--init", "--force", "--set", "train.epochs=1")


_TOML_VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
)  # fmt: skip


@given(_TOML_VALUES)
def test_values_are_written_as_toml_reads_them(value: object) -> None:
    assert tomllib.loads(f"x = {as_toml(value)}")["x"] == value
