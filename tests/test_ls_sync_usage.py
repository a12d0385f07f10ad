"""`ls-sync` where no server is needed: wrong usage, settings and input."""

from pathlib import Path

import pytest

from tests.cli_helpers import in_an_empty_folder, refuse  # noqa: F401
from tests.conftest import make_corpus, write_documents


@pytest.fixture(autouse=True)
def nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NERTOOL_LABEL_STUDIO__URL", "http://127.0.0.1:9")
    monkeypatch.setenv("NERTOOL_LABEL_STUDIO__TOKEN", "c4n4ry")


def test_no_server(tmp_path: Path) -> None:
    docs = write_documents(tmp_path / "docs", make_corpus(2))
    for command in (["push", docs, "--project", "abc"], ["pull", "out", "--project", "abc"], ["list"], ["status"]):
        message = refuse("ls-sync", *command)
        assert "Label Studio at http://127.0.0.1:9 doesn't answer" in message
        assert "c4n4ry" not in message
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("command", "words"),
    [
        (["push", "DOCS"], "name one: --project NAME"),
        (["push", "--project", "abc"], "no documents are named"),
        (["push", "DOCS", "--project", "ab"], "3 to 50 characters"),
        (["push", "DOCS", "--project", "abc", "--errors-only"], "--errors-only needs --predictions"),
        (["push", "DOCS", "--project", "abc", "--predictions", "DOCS", "--predictions", "DOCS"], "two predictions"),
        (["push", "DOCS", "--project", "abc", "--predictions", "OTHER"], "another text than in DOCS: doc-000#0"),
        (["push", "DOCS", "--project", "abc", "--predictions", "STRANGE"], "predictions for none of the sections"),
        (["push", "DOCS", "--project", "abc", "--queue", "none.txt"], "the queue can't be read"),
        (["push", "missing", "--project", "abc"], "missing does not exist"),
        (["push", "--from", "missing"], "is no spool"),
        (["push", "DOCS", "--from", "DOCS"], "leave DOCS and --predictions out"),
        (["pull", "DOCS", "--project", "abc"], "exists and is not empty"),
        (["delete"], "no project is named"),
        (["list", "--set", "label_studio.url=ftp://x"], "an address looks like"),
        (["list", "--set", "label_studio.ca_file=nothing.pem"], "nothing.pem"),
    ],
)  # fmt: skip
def test_wrong_usage(tmp_path: Path, command: list[str], words: str) -> None:
    corpus = make_corpus(2)
    paths = {"DOCS": write_documents(tmp_path / "docs", corpus)}
    paths["STRANGE"] = write_documents(tmp_path / "strange", make_corpus(2, first=7))
    paths["OTHER"] = write_documents(tmp_path / "other", [])
    text = (paths["DOCS"] / "doc-000.json").read_text().replace("BRCA1", "ABCD1")
    (paths["OTHER"] / "doc-000.json").write_text(text)
    assert words in refuse("ls-sync", *(str(paths.get(word, word)) for word in command))


def test_training_with_label_studio_wants_a_token_and_a_possible_name_before_anything_else(
    corpus: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = ["train", "--train", corpus[0], "--eval", corpus[1], "--output", "run", "--model", "nowhere"]
    assert "3 to 50" in refuse(*train, "--ls-project", "x")
    monkeypatch.delenv("NERTOOL_LABEL_STUDIO__TOKEN")
    assert "NERTOOL_LABEL_STUDIO__TOKEN" in refuse(*train, "--ls-project", "Name")
    assert not Path("run").exists()


def test_without_the_sdk_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert "pip install 'nertool[label-studio]'" in refuse("ls-sync", "list")


def test_documents_are_scored_against_documents(tmp_path: Path) -> None:
    import json

    from tests.cli_helpers import succeed

    corpus = make_corpus(4)
    gold = write_documents(tmp_path / "gold", corpus)
    fewer = [
        type(d)(d.id, tuple(type(s)(s.name, s.text, s.entities[1:]) for s in reversed(d.sections))) for d in corpus
    ]
    report = json.loads(succeed("evaluate", write_documents(tmp_path / "p", fewer), gold, "--json").stdout)
    found, all_gold = (
        sum(len(s.entities) for d in fewer for s in d.sections),
        sum(len(s.entities) for d in corpus for s in d.sections),
    )
    assert (report["micro_precision"], report["micro_recall"]) == (1.0, found / all_gold)
    assert report["counts"]["not_representable"] is None
    succeed("evaluate", tmp_path / "p", gold)
    succeed("convert", tmp_path / "p", tmp_path / "p.conll")  # in any format
    in_words = json.loads(succeed("evaluate", tmp_path / "p.conll", gold, "--json").stdout)
    assert in_words["micro_precision"] == 1.0 and in_words["micro_recall"] <= report["micro_recall"]
    assert "lacks 2 sections" in refuse("evaluate", tmp_path / "p", write_documents(tmp_path / "more", make_corpus(5)))
