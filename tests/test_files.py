import itertools
import json
import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nertool.errors import NertoolError
from nertool.files import (
    MANIFEST_NAME,
    check_output,
    check_own,
    exclusive,
    json_lines,
    new_folder,
    partial_path,
    publish_folder,
    read_json,
    recover_folder,
    remove_own,
    replace_folder,
    safe_file_name,
    write_atomic,
    write_json,
    write_json_lines,
    write_manifest,
)

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="file size limits and signals as Linux has them")


def content_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def make_output(path: Path, *, force: bool = False, text: str = "own") -> Path:
    with new_folder(path, "test", force=force, seed=1) as folder:
        (folder / "train").mkdir()
        (folder / "train" / "a.json").write_text(text)
    return path


class Crash(BaseException):
    """Stands for the end of the process at one place."""


def crash(*_: object) -> None:
    raise Crash


# Names


identifiers = st.text(max_size=300) | st.text("./\\~%:aA\u0000é ", max_size=150)


@settings(max_examples=120, deadline=None)
@given(identifier=identifiers)
@example("")
@example(".")
@example("..")
@example("../../x")
@example("/etc/passwd")
@example("a/b\\c")
@example(".nertool.json")
@example("x" * 300)
@example("😀" * 100)
@example("a\0b\n")
def test_a_file_name_is_one_plain_component_that_stays_inside(identifier):
    name = safe_file_name(identifier)
    assert Path(name).name == name
    assert Path("/folder", name).resolve().parent == Path("/folder")
    assert 0 < len(name.encode()) <= 200
    assert name.isascii()
    assert not set(name) & set("/\\:\0\n ~")
    assert not name.startswith(".")


@settings(max_examples=120, deadline=None)
@given(first=identifiers, second=identifiers)
@example("a/b", "a%2Fb")
@example("", "%E3B0C44298FC1C14")
@example("x" * 300, "x" * 301)
@example(".", "..")
@example("é", "e\u0301")
def test_different_ids_have_different_file_names(first, second):
    assert (safe_file_name(first) == safe_file_name(second)) == (first == second)


def test_plain_ids_are_their_own_file_names():
    for identifier in ("12345", "PMC-1.2_b", "A"):
        assert safe_file_name(identifier) == identifier


# Files


def test_write_atomic_replaces_a_file_and_leaves_nothing_else(tmp_path):
    file = tmp_path / "file"
    for data in (b"old", b"", b"new" * 10_000):
        write_atomic(file, data)
        assert content_of(tmp_path) == {"file": data}


@linux_only
def test_write_atomic_leaves_the_old_content_when_the_disk_takes_no_more(tmp_path):
    import resource

    file = tmp_path / "file"
    write_atomic(file, b"old")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            write_atomic(file, b"new" * 10_000)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert content_of(tmp_path) == {"file": b"old"}


def test_write_atomic_leaves_the_old_content_when_syncing_fails(tmp_path, monkeypatch):
    file = tmp_path / "file"
    write_atomic(file, b"old")

    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomic(file, b"new")
    assert content_of(tmp_path) == {"file": b"old"}


def test_many_commands_may_look_at_a_place_at_once(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: check_output(tmp_path / "out", force=False), range(2000)))
    assert not list(tmp_path.iterdir())


def test_a_reader_never_sees_a_part_of_a_file(tmp_path):
    file = tmp_path / "file"
    contents = [bytes([65 + number]) * 300_000 for number in range(20)]
    write_atomic(file, contents[0])
    writer = threading.Thread(target=lambda: [write_atomic(file, content) for content in contents])
    writer.start()
    while writer.is_alive():
        assert file.read_bytes() in contents
    writer.join()
    assert file.read_bytes() == contents[-1]


def test_json_is_written_sorted_and_read_back(tmp_path):
    value = {"b": [1, 0.5, None], "a": {"é": "😀"}}
    write_json(tmp_path / "x.json", value)
    assert read_json(tmp_path / "x.json") == value
    assert list(json.loads((tmp_path / "x.json").read_bytes())) == ["a", "b"]


def test_json_that_is_missing_or_broken_is_an_error_that_names_the_file(tmp_path):
    with pytest.raises(NertoolError, match=r"x\.json is missing"):
        read_json(tmp_path / "x.json")
    (tmp_path / "x.json").write_bytes(b'{"a": ')
    with pytest.raises(NertoolError, match=r"x\.json is not valid JSON"):
        read_json(tmp_path / "x.json")


# Outputs


