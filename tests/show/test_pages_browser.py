"""Saved pages and shown figures in a real browser: their toolbar uploads nothing and leads nowhere."""

import browser
import nbformat
import pandas as pd
import plotly.graph_objects as go
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from mechsteer.show import saving

BUTTONS = "() => [...document.querySelectorAll('.modebar-btn')].map(b => b.dataset.title || b.href || '')"


@pytest.mark.filterwarnings("ignore:.*was not written")
def test_a_saved_page_has_no_upload_in_its_toolbar(chrome, tmp_path, monkeypatch):
    monkeypatch.setattr(saving, "chrome", lambda: None)
    fig = go.Figure(go.Scatter(y=[1, 2]))
    saving.save_figure(fig, pd.DataFrame({"y": [1, 2]}), "02_line", tmp_path)
    fig.write_html(tmp_path / "plain.html", include_plotlyjs="directory")
    shown = {}
    with browser.served(tmp_path) as address, browser.page(chrome) as tab:
        for name in ("02_line", "plain"):
            tab.goto(f"{address}/{name}.html")
            tab.wait_for_selector(".modebar-btn", state="attached")
            shown[name] = tab.evaluate(BUTTONS)
        assert not tab.seen.refused and not tab.seen.errors
    assert any("Share chart" in title for title in shown["plain"]), "as Plotly has it by itself"
    assert shown["02_line"] and not any("Share" in title for title in shown["02_line"])
    assert not any("plotly.com" in title or "Produced" in title for title in shown["02_line"])


def test_a_figure_in_jupyterlab_has_no_upload_in_its_toolbar(chrome, tmp_path, monkeypatch):
    monkeypatch.delenv("PLOTLY_RENDERER", raising=False)
    code = "import plotly.graph_objects as go\nfrom mechsteer.show import plots\n"
    book = new_notebook(cells=[new_code_cell(f"{code}go.Figure(go.Scatter(y=[1, 2]))")])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, tmp_path / "take.ipynb")
    with browser.jupyterlab(tmp_path) as address, browser.page(chrome) as tab:
        browser.open_notebook(tab, address, "take.ipynb")
        browser.run_all(tab)
        tab.wait_for_selector(".modebar-btn", state="attached")
        titles = tab.evaluate(BUTTONS)
    assert titles and not any("Share" in title or "plotly.com" in title for title in titles)
