"""Sphinx configuration: `nox -s docs`."""

from types import MemberDescriptorType
from typing import Any

from nertool import __version__

project = "nertool"
author = "The nertool authors"
copyright = author
release = version = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}

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
html_title = "nertool"
html_static_path = ["_static"]
html_css_files = ["pages.css"]
html_show_sourcelink = False


def setup(app: Any) -> None:
    """Leaves out the fields of dataclasses and named tuples: the class's own docstring describes them."""
    app.connect("autodoc-skip-member", _skip)


def _skip(_app: Any, _what: str, _name: str, member: object, skip: bool, _options: Any) -> bool:
    field = isinstance(member, MemberDescriptorType) or repr(member) == "SLOTS_ATTR"
    return skip or field or "Alias for field" in (getattr(member, "__doc__", None) or "")
