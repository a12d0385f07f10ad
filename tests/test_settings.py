import itertools
from pathlib import Path

import pytest
from pydantic import ValidationError

from nertool.errors import NertoolError
from nertool.settings import Settings, load_settings


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    """Keeps nertool.toml files and variables of whoever runs the tests out."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def load(file: str | None = None, assignments=(), environment=None, options=None) -> Settings:
    if file is not None:
        Path("settings.toml").write_text(file, encoding="utf-8")
    return load_settings(Path("settings.toml") if file is not None else None, assignments, options, environment or {})


def problems_of(**origins) -> list[str]:
    with pytest.raises(NertoolError) as error:
        load(**origins)
    assert error.value.hint
    return error.value.message.splitlines()


# From the weakest to the strongest; each sets another number of epochs.
ORIGINS = [
    ("file", "[train]\nepochs = 11", 11),
    ("environment", {"NERTOOL_TRAIN__EPOCHS": "12"}, 12),
    ("assignments", ["train.epochs=13"], 13),
    ("options", {"train.epochs": 14}, 14),
]


@pytest.mark.parametrize(("weaker", "stronger"), itertools.combinations(ORIGINS, 2))
def test_the_stronger_origin_wins(weaker, stronger):
    assert load(**{weaker[0]: weaker[1], stronger[0]: stronger[1]}).train.epochs == stronger[2]


@pytest.mark.parametrize("origin", ORIGINS)
def test_every_origin_wins_over_the_default_and_leaves_other_settings_alone(origin):
    settings = load(**{origin[0]: origin[1]})
    assert settings.train.epochs == origin[2]
    assert settings.train.patience == Settings().train.patience
    assert settings.windows == Settings().windows


def test_all_origins_together_are_merged_key_by_key():
    settings = load(
        file="[train]\nepochs = 11\npatience = 7\n[windows]\nmax_tokens = 128",
        environment={"NERTOOL_TRAIN__PATIENCE": "8", "NERTOOL_WINDOWS__OVERLAP_TOKENS": "16", "PATH": "/bin"},
        assignments=["train.seed=1", "train.epochs=12"],
        options={"train.epochs": 13, "train.seed": None},
    )
    assert (settings.train.epochs, settings.train.patience, settings.train.seed) == (13, 8, 1)
    assert (settings.windows.max_tokens, settings.windows.overlap_tokens) == (128, 16)


def test_nertool_toml_of_the_working_folder_is_found_unless_another_file_is_named():
    Path("nertool.toml").write_text("[train]\nepochs = 21", encoding="utf-8")
    assert load().train.epochs == 21
    assert load(file="[train]\npatience = 9").train.epochs == Settings().train.epochs


def test_the_environment_of_the_process_is_read(monkeypatch):
    monkeypatch.setenv("NERTOOL_TRAIN__EPOCHS", "31")
    assert load_settings().train.epochs == 31


@pytest.mark.parametrize(
    ("origin", "names"),
    [
        ({"file": "[train]\nepoch = 3"}, "settings.toml: unknown setting 'train.epoch'"),
        ({"environment": {"NERTOOL_TRAIN__EPOCH": "3"}}, "NERTOOL_TRAIN__EPOCH: unknown setting 'train.epoch'"),
        ({"assignments": ["train.epoch=3"]}, "--set train.epoch=3: unknown setting 'train.epoch'"),
        ({"options": {"train.epoch": 3}}, "command line: unknown setting 'train.epoch'"),
    ],
)
def test_an_unknown_setting_is_named_with_its_origin_and_the_nearest_right_name(origin, names):
    assert problems_of(**origin) == [f"{names} (did you mean 'train.epochs'?)"]


@pytest.mark.parametrize(
    ("origin", "names"),
    [
        ({"file": "[trian]\nepochs = 3"}, "settings.toml: unknown settings section 'trian'"),
        ({"environment": {"NERTOOL_TRIAN__EPOCHS": "3"}}, "NERTOOL_TRIAN__EPOCHS: unknown settings section 'trian'"),
        ({"assignments": ["trian.epochs=3"]}, "--set trian.epochs=3: unknown settings section 'trian'"),
        ({"options": {"trian.epochs": 3}}, "command line: unknown settings section 'trian'"),
    ],
)
def test_an_unknown_section_is_named_with_its_origin_and_the_nearest_right_name(origin, names):
    assert problems_of(**origin) == [f"{names} (did you mean 'train'?)"]


@pytest.mark.parametrize(
    ("origin", "name"),
    [
        ({"file": "[train]\nepochs = 0"}, "settings.toml"),
        ({"environment": {"NERTOOL_TRAIN__EPOCHS": "0"}}, "NERTOOL_TRAIN__EPOCHS"),
        ({"assignments": ["train.epochs=0"]}, "--set train.epochs=0"),
        ({"options": {"train.epochs": 0}}, "command line"),
    ],
)
def test_a_value_out_of_range_is_named_with_its_origin(origin, name):
    (problem,) = problems_of(**origin)
    assert problem.startswith(f"{name}: train.epochs: ")
    assert problem.endswith("greater than or equal to 1, not 0")


def test_all_problems_of_all_origins_come_at_once():
    problems = problems_of(
        file="[train]\nepochs = 0\npatiens = 3\n[windws]\nmax_tokens = 1",
        environment={"NERTOOL_MODEL__THRESHOLD": "2", "NERTOOL_NOTHING": "1"},
        assignments=["train.seed=x", "no-equals-sign"],
        options={"data.split_seed": -1},
    )
    assert len(problems) == 8
    for start in (
        "settings.toml: train.epochs: ",
        "settings.toml: unknown setting 'train.patiens' (did you mean 'train.patience'?)",
        "settings.toml: unknown settings section 'windws' (did you mean 'windows'?)",
        "NERTOOL_MODEL__THRESHOLD: model.threshold: ",
        "NERTOOL_NOTHING: unknown settings section 'nothing'",
        "--set train.seed=x: train.seed: ",
        "--set no-equals-sign: write --set SECTION.NAME=VALUE",
        "command line: data.split_seed: ",
    ):
        assert any(problem.startswith(start) for problem in problems), start


def test_a_wrong_value_that_a_stronger_origin_replaces_does_no_harm():
    assert load(file="[train]\nepochs = 0", assignments=["train.epochs=2"]).train.epochs == 2


@pytest.mark.parametrize(
    "file", ["[train\nepochs = 3", "epochs = 3\nepochs = 4", "[train]\nepochs = three", "\ufeff[train]"]
)
def test_broken_toml_is_an_error_that_names_the_file(file):
    (problem,) = problems_or_first_line(file)
    assert problem.startswith("settings.toml is not valid TOML: ")


def problems_or_first_line(file: str) -> list[str]:
    with pytest.raises(NertoolError) as error:
        load(file=file)
    return error.value.message.splitlines()[:1]


def test_a_configuration_file_that_is_not_utf_8_is_an_error_that_names_it():
    Path("latin.toml").write_bytes(b'[model]\nname = "\xe4"')
    with pytest.raises(NertoolError, match=r"latin\.toml is not valid TOML"):
        load_settings(Path("latin.toml"), environment={})


def test_a_configuration_file_that_is_named_must_exist():
    with pytest.raises(NertoolError, match=r"missing\.toml does not exist"):
        load_settings(Path("missing.toml"), environment={})


def test_a_setting_outside_a_section_is_reported_not_ignored():
    assert problems_of(file="train = 3")[0].startswith("settings.toml: unknown setting 'train'")
    assert problems_of(file="[train]\nepochs = 'x'") == [
        "settings.toml: train.epochs: should be a whole number, not 'x'"
    ]
    assert problems_of(file="epochs = 3") == ["settings.toml: unknown settings section 'epochs'"]
    assert problems_of(file="[train.epochs]\nx = 3")[0].startswith("settings.toml: train.epochs: ")


@pytest.mark.parametrize(
    ("assignment", "section", "key", "value"),
    [
        ("train.learning_rate=3e-5", "train", "learning_rate", 3e-5),
        ("train.tensorboard=false", "train", "tensorboard", False),
        ("model.name=minilm", "model", "name", "minilm"),
        ("model.name=./folder with = sign#1", "model", "name", "./folder with = sign#1"),
        ("model.name='quoted'", "model", "name", "quoted"),
        ("model.name=123", "model", "name", "123"),
        ("data.labels=['a', 'b']", "data", "labels", ("a", "b")),
        ("data.split_fractions=[0.9, 0.1, 0]", "data", "split_fractions", (0.9, 0.1, 0.0)),
        (" train.epochs = 3 ", "train", "epochs", 3),
    ],
)
def test_set_reads_values_as_toml_and_the_rest_as_text(assignment, section, key, value):
    assert getattr(getattr(load(assignments=[assignment]), section), key) == value


def test_settings_cannot_be_changed_afterwards():
    settings = Settings()
    for target, name in ((settings, "train"), (settings.train, "epochs")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(target, name, 3)


def test_the_environment_counts_only_where_origins_are_named(monkeypatch):
    monkeypatch.setenv("TRAIN", '{"epochs": 99}')
    monkeypatch.setenv("NERTOOL_TRAIN__EPOCHS", "99")
    assert Settings().train.epochs != 99


def test_every_setting_says_what_it_means():
    for part in Settings.model_fields.values():
        for field in part.annotation.model_fields.values():
            assert field.description


@pytest.mark.parametrize("name", ["annotate.base_url", "label_studio.url"])
@pytest.mark.parametrize(
    "address",
    [
        "https://user:canary-2291@host/v1", "https://canary-2291@host", "https://host/v1?key=canary-2291", "http://host#canary-2291",
        "http://user:canary-2291", "canary-2291", "ftp://canary-2291", "http://[canary-2291",
    ],
)  # fmt: skip
def test_addresses_with_secrets_in_them_are_refused_and_not_shown(name, address):
    for origin in ({"options": {name: address}}, {"assignments": [f"{name}={address}"]}):
        (problem,) = problems_of(**origin)
        assert "an address" in problem and "canary" not in problem


def test_addresses_lose_the_slash_at_their_end():
    settings = load(assignments=["annotate.base_url=https://host:8000/v1/"])
    assert settings.annotate.base_url == "https://host:8000/v1"
