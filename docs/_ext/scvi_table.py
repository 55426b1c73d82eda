"""Directive `scvi-table`: the tables of `scvi_rows`, each in a section of its own."""

import re

import scvi_rows
from docutils import nodes
from sphinx.util.docutils import SphinxDirective


def words(text: str) -> list[nodes.Node]:
    """Text in which code stands between backticks."""
    parts = re.split(r"`([^`]+)`", text)
    return [nodes.literal(text=part) if i % 2 else nodes.Text(part) for i, part in enumerate(parts) if part]


def table(rows: list[tuple[str, str]]) -> nodes.table:
    """A table of two columns."""
    group = nodes.tgroup("", *(nodes.colspec(colwidth=width) for width in (30, 70)), cols=2)
    head = nodes.row("", *(nodes.entry("", nodes.paragraph("", text)) for text in ("scvi-tools", "sccvae")))
    body = nodes.tbody()
    for name, text in rows:
        cells = [nodes.literal(text=name)], words(text)
        body += nodes.row("", *(nodes.entry("", nodes.paragraph("", "", *cell)) for cell in cells))
    group += [nodes.thead("", head), body]
    return nodes.table("", group)


class ScviTable(SphinxDirective):
    """A section for each table."""

    def run(self):
        """The sections."""
        sections = []
        for heading, rows in scvi_rows.tables().items():
            section = nodes.section("", nodes.title("", "", *words(heading)), table(rows))
            section["ids"].append(nodes.make_id("scvi " + heading))
            section["names"].append(nodes.fully_normalize_name(heading))
            sections.append(section)
        return sections


def setup(app):
    """For Sphinx."""
    app.add_directive("scvi-table", ScviTable)
    return {"parallel_read_safe": True}
