"""Reads a page of the report."""

from __future__ import annotations

import base64
import io
from html.parser import HTMLParser

import numpy as np
from matplotlib.image import imread

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Reads a page; fails where tags do not match."""

    def __init__(self, text: str):
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if self.open and self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data

    @property
    def text(self) -> str:
        return " ".join(self.words)

    def figures(self) -> dict[str, np.ndarray]:
        """Decoded images by their names."""
        found = {}
        for tag, attributes in self.tags:
            if tag == "img":
                kind, data = attributes["src"].split(",", 1)
                assert kind == "data:image/png;base64"
                found[attributes["alt"]] = imread(io.BytesIO(base64.b64decode(data, validate=True)), format="png")
        return found

    def sections(self) -> list[str]:
        return [attributes["id"] for tag, attributes in self.tags if tag == "section"]
