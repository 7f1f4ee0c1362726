"""Where cells of tables may break: code after a separator, and no number before its unit.

A browser lets a column be as narrow as its longest word that may not break. If code may break anywhere, that is one
letter, and `Prodigy` stands in two lines; if it may break nowhere, long names push the table out of view. (Tables
that are still too wide scroll in a box of their own: furo makes it.)
"""

import re

from docutils import nodes
from sphinx.transforms.post_transforms import SphinxPostTransform

SEPARATOR = re.compile(r"""(?<=\w[_.=/(,:])(?=[A-Za-z"'{_])""")
UNIT = re.compile(r"(?<=\d) (?=(?:%|[KMGT]i?B?|ns|µs|ms|s|x|×)(?:\W|$))")


class Breaks(SphinxPostTransform):
    default_priority = 900
    formats = ("html",)

    def run(self, **kwargs):
        for table in self.document.findall(nodes.table):
            for text in list(table.findall(nodes.Text)):
                if not isinstance(text.parent, nodes.literal):
                    text.parent.replace(text, nodes.Text(UNIT.sub("\N{NO-BREAK SPACE}", text)))
            for literal in list(table.findall(nodes.literal)):
                first, *others = SEPARATOR.split(literal.astext())
                literal.children.clear()
                literal += nodes.Text(first)
                for part in others:
                    literal += [nodes.raw("", "<wbr>", format="html"), nodes.Text(part)]


def setup(app):
    app.add_post_transform(Breaks)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
