"""What Markdown links to, as the site shows it: figures that move, sounds that play where they are named.

A Sphinx extension; formulas become MathML, which browsers draw by themselves.
"""

import json
import os
import posixpath
import re

from docutils import nodes
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx import addnodes
from sphinx.transforms import SphinxTransform

from . import stage
from .notebook import live_figure


class Figures(SphinxTransform):
    """A paragraph that is one picture of figures/ becomes the live figure; light ones get their dark twin."""

    default_priority = 500

    def apply(self, **_) -> None:
        for image in list(self.document.findall(nodes.image)):
            place = _place(self.env.docname, image["uri"])
            name = re.fullmatch(r"figures/(\w+)\.png", place)
            alone = isinstance(image.parent, nodes.paragraph) and len(image.parent) == 1
            twin = place.replace("_light.png", "_dark.png")
            if name and alone and (stage.ROOT / "figures" / f"{name[1]}.json").is_file():
                figure = json.loads((stage.ROOT / "figures" / f"{name[1]}.json").read_text("utf-8"))
                png = (stage.ROOT / place).read_bytes()
                shown = live_figure(figure, _address(self.env.docname, place), png, image.get("alt", ""))
                image.parent.replace_self(nodes.raw("", shown, format="html"))
            elif twin != place and (stage.ROOT / twin).is_file():
                dark = image.deepcopy()
                dark["uri"] = image["uri"].replace("_light.png", "_dark.png")
                image["classes"], dark["classes"] = ["only-light"], ["only-dark"]
                image.parent.insert(image.parent.index(image) + 1, dark)


class Files(SphinxTransform):
    """A link to a file of figures/ leads to it under its own name; one to a sound is marked, to be played."""

    default_priority = 501

    def apply(self, **_) -> None:
        for link in list(self.document.findall(addnodes.download_reference)):
            place = _place(self.env.docname, link["reftarget"])
            if place.startswith("figures/"):
                classes = ["sound"] if place.endswith(".mp3") else []
                address = _address(self.env.docname, place)
                link.replace_self(
                    nodes.reference("", "", *link.children, refuri=address, internal=True, classes=classes)
                )


def _place(page: str, address: str) -> str:
    return address.lstrip("/") if address.startswith("/") else posixpath.normpath(f"{page}/../{address}")


def _address(page: str, place: str) -> str:
    return os.path.relpath(place, os.path.dirname(page) or ".")


def _formula(self, node: nodes.Node, block: bool = False) -> None:
    self.body.append(tex2mathml(node.astext(), as_block=block))
    raise nodes.SkipNode


def setup(app) -> dict:
    app.add_transform(Figures)
    app.add_transform(Files)
    app.add_html_math_renderer(
        "mathml",
        inline_renderers=(_formula, None),
        block_renderers=(lambda self, node: _formula(self, node, block=True), None),
    )
    return {"parallel_read_safe": True, "parallel_write_safe": True}
