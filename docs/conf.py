"""Sphinx configuration: `nox -s docs`."""

import re
from collections.abc import Iterator
from types import MemberDescriptorType
from typing import Any, ClassVar

from docutils import nodes
from pydantic import BaseModel
from pygments.lexer import RegexLexer
from pygments.token import Comment, Name, Whitespace

from nertool import __version__

project = "nertool"
author = "The nertool authors"
copyright = author
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}
smartquotes_action = "qe"  # no dashes: `--` begins an option

# Links to headings of other pages are checked, too.
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "undoc-members": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Source"]
default_role = "code"  # `x` in docstrings is code

html_theme = "furo"
pygments_dark_style = "github-dark"  # furo's own underlines names of modules as if they were links
html_title = "nertool"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sourcelink = False


class CommandLexer(RegexLexer):
    """Commands word by word, so that the pages can keep words together; colours of a shell's would say nothing here."""

    name = "Commands"
    aliases: ClassVar[list[str]] = ["shell"]
    tokens: ClassVar[dict[str, Any]] = {"root": [(r"#.*", Comment), (r"\s+", Whitespace), (r"\S+", Name)]}


def setup(app: Any) -> None:
    """Makes pages easier to read than Sphinx does by itself."""
    app.add_lexer("shell", CommandLexer)
    app.connect("autodoc-skip-member", _skip)
    app.connect("autodoc-process-signature", _shorten)
    app.connect("doctree-resolved", _typeset)


def _skip(_app: Any, _what: str, name: str, member: object, skip: bool, _options: Any) -> bool:
    """Leaves out the fields of dataclasses and named tuples: the class's own docstring describes them."""
    field = isinstance(member, MemberDescriptorType) or repr(member) == "SLOTS_ATTR" or name == "model_config"
    return skip or field or "Alias for field" in (getattr(member, "__doc__", None) or "")


def _shorten(_app: Any, _what: str, _name: str, member: object, *_rest: Any) -> tuple[str, None] | None:
    """Leaves out the signatures of pydantic's models, which repeat their fields with all that is checked of them."""
    return ("", None) if isinstance(member, type) and issubclass(member, BaseModel) else None


def _typeset(_app: Any, doctree: nodes.document, _name: str) -> None:
    """Lets long names in tables break where they are joined rather than anywhere; makes Sphinx's own dashes such."""
    for text in [text for text in doctree.findall(nodes.Text) if text == " -- "]:
        text.parent.replace(text, nodes.Text(" – "))
    for literal in [code for entry in doctree.findall(nodes.entry) for code in entry.findall(nodes.literal)]:
        parts = re.split(r"(?<=\w[./_-])(?=\w)", literal.astext())
        literal.children = list(_with_breaks(parts))


def _with_breaks(parts: list[str]) -> Iterator[nodes.Node]:
    for number, part in enumerate(parts):
        if number:
            yield nodes.raw("", "<wbr>", format="html")
        yield nodes.Text(part)
