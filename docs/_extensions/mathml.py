"""Formulas as MathML, which browsers show without any script: the site works from a folder and without a network.

docutils, which Sphinx stands on, has the converter. It knows less of LaTeX than MathJax does; what it does not know is
a warning, and so an error of `make docs`.
"""

from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging

logger = logging.getLogger(__name__)


def converted(node, tex, as_block):
    try:
        return tex2mathml(tex, as_block=as_block)
    except MathError as error:
        logger.warning("formula not understood: %s", error, location=node)
        return ""


def visit_inline(translator, node):
    translator.body.append(converted(node, node.astext(), as_block=False))
    raise nodes.SkipNode


def visit_block(translator, node):
    tex = node.astext().strip()
    if "&" in tex or r"\\" in tex:  # Sphinx lets authors leave the environment out
        tex = rf"\begin{{aligned}}{tex}\end{{aligned}}"
    translator.body.append(translator.starttag(node, "div", CLASS="math"))
    translator.body.append(converted(node, tex, as_block=True))
    translator.body.append("</div>\n")
    raise nodes.SkipNode


def setup(app):
    app.add_html_math_renderer("mathml", inline_renderers=(visit_inline, None), block_renderers=(visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
