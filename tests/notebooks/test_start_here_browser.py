"""Notebook 00 as a reader meets it: in JupyterLab, in a real browser, with the panel's slider moved by hand.

With MECHSTEER_PICTURES naming a folder, the notebook runs with its own parameters, not with small ones, and
the panel is pictured there after one press of its button, as the reader of the notebook meets it
(figures/00_panel.png).
"""

import os
import shutil
from pathlib import Path

import nbformat
import pytest
from browser import CHROME, browser, jupyterlab, open_notebook, page, run_all
from conftest import require

from workshop.suite import notebooks

SMALL = "\nDURATION, START, SCORES = 4.0, 0.5, 3"
PICTURES = os.environ.get("MECHSTEER_PICTURES")
SECONDS, BEGIN = (8, "start=3)") if PICTURES else (4, "start=0.5)")
PLAYERS = "div.widget-vbox audio"
CODE = "div.widget-vbox code"
WIDE = {"width": 1500, "height": 1000}
ALL_CELLS = """() => {
    const shown = window.jupyterapp.shell.currentWidget.content;
    // cells out of sight stay on the page
    shown.notebookConfig = {...shown.notebookConfig, windowingMode: 'none'};
}"""


@pytest.mark.timeout(600)
def test_the_slider_brings_new_audio_beside_the_twin(tmp_path, monkeypatch):
    require(CHROME, "chromium")
    (path,) = notebooks.find(["00"])
    book = nbformat.read(path, 4)
    for cell in book.cells:
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
        if "parameters" in cell.metadata.get("tags", []):
            cell.source += "" if PICTURES else SMALL
    nbformat.write(book, tmp_path / path.name)
    shutil.copy(path.with_name("checks.py"), tmp_path)
    monkeypatch.setenv("MECHSTEER_FIGURES", str(tmp_path / "figures"))
    monkeypatch.setenv("MECHSTEER_RUNS", str(tmp_path / "runs"))
    with jupyterlab(tmp_path) as address, browser() as chrome, page(chrome, viewport=WIDE) as tab:
        tab.set_default_timeout(300_000)
        open_notebook(tab, address, path.name)
        tab.evaluate(ALL_CELLS)
        run_all(tab)
        errors = "() => [...document.querySelectorAll('[data-mime-type=\"application/vnd.jupyter.stderr\"]')]"
        assert "Traceback" not in "".join(tab.evaluate(f"({errors})().map(e => e.textContent)"))
        tab.locator(CODE).scroll_into_view_if_needed()
        told = tab.locator(CODE).inner_text()
        assert "strength=0.75" in told and BEGIN in told and tab.locator(PLAYERS).count() == 0

        first = _generate(tab)
        if PICTURES:
            tab.add_style_tag(content=".Toastify { display: none }")  # JupyterLab's question about news
            tab.locator(PLAYERS).evaluate_all("all => all.forEach(a => { a.preload = 'auto'; a.load(); })")
            tab.wait_for_function(
                "where => [...document.querySelectorAll(where)].every(a => a.readyState > 3)", arg=PLAYERS
            )
            tab.wait_for_timeout(500)  # until the players have drawn their new state
            tab.locator("div.widget-vbox").first.screenshot(path=Path(PICTURES) / "00_panel.png")
        assert "strength=0.8," in _move(tab, "ArrowRight") and "strength=2," in _move(tab, "End")
        second = _generate(tab)
        assert first[0] == second[0] and first[1] != second[1] and first[0] != first[1]

        length, left = (
            tab.locator(PLAYERS)
            .nth(1)
            .evaluate(
                """async sound => {
                sound.muted = true;
                await sound.play();
                await new Promise(later => setTimeout(later, 800));
                return [sound.duration, parseFloat(sound.previousElementSibling.lastElementChild.style.left)];
            }"""
            )
        )
        assert abs(length - SECONDS) < 0.3 and left > 5  # it plays, and the line has moved along
        assert not [text for text in tab.seen.errors if "mechsteer" in text]


def _move(tab, key: str) -> str:
    """Move the strength slider by a key; the line of code that the panel then shows."""
    code = tab.locator(CODE).inner_text()
    tab.locator("div.widget-vbox .noUi-handle").first.press(key)
    tab.wait_for_function(
        "([where, old]) => document.querySelector(where).innerText !== old", arg=[CODE, code]
    )
    return tab.locator(CODE).inner_text()


def _generate(tab) -> list[str]:
    """Press the button; the sounds of the two players that arrive."""
    before = tab.locator(PLAYERS).evaluate_all("all => all.map(a => a.src)")
    tab.get_by_role("button", name="Generate").click()
    tab.wait_for_function(
        "([where, old]) => { const now = [...document.querySelectorAll(where)].map(a => a.src);"
        " return now.length === 2 && now[1] !== old[1]; }",
        arg=[PLAYERS, before],
    )
    return tab.locator(PLAYERS).evaluate_all("all => all.map(a => a.src)")
