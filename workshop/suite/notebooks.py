"""Run the numbered notebooks in order and store what they showed: `python -m workshop.suite.notebooks`.

A notebook runs with papermill in a fresh kernel of this very environment, under a time limit. Only a run that
succeeds from top to bottom replaces the stored copy, normalised so that two runs differ where their results
do. Runs on another model than the notebooks' own go to `data/runs/<model>/` and leave the stored copies
alone.
"""

import argparse
import contextlib
import hashlib
import json
import logging
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import nbformat

from mechsteer import errors, paths

from . import changes
from .notebook_text import answer, contents, navigation, normalise, readme, told_only

__all__ = [
    "MAX_BYTES",
    "NotebookError",
    "execute",
    "find",
    "main",
    "parameters_of",
    "problems",
    "relink",
    "run_notebook",
    "source_hash",
]

MAX_BYTES = 1_000_000
DEFAULT_MODEL = "tiny"
KERNEL = "mechsteer-this-environment"


class NotebookError(RuntimeError):
    """A notebook that cannot be found, run or stored; the message says which and what to do."""


def find(names: Sequence[str] = (), folder: Path | None = None) -> list[Path]:
    """The numbered notebooks of a folder, in order; with names (`"01"`, `"01_collect_..."`) those, as given.

    Raises
    ------
    NotebookError  if a name fits none (lists those there are).
    """
    folder = folder or paths.project() / "notebooks"
    every = sorted(folder.glob("[0-9][0-9]_*.ipynb"))
    chosen: dict[Path, None] = {}
    for name in names:
        stem = Path(name).name.removesuffix(".ipynb")
        fits = [path for path in every if path.stem == stem or path.stem.split("_")[0] == stem]
        if not fits:
            there = ", ".join(p.stem for p in every) or "none"
            raise NotebookError(f"No notebook is called {name!r}; there are {there}.")
        chosen |= dict.fromkeys(fits)
    return list(chosen) if names else every


@contextlib.contextmanager
def _kernel(environment: Mapping[str, str]) -> Iterator[str]:
    """A kernelspec that starts this interpreter and no other, whatever kernels are installed elsewhere."""
    name = KERNEL
    before = os.environ.get("JUPYTER_PATH")
    with tempfile.TemporaryDirectory(prefix="mechsteer-kernel-") as folder:
        spec = Path(folder, "kernels", name)
        spec.mkdir(parents=True)
        argv = [sys.executable, "-m", "ipykernel_launcher", "--log-level=ERROR", "-f", "{connection_file}"]
        text = {"argv": argv, "display_name": name, "language": "python", "env": dict(environment)}
        (spec / "kernel.json").write_text(json.dumps(text))
        os.environ["JUPYTER_PATH"] = os.pathsep.join(filter(None, [folder, before]))
        try:
            yield name
        finally:
            del os.environ["JUPYTER_PATH"]
            if before is not None:
                os.environ["JUPYTER_PATH"] = before


def parameters_of(path: Path) -> list[str]:
    """The names that a notebook's cell tagged `parameters` declares."""
    import papermill

    book = nbformat.read(path, as_version=4)
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    logging.getLogger("papermill").setLevel(logging.ERROR)
    return list(papermill.inspect_notebook(book))


