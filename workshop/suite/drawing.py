"""A card to draw on: shapes and text as SVG, the same bytes on every run, with a title and words for ears.

The card has a light ground of its own, so it reads on light and dark pages alike.
"""

import math
from collections.abc import Sequence
from xml.etree import ElementTree as ET

from mechsteer.show import plots

__all__ = ["ACCENT", "FAINT", "INK", "LINE", "PAPER", "WIDTH", "Card"]

WIDTH = 720  # of every card; text of 15 is 17 px where a page shows it 820 px wide
INK, PAPER, FAINT, LINE = "#222222", "#FFFFFF", "#F3F5F7", "#B8BEC5"
ACCENT = plots.COLOURS[5]  # the one colour of the palette that names no method
SANS, MONO = (
    "Arial, Helvetica, 'Liberation Sans', sans-serif",
    "Menlo, Consolas, 'DejaVu Sans Mono', monospace",
)

Point = tuple[float, float]


class Card:
    """A white card of `WIDTH` x `height`; every method draws one thing on top of what is there.

    `title` is drawn at the top and read out; `told` says to a screen reader what the picture shows.
    """

    def __init__(self, height: float, title: str, told: str):
        box = {"viewBox": f"0 0 {WIDTH} {height}", "width": str(WIDTH), "height": str(height)}
        named = {"role": "img", "aria-labelledby": "title desc", "font-family": SANS}
        self.root = ET.Element("svg", {"xmlns": "http://www.w3.org/2000/svg", **box, **named})
        for tag, said in (("title", title), ("desc", told)):
            ET.SubElement(self.root, tag, id=tag).text = said
        self.box(1, 1, WIDTH - 2, height - 2, round=12)
        self.text(24, 36, title, size=19, bold=True)

    def _add(self, tag: str, **attributes) -> ET.Element:
        said = {k.replace("_", "-"): _short(v) for k, v in attributes.items() if v is not None}
        return ET.SubElement(self.root, tag, said)

    def box(self, x, y, wide, high, fill=PAPER, line=LINE, round=8, dash=None, width=1.5) -> None:
        """A rectangle with rounded corners, (x, y) its upper left."""
        look = {"fill": fill, "stroke": line, "stroke_width": width, "stroke_dasharray": dash}
        self._add("rect", x=x, y=y, width=wide, height=high, rx=round, **look)

    def disc(self, x, y, r, fill=PAPER, line=INK, width=1.5) -> None:
        self._add("circle", cx=x, cy=y, r=r, fill=fill, stroke=line, stroke_width=width)

    def line(self, points: Sequence[Point], colour=INK, width=2.0, dash=None) -> None:
        """A line through points; round ends and corners unless it is dashed."""
        joins = {"stroke_linecap": None if dash else "round", "stroke_linejoin": "round"}
        path = " ".join(f"{_short(x)},{_short(y)}" for x, y in points)
        look = {"fill": "none", "stroke": colour, "stroke_width": width, "stroke_dasharray": dash}
        self._add("polyline", points=path, **look, **joins)

    def arrow(self, points: Sequence[Point], colour=INK, width=2.0, dash=None) -> None:
        """A line that ends in a head at the last point."""
        (x0, y0), (x, y) = points[-2:]
        long, head = math.hypot(x - x0, y - y0), 4 + 3 * width
        ux, uy = (x - x0) / long, (y - y0) / long
        neck = (x - head * ux, y - head * uy)
        self.line([*points[:-1], neck], colour, width, dash)
        side = 0.5 * head
        corners = (
            (x, y),
            (neck[0] - side * uy, neck[1] + side * ux),
            (neck[0] + side * uy, neck[1] - side * ux),
        )
        self._add("polygon", points=" ".join(f"{_short(a)},{_short(b)}" for a, b in corners), fill=colour)

    def text(self, x, y, said: str, size=15, anchor="start", bold=False, fill=INK) -> None:
        """One line of text on the baseline `y`; what stands in `backticks` is set as code."""
        look = {
            "font_size": size,
            "text_anchor": anchor,
            "fill": fill,
            "font_weight": "bold" if bold else None,
        }
        element = self._add("text", x=x, y=y, **look)
        for k, part in enumerate(said.split("`")):
            span = ET.SubElement(element, "tspan") if part else None
            if span is not None:
                span.text = part
            if part and k % 2:
                span.set("font-family", MONO)
                span.set("font-size", _short(size - 1))

    def lines(self, x, y, said: str, step=20, **look) -> None:
        """Several lines of text, one below the other."""
        for k, part in enumerate(said.split("\n")):
            self.text(x, y + k * step, part, **look)

    def pill(self, x, y, name: str) -> None:
        """The name of a site, as code on the accent, centred on (x, y)."""
        wide = 9 * len(name) + 18
        self.box(x - wide / 2, y - 13, wide, 26, fill=ACCENT, line=INK, round=13)
        self.text(x, y + 5, f"`{name}`", size=16, anchor="middle")

    def svg(self) -> str:
        """The card as a file: an element a line."""
        body = "\n".join(ET.tostring(part, encoding="unicode") for part in self.root)
        opening = ET.tostring(ET.Element("svg", self.root.attrib), encoding="unicode").removesuffix(" />")
        return f"{opening}>\n{body}\n</svg>\n"


def _short(value) -> str:
    return f"{round(value, 1):g}" if isinstance(value, float) else str(value)
