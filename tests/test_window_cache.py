"""The training cache: bytes, fingerprints, refusals, and what a kill leaves."""

import itertools
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nertool import cache_building
from nertool.cache_building import Scan, build_cache, scan
from nertool.documents import Document, Section
from nertool.errors import NertoolError
from nertool.settings import WindowSettings
from nertool.targets import locate, paint
from nertool.window_cache import WindowCache, check_cache, check_content, open_cache
from nertool.windows import SectionTokenizer
from tests.conftest import make_corpus

WINDOWS = WindowSettings(max_tokens=12, overlap_tokens=4)


class Killed(BaseException):
    """As good as `kill -9` for the code under test: no handler of ours catches it."""


def build(path: Path, documents: list[Document], tokenizer: SectionTokenizer, **changes: Any) -> WindowCache:
    windows = changes.pop("windows", WINDOWS)
    return build_cache(path, lambda: iter(documents), tokenizer, windows, **changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def build_until(
    monkeypatch: pytest.MonkeyPatch, where: str, path: Path, documents: list[Document], tokenizer: SectionTokenizer
) -> None:
    """Builds a cache until it is killed where it would call `where` of the module."""

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(cache_building, where, killed)
        build(path, documents, tokenizer)


def test_a_cache_holds_what_was_tokenised(tmp_path: Path, tokenizer: SectionTokenizer) -> None:
    documents = make_corpus(5)
    cache = build(tmp_path / "cache", documents, tokenizer)
    sections = [section for document in documents for section in document.sections]
    tokens = tokenizer.tokenize([section.text for section in sections])
    targets = paint(locate(sections, tokens, cache.scheme), len(tokens.ids), cache.scheme)
    np.testing.assert_array_equal(cache.tokens, tokens.ids)
    bits = np.unpackbits(cache.targets, axis=1, count=cache.scheme.channels + 1)
    np.testing.assert_array_equal(bits[:, :-1], targets)
    np.testing.assert_array_equal(bits[:, -1], tokens.word_starts)
    assert cache.windows["owned_length"].sum() == len(tokens.ids)
    assert list(cache.documents()) == documents
    assert cache.info["counts"]["documents"] == 5


def test_the_same_documents_give_the_same_bytes_and_a_finished_cache_is_not_built_again(
    tmp_path: Path, tokenizer: SectionTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = make_corpus(5)
    build(tmp_path / "a", documents, tokenizer)
    build(tmp_path / "b", documents, tokenizer)
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    monkeypatch.setattr(cache_building, "_build", None)  # would fail if it were built again
    build(tmp_path / "a", documents, tokenizer)


@pytest.mark.parametrize("kill_at", range(1, 12))
def test_a_killed_build_goes_on_to_the_same_bytes(
    tmp_path: Path, tokenizer: SectionTokenizer, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    documents = make_corpus(12)
    monkeypatch.setattr(cache_building, "_DOCUMENTS_PER_CHUNK", 4)
    build(tmp_path / "whole", documents, tokenizer)
    calls = itertools.count(1)
    real_size = cache_building._durable_size

    def killed(path: Path) -> int:
        if next(calls) == kill_at:
            raise Killed
        return real_size(path)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(cache_building, "_durable_size", killed)
        build(tmp_path / "cut", documents, tokenizer)
    assert not (tmp_path / "cut").exists()
    chunks = []
    real_encode = cache_building._Encoder.encode
    monkeypatch.setattr(
        cache_building._Encoder, "encode", lambda self, *chunk: chunks.append(chunk) or real_encode(self, *chunk)
    )
    build(tmp_path / "cut", documents, tokenizer)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")
    assert len(chunks) == 3 - (kill_at - 1) // 4  # finished chunks are not tokenised again


def test_a_torn_journal_line_is_dropped(
    tmp_path: Path, tokenizer: SectionTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = make_corpus(8)
    monkeypatch.setattr(cache_building, "_DOCUMENTS_PER_CHUNK", 4)
    build(tmp_path / "whole", documents, tokenizer)

    def killed(*_: Any) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(
            cache_building,
            "write_json",
            lambda path, value: killed() if path.name == "cache.json" else _write(path, value),
        )
        build(tmp_path / "cut", documents, tokenizer)
    journal = tmp_path / ".cut.partial" / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-7])
    build(tmp_path / "cut", documents, tokenizer)
    assert contents(tmp_path / "cut") == contents(tmp_path / "whole")


_write = cache_building.write_json


@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"windows": WindowSettings(max_tokens=10, overlap_tokens=4)}, "max_tokens is 12 there, not 10"),
        ({"labels": ["gene", "protein"]}, "labels: it has disease, drug, organ more, and lacks protein"),
        ({"begin": True}, "begin_channels is False there, not True"),
    ],
)
def test_a_cache_of_other_settings_is_refused_and_the_difference_named(
    tmp_path: Path, tokenizer: SectionTokenizer, changes: dict[str, Any], what: str
) -> None:
    """KAZU trusts whatever is in the folder."""
    documents = make_corpus(3)
    build(tmp_path / "cache", documents, tokenizer)
    before = contents(tmp_path / "cache")
    with pytest.raises(NertoolError, match=what):
        build(tmp_path / "cache", documents, tokenizer, **changes)
    assert contents(tmp_path / "cache") == before
    build(tmp_path / "cache", documents, tokenizer, **changes, force=True)
    assert contents(tmp_path / "cache") != before


