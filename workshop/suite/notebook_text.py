"""What the runner does to a notebook's text: takes the noise of a run away, links it with its neighbours.

Functions on notebook nodes; `notebooks.py` calls them after every run.
"""

import re
import sys
from collections.abc import Sequence
from pathlib import Path

import nbformat

from mechsteer import paths

__all__ = [
    "answer",
    "contents",
    "contents_table",
    "cost",
    "navigation",
    "normalise",
    "readme",
    "title",
    "told_only",
]

_BAR = re.compile(r"\d+%\|.*\||\d+(it|\w+)? \[\d\d:\d\d")  # a tqdm bar, with or without a total
_ADDRESS = re.compile(r" at 0x[0-9a-f]{6,}")
_WIDGET = "application/vnd.jupyter.widget-view+json"
_STILL = "Interactive: run this cell to use it."


def normalise(book: nbformat.NotebookNode, root: Path) -> nbformat.NotebookNode:
    """Strip what differs between two runs with the same results; changes and returns `book`.

    Gone: papermill's and timing metadata, widget states, progress bars, memory addresses, the interpreter's
    version and the machine's path to the project (`root`). A widget leaves a sentence in its place. Cells
    tagged `solution` are folded.
    """
    kept = {key: book.metadata[key] for key in ("mechsteer",) if key in book.metadata}
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    facts = {"kernelspec": kernel, "language_info": {"name": "python"}, **kept}
    book.metadata = nbformat.from_dict(facts)
    for cell in book.cells:
        for key in ("papermill", "execution", "ExecuteTime", "collapsed"):
            cell.metadata.pop(key, None)
        if not cell.metadata.get("tags", True):
            del cell.metadata["tags"]
        if "solution" in cell.metadata.get("tags", []):
            cell.metadata["jupyter"] = {"source_hidden": True}
        if cell.cell_type == "code":
            cell.outputs = _outputs(cell.outputs, root)
    return book


def _outputs(outputs: Sequence[nbformat.NotebookNode], root: Path) -> list[nbformat.NotebookNode]:
    kept: list[nbformat.NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream":
            if kept and kept[-1].output_type == "stream" and kept[-1].name == output.name:
                kept[-1].text += output.text
            else:
                kept.append(output)
            continue
        if _WIDGET in output.get("data", {}):
            said = output.data.get("text/plain", "")
            if _BAR.search(said) or "FloatProgress" in said:
                continue
            del output.data[_WIDGET]
            output.data["text/plain"] = _STILL
        for kind in ("text/plain", "text/html", "text/markdown"):
            if kind in output.get("data", {}):
                output.data[kind] = _plain(output.data[kind], root)
        output.get("metadata", {}).pop(_WIDGET, None)
        kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = _plain(_without_bars(output.text), root)
    return [output for output in kept if output.output_type != "stream" or output.text.strip()]


def _without_bars(text: str) -> str:
    """What a terminal would show: what the last carriage return left, and no progress bars."""
    lines = [line.rstrip("\r").rsplit("\r", 1)[-1] for line in text.split("\n")]
    return "\n".join(line for line in lines if not _BAR.search(line))


def _plain(text: str, root: Path) -> str:
    text = _ADDRESS.sub("", text).replace(f"{root}/", "").replace(str(root), ".")
    return text.replace(f"{Path.home()}/", "~/")


def title(book: nbformat.NotebookNode) -> str:
    """The first level-one heading.

    Raises
    ------
    ValueError  if there is none.
    """
    for cell in book.cells:
        if cell.cell_type == "markdown" and (found := re.search(r"^# +(.+?)\s*$", cell.source, re.MULTILINE)):
            return found[1]
    raise ValueError("The notebook has no title: its first cell should start with '# ' and a question.")


def cost(book: nbformat.NotebookNode) -> str:
    """What the first cell says behind `Cost:` ("2 min on a CPU; needs 01") to the line's end; else empty."""
    found = re.search(r"Cost:[\s*_]*(.+?)[\s*_.]*$", book.cells[0].source if book.cells else "", re.MULTILINE)
    return found[1] if found else ""


def _tagged(book: nbformat.NotebookNode, tag: str, kind: str = "markdown") -> nbformat.NotebookNode | None:
    cells = (cell for cell in book.cells if cell.cell_type == kind)
    return next((cell for cell in cells if tag in cell.metadata.get("tags", [])), None)


def answer(book: nbformat.NotebookNode) -> None:
    """Write the Markdown that the code cell tagged `answer` showed into the text cell of that tag.

    So a notebook opens with its answer, in this run's numbers. Nothing happens where either cell is absent.
    """
    told, place = _tagged(book, "answer", "code"), _tagged(book, "answer")
    outputs = (told or {}).get("outputs", [])
    shown = [o.data["text/markdown"] for o in outputs if "text/markdown" in o.get("data", {})]
    if shown and place is not None:
        place.source = shown[-1]


def navigation(book: nbformat.NotebookNode, path: Path, shelf: Sequence[Path]) -> None:
    """Write previous | contents | next into the cell tagged `navigation`; added at the end if absent."""
    names = [other.name for other in shelf]
    here = names.index(path.name)
    links = []
    if here > 0:
        links.append(f"[previous: {title(nbformat.read(shelf[here - 1], 4))}]({names[here - 1]})")
    if here > 0 and names[0].startswith("00_"):
        links.append(f"[contents]({names[0]})")
    if here + 1 < len(names):
        links.append(f"[next: {title(nbformat.read(shelf[here + 1], 4))}]({names[here + 1]})")
    cell = _tagged(book, "navigation")
    if cell is None:
        cell = nbformat.v4.new_markdown_cell(id="navigation", metadata={"tags": ["navigation"]})
        book.cells.append(cell)
    cell.source = " | ".join(links)


def contents(book: nbformat.NotebookNode, shelf: Sequence[Path]) -> None:
    """Write the table of all notebooks and their costs into the cell tagged `contents`, if there is one."""
    cell = _tagged(book, "contents")
    if cell is not None:
        cell.source = contents_table(shelf)


def contents_table(shelf: Sequence[Path], folder: str = "") -> str:
    """Number, title and cost of every notebook as a Markdown table; links go to `folder`."""
    rows = ["| | notebook | cost |", "|---|---|---|"]
    for path in shelf:
        book = nbformat.read(path, 4)
        rows.append(f"| {path.stem.split('_')[0]} | [{title(book)}]({folder}{path.name}) | {cost(book)} |")
    return "\n".join(rows)


def readme(path: Path, shelf: Sequence[Path]) -> None:
    """Write the same table between the marks `<!-- notebooks -->` and `<!-- /notebooks -->` of a README."""
    text = path.read_text(encoding="utf-8")
    before, mark, rest = text.partition("<!-- notebooks -->\n")
    old, end, after = rest.partition("<!-- /notebooks -->")
    if mark and end:
        paths.replace(path, f"{before}{mark}{contents_table(shelf, 'notebooks/')}\n{end}{after}")


def told_only(copy: Path) -> nbformat.NotebookNode:
    """A copy that ran to its end, without papermill's remarks; what it asserted in vain is told."""
    book = nbformat.read(copy, as_version=4)
    remark = "papermill-error-cell-tag"
    book.cells = [cell for cell in book.cells if remark not in cell.metadata.get("tags", [])]
    for cell in book.cells:
        for output in cell.get("outputs", []):
            if output.output_type == "error":
                said = output.evalue or cell.source.strip().splitlines()[-1]
                print(
                    f"{copy.stem}: not so with this model, cell {cell.execution_count}: {said}",
                    file=sys.stderr,
                )
    return book
