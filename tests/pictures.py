"""Comparison of a figure with a stored picture of it, by eye as it were: from some way off.

Both are blurred, so that fonts, antialiasing and a shift by a pixel, which differ between versions, count for nothing,
while a panel or a legend that is missing counts. What curves and points show is for other tests to read from the axes.
`SCCVAE_UPDATE_IMAGES=1 pytest tests/pl/test_images.py` stores new pictures: look at them before they are committed.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.image import imread
from scipy.ndimage import gaussian_filter

FOLDER = Path(__file__).parent / "images"
DPI = 50
BLUR = 4.0  # pixels
STANDS_OUT = 0.1  # difference of a blurred pixel, of 1 from black to white
TOLERANCE = 0.004  # share of such pixels


def rendered(figure: Figure) -> bytes:
    """A small PNG."""
    sink = io.BytesIO()
    figure.savefig(sink, format="png", dpi=DPI, facecolor="white", metadata={"Software": None})
    return sink.getvalue()


def pixels(png: bytes) -> np.ndarray:
    """(height, width, 3) of a PNG, 0 to 1."""
    return imread(io.BytesIO(png), format="png")[..., :3]


def difference(a: np.ndarray, b: np.ndarray) -> float:
    """Share of the pixels that stand out between two pictures; 1 where their sizes differ by more than a pixel."""
    if np.abs(np.subtract(a.shape, b.shape)).max() > 1:
        return 1.0
    height, width = np.minimum(a.shape, b.shape)[:2]
    a, b = (gaussian_filter(x[:height, :width], (BLUR, BLUR, 0)) for x in (a, b))
    return float((np.abs(a - b).max(2) > STANDS_OUT).mean())


def assert_looks_as_stored(figure: Figure, name: str, folder: Path) -> None:
    """Compare with tests/images/NAME.png; where they differ, leave what was drawn in `folder`."""
    stored, drawn = FOLDER / f"{name}.png", rendered(figure)
    if os.environ.get("SCCVAE_UPDATE_IMAGES"):
        FOLDER.mkdir(exist_ok=True)
        stored.write_bytes(drawn)
        return
    assert stored.is_file(), f"There is no {stored}: store it with SCCVAE_UPDATE_IMAGES=1, and look at it."
    share = difference(pixels(drawn), pixels(stored.read_bytes()))
    if share > TOLERANCE:
        (folder / f"{name}.png").write_bytes(drawn)
        raise AssertionError(
            f"{share:.1%} of the picture {name!r} differ from what is stored (at most {TOLERANCE:.1%} may): compare "
            f"{folder / name}.png with {stored}. If the new one is right, store it with SCCVAE_UPDATE_IMAGES=1."
        )