def test_a_known_scan_spares_reading_the_documents_of_a_finished_cache(
    tmp_path: Path, tokenizer: SectionTokenizer
) -> None:
    documents, read = make_corpus(5), []

    def give() -> list[Document]:
        read.append(True)
        return documents

    def again(path: str, scanned: Scan | None) -> WindowCache:
        return build_cache(tmp_path / path, give, tokenizer, WINDOWS, scanned=scanned)

    scanned = scan(documents)
    cache = again("cache", scanned)
    assert len(read) == 1 and again("cache", scanned).info == cache.info and len(read) == 1
    cache.path.rename(tmp_path / ".other.partial")  # lacks nothing but its place
    assert again("other", scanned).info == cache.info and len(read) == 1
    with pytest.raises(NertoolError, match="the documents have changed"):
        again("other", scan(documents[:4]))
    assert len(read) == 1 and again("other", None).info == cache.info and len(read) == 2


def test_a_stale_cache_is_refused(tmp_path: Path, tokenizer: SectionTokenizer) -> None:
    build(tmp_path / "cache", make_corpus(3), tokenizer)
    with pytest.raises(NertoolError, match="the documents have changed"):
        build(tmp_path / "cache", make_corpus(4), tokenizer)


def test_a_cache_of_another_tokenizer_does_not_fit(tmp_path: Path, tokenizer: SectionTokenizer) -> None:
    cache = build(tmp_path / "cache", make_corpus(3), tokenizer)
    other = SectionTokenizer(tokenizer.backend, tokenizer.prefix, tokenizer.suffix, tokenizer.pad_id, "other")
    with pytest.raises(NertoolError, match="the tokenizer has changed"):
        check_cache(cache, other, WINDOWS, begin=False)
    check_cache(cache, tokenizer, WINDOWS, begin=False)


def test_a_damaged_cache_is_refused(tmp_path: Path, tokenizer: SectionTokenizer) -> None:
    build(tmp_path / "cache", make_corpus(3), tokenizer)
    with (tmp_path / "cache/tokens.bin").open("ab") as file:
        file.truncate(5)
    with pytest.raises(NertoolError, match=r"damaged: tokens\.bin"):
        open_cache(tmp_path / "cache")


