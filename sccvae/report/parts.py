"""Parts of a page: its style, tables, lists and figures as HTML. All text is escaped."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable
from html import escape
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from sccvae.validation.wording import shortened

if TYPE_CHECKING:
    from matplotlib.figure import Figure

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"  # of the page: nothing is loaded or executed
STYLE = """
:root { color-scheme: light; --ink: #1d2733; --soft: #5b6875; --line: #dde3e9; --good: #0072B2; --bad: #B34A00; }
* { box-sizing: border-box; }
body { margin: 0; background: #f3f5f7; color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto,
  "Helvetica Neue", Arial, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
header h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .3rem; overflow-wrap: anywhere; }
header p, .soft, figcaption { color: var(--soft); margin: 0; }
nav { margin: 1rem 0 0; display: flex; flex-wrap: wrap; gap: .2rem 1.1rem; }
nav a { color: var(--good); text-decoration: none; }
section { background: #fff; border: 1px solid var(--line); border-radius: 10px; padding: 1.2rem 1.4rem 1.4rem;
  margin-top: 1.25rem; }
h2 { font-size: 1.2rem; margin: 0 0 .7rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
p { margin: .4rem 0; overflow-wrap: anywhere; }
figure { margin: .8rem 0 0; overflow-x: auto; }
figure img { display: block; max-width: 100%; height: auto; margin: 0 auto; }
figcaption { font-size: .88rem; margin-top: .5rem; }
.facts { display: flex; flex-wrap: wrap; gap: .6rem 2.2rem; }
.facts div { min-width: 6rem; }
.facts b { display: block; font-size: 1.5rem; line-height: 1.2; font-weight: 650; font-variant-numeric: tabular-nums; }
.facts span { color: var(--soft); font-size: .88rem; }
.verdict { border-left: 6px solid var(--good); }
.verdict.look { border-left-color: var(--bad); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; width: 100%; }
th, td { text-align: left; padding: .32rem .8rem .32rem 0; border-bottom: 1px solid var(--line); vertical-align: top;
  overflow-wrap: break-word; }
thead th { color: var(--soft); font-weight: 600; }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; } td.n { white-space: nowrap; }
.ok, .bad { color: var(--good); font-weight: 700; white-space: nowrap; } .bad { color: var(--bad); }
ul { margin: .4rem 0; padding-left: 1.2rem; } li { margin: .25rem 0; }
.columns { display: grid; grid-template-columns: repeat(auto-fit, minmax(19rem, 1fr)); gap: 0 2.2rem; }
.columns > div { min-width: 0; }
@media print {
  body { background: #fff; font-size: 10pt; } main { max-width: none; padding: 0; } nav { display: none; }
  section { border: 0; border-top: 1px solid var(--line); border-radius: 0; padding: .6rem 0; }
  .verdict { border-left: 4px solid var(--good); padding-left: .8rem; } figure, tr, .facts { break-inside: avoid; }
  h2, h3 { break-after: avoid; }
}
"""

MOST_PIXELS = 20e6  # of a figure


def named(names: Iterable[Any]) -> str:
    """Return the first eight names, quoted, and the number of the others."""
    names = list(names)
    return ", ".join(repr(shortened(name)) for name in names[:8]) + (
        f" and {len(names) - 8} more" if len(names) > 8 else ""
    )


def as_list(sentences: list[str]) -> str:
    """Return an HTML list."""
    return "<ul>" + "".join(f"<li>{escape(sentence)}</li>" for sentence in sentences) + "</ul>"


def table(head: list[str], rows: list[list[str]], *, numbers: Iterable[int] = ()) -> str:
    """Return an HTML table; `numbers` are the positions of the columns with numbers."""
    aligned = set(numbers)

    def cells(row: list[str], tag: str) -> str:
        return "".join(
            f"<{tag}{' class=n' if i in aligned else ''}>{escape(str(value))}</{tag}>" for i, value in enumerate(row)
        )

    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{cells(head, "th")}</tr></thead><tbody>{body}</tbody></table></div>'


def verdicts(checks: pd.DataFrame) -> str:
    """Return the rows of `Diagnosis.table` in words, with whether each is as expected."""
    rows = "".join(
        f'<tr><td class="{"ok" if row.ok else "bad"}">{"✓ ok" if row.ok else "✗ look"}</td>'
        f"<td>{escape(str(row.sentence))}</td></tr>"
        for row in checks.itertuples()
    )
    return f'<div class="scroll"><table><tbody>{rows}</tbody></table></div>'


def figure_of(figure: Figure, name: str, caption: str) -> str:
    """Return the HTML of an embedded figure, at a resolution for print."""
    sink = io.BytesIO()
    dots = min(200.0, (MOST_PIXELS / np.prod(figure.get_size_inches())) ** 0.5)
    figure.savefig(sink, format="png", dpi=dots, facecolor="white")
    data = base64.b64encode(sink.getvalue()).decode("ascii")
    width = round(figure.get_figwidth() * 120)  # CSS pixels: a quarter larger than on paper
    return (
        f'<figure><img alt="{escape(name)}" width="{width}" src="data:image/png;base64,{data}">'
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )
