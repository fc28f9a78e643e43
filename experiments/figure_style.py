"""What pictures have in common: colours that colour-blind readers can distinguish, and their bytes."""

import io

from matplotlib.figure import Figure

BLACK, ORANGE, SKY_BLUE, GREEN = "#000000", "#e69f00", "#56b4e9", "#009e73"
PINK, BLUE, RED, GREY = "#cc79a7", "#0072b2", "#d55e00", "#999999"
"""Of Okabe and Ito (2008), with a grey beside them."""
COLOURS = (BLUE, RED, GREEN, PINK, ORANGE, SKY_BLUE, BLACK, GREY)
"""Colours of curves, in this order."""
MARKERS = "osD^vPX*"
"""Markers of curves, in this order."""
DOTS_PER_INCH = 200


def plain(text: str) -> str:
    """A user's text for a picture, in which a pair of `$` would be mathematics."""
    return text.replace("$", r"\$")


def png_bytes(figure: Figure, dots_per_inch: float = DOTS_PER_INCH, *, tight: bool = False) -> bytes:
    """A picture as PNG.

    Args:
        figure: What is drawn.
        dots_per_inch: Dots per inch of the picture.
        tight: Cut the margins off.
    """
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=dots_per_inch, bbox_inches="tight" if tight else None)
    return out.getvalue()
