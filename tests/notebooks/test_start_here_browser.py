"""Notebook 00's live panel as a reader meets it: in JupyterLab, in a real browser, played by hand.

Then a figure in the same JupyterLab, for its toolbar: what it could upload or lead to.

With MECHSTEER_PICTURES naming a folder, the panel is pictured there while it plays.
"""

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from browser import CHROME, TOOLBAR, browser, jupyterlab, kernel_processes, open_notebook, page, run_all
from conftest import require
from live_page import CHUNKS, SPY, play_and_move

from workshop.suite import notebooks

SMALL = "\nDURATION, START, SCORES, STRENGTH = 4.0, 0.5, 3, 0.0"
PICTURES = os.environ.get("MECHSTEER_PICTURES")
WIDE = {"width": 1500, "height": 1000}
AFTER = """
import threading
take = panel.played
again = model.stream(take.prompts, take.settings["duration"], take.seeds, take.steering).finish()
working = [t.name for t in threading.enumerate() if "mechsteer" in t.name or "panel" in t.name]
exact = bool((again.codes == take.codes).all())
print("exact", exact, "parts", len(take.steering[1].parts), "working", working)
"""
FIGURE = """
import plotly.graph_objects as go
from mechsteer.show import plots
go.Figure(go.Scatter(y=[1, 2]))
"""
ALL_CELLS = """() => {
    const shown = window.jupyterapp.shell.currentWidget.content;
    // cells out of sight stay on the page
    shown.notebookConfig = {...shown.notebookConfig, windowingMode: 'none'};
}"""
RUN_LAST = """async code => {
    const shown = window.jupyterapp.shell.currentWidget, cells = shown.content.model.sharedModel;
    cells.insertCell(cells.cells.length, { cell_type: 'code', source: code });
    shown.content.activeCellIndex = cells.cells.length - 1;
    await window.jupyterapp.commands.execute('notebook:run-cell');
}"""


@pytest.mark.timeout(600)
def test_the_panel_plays_what_was_played_is_made_again_and_a_figure_has_no_upload(tmp_path, monkeypatch):
    require(CHROME, "chromium")
    (path,) = notebooks.find(["00"])
    book = nbformat.read(path, 4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += SMALL
    upto = 1 + next(i for i, cell in enumerate(book.cells) if "ms.steering_panel(" in cell.source)
    apart = "model.generate(", "model.trace(", "stream[layer]"  # they and the rest run in test_notebooks.py
    book.cells = [cell for cell in book.cells[:upto] if not any(call in cell.source for call in apart)]
    nbformat.write(book, tmp_path / path.name)
    shutil.copy(path.with_name("checks.py"), tmp_path)
    monkeypatch.setenv("MECHSTEER_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setenv("MECHSTEER_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("PLOTLY_RENDERER", raising=False)
    with jupyterlab(tmp_path) as address, browser() as chrome, page(chrome, viewport=WIDE) as tab:
        tab.set_default_timeout(300_000)
        tab.add_init_script(SPY)
        open_notebook(tab, address, path.name)
        tab.evaluate(ALL_CELLS)
        run_all(tab)
        errors = "() => [...document.querySelectorAll('[data-mime-type=\"application/vnd.jupyter.stderr\"]')]"
        assert "Traceback" not in "".join(tab.evaluate(f"({errors})().map(e => e.textContent)"))
        panel = tab.locator(".mechsteer-panel")
        panel.scroll_into_view_if_needed()
        assert tab.locator(".jp-OutputArea audio").count() < 3, "no second player beside the panel"
        heard = len(play_and_move(tab))

        tab.evaluate(RUN_LAST, AFTER)
        output = tab.locator(".jp-OutputArea-output pre").filter(has_text="exact")
        output.wait_for()
        assert "exact True parts 1 working []" in output.inner_text()

        tab.evaluate(RUN_LAST, FIGURE)
        tab.wait_for_selector(".modebar-btn", state="attached")
        titles = tab.evaluate(TOOLBAR)
        assert titles and not any("Share" in title or "plotly.com" in title for title in titles)

        tab.get_by_role("button", name="Play").click()
        tab.wait_for_function(CHUNKS, arg=heard + (30 if PICTURES else 4), polling=50)
        if PICTURES:
            panel.screenshot(path=Path(PICTURES) / "panel.png")
        assert kernel_processes() and not [text for text in tab.seen.errors if "mechsteer" in text]
    assert not kernel_processes(), "a page that closes while it plays leaves nothing behind"
