"""Copies texts that stand elsewhere in the repository into the folder of the site, before Sphinx looks for pages.

The copies are ignored by git. A link to a text that is a page here leads to that page; any other relative link is
written as the name of the file.
"""

import re
import shutil
from pathlib import Path

DOCS = Path(__file__).resolve().parent.parent
REPOSITORY = DOCS.parent
TEXTS = {  # file of the repository -> page
    "ARCHITECTURE.md": "project/architecture.md",
    "CHANGELOG.md": "project/changelog.md",
    "CONTRIBUTING.md": "project/contributing.md",
    "data/README.md": "project/data.md",
    "docs/decisions.md": "decisions.md",
}
_LINK = re.compile(r"(!?)\[([^\]]*)\]\((?!https?://|#|mailto:)([^)#\s]+)(#[^)]*)?\)")


def pages() -> dict[Path, Path]:
    """Every file that is copied or that is here already, and its place here."""
    found = {REPOSITORY / source: DOCS / page for source, page in TEXTS.items()}
    found |= {path: DOCS / "tutorials" / path.name for path in sorted((REPOSITORY / "tutorials").glob("*.ipynb"))}
    for path in sorted((REPOSITORY / "benchmarks").glob("*.md")):
        found[path] = DOCS / "benchmarks" / ("measurements.md" if path.stem == "README" else path.name.lower())
    return found


def with_links(text: str, source: Path, page: Path, known: dict[Path, Path]) -> str:
    """The text of a file, with links that hold at the place of its page."""

    def link(found: re.Match) -> str:
        target = (source.parent / found[3]).resolve()
        here = known.get(target, target if DOCS in target.parents and target.is_file() else None)
        if here is None:
            return f"{found[2]} (`{found[3]}`)" if found[2] != found[3] else f"`{found[3]}`"
        path = Path(*[".."] * len(page.parent.relative_to(DOCS).parts), here.relative_to(DOCS))
        return f"{found[1]}[{found[2]}]({path.as_posix()}{found[4] or ''})"

    return _LINK.sub(link, text)


def copy(app=None) -> None:
    """Copy what has changed: a file that is as it was is left alone, so that Sphinx need not read it anew."""
    known = pages()
    for source, page in known.items():
        if source == page:
            continue
        page.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".ipynb":
            if not page.exists() or page.read_bytes() != source.read_bytes():
                shutil.copyfile(source, page)
            continue
        text = with_links(source.read_text(encoding="utf-8"), source, page, known)
        if not page.exists() or page.read_text(encoding="utf-8") != text:
            page.write_text(text, encoding="utf-8")


def relink(app, name: str, content: list[str]) -> None:
    """Let links of the site's own pages to texts elsewhere in the repository lead to their copies."""
    page = DOCS / f"{name}.md"
    if page.is_file():
        content[0] = with_links(content[0], page, page, pages())


def setup(app):
    """For Sphinx."""
    app.connect("builder-inited", copy, priority=1)
    app.connect("source-read", relink)
    return {"parallel_read_safe": True}
