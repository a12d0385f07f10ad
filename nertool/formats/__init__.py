"""Documents in and out: one small interface for every file format.

A format reads a file into `Record`s and writes `Document`s through a `Writer`. To add one, write a module with a
reader and a writer, and name them in `FORMATS`.
"""

from nertool.formats.base import SIDE_FILES, Format, ReadReport, Record, Rejected, Writer
from nertool.formats.reading import FORMATS, read_documents

__all__ = ["FORMATS", "SIDE_FILES", "Format", "ReadReport", "Record", "Rejected", "Writer", "read_documents"]
