"""Sphinx: `make docs` builds the site into target/docs, from these pages and the installed oxistep."""

import inspect
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

from sphinx.util.inspect import stringify_signature

sys.path.append(str(Path(__file__).parent / "_extensions"))

project = "oxistep"
author = "The oxistep developers"
copyright = "the oxistep developers"
release = version = installed_version("oxistep")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "mathml",  # _extensions/mathml.py
    "tables",  # _extensions/tables.py
]
exclude_patterns = ["_extensions"]

myst_enable_extensions = ["colon_fence", "dollarmath"]
myst_heading_anchors = 3

autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the docstrings name types where names do not
napoleon_numpy_docstring = False
napoleon_use_param = False
napoleon_use_rtype = False
napoleon_custom_sections = [("State", "params_style"), "Native", "Reference"]

pygments_style = "friendly"  # removed lines red, added ones green
highlight_language = "none"  # of blocks that name none: formulas

html_theme = "furo"
html_title = f"oxistep {release}"
html_static_path = ["_static"]
html_css_files = ["mathml.css", "tables.css"]
html_math_renderer = "mathml"
html_copy_source = False
html_theme_options = {
    "source_repository": "https://github.com/oxistep/oxistep/",
    "source_branch": "main",
    "source_directory": "docs/",
}


def on_the_site(app, path, docname, content):
    """Pages of the root, which pages here include, link to each other as they lie there."""
    docs = Path(__file__).resolve().parent
    if (docs / path).resolve().parent == docs.parent:
        for name in ("CHANGELOG", "CONTRIBUTING", "SECURITY"):
            content[0] = content[0].replace(f"]({name}.md", f"]({name.lower()}.md")


def signature_of_constructor(app, what, name, obj, options, signature, return_annotation):
    """autodoc takes that of `__new__` where a class has one; ours looks at names of arguments only."""
    if what == "class" and signature and signature.startswith("(*_"):
        return stringify_signature(inspect.signature(obj), show_annotation=False, show_return_annotation=False), None
    return None


def setup(app):
    app.connect("autodoc-process-signature", signature_of_constructor)
    app.connect("include-read", on_the_site)
