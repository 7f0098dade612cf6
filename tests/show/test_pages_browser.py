"""Saved pages in a real browser: their toolbar uploads nothing and leads nowhere.

tests/notebooks/test_start_here_browser.py has the same of a figure in JupyterLab.
"""

import browser
import pandas as pd
import plotly.graph_objects as go
import pytest

from mechsteer.show import saving


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
            shown[name] = tab.evaluate(browser.TOOLBAR)
        assert not tab.seen.refused and not tab.seen.errors
    assert any("Share chart" in title for title in shown["plain"]), "as Plotly has it by itself"
    assert shown["02_line"] and not any("Share" in title for title in shown["02_line"])
    assert not any("plotly.com" in title or "Produced" in title for title in shown["02_line"])
