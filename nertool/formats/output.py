"""Documents and what belongs beside them, in a folder or a file that appears whole."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from nertool.errors import NertoolError
from nertool.files import check_output, growing, new_folder, publish_file
from nertool.formats.base import SIDE_FILES, Writer
from nertool.formats.jsonl import JsonlWriter
from nertool.formats.kazu import KazuWriter
from nertool.formats.reading import FORMATS


class DocumentOutput(NamedTuple):
    """Where documents go.

    Args:
        documents: Takes the documents.
        folder: Takes files that belong beside them, named as in `SIDE_FILES`.
    """

    documents: Writer
    folder: Path


def is_document_file(path: Path) -> bool:
    """Tells whether documents go into one file, by its ending, or into a folder.

    Raises:
        NertoolError: If its ending is that of rows for Hugging Face's datasets, which end in `.jsonl`, too.
    """
    name = path.name.lower()
    if name.endswith(FORMATS["datasets"].endings):
        raise NertoolError(f"{path}: documents are not written as rows at once", "name it .jsonl, then nertool convert")
    return name.endswith(FORMATS["jsonl"].endings)


@contextmanager
def new_documents(
    path: Path, command: str, *, force: bool, source: Path | None = None, **facts: Any
) -> Iterator[DocumentOutput]:
    """Gives an output that appears when the block ends without an exception.

    Beside a file `OUT.jsonl` the other files are called `OUT.jsonl.quarantine.jsonl` and so on.

    Args:
        path: A folder, or a file with an ending of the jsonl format.
        command: The command that makes it.
        force: Replace an older output of nertool's.
        source: What is read; it must be another place.
        **facts: What a folder's manifest should tell about the making.

    Raises:
        NertoolError: If `path` may not be created.
    """
    if not is_document_file(path):
        with new_folder(path, command, force=force, source=source, **facts) as folder, KazuWriter(folder) as writer:
            yield DocumentOutput(writer, folder)
        return
    check_output(path, force=force, as_file=True, source=source)
    with growing(path) as partial:
        with JsonlWriter(partial / path.name) as writer:
            yield DocumentOutput(writer, partial)
        publish_documents(partial / path.name, path)


def publish_documents(made: Path, path: Path) -> None:
    """Renames a finished file of documents into place, and those of `SIDE_FILES` that lie beside it, too."""
    for name in sorted(SIDE_FILES):
        beside = path.with_name(f"{path.name}.{name}")
        beside.unlink(missing_ok=True)  # of an earlier run
        if (made.parent / name).exists():
            publish_file(made.parent / name, beside)
    publish_file(made, path)