@pytest.mark.parametrize("name", ["tokens.bin", "targets.bin", "windows.bin"])
def test_a_flipped_bit_in_a_cache_is_seen(tmp_path: Path, tokenizer: SectionTokenizer, name: str) -> None:
    cache = build(tmp_path / "cache", make_corpus(3), tokenizer)
    check_content(cache)
    data = bytearray((cache.path / name).read_bytes())
    data[len(data) // 2] ^= 4
    (cache.path / name).write_bytes(data)
    with pytest.raises(NertoolError, match=f"damaged: {name} is not what was written"):
        check_content(open_cache(cache.path))


def test_a_damaged_cache_is_built_anew_with_force(tmp_path: Path, tokenizer: SectionTokenizer) -> None:
    documents = make_corpus(3)
    whole = contents(build(tmp_path / "cache", documents, tokenizer).path)
    (tmp_path / "cache/tokens.bin").write_bytes(b"")
    with pytest.raises(NertoolError, match="damaged"):
        build(tmp_path / "cache", documents, tokenizer)
    assert contents(build(tmp_path / "cache", documents, tokenizer, force=True).path) == whole


@pytest.mark.parametrize("lost", ["journal.jsonl", "begun.json", "targets.local", "tokens.bin"])
def test_a_half_built_cache_that_lacks_a_file_is_built_anew(
    tmp_path: Path, tokenizer: SectionTokenizer, monkeypatch: pytest.MonkeyPatch, lost: str
) -> None:
    documents = make_corpus(3)
    whole = contents(build(tmp_path / "whole", documents, tokenizer).path)

    def killed(path: Path, value: Any) -> None:
        if path.name == "cache.json":
            raise Killed
        _write(path, value)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(cache_building, "write_json", killed)
        build(tmp_path / "cut", documents, tokenizer)
    (tmp_path / ".cut.partial" / lost).unlink()
    assert contents(build(tmp_path / "cut", documents, tokenizer).path) == whole


def test_documents_that_changed_after_a_kill_are_encoded_anew(
    tmp_path: Path, tokenizer: SectionTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = make_corpus(12)
    monkeypatch.setattr(cache_building, "_DOCUMENTS_PER_CHUNK", 4)

    def killed(path: Path, value: Any) -> None:
        if path.name == "cache.json":
            raise Killed
        _write(path, value)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(cache_building, "write_json", killed)
        build(tmp_path / "cut", documents, tokenizer)
    for changed in (documents[:6], documents, [*documents[:5], *make_corpus(9)[8:], *documents[6:]], documents[:4]):
        whole = contents(build(tmp_path / f"whole-{len(list(tmp_path.iterdir()))}", changed, tokenizer).path)
        shutil.copytree(tmp_path / ".cut.partial", tmp_path / "kept", dirs_exist_ok=True)
        assert contents(build(tmp_path / "cut", changed, tokenizer).path) == whole
        shutil.rmtree(tmp_path / "cut")
        shutil.copytree(tmp_path / "kept", tmp_path / ".cut.partial")


@pytest.mark.parametrize("where", ["_publish", "write_manifest", "replace_folder"])
def test_a_kill_at_the_very_end_costs_nothing(
    tmp_path: Path, tokenizer: SectionTokenizer, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    documents = make_corpus(6)
    whole = contents(build(tmp_path / "whole", documents, tokenizer).path)

    build_until(monkeypatch, where, tmp_path / "cut", documents, tokenizer)
    with monkeypatch.context() as patch:
        patch.setattr(cache_building._Encoder, "encode", None)  # would fail if anything were encoded again
        assert contents(build(tmp_path / "cut", documents, tokenizer).path) == whole
    build_until(monkeypatch, where, tmp_path / "other", documents, tokenizer)
    fewer = build(tmp_path / "other", documents[:5], tokenizer)
    assert fewer.info["counts"]["documents"] == 5


def test_a_replacement_that_was_cut_in_two_is_undone(tmp_path: Path, tokenizer: SectionTokenizer) -> None:
    documents = make_corpus(4)
    whole = contents(build(tmp_path / "cache", documents, tokenizer).path)
    (tmp_path / "cache").rename(tmp_path / ".cache.old")
    assert contents(build(tmp_path / "cache", documents, tokenizer).path) == whole
    assert not (tmp_path / ".cache.old").exists()


def test_a_build_between_its_two_renames_is_not_disturbed(
    tmp_path: Path, tokenizer: SectionTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = make_corpus(4)
    whole = contents(build(tmp_path / "cache", documents, tokenizer).path)
    real_rename, second = Path.rename, []

    def rename(self: Path, target: Path) -> Path:
        if self.name == ".cache.partial" and not second:
            with pytest.raises(NertoolError, match="another nertool is working on") as refused:
                build(tmp_path / "cache", documents, tokenizer)
            second.append(refused)
        return real_rename(self, target)

    monkeypatch.setattr(Path, "rename", rename)
    build(tmp_path / "cache", make_corpus(3), tokenizer, force=True)
    assert second and contents(tmp_path / "cache") != whole
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cache"]


def test_a_damaged_line_of_the_journal_ends_what_is_vouched_for(
    tmp_path: Path, tokenizer: SectionTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = make_corpus(12)
    monkeypatch.setattr(cache_building, "_DOCUMENTS_PER_CHUNK", 4)
    whole = contents(build(tmp_path / "whole", documents, tokenizer).path)

    build_until(monkeypatch, "_finish", tmp_path / "cut", documents, tokenizer)
    journal = tmp_path / ".cut.partial/journal.jsonl"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(lines[0] + b"{broken\n" + lines[2])
    assert contents(build(tmp_path / "cut", documents, tokenizer).path) == whole


@pytest.mark.parametrize("name", ["tokens.bin", "targets.local", "windows.bin", "documents.jsonl.zst"])
def test_a_flipped_bit_in_a_half_built_cache_is_made_good(
    name: str, tmp_path: Path, tokenizer: SectionTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = make_corpus(12)
    monkeypatch.setattr(cache_building, "_DOCUMENTS_PER_CHUNK", 4)
    whole = contents(build(tmp_path / "whole", documents, tokenizer).path)

    build_until(monkeypatch, "_finish", tmp_path / "cut", documents, tokenizer)
    data = bytearray((tmp_path / ".cut.partial" / name).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / ".cut.partial" / name).write_bytes(data)
    assert contents(build(tmp_path / "cut", documents, tokenizer).path) == whole


def test_workers_make_the_same_bytes(
    tmp_path: Path, tokenizer: SectionTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    documents = make_corpus(20)
    monkeypatch.setattr(cache_building, "_DOCUMENTS_PER_CHUNK", 2)
    one = build(tmp_path / "one", documents, tokenizer, workers=1)
    two = build(tmp_path / "two", documents, tokenizer, workers=2)
    assert contents(one.path) == contents(two.path)


def test_chunks_are_bounded_by_bytes_too(tmp_path: Path, tokenizer: SectionTokenizer, monkeypatch: Any) -> None:
    documents = make_corpus(7)
    monkeypatch.setattr(cache_building, "_BYTES_PER_CHUNK", 1)
    small = build(tmp_path / "small", documents, tokenizer)
    monkeypatch.undo()
    large = build(tmp_path / "large", documents, tokenizer)
    for name in ("tokens", "targets", "windows"):
        np.testing.assert_array_equal(getattr(small, name), getattr(large, name))
    assert list(small.documents()) == list(large.documents()) and small.info == large.info


def test_chunks_without_some_of_the_classes_get_their_channels(
    tmp_path: Path, tokenizer: SectionTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each chunk is painted with its own classes before all are known."""
    full = make_corpus(6)
    bare = [Document("bare", (Section("s", "no entity at all"),)), Document("empty", ())]
    documents = [*bare, *full, Document("last", (Section("s", "nothing"),))]
    for begin in (False, True):
        whole = build(tmp_path / f"whole-{begin}", documents, tokenizer, begin=begin)
        with monkeypatch.context() as patch:
            patch.setattr(cache_building, "_DOCUMENTS_PER_CHUNK", 1)
            cut = build(tmp_path / f"cut-{begin}", documents, tokenizer, begin=begin)
        np.testing.assert_array_equal(whole.targets, cut.targets)
        assert whole.info == cut.info


def test_what_another_job_left_half_done_is_not_used(
    tmp_path: Path, tokenizer: SectionTokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(path: Path) -> int:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(cache_building, "_durable_size", killed)
        build(tmp_path / "cache", make_corpus(3), tokenizer)
    build(tmp_path / "cache", make_corpus(4), tokenizer)
    build(tmp_path / "fresh", make_corpus(4), tokenizer)
    assert contents(tmp_path / "cache") == contents(tmp_path / "fresh")


def test_empty_sections_are_counted_and_harmless(tmp_path: Path, tokenizer: SectionTokenizer) -> None:
    documents = [*make_corpus(2), Document("empty", (Section("a", ""), Section("b", "  \n"))), Document("none", ())]
    cache = build(tmp_path / "cache", documents, tokenizer)
    assert cache.info["counts"]["empty_sections"] == 2
    assert cache.info["counts"]["documents"] == 4


def test_more_classes_than_nineteen_work(tmp_path: Path, tokenizer: SectionTokenizer) -> None:
    """KAZU crashes on the twentieth."""
    cache = build(tmp_path / "cache", make_corpus(2), tokenizer, labels=[f"class {i:03d}" for i in range(100)])
    assert cache.targets.shape[1] == 13
