"""Writing files so that they appear whole or not at all, and folders that know what made them."""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
from filelock import FileLock, Timeout
from pydantic import BaseModel, TypeAdapter, ValidationError

from nertool.errors import NertoolError

MANIFEST_NAME = ".nertool.json"
_MANIFEST_CUT_SHORT = f".{MANIFEST_NAME}.tmp"  # what a kill leaves of it: see `write_atomic`
_FULL_DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_MAX_NAME_BYTES = 120
_MOST_FILES_SYNCED_ONE_BY_ONE = 100
# Endings of what a kill can leave beside a file or folder: of `write_atomic`, `exclusive` and `check_output`.
_LEFT_BY_KILLS = ("tmp", "lock", "probe")
# What was set aside can be written after the manifest.
_OWN_IN_EVERY_FOLDER = (MANIFEST_NAME, "rejected.jsonl")


class _Manifest(BaseModel):
    files: list[str] = []


def write_atomic(path: Path, data: bytes) -> None:
    """Writes `data` beside `path`, syncs it to disk and renames it into place.

    A reader sees the old content or the new one, never a part; after a crash too.

    Raises:
        OSError: When the disk is full or the folder can't be written; `path` is then as it was.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def write_json(path: Path, value: Any) -> None:
    """Writes a JSON file, indented, with sorted keys, atomically."""
    options = orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS | orjson.OPT_APPEND_NEWLINE
    write_atomic(path, orjson.dumps(value, option=options))


def write_json_lines(path: Path, values: Iterable[Any]) -> None:
    """Writes a file with a line of JSON for each value, atomically."""
    write_atomic(path, b"".join(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE) for value in values))


@contextmanager
def json_lines(path: Path) -> Iterator[Callable[[Any], object]]:
    """Gives what appends a value to a new file as a line of JSON; there is no file in the end if none was."""
    with path.open("wb") as file:
        yield lambda value: file.write(orjson.dumps(value, option=orjson.OPT_APPEND_NEWLINE))
    if not path.stat().st_size:
        path.unlink()


def read_json(path: Path, shape: Any = dict[str, Any]) -> Any:
    """Reads a JSON file that nertool wrote.

    Args:
        path: The file.
        shape: The type, for pydantic, that its content must have; by default an object.

    Returns:
        The content as it is, also what the type doesn't know.

    Raises:
        NertoolError: If the file is missing or broken, or has another content than such a file has.
    """
    try:
        value = orjson.loads(path.read_bytes())
        TypeAdapter(shape).validate_python(value, strict=True)
        return value
    except FileNotFoundError as error:
        raise NertoolError(f"{path} is missing") from error
    except orjson.JSONDecodeError as error:
        raise NertoolError(f"{path} is not valid JSON: {error}") from error
    except ValidationError as error:
        raise NertoolError(
            f"{path} is damaged: {_first_wrong(error)}", "take it from a copy, or make it anew"
        ) from error


def _first_wrong(error: ValidationError) -> str:
    wrong = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return ": ".join([*filter(None, [".".join(map(str, wrong["loc"]))]), wrong["msg"]])


def file_digest(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Makes renames in `folder` durable (a no-op where folders can't be synced)."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def safe_file_name(identifier: str) -> str:
    """Turns any document id into a file name that stays inside its folder.

    Letters, digits, `.`, `_`, `-` stay, other characters become `%XX`; a name that would be hidden, empty or too long
    gets a digest of the id. Different ids give different names (on file systems that tell `a` from `A`).

    Args:
        identifier: Any string: `../../x`, `a/b`, 300 characters, an empty one.
    """
    escaped = "".join(
        char if re.fullmatch(r"[A-Za-z0-9._-]", char) else "".join(f"%{byte:02X}" for byte in char.encode())
        for char in identifier
    )
    digest = hashlib.sha256(identifier.encode()).hexdigest()[:16]
    if not escaped or escaped.startswith("."):
        return f"%{digest}"
    if len(escaped) > _MAX_NAME_BYTES:
        return f"{escaped[:_MAX_NAME_BYTES]}%{digest}"
    return escaped


def last_part(path: Path) -> str:
    """Returns what to call a file or folder where others read it: the last part of its path, as valid Unicode."""
    return path.absolute().name.encode(errors="replace").decode()


def partial_path(path: Path) -> Path:
    """Where the output `path` grows until it is whole: a hidden sibling, so that the last step is one rename."""
    return path.with_name(f".{path.name}.partial")


def check_output(path: Path, *, force: bool, as_file: bool = False, source: Path | None = None) -> None:
    """Makes sure that a command may create `path`, before any work is done.

    Args:
        path: A file or folder that is going to be created whole.
        force: Whether a file, or a folder that nertool itself made, may be replaced.
        as_file: Whether it is going to be a file.
        source: What is read; it must be another place.

    Raises:
        NertoolError: If something is there that may not be replaced, or the place can't be written.
    """
    if path.name in ("", ".."):
        raise NertoolError(f"{path} names no new {'file' if as_file else 'folder'}", "choose another output")
    if source is not None and path.exists() and path.samefile(source):
        raise NertoolError(f"{path} is the input, too", "choose another output")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe = path.with_name(f".{path.name}.probe")
        probe.touch()
        probe.unlink(missing_ok=True)  # another command may be looking, too
    except OSError as error:
        raise NertoolError(f"cannot write {path}: {error.strerror or error}", "choose another output") from error
    if path.is_dir() and path.is_symlink():
        raise NertoolError(f"{path} is a link to a folder", "name the folder itself, so that it can be made whole")
    if path.is_dir() and not is_empty(path):
        if not force:
            raise NertoolError(f"{path} exists and is not empty", "choose another output, or --force to replace it")
        check_own(path)
    elif path.exists() and not path.is_dir():
        if not as_file:
            raise NertoolError(f"{path} is a file, and the output is a folder", "choose another output")
        if not force:
            raise NertoolError(f"{path} exists", "choose another output, or --force to replace it")


def is_empty(folder: Path) -> bool:
    """Says whether a folder holds nothing, or only what a kill left of its manifest, which is written first."""
    return all(entry.name == _MANIFEST_CUT_SHORT for entry in folder.iterdir())


def remove_own(folder: Path) -> None:
    """Deletes a folder that nertool made, after making sure that it holds nothing else; one that isn't there is fine.

    Raises:
        NertoolError: If there is no manifest, or a file that the manifest doesn't name.
    """
    aside = folder.with_name(f".{folder.name}.removed")
    shutil.rmtree(aside, ignore_errors=True)  # a kill may have left some of it
    if folder.is_dir() and not is_empty(folder):
        check_own(folder)
        folder.rename(aside)  # a process that is left from an earlier command may still be removing files in it
        shutil.rmtree(aside, ignore_errors=True)


def check_own(folder: Path) -> None:
    """Makes sure that a folder holds nothing but what nertool wrote.

    Raises:
        NertoolError: If there is no manifest, or a file that the manifest doesn't name.
    """
    manifest = folder / MANIFEST_NAME
    if not manifest.is_file():
        raise NertoolError(f"{folder} was not made by nertool, so --force won't delete it", "choose another output")
    own = {*read_json(manifest, _Manifest).get("files", ()), *_OWN_IN_EVERY_FOLDER}
    foreign = sorted(
        relative
        for path in folder.rglob("*")
        if (path.is_symlink() or not path.is_dir())
        and not _is_own(relative := path.relative_to(folder).as_posix(), own)
    )
    if foreign:
        raise NertoolError(
            f"{folder} holds files that nertool did not write: {', '.join(foreign[:5])}"
            + (f" and {len(foreign) - 5} more" if len(foreign) > 5 else ""),
            "move them away, or choose another output",
        )


def _is_own(relative: str, own: set[str]) -> bool:
    folder, _, name = relative.rpartition("/")
    whole, _, ending = f"{folder}/{name[1:]}".lstrip("/").rpartition(".")
    if name.startswith(".") and ending in _LEFT_BY_KILLS and not own.isdisjoint((whole, f"{whole}/")):
        return True
    return relative in own or any(entry.endswith("/") and relative.startswith(entry) for entry in own)


def write_manifest(folder: Path, command: str, *, trees: tuple[str, ...] = (), **facts: Any) -> None:
    """Notes in `folder` which files are nertool's own, and what made them.

    Args:
        folder: The output folder.
        command: The command that made it.
        trees: Folders inside (ending in `/`) in which every file is nertool's own, so that names need no listing.
        **facts: What else is worth knowing about the making.
    """
    files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
    files = [name for name in files if name != _MANIFEST_CUT_SHORT]
    listed = [name for name in files if not name.startswith(trees)] if trees else files
    write_json(folder / MANIFEST_NAME, {"command": command, "files": sorted([*listed, *trees]), **facts})


@contextmanager
def new_folder(
    path: Path, command: str, *, force: bool = False, source: Path | None = None, **facts: Any
) -> Iterator[Path]:
    """Gives a temporary folder that becomes `path`, whole, when the block ends without an exception.

    Args:
        path: The folder to create.
        command: The command that makes it, for the manifest.
        force: Replace an older output of nertool's; it stays until the new one is whole.
        source: What is read; it must be another place.
        **facts: What the manifest should tell about the making.

    Raises:
        NertoolError: If `path` may not be created.
    """
    recover_folder(path)
    check_output(path, force=force, source=source)
    with growing(path) as partial:
        yield partial
        write_manifest(partial, command, **facts)
        replace_folder(partial, path)


@contextmanager
def growing(path: Path) -> Iterator[Path]:
    """Gives an empty folder beside `path` in which it may grow, and removes what is left of it in the end.

    Raises:
        NertoolError: If another command is working on the same output.
    """
    partial = partial_path(path)
    with exclusive(path):
        shutil.rmtree(partial, ignore_errors=True)  # left by a killed run
        partial.mkdir()
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def exclusive(path: Path, *, wait_seconds: float = 0.0) -> Iterator[None]:
    """Keeps every other command from making or changing the output `path` meanwhile.

    Args:
        path: The output.
        wait_seconds: How long to wait for another one that is at it.

    Raises:
        NertoolError: If another one is at it.
        OSError: Of a full disk, naming the output if the operating system names no file, as it does for writes.
    """
    lock = FileLock(path.with_name(f".{path.name}.lock"), timeout=wait_seconds)
    try:
        lock.acquire()
    except Timeout as error:
        raise NertoolError(f"another nertool is working on {path} at the moment", "wait for it") from error
    try:
        yield
    except OSError as error:
        if error.errno in _FULL_DISK_ERRORS and error.filename is None:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def publish_folder(partial: Path, path: Path) -> None:
    """Renames a finished folder into place, after its files have reached the disk."""
    _sync_tree(partial)
    partial.rename(path)
    sync_folder(path.parent)


def _sync_tree(folder: Path) -> None:
    files = [file for file in folder.rglob("*") if file.is_file()]
    if len(files) > _MOST_FILES_SYNCED_ONE_BY_ONE:
        getattr(
            os, "sync", lambda: None
        )()  # one call for all: a sync per file takes seconds for thousands of documents
    else:
        for file in files:
            with file.open("rb") as handle:
                os.fsync(handle.fileno())


def publish_file(partial: Path, path: Path) -> None:
    """Renames a finished file into place, after its content has reached the disk."""
    with partial.open("rb") as handle:
        os.fsync(handle.fileno())
    partial.replace(path)
    sync_folder(path.parent)


def replace_folder(new: Path, path: Path) -> None:
    """Puts the finished folder `new` in the place of `path`.

    A crash between the two renames leaves the old folder as `.NAME.old`; `recover_folder` puts it back.
    """
    old = _aside(path)
    shutil.rmtree(old, ignore_errors=True)
    _sync_tree(new)
    if path.exists():
        path.rename(old)
    new.rename(path)
    sync_folder(path.parent)
    shutil.rmtree(old, ignore_errors=True)


def recover_folder(path: Path) -> None:
    """Undoes a replacement that a crash cut in two.

    Raises:
        NertoolError: If it isn't cut in two, but another command is at it.
    """
    if _aside(path).is_dir():
        with exclusive(path):
            put_back(path)


def put_back(path: Path) -> None:
    """Undoes a replacement that a crash cut in two, where no other command can be at one: see `exclusive`."""
    old = _aside(path)
    if old.is_dir():
        if path.exists():
            shutil.rmtree(old)
        else:
            old.rename(path)


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.old")
