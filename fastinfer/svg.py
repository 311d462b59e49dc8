"""Parts of pictures in SVG. Their colours are readable on white and on black; there is no background."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

__all__ = ["COLOURS", "FAINT", "SIZE", "TEXT", "WIDTH", "circle", "line", "rectangle", "svg", "text"]

TEXT = "#767676"  # contrast 4.5 on white and 4.6 on black
FAINT = "#76767677"
COLOURS = ("#2f81f7", "#d9730d", "#1a9e5c", "#a371f7", "#767676")  # contrast at least 3 on both
WIDTH, SIZE = 760, 13  # pixels: of a figure, of its letters


def text(
    x: float, y: float, words: str, *, anchor: str = "start", colour: str = TEXT, bold: bool = False, size: int = SIZE, turn: float = 0
) -> str:
    """Words at a place; anchor: which end of them stands there (start, middle, end); turn: degrees, clockwise about the place."""
    weight = ' font-weight="600"' if bold else ""
    turned = f' transform="rotate({turn:g} {x:.1f} {y:.1f})"' if turn else ""
    return f'<text x="{x:.1f}" y="{y:.1f}"{turned} text-anchor="{anchor}" fill="{colour}" font-size="{size}"{weight}>{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, *, colour: str = FAINT, width: float = 1, dash: str = "") -> str:
    """A straight line; dash: SVG's pattern of dashes."""
    dashes = f' stroke-dasharray="{dash}"' if dash else ""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"{dashes}/>'


def circle(x: float, y: float, radius: float, colour: str, *, filled: bool = True) -> str:
    """A disc, or a ring."""
    paint = f'fill="{colour}"' if filled else f'fill="none" stroke="{colour}" stroke-width="1.5"'
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" {paint}/>'


def svg(title: str, height: float, parts: Sequence[str]) -> str:
    """A whole picture, WIDTH pixels wide."""
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}" role="img" '
        f'font-family="system-ui, -apple-system, Segoe UI, Helvetica, Arial, sans-serif">'
    )
    return "\n".join([head, f"<title>{escape(title)}</title>", *parts, "</svg>", ""])


def rectangle(x: float, y: float, width: float, height: float, colour: str, *, opacity: float = 1, title: str = "") -> str:
    """A filled rectangle; title: what a browser shows when the mouse is over it."""
    said = f"<title>{escape(title)}</title>" if title else ""
    size = f'x="{x:.2f}" y="{y:.2f}" width="{width:.2f}" height="{height:.2f}"'
    return f'<rect {size} rx="1" fill="{colour}" fill-opacity="{opacity:.2f}">{said}</rect>'