def test_a_new_folder_appears_whole_with_a_manifest_of_its_files(tmp_path):
    path = tmp_path / "deep" / "out"
    with new_folder(path, "split", seed=42) as folder:
        (folder / "a.json").write_text("a")
        assert not path.exists()
        assert folder.name.startswith(".")
    assert content_of(path).keys() == {"a.json", MANIFEST_NAME}
    assert read_json(path / MANIFEST_NAME) == {"command": "split", "files": ["a.json"], "seed": 42}
    assert names_in(path.parent) == ["out"]


@pytest.mark.parametrize("exception", [ValueError, KeyboardInterrupt, NertoolError])
def test_a_new_folder_that_fails_leaves_nothing(tmp_path, exception):
    with pytest.raises(exception), new_folder(tmp_path / "out", "test") as folder:
        (folder / "a.json").write_text("a")
        raise exception("x")
    assert names_in(tmp_path) == []


def test_a_new_folder_may_take_the_place_of_an_empty_one(tmp_path):
    (tmp_path / "out").mkdir()
    assert "train/a.json" in content_of(make_output(tmp_path / "out"))


@pytest.mark.parametrize("force", [False, True])
def test_a_folder_with_files_of_others_is_never_touched(tmp_path, force):
    (tmp_path / "out" / "sub").mkdir(parents=True)
    (tmp_path / "out" / "sub" / "precious.txt").write_text("mine")
    before = content_of(tmp_path)
    with pytest.raises(NertoolError) as error, new_folder(tmp_path / "out", "test", force=force):
        pass
    assert error.value.hint
    assert content_of(tmp_path) == before


def test_force_deletes_only_what_nertool_wrote_itself(tmp_path):
    """KAZU's dataset deletes whatever is in the folder."""
    path = make_output(tmp_path / "out")
    (path / "train" / "notes.txt").write_text("mine")
    before = content_of(path)
    for act in (remove_own, lambda path: make_output(path, force=True), lambda path: check_output(path, force=True)):
        with pytest.raises(NertoolError, match=r"did not write: train/notes\.txt$"):
            act(path)
        assert content_of(path) == before
    (path / "train" / "notes.txt").unlink()
    make_output(path, force=True, text="newer")
    assert content_of(path)["train/a.json"] == b"newer"


def test_what_a_kill_left_of_a_removal_goes_with_the_next_one(tmp_path):
    for make in (lambda: None, lambda: make_output(tmp_path / "out")):
        make()
        (tmp_path / ".out.removed").mkdir()
        (tmp_path / ".out.removed" / "big.bin").touch()
        remove_own(tmp_path / "out")
        assert names_in(tmp_path) == []


def test_a_link_to_a_folder_inside_is_not_nertools_own(tmp_path):
    path = make_output(tmp_path / "out")
    (tmp_path / "data").mkdir()
    (path / "link").symlink_to(tmp_path / "data", target_is_directory=True)
    with pytest.raises(NertoolError, match=r"did not write: link$"):
        remove_own(path)


def test_many_foreign_files_are_counted_not_listed(tmp_path):
    path = make_output(tmp_path / "out")
    for number in range(8):
        (path / f"{number}.txt").write_text("")
    with pytest.raises(NertoolError, match=r"0\.txt, 1\.txt, 2\.txt, 3\.txt, 4\.txt and 3 more"):
        remove_own(path)


@pytest.mark.parametrize("left", [".a.txt.tmp", ".a.txt.lock", ".tree.lock", ".tree.probe", "b/.c.lock"])
def test_what_a_kill_leaves_beside_its_own_files_is_nertools_own(tmp_path, left):
    for name in ("a.txt", "b/c"):
        (tmp_path / "out" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "out" / name).touch()
    write_manifest(tmp_path / "out", "train", trees=("tree/",))
    (tmp_path / "out" / left).touch()
    check_own(tmp_path / "out")
    (tmp_path / "out" / f"{left}.other").touch()
    with pytest.raises(NertoolError, match="did not write"):
        check_own(tmp_path / "out")


def test_a_manifest_that_a_kill_cut_short_is_not_listed_in_the_next_one(tmp_path):
    (tmp_path / "a.txt").touch()
    write_manifest(tmp_path, "cache")
    whole = (tmp_path / MANIFEST_NAME).read_bytes()
    (tmp_path / MANIFEST_NAME).rename(tmp_path / f".{MANIFEST_NAME}.tmp")
    write_manifest(tmp_path, "cache")
    assert (tmp_path / MANIFEST_NAME).read_bytes() == whole


