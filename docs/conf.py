"""Sphinx configuration: `nox -s docs`."""

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
myst_enable_extensions = ["deflist", "dollarmath"]

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature shows them
autodoc_default_options = {"members": True, "undoc-members": False}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_custom_sections = ["Source"]
default_role = "code"  # `x` in docstrings is code

html_theme = "furo"
html_title = "nertool"
html_show_sourcelink = False
