"""The spool, and the process that sends it."""

import time
from pathlib import Path

import pytest
from pydantic import SecretStr

from nertool.commands.showing import choose_rows, showing_evaluations
from nertool.documents import Document, Entity, Section
from nertool.errors import NertoolError
from nertool.labelling_spool import Spooled, Uploader, read_spool, spool_files, write_spool
from nertool.labelling_tasks import Item, make_items
from nertool.settings import LabelStudioSettings, Settings
from tests.conftest import make_corpus
from tests.test_labelling_tasks import HARD_TEXTS

NOBODY = LabelStudioSettings(url="http://127.0.0.1:9", token=SecretStr("c4n4ry"))


def spooled(version: str = "run@7") -> Spooled:
    documents = [*make_corpus(3), *(Document(f"{name}/..", (Section("s", text),)) for name, text in HARD_TEXTS.items())]
    items = [item for document in documents for item in make_items(document, has_gold=True)]
    return Spooled(
        "Name", version, ("gene", "drug"), 3, tuple(items), {item.key: item.section.entities for item in items}
    )


def test_what_is_written_is_read(tmp_path: Path) -> None:
    wanted = spooled()
    assert read_spool(write_spool(tmp_path / "spool", wanted)) == wanted
    (path,) = spool_files(tmp_path / "spool")
    assert path.name.startswith("run%407-")
    write_spool(tmp_path / "spool", wanted)
    assert spool_files(tmp_path / "spool") == [path]
    for other in (wanted._replace(project="Other"), wanted._replace(items=wanted.items[1:])):
        write_spool(tmp_path / "spool", other)
    assert len(spool_files(tmp_path / "spool")) == 3


@pytest.mark.parametrize("content", [b"", b"{}", b"[]\n", b'{"spool": 2}\n', b'{"spool": 1}\n', b"\xff\n"])
def test_other_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.spool.jsonl"
    path.write_bytes(content)
    with pytest.raises(NertoolError, match=r"x.spool.jsonl is no spool file"):
        read_spool(path)


def test_a_spool_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    path = write_spool(tmp_path, spooled())
    path.write_bytes(b"\n".join(path.read_bytes().splitlines()[:-1]))
    with pytest.raises(NertoolError, match="is no spool file"):
        read_spool(path)


def test_rows_have_the_predictions_of_their_section() -> None:
    gold = make_corpus(4)
    rows = choose_rows(((one, one) for one in gold), 3)
    assert len(rows) == 3
    assert all(item.section.entities == entities and item.has_gold for item, entities in rows)
    alone: list[tuple[Item, tuple[Entity, ...]]] = choose_rows(((None, one) for one in gold), None)
    assert len(alone) == 8
    assert all(not item.has_gold and not item.section.entities and entities for item, entities in alone)


def test_a_server_that_is_not_there_costs_one_warning_and_nothing_is_lost(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    spool = tmp_path / "spool"
    begun = time.monotonic()
    with Uploader(spool, NOBODY) as uploader:
        for version in ("run@1", "run@2", "run@3"):
            write_spool(spool, spooled(version))
            uploader.start()
            time.sleep(0.1)
    assert time.monotonic() - begun < 20
    said = capfd.readouterr().err
    assert said.count("warning: Label Studio doesn't get the predictions") <= 1
    assert f"nertool ls-sync push --from {spool}" in said
    assert len(spool_files(spool)) == 3
    assert b"c4n4ry" not in b"".join(path.read_bytes() for path in spool.iterdir())


def test_a_training_that_nobody_can_be_shown_does_not_fill_the_disk(tmp_path: Path) -> None:
    settings = Settings(label_studio=NOBODY.model_copy(update={"keep_versions": 2}))
    corpus = make_corpus(2)
    found = [section.entities for document in corpus for section in document.sections]
    with showing_evaluations(tmp_path / "run", corpus, ["gene"], settings, "Name") as show:
        assert show is not None
        for step in range(1, 6):
            show(step, found)
    kept = [read_spool(path) for path in spool_files(tmp_path / "run/label_studio")]
    assert [one.version for one in kept] == ["run@4", "run@5"]
    assert all(one.predicted[item.key] == item.section.entities for one in kept for item in one.items)


def test_a_training_goes_on_whatever_happens_when_it_is_shown(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run/label_studio").write_text("a file in the way")
    with showing_evaluations(tmp_path / "run", make_corpus(1), [], Settings(label_studio=NOBODY), "Name") as show:
        assert show is not None
        show(1, [(), ()])
    assert "warning: nothing to show in Label Studio for step 1" in capfd.readouterr().err


def test_nothing_to_send_starts_nothing(tmp_path: Path) -> None:
    with Uploader(tmp_path, NOBODY) as uploader:
        uploader.start()
    assert list(tmp_path.iterdir()) == []
