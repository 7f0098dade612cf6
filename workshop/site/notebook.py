"""A stored notebook as a page: figures that move, solutions folded, nothing that would need a kernel."""

import base64
import html
import json
import re
import struct

_PLOTLY = "application/vnd.plotly.v1+json"
_NEEDS_A_KERNEL = ("application/vnd.jupyter.widget-view+json", "application/javascript")
_FOLDED = {"solution": ("hide-cell", "Solution"), "answer": ("hide-input", "How the answer is written")}


def as_page(book: dict, name: str, repository: str = "") -> tuple[dict, dict[str, bytes]]:
    """The notebook that Sphinx reads, and the pictures that it names, as {file name: PNG}.

    Reads tags and kinds of output only, never which cells there are. `repository` as for `stage.lay_out`.
    """
    pictures, cells = {}, []
    for number, cell in enumerate(book["cells"]):
        tags = cell["metadata"].get("tags", [])
        if "navigation" in tags:  # the theme has its own
            continue
        if cell["cell_type"] == "code":
            cell = {**cell, "metadata": _folded(cell["metadata"], tags)}
            cell["outputs"] = [
                _output(output, f"{name}-{number}-{k}.png", pictures)
                for k, output in enumerate(cell["outputs"])
            ]
        cells.append(cell)
    if repository:
        cells[0] = {**cells[0], "source": _with_badges("".join(cells[0]["source"]), name, repository)}
    metadata = {key: value for key, value in book["metadata"].items() if key != "widgets"}
    return {**book, "metadata": metadata, "cells": cells}, pictures


def short_title(name: str) -> str:
    """What navigation calls a notebook: `05_steer_and_listen` is "05 Steer and listen"."""
    number, _, words = name.partition("_")
    return f"{number} {words.replace('_', ' ').capitalize().replace(' mse', ' MSE')}"


def _folded(metadata: dict, tags: list[str]) -> dict:
    for tag, (how, prompt) in _FOLDED.items():
        if tag in tags:
            shown = {"code_prompt_show": prompt, "code_prompt_hide": prompt}
            return {**metadata, "tags": [*tags, how], "mystnb": shown}
    if metadata.get("jupyter", {}).get("source_hidden"):
        return {**metadata, "tags": [*tags, "hide-input"]}
    return metadata


def _output(output: dict, name: str, pictures: dict[str, bytes]) -> dict:
    if "data" not in output:
        return output
    data = {kind: value for kind, value in output["data"].items() if kind not in _NEEDS_A_KERNEL}
    figure, png = data.pop(_PLOTLY, None), data.get("image/png")
    if figure:
        if png:
            pictures[name] = base64.b64decode("".join(png))
        shown = live_figure(figure, f"../plots/{name}" if png else "", pictures.get(name, b""))
        data = {"text/html": shown}
    return {**output, "data": data, "metadata": {}}


def live_figure(figure: dict, picture: str, png: bytes = b"", title: str = "") -> str:
    """HTML of a Plotly figure that `site.js` brings to life; until then, and without it, its picture.

    Parameters
    ----------
    figure : data and layout, as Plotly stores them
    picture : address of a PNG of it, or "" for none
    png : that file, for its proportions
    title : what the picture shows; default, the figure's own title
    """
    layout = figure.get("layout", {})
    own = re.sub(r"<[^>]+>", " ", (layout.get("title") or {}).get("text") or "figure")
    wide, high = layout.get("width") or 800, layout.get("height") or 450
    if png[:4] == b"\x89PNG":
        across, down = struct.unpack(">II", png[16:24])
        high = round(wide * down / across)
    kept = {"data": figure["data"], "layout": {**layout, "width": wide, "height": high}}
    content = json.dumps(kept, separators=(",", ":")).replace("</", "<\\/")
    image = (
        f'<img src="{html.escape(picture)}" alt="{html.escape(title or own)}" loading="lazy">'
        if picture
        else ""
    )
    return (
        f'<figure class="live-figure" style="--wide:{wide}px;aspect-ratio:{wide}/{high}">{image}'
        f'<div class="live-plot"></div><script type="application/json">{content}</script></figure>'
    )


def _with_badges(first: str, name: str, repository: str) -> str:
    address = f"notebooks/{name}.ipynb"
    places = {
        "Open in Colab": f"https://colab.research.google.com/github/{repository}/blob/main/{address}",
        "Open in Binder": f"https://mybinder.org/v2/gh/{repository}/HEAD?labpath={address}",
    }
    links = " ".join(f'<a class="badge-link" href="{to}">{text}</a>' for text, to in places.items())
    heading, _, rest = first.partition("\n")
    return f'{heading}\n\n<p class="badges">{links}</p>\n\n{rest.lstrip()}'