def execute(
    path: Path,
    parameters: Mapping[str, object] | None = None,
    figures: Path | None = None,
    runs: Path | None = None,
    limit: float = 1800,
    failed: Path | None = None,
    lenient: bool = False,
    km=None,
) -> nbformat.NotebookNode:
    """Run one notebook from top to bottom and return the executed copy; nothing is written to `path`.

    Parameters
    ----------
    path : Path of the notebook; its folder is the kernel's working directory, as in JupyterLab.
    parameters : values for names that the cell tagged `parameters` declares.
    figures, runs : where `save_figure` and runs write; default where a run by hand writes, `data/runs/`.
    limit : s, for the whole notebook.
    failed : where to leave the half-executed copy if a cell fails.
    lenient : whether an assertion that doesn't hold is told and the run goes on, as for a model that the
        notebook wasn't written about.
    km : a kernel manager of jupyter_client, whose kernel to run in and leave running; default a fresh kernel

    Raises
    ------
    NotebookError  for a parameter the notebook does not declare, a cell that fails, or a run past `limit`.
    """
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError

    declared = parameters_of(path)
    unknown = sorted(set(parameters or {}) - set(declared))
    if unknown:
        there = ", ".join(declared) or "none"
        raise NotebookError(f"{path.stem} has no parameter {', '.join(unknown)}; it has {there}.")
    places = {"MECHSTEER_FIGURES": figures, "MECHSTEER_RUNS": runs}
    places = {name: place or os.environ.get(name) for name, place in places.items()}
    environment = {
        **{name: str(Path(place).resolve()) for name, place in places.items() if place},
        "PLOTLY_RENDERER": "plotly_mimetype+png" if _chrome() else "plotly_mimetype",
        "TQDM_MININTERVAL": "5",
    }
    deadline = time.monotonic() + limit
    with _kernel(environment) as kernel, tempfile.TemporaryDirectory(prefix="mechsteer-notebook-") as folder:
        copy = Path(folder, path.name)
        try:
            return papermill.execute_notebook(
                path,
                copy,
                dict(parameters or {}),
                kernel_name=kernel,
                language="python",
                cwd=path.parent,
                progress_bar=sys.stderr.isatty(),
                timeout_func=lambda _: max(1, int(deadline - time.monotonic())),
                store_widget_state=False,
                request_save_on_cell_execute=False,  # all of it, before and after each cell
                allow_error_names=["AssertionError"] if lenient else [],
                km=km,
            )
        except CellTimeoutError as error:
            told = f"{path.stem} ran longer than {limit:.0f} s (--limit); it was stopped."
            raise NotebookError(told) from error
        except DeadKernelError as error:
            raise NotebookError(f"{path.stem}: its kernel died, most likely for want of memory.") from error
        except papermill.PapermillExecutionError as error:
            if lenient and error.ename == "AssertionError":
                return told_only(copy)
            if error.ename in errors.__all__:  # the sentence is all there is to say
                raise NotebookError(f"{path.stem} stopped. {error.evalue}") from error
            where = ""
            if failed and copy.exists():
                failed.mkdir(parents=True, exist_ok=True)
                where = f" The half-run copy is {(failed / path.name).resolve()}."
                (failed / path.name).write_bytes(copy.read_bytes())
            # no colours: this may go to a log
            trace = re.sub(r"\x1b\[[\d;]*m", "", "\n".join(error.traceback))
            raise NotebookError(
                f"{path.stem}: cell {error.exec_count} failed with {error.ename}: "
                f"{error.evalue}{where}\n{trace}"
            ) from error


def _chrome() -> bool:
    from mechsteer.show.saving import chrome

    return chrome() is not None


def run_notebook(
    path: Path,
    parameters: Mapping[str, object] | None = None,
    out: Path | None = None,
    shelf: Sequence[Path] | None = None,
    **options,
) -> Path:
    """Run one notebook and store its normalised copy at `out` (default: in place), in one step or not at all.

    `shelf` lists the notebooks that the previous | contents | next line and the contents table speak of;
    `options` go to `execute`. Raises NotebookError as `execute` does, and for a copy of more than 1 MB.
    """
    shelf = list(shelf or find(folder=path.parent))
    book = normalise(execute(path, parameters, **options), root=paths.project())
    answer(book)
    navigation(book, path, shelf)
    contents(book, shelf)
    book.metadata["mechsteer"] = {"source": source_hash(book)}
    text = nbformat.writes(book) + "\n"
    size = len(text.encode())
    if size > MAX_BYTES:
        heavy = max(book.cells, key=lambda cell: len(json.dumps(cell.get("outputs", ""))))
        raise NotebookError(
            f"{path.stem} would be {size / 1e6:.1f} MB, over the limit of {MAX_BYTES / 1e6:.0f} MB. Save "
            "media under "
            "figures/ and link them; the heaviest output is of the cell "
            f"{heavy.source.strip().splitlines()[0]!r}."
        )
    return paths.replace(out or path, text)


def relink(shelf: Sequence[Path]) -> list[Path]:
    """Write links between stored notebooks anew where they are out of date; returns those. Outputs stay.

    A new notebook, or a new title, changes its neighbours' links without changing what they compute.
    """
    changed = []
    for path in shelf:
        book = nbformat.read(path, as_version=4)
        before = nbformat.writes(book)
        navigation(book, path, shelf)
        contents(book, shelf)
        if nbformat.writes(book) != before:
            changed.append(paths.replace(path, nbformat.writes(book) + "\n"))
    return changed


def source_hash(book: nbformat.NotebookNode) -> str:
    """Twelve hex digits over a notebook's code: tell whether its outputs are those of its present code."""
    code = [cell.source.strip() for cell in book.cells if cell.cell_type == "code"]
    return hashlib.sha256("\0".join(code).encode()).hexdigest()[:12]


