"""Report on a trained model for collaborators: one self-contained HTML page, readable without a network.

The page has no scripts, inline styles, and figures as PNG in base64. All text from the data is escaped. `sections`
makes it, `mapping` the section on mapped cells, `parts` tables and figures as HTML.
"""

from sccvae.report.mapping import Mapped
from sccvae.report.sections import checked_path, page, write

__all__ = ["Mapped", "checked_path", "page", "write"]