@pytest.mark.parametrize("manifest", ["[]", "{}", '{"files": []}', "{"])
def test_a_manifest_that_names_no_files_gives_none_away(tmp_path, manifest):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / MANIFEST_NAME).write_text(manifest)
    (tmp_path / "out" / "precious.txt").write_text("mine")
    with pytest.raises(NertoolError):
        remove_own(tmp_path / "out")
    assert (tmp_path / "out" / "precious.txt").read_text() == "mine"


def test_trees_of_a_manifest_are_own_with_everything_in_them(tmp_path):
    path = tmp_path / "out"
    (path / "tensorboard").mkdir(parents=True)
    (path / "a").write_text("")
    write_manifest(path, "train", trees=("tensorboard/",))
    (path / "tensorboard" / "later").write_text("")
    assert read_json(path / MANIFEST_NAME)["files"] == ["a", "tensorboard/"]
    remove_own(path)
    assert not path.exists()


def test_the_old_output_stays_until_the_new_one_is_whole(tmp_path):
    path = make_output(tmp_path / "out", text="old")
    with pytest.raises(NertoolError, match="invalid"), new_folder(path, "test", force=True) as folder:
        (folder / "a.json").write_text("new")
        raise NertoolError("3 invalid documents")
    assert content_of(path)["train/a.json"] == b"old"
    assert names_in(tmp_path) == ["out"]


def test_without_force_an_output_that_exists_is_refused_before_any_work(tmp_path):
    path = make_output(tmp_path / "out")
    before = content_of(path)
    with pytest.raises(NertoolError, match="exists and is not empty") as error:
        make_output(path)
    assert "--force" in error.value.hint
    assert content_of(path) == before


def test_a_file_is_replaced_only_by_a_file_and_only_with_force(tmp_path):
    file = tmp_path / "notes.jsonl"
    file.write_text("mine")
    for options in ({"force": False}, {"force": True}, {"force": False, "as_file": True}):
        with pytest.raises(NertoolError, match=r"notes\.jsonl (exists|is a file)"):
            check_output(file, **options)
    check_output(file, force=True, as_file=True)
    assert file.read_text() == "mine"  # until the new one is renamed over it


def test_a_folder_with_nothing_but_a_manifest_that_a_kill_cut_short_is_as_good_as_empty(tmp_path):
    path = tmp_path / "out"
    path.mkdir()
    (path / f".{MANIFEST_NAME}.tmp").write_text('{"fil')
    for force in (False, True):
        check_output(path, force=force)
    (path / "notes.txt").write_text("mine")
    for force in (False, True):
        with pytest.raises(NertoolError):
            check_output(path, force=force)


@pytest.mark.parametrize("path", [".", "..", "/"])
def test_a_path_that_names_nothing_new_is_refused(path):
    with pytest.raises(NertoolError, match="names no new folder"):
        check_output(Path(path), force=True)


def test_an_output_below_a_file_is_refused_before_any_work(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(NertoolError, match=r"cannot write .*file/out"):
        check_output(tmp_path / "file" / "out", force=False)


def test_an_output_that_is_a_link_to_a_folder_is_refused(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "data", target_is_directory=True)
    with pytest.raises(NertoolError, match="link to a folder"):
        check_output(tmp_path / "out", force=True)


@linux_only
def test_what_a_killed_run_left_is_cleared_by_the_next_one(tmp_path):
    script = (
        "import os, sys; from pathlib import Path; from nertool.files import new_folder\n"
        "with new_folder(Path(sys.argv[1]), 'test') as folder:\n"
        "    (folder / 'half.json').write_text('half'); os.kill(os.getpid(), 9)"
    )
    result = subprocess.run([sys.executable, "-c", script, str(tmp_path / "out")], check=False)
    assert result.returncode == -signal.SIGKILL
    assert content_of(tmp_path) == {".out.lock": b"", ".out.partial/half.json": b"half"}
    assert content_of(make_output(tmp_path / "out")).keys() == {"train/a.json", MANIFEST_NAME}
    assert names_in(tmp_path) == ["out"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="there is no /dev/full")
def test_a_full_disk_is_reported_with_the_output_though_a_write_names_no_file(tmp_path):
    with pytest.raises(OSError, match="No space left") as caught, new_folder(tmp_path / "out", "convert"):
        os.write(os.open("/dev/full", os.O_WRONLY), b"more than fits")
    assert caught.value.filename == str(tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_two_that_make_the_same_output_are_not_let_at_it(tmp_path):
    with new_folder(tmp_path / "out", "test") as folder:
        (folder / "one.json").write_text("1")
        with pytest.raises(NertoolError, match="another nertool is working on"), new_folder(tmp_path / "out", "test"):
            pass
    assert content_of(tmp_path / "out").keys() == {"one.json", MANIFEST_NAME}


def test_a_lock_on_a_file_that_was_unlinked_meanwhile_is_none(tmp_path, monkeypatch):
    """A command that opens the lock's file just before another one removes it locks what nobody else can see."""
    fcntl = pytest.importorskip("fcntl")
    first = exclusive(tmp_path / "out")
    first.__enter__()
    real_lock = fcntl.flock

    def lock(descriptor, operation):
        monkeypatch.undo()
        first.__exit__(None, None, None)
        real_lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", lock)
    with exclusive(tmp_path / "out", wait_seconds=5), pytest.raises(NertoolError), exclusive(tmp_path / "out"):
        pass


# Replacing a folder


@pytest.fixture
def folders(tmp_path):
    """A folder and its successor."""
    path, new = tmp_path / "model", partial_path(tmp_path / "model")
    for folder, text in ((path, "old"), (new, "new")):
        folder.mkdir()
        (folder / "weights").write_text(text)
    return path, new


def test_replacing_a_folder_leaves_only_the_new_one(folders):
    path, new = folders
    replace_folder(new, path)
    assert content_of(path.parent) == {"model/weights": b"new"}
    recover_folder(path)
    assert content_of(path.parent) == {"model/weights": b"new"}


def test_replacing_a_folder_that_is_not_there_yet_publishes_it(folders):
    path, new = folders
    (path / "weights").unlink()
    path.rmdir()
    replace_folder(new, path)
    assert content_of(path.parent) == {"model/weights": b"new"}


def test_a_crash_before_the_first_rename_leaves_the_old_folder(folders, monkeypatch):
    path, new = folders
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash)
        with pytest.raises(Crash):
            replace_folder(new, path)
    recover_folder(path)
    assert content_of(path) == {"weights": b"old"}


def crash_at_the_second_rename():
    real, calls = Path.rename, itertools.count(1)

    def rename(self, target):
        if next(calls) == 2:
            raise Crash
        return real(self, target)

    return rename


def test_a_crash_between_the_renames_is_undone(folders, monkeypatch):
    path, new = folders
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash_at_the_second_rename())
        with pytest.raises(Crash):
            replace_folder(new, path)
    assert not path.exists()
    recover_folder(path)
    assert content_of(path) == {"weights": b"old"}
    replace_folder(new, path)
    assert content_of(path.parent) == {"model/weights": b"new"}


def test_a_crash_after_the_second_rename_keeps_the_new_folder(folders, monkeypatch):
    path, new = folders
    with monkeypatch.context() as patch:
        patch.setattr("nertool.files.sync_folder", crash)
        with pytest.raises(Crash):
            replace_folder(new, path)
    recover_folder(path)
    assert content_of(path.parent) == {"model/weights": b"new"}


def test_a_new_folder_puts_back_what_a_crash_left_aside(tmp_path, monkeypatch):
    path = make_output(tmp_path / "out", text="old")
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", crash_at_the_second_rename())
        with pytest.raises(Crash):
            make_output(path, force=True, text="new")
    assert not path.exists()
    with pytest.raises(NertoolError, match="exists and is not empty"):
        make_output(path)
    assert content_of(path)["train/a.json"] == b"old"


def test_what_another_command_has_set_aside_is_left_to_it(tmp_path):
    path = make_output(tmp_path / "out", text="old")
    with exclusive(path):
        path.rename(tmp_path / ".out.old")  # it is between the two renames
        for look in (recover_folder, make_output):
            with pytest.raises(NertoolError, match="another nertool is working on"):
                look(path)
        assert (tmp_path / ".out.old").is_dir() and not path.exists()
    recover_folder(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["out"]


def test_publishing_a_folder_renames_it(folders):
    path, new = folders
    publish_folder(new, path.with_name("other"))
    assert content_of(path.parent) == {"model/weights": b"old", "other/weights": b"new"}


def test_lines_of_json_are_the_same_at_once_and_one_by_one(tmp_path):
    values = [{"a": "ß\n"}, [1, None], "x"]
    write_json_lines(tmp_path / "at_once", iter(values))
    with json_lines(tmp_path / "one_by_one") as write:
        for value in values:
            write(value)
    lines = (tmp_path / "at_once").read_bytes()
    assert [json.loads(line) for line in lines.split(b"\n")[:-1]] == values
    assert (tmp_path / "one_by_one").read_bytes() == lines


def test_without_a_line_there_is_no_file_of_lines(tmp_path):
    with json_lines(tmp_path / "none"):
        pass
    assert not list(tmp_path.iterdir())