def problems(path: Path) -> list[str]:
    """What is wrong with a stored notebook, a sentence each; empty when `run_notebook` could have made it."""
    book = nbformat.read(path, as_version=4)
    texts, found = [cell.source for cell in book.cells], []
    if path.stat().st_size > MAX_BYTES:
        found.append(f"it has {path.stat().st_size / 1e6:.1f} MB, more than {MAX_BYTES / 1e6:.0f} MB")
    code = [cell for cell in book.cells if cell.cell_type == "code" and cell.source.strip()]
    if [cell.execution_count for cell in code] != list(range(1, len(code) + 1)):
        found.append("its outputs are not from one clean run from top to bottom")
    if any(output.output_type == "error" for cell in code for output in cell.outputs):
        found.append("a cell holds an error")
    if book.metadata.get("mechsteer", {}).get("source") != source_hash(book):
        found.append("its code has changed since its outputs were stored")
    if str(paths.project()) + os.sep in path.read_text(encoding="utf-8"):
        found.append("it holds an absolute path of this machine")
    prose = "\n".join(cell.source for cell in book.cells if cell.cell_type == "markdown")
    for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", prose):
        outside = "://" in target or target.startswith(("data:", "mailto:"))
        if not outside and not (path.parent / target).exists():
            found.append(f"its link to {target} leads nowhere")
    try:
        shelf = find(folder=path.parent)
        navigation(book, path, shelf)
        contents(book, shelf)
    except ValueError as error:  # no title to link with
        return [*found, f"it can't be linked with its neighbours: {error}"]
    if [cell.source for cell in book.cells] != texts:
        found.append("its links to the other notebooks are out of date")
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns 0 when every notebook ran (or, with --check, is in order), else 1."""
    about, says = __doc__.splitlines()[0], "run nothing: say whether the stored copies are in order"
    parser = argparse.ArgumentParser(prog="python -m workshop.suite.notebooks", description=about)
    add = parser.add_argument
    add("names", nargs="*", help="which notebooks (01, 03_probe_every_layer); default all")
    add("--model", default=DEFAULT_MODEL, help="a hub id or a folder of Meta's format; default tiny")
    add("--limit", type=float, default=1800, help="seconds allowed to each notebook; default 1800")
    add("--check", action="store_true", help=says)
    given = parser.parse_args(arguments)
    try:
        books = find(given.names)
    except NotebookError as error:
        parser.exit(2, f"{error}\n")
    if not books:
        print(f"{paths.project() / 'notebooks'} holds no numbered notebook.")
        return 0
    if given.check:
        wrong = {book.stem: problems(book) for book in books}
        for name, sentences in wrong.items():
            print(f"{name}: {'; '.join(sentences) or 'in order'}")
        return int(any(wrong.values()))
    began, failed = time.monotonic(), []
    for book in books:
        try:
            seconds, note, drawn = _run_one(book, given.model, given.limit)
        except (NotebookError, ValueError, OSError) as error:  # ValueError: no notebook, or no title
            print(error if isinstance(error, NotebookError) else f"{book.stem}: {error}", file=sys.stderr)
            failed.append(book.stem)
            continue
        print(f"{book.stem:40s} {seconds:6.0f} s{note}", flush=True)
        for name, change in drawn.items():
            print(f"    figure {name}: {change}", flush=True)
    if given.model == DEFAULT_MODEL and not failed:
        relink(find())
        readme(paths.project() / "README.md", find())
    well = f"{len(books) - len(failed)} of {len(books)}" if failed else len(books)
    told = f"; failed: {', '.join(failed)}" if failed else ""
    print(f"{well} notebooks in {time.monotonic() - began:.0f} s{told}", flush=True)
    return int(bool(failed))


def _run_one(book: Path, model: str, limit: float) -> tuple[float, str, dict[str, str]]:
    """Run one notebook for the command line: its seconds, a remark, and what became of its figures."""
    began, parameters, note = time.monotonic(), {}, ""
    options = {"figures": paths.figures(paths.shipped_figures())}
    options["failed"] = paths.project() / "build" / "notebooks"
    if model != DEFAULT_MODEL:
        home = paths.runs() / re.sub(r"[^\w.-]+", "_", model.strip("/"))
        options |= {
            "lenient": True,
            "out": home / "notebooks" / book.name,
            "figures": home / "figures",
            "runs": home,
        }
        if "MODEL" in parameters_of(book):
            # a folder is given relative to where the command runs, the kernel runs in notebooks/
            parameters["MODEL"] = str(Path(model).resolve()) if Path(model).is_dir() else model
            note = f"  -> {options['out']}"
        else:
            note = "  (takes no MODEL)"
    before = changes.snapshot(options["figures"])
    run_notebook(book, parameters, limit=limit, **options)
    drawn = changes.changes(before, changes.snapshot(options["figures"]))
    own = {name: change for name, change in drawn.items() if name.startswith(f"{book.name[:2]}_")}
    return time.monotonic() - began, note, own


if __name__ == "__main__":
    sys.exit(main())
