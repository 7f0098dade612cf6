"""The live panel as a page of voila, in a real browser; tests/notebooks has it in JupyterLab."""

import numpy as np
import pytest
from browser import CHROME, browser, page, voila
from conftest import require
from live_page import CODE, SPY, book, play_and_move

COLOURS = r"""dark => {
    document.body.dataset.jpThemeLight = String(!dark);
    return new Promise(later => setTimeout(() => {
        const css = getComputedStyle(document.querySelector(".mechsteer-panel"));
        later([css.color, css.backgroundColor].map(c => c.match(/\d+/g).slice(0, 3).map(Number)));
    }, 100));
}"""


@pytest.mark.timeout(600)
def test_it_plays_as_a_page_of_its_own_in_light_and_dark(tmp_path):
    require(CHROME, "chromium")
    with voila(book(tmp_path, CODE)) as address, browser() as chrome, page(chrome) as tab:
        tab.add_init_script(SPY)
        tab.goto(address)
        tab.locator(".mechsteer-panel").wait_for()
        play_and_move(tab)
        asked = [a for a in tab.seen.refused if "fontawesome" not in a]  # voila's own icons
        assert not asked and not [e for e in tab.seen.errors if "mechsteer" in e]
        named = tab.locator(".mechsteer-panel :is(input, select)").evaluate_all(
            "all => all.map(node => node.labels[0] && node.labels[0].innerText)"
        )
        assert len(named) == 6 and all(named)
        for dark in (False, True):
            text, ground = (np.dot(c, [0.2126, 0.7152, 0.0722]) / 255 for c in tab.evaluate(COLOURS, dark))
            assert abs(text - ground) > 0.6 and (text > ground) == dark
