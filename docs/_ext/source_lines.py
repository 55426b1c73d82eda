"""Directive `code-of`: lines of the package, found by the name of the object that holds them.

Its argument is a name such as `VAE.forward`. The options `first` and `last` hold a part of the first and of the last
line to show; without `last` it is one line, without both the whole object.
"""

from typing import ClassVar

import lookup
from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.util.docutils import SphinxDirective


class CodeOf(SphinxDirective):
    """A block of code under the name of its object, its file and its first line."""

    required_arguments = 1
    option_spec: ClassVar = {"first": directives.unchanged_required, "last": directives.unchanged_required}

    def run(self):
        """The nodes of the block."""
        name = self.arguments[0]
        try:
            path, number, text = lookup.source(name, self.options.get("first"), self.options.get("last"))
        except (LookupError, AttributeError) as error:
            raise self.error(str(error)) from error
        self.env.note_dependency(str(lookup.PACKAGE.parent / path))
        caption = nodes.caption("", "", nodes.literal(text=name), nodes.Text(f", {path}, line {number}"))
        block = nodes.literal_block(text, text, language="python")
        return [nodes.container("", caption, block, classes=["literal-block-wrapper"], literal_block=True)]


def setup(app):
    """For Sphinx."""
    app.add_directive("code-of", CodeOf)
    return {"parallel_read_safe": True}
