"""Where a command's documents come from: files of documents, or a cache that was made of them."""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from nertool.cache_building import Scan, document_digest, scan
from nertool.documents import Document
from nertool.errors import NertoolError
from nertool.formats import ReadReport, read_documents
from nertool.labels import LabelScheme
from nertool.settings import Settings
from nertool.window_cache import WindowCache, check_cache, is_cache, open_cache
from nertool.windows import SectionTokenizer


@dataclass(frozen=True, slots=True)
class Source:
    """A path that was given as `DOCS`.

    Args:
        path: Documents, or a cache.
        settings: Say what to do with invalid documents.
        report: Filled when the documents are read for the first time.
        texts: Whether plain texts (.txt) are documents, too.
        labelled: Whether their entities matter; otherwise a cache may have any classes.
    """

    path: Path
    settings: Settings
    report: ReadReport
    texts: bool = False
    labelled: bool = True

    def read(self) -> Iterator[Document]:
        """Reads the documents, and fills the report."""
        if is_cache(self.path):
            return open_cache(self.path).documents()
        skip_invalid = self.settings.data.skip_invalid
        return read_documents(self.path, self.report, skip_invalid=skip_invalid, texts=self.texts)

    def read_all(self) -> list[Document]:
        """Reads all documents into memory, and fills the report.

        Raises:
            NertoolError: If not a single one is valid.
        """
        documents = list(self.read())
        if not documents:
            raise NertoolError(f"{self.path} holds no valid documents: all {len(self.report.rejected)} were set aside")
        return documents

    def read_again(self, scanned: Scan) -> Iterator[Document]:
        """Reads the documents once more; what there is to report was reported the first time.

        Args:
            scanned: What a first pass over them told.

        Raises:
            NertoolError: In the end, if they are not those of the first pass any more.
        """
        digest = hashlib.sha256()
        for document in replace(self, report=ReadReport()).read():
            digest.update(document_digest(document))
            yield document
        if digest.hexdigest() != scanned.digest:
            raise NertoolError(
                f"{self.path} changed while it was read",
                "put it back and run the same command again (train, distill: with --resume), or start with --force",
            )

    def scan(self, on_documents: Callable[[int], None]) -> Scan:
        """Returns what a first pass over the documents tells; a cache knows it already."""
        if not is_cache(self.path):
            return scan(self.read(), on_documents)
        cache = open_cache(self.path)
        counts = cache.info["counts"]
        labels = Counter({label: counts["labels"].get(label, 0) for label in cache.scheme.labels})
        who = cache.info["annotators"]
        known = who if isinstance(who, dict) else dict.fromkeys(who)  # an older cache doesn't know how many documents
        return Scan(counts["documents"], labels, known, cache.info["fingerprint"]["documents"])

    def open_cache(self, tokenizer: SectionTokenizer, scheme: LabelScheme) -> WindowCache | None:
        """Opens the cache, if it is one, after making sure that it fits the model.

        Raises:
            NertoolError: If it doesn't fit.
        """
        if not is_cache(self.path):
            return None
        cache = open_cache(self.path)
        check_cache(
            cache, tokenizer, self.settings.windows, begin=scheme.begin if self.labelled else cache.scheme.begin
        )
        if not self.labelled:
            return cache
        if unknown := sorted(set(cache.scheme.labels) - set(scheme.labels)):
            raise NertoolError(
                f"the cache {self.path} has classes that data.labels lacks: {', '.join(unknown)}", "build it anew"
            )
        if left_out := sorted((set(scheme.labels) - set(cache.scheme.labels)) & set(cache.info["counts"]["labels"])):
            raise NertoolError(
                f"the cache {self.path} was made without the classes {', '.join(left_out)}, which its documents hold",
                "build it anew with the same data.labels",
            )
        return cache
