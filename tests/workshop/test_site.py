"""The site, built once from what is stored and walked through in a real browser: no other host is asked."""

import doctest
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import browser
import pytest
from conftest import ROOT

from workshop.site import notebook, stage
from workshop.site.docstrings import as_rest

REFERENCE = sorted(path.stem for path in (stage.HERE / "reference").glob("*.md") if path.stem != "index")
PHONE = {"width": 390, "height": 844}


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    """The folder of the site, built without a repository's name."""
    out = tmp_path_factory.mktemp("built") / "site"
    env = {**os.environ, "SITE_REPOSITORY": ""}
    command = [sys.executable, "-m", "workshop.site", "--out", str(out)]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    return out


@pytest.fixture(scope="module")
def address(built):
    """Where the site is served, on this machine only."""
    with browser.served(built) as place:
        yield place


@pytest.fixture(scope="module")
def opened(chrome):
    """One page for all tests: what they share is parsed once."""
    with browser.page(chrome) as opened:
        opened.told, opened.missing = [], []
        opened.on("console", lambda line: opened.told.append(line.text) if line.type == "error" else None)
        opened.on("response", lambda reply: opened.missing.append(reply.url) if reply.status >= 400 else None)
        yield opened


@pytest.fixture
def tab(opened, address):
    opened.set_viewport_size({"width": 1280, "height": 900})
    yield opened
    opened.evaluate("localStorage.clear()")
    assert not opened.seen.refused and not opened.seen.errors and not opened.told and not opened.missing


def pages(built: Path) -> list[str]:
    found = (path.relative_to(built).as_posix() for path in built.rglob("*.html"))
    return sorted(page for page in found if not page.startswith("_static/"))  # the theme's own templates


def with_element(built: Path, mark: str) -> str:
    """The first notebook's page that has something, whichever it is."""
    return next(page for page in pages(built) if "notebooks/" in page and mark in (built / page).read_text())


def test_it_is_small_and_every_link_within_it_leads_somewhere(built):
    assert sum(path.stat().st_size for path in built.rglob("*") if path.is_file()) < 30e6
    names = {path.stem for path in (ROOT / "notebooks").glob("[0-9]*.ipynb")}
    assert {f"notebooks/{name}.html" for name in names} | {"index.html", "readme.html"} <= set(pages(built))
    dead = []
    for page in pages(built):
        text = (built / page).read_text(encoding="utf-8")
        assert "cdn." not in text and "googleapis" not in text, page
        for target in re.findall(r'(?:href|src)="([^"#?:]+)[#?]?[^":]*"', text):
            if not (built / page).parent.joinpath(target).exists():
                dead.append((page, target))
    assert not dead


def test_every_stored_figure_lives(built):
    plotly = "application/vnd.plotly.v1+json"
    for path in sorted((ROOT / "notebooks").glob("[0-9]*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        stored = sum(plotly in output.get("data", {}) for cell in cells for output in cell.get("outputs", []))
        page = (built / "notebooks" / f"{path.stem}.html").read_text(encoding="utf-8")
        assert page.count('class="live-figure"') >= stored, path.name
    for picture in (built / "_images").iterdir():  # what stays a picture has nothing that could live
        assert not (ROOT / "figures" / f"{picture.stem}.json").exists()


_SCROLLING = """[...document.querySelectorAll('.cell_input pre')].filter(
    box => box.offsetParent && box.scrollWidth > box.clientWidth).map(box => box.textContent)"""
_SECONDS = """Promise.all([...document.querySelectorAll('audio')].map(player => new Promise(done => {
    player.onloadedmetadata = () => done(player.duration);
    player.onerror = () => done(0);
    player.preload = 'auto';
    player.load();
})))"""


def test_every_page_fits_a_phone_and_its_code_a_screen_and_every_player_has_a_sound(built, address, tab):
    """A walk through all pages; that they ask this host only, and miss nothing, is seen at its end."""
    wide, scrolling, heard, screen = [], [], [], tab.viewport_size
    tab.set_viewport_size(PHONE)
    for page in pages(built):
        tab.goto(f"{address}/{page}", wait_until="load")
        across = tab.evaluate("document.documentElement.scrollWidth")
        if across > PHONE["width"]:
            wide.append((page, across))
        if re.match(r"notebooks/\d", page):
            tab.set_viewport_size(screen)
            scrolling += [(page, code) for code in tab.evaluate(_SCROLLING)]
            heard += tab.evaluate(_SECONDS)
            tab.set_viewport_size(PHONE)
    assert not wide and not scrolling
    assert heard and min(heard) > 0.5


def test_a_picture_becomes_a_figure_that_reacts_in_light_and_dark(built, address, tab):
    page = with_element(built, 'class="live-figure"')
    tab.goto(f"{address}/{page}")
    tab.evaluate("document.querySelector('.live-figure').scrollIntoView()")
    tab.wait_for_selector(".live-figure.is-live .js-plotly-plot .main-svg")
    plot = "document.querySelector('.live-figure .js-plotly-plot')"
    ends = f"JSON.stringify({plot}._fullLayout.xaxis.range)"
    before = tab.evaluate(ends)
    box = tab.locator(".live-figure .nsewdrag").first.bounding_box()
    at = box["y"] + box["height"] / 2
    tab.mouse.move(box["x"] + 0.3 * box["width"], at)
    tab.mouse.down()
    tab.mouse.move(box["x"] + 0.7 * box["width"], at, steps=5)
    tab.mouse.up()
    tab.wait_for_function(f"{ends} !== {json.dumps(before)}")
    light = tab.evaluate(f"{plot}._fullLayout.font.color")
    tab.evaluate("localStorage.setItem('mode', 'dark')")
    tab.reload()
    assert tab.evaluate("document.documentElement.dataset.theme") == "dark"
    assert tab.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/)[0] < 60")
    tab.evaluate("document.querySelector('.live-figure').scrollIntoView()")
    tab.wait_for_selector(".live-figure.is-live .js-plotly-plot .main-svg")
    assert tab.evaluate(f"{plot}._fullLayout.font.color") != light
    sheet = "getComputedStyle(document.querySelector('.cell_output .live-figure').closest('.output'))"
    assert tab.evaluate(f"{sheet}.backgroundColor") == "rgba(0, 0, 0, 0)"
    tab.click(".theme-switch-button >> visible=true")  # and back, while it is shown


def test_on_a_phone_a_figure_stays_a_picture_until_it_is_tapped(built, address, tab):
    tab.set_viewport_size(PHONE)
    tab.goto(f"{address}/{with_element(built, 'live-figure')}")
    tab.evaluate("document.querySelector('.live-figure').scrollIntoView()")
    tab.locator(".live-hint").first.click()
    tab.wait_for_selector(".live-figure.is-live .main-svg")
    assert tab.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]


def test_sounds_play_and_pairs_are_switched_in_place(built, address, tab):
    page = next(one for one in pages(built) if (built / one).read_text(encoding="utf-8").count("<audio") > 1)
    tab.goto(f"{address}/{page}")
    bar = tab.locator(".switch").first
    bar.locator("button").nth(0).click()
    players = "[...document.querySelector('.switch').parentElement.querySelectorAll('audio')]"
    tab.wait_for_function(f"{players}[0].currentTime > 0.4")
    bar.locator("button").nth(1).click()
    tab.wait_for_function(f"!{players}[1].paused && {players}[1].currentTime > 0.45")
    assert tab.evaluate(f"{players}[0].paused && {players}[1].currentTime < {players}[0].currentTime + 3")
    assert bar.locator("button").nth(1).get_attribute("aria-pressed") == "true"


def test_a_link_to_a_sound_plays_it_where_it_stands(address, tab):
    tab.goto(f"{address}/index.html")
    sounds = tab.locator("a.sound")
    sounds.nth(0).click()
    tab.wait_for_function("document.querySelectorAll('a.sound')[0].sound?.currentTime > 0.3")
    sounds.nth(1).click()
    tab.wait_for_function("document.querySelectorAll('a.sound')[1].sound?.currentTime > 0.35")
    assert tab.evaluate("document.querySelectorAll('a.sound')[0].sound.paused")
    assert tab.url.endswith("index.html")


def test_search_finds_a_word_and_solutions_are_folded(built, address, tab):
    tab.goto(f"{address}/search.html?q=guitar")
    tab.wait_for_selector("#search-results li a")
    assert any(
        "00_start_here" in link.get_attribute("href") for link in tab.locator("#search-results li a").all()
    )
    page = with_element(built, "tag_solution")
    tab.goto(f"{address}/{page}")
    solution = tab.locator(".tag_solution").first
    assert solution.locator("summary").first.is_visible()
    assert not solution.locator("pre").first.is_visible()
    solution.locator("summary").first.click()
    assert solution.locator("pre").first.is_visible()


def test_it_opens_from_the_disk_too(built, chrome):
    context = chrome.new_context()
    tab, errors, asked = context.new_page(), [], []
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("request", lambda request: asked.append(request.url))
    tab.goto((built / "index.html").as_uri())
    tab.wait_for_selector(".live-figure.is-live .main-svg", timeout=browser.PATIENCE * 1000)
    tab.goto((built / "search.html").as_uri() + "?q=guitar")
    tab.wait_for_selector("#search-results li a")
    context.close()
    assert not errors
    assert not [one for one in asked if not one.startswith(("file:", "data:", "blob:"))]


def test_badges_and_links_need_the_repositorys_name():
    book = {
        "metadata": {"widgets": {}},
        "cells": [{"cell_type": "markdown", "metadata": {}, "source": "# A?\n\nYes."}],
    }
    plain, _ = notebook.as_page(book, "01_x")
    assert plain["cells"] == book["cells"] and "widgets" not in plain["metadata"]
    source = notebook.as_page(book, "01_x", "me/mine")[0]["cells"][0]["source"]
    assert source.startswith("# A?\n") and source.endswith("Yes.")
    assert "colab.research.google.com/github/me/mine/blob/main/notebooks/01_x.ipynb" in source
    assert "mybinder.org/v2/gh/me/mine/HEAD?labpath=notebooks/01_x.ipynb" in source


@pytest.mark.parametrize(
    ("link", "without", "within"),
    [
        ("[a](../notebooks/00_start_here.ipynb#Now-This)", "[a](00_start_here.ipynb#now-this)", None),
        ("![a](../figures/05_fusion.png)", "![a](../figures/05_fusion.png)", None),
        ("[a](../workshop/site/index.md)", "[a](../index.md)", None),
        ("[a](../README.md)", "[a](../readme.md)", None),
        ("[a](../LICENSE)", "a", "[a](https://github.com/me/mine/blob/main/LICENSE)"),
        ("[a](../data)", "a", "[a](https://github.com/me/mine/tree/main/data)"),
        ("[a](https://arxiv.org/abs/1#B) [0, 1] (x)", "[a](https://arxiv.org/abs/1#B) [0, 1] (x)", None),
    ],
)
def test_links_follow_their_pages(link, without, within):
    assert stage.follow(link, "notebooks/01_collect_activations.ipynb") == without
    assert stage.follow(link, "notebooks/01_collect_activations.ipynb", "me/mine") == (within or without)


def test_an_output_keeps_only_what_needs_no_kernel():
    widget = {"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "a panel"}
    figure = {"application/vnd.plotly.v1+json": {"data": [], "layout": {"title": {"text": "A</script>"}}}}
    cell = {"cell_type": "code", "metadata": {"tags": ["solution"]}, "source": "x", "outputs": []}
    cell["outputs"] = [{"output_type": "display_data", "data": data} for data in (widget, figure)]
    page, _ = notebook.as_page({"metadata": {}, "cells": [cell]}, "01_x")
    shown = [output["data"] for output in page["cells"][0]["outputs"]]
    assert shown[0] == {"text/plain": "a panel"}
    assert list(shown[1]) == ["text/html"] and shown[1]["text/html"].count("</script>") == 1
    assert "hide-cell" in page["cells"][0]["metadata"]["tags"]


def test_docstrings_become_lists():
    lines = [
        "Do *it*: |h| of x_.",
        "",
        "Parameters",
        "----------",
        "a, b : int",
        "    Of `a_b`.",
        "c",
        "    Cee.",
        "",
    ]
    lines += ["Raises", "------", "ValueError  if not", "    so.", "", "Then:", "", "    code"]
    shown = "\n".join(as_rest(lines))
    assert "Do *it*: \\|h\\| of x\\_." in shown
    assert "- ``a``, ``b``: int.\n  Of `a_b`.\n- ``c``: \n  Cee." in shown
    assert ".. rubric:: Raises\n\n- ``ValueError`` if not\n  so.\n\nThen::\n\n    code" in shown


@pytest.mark.parametrize("folder", REFERENCE)
def test_the_ten_lines_of_a_reference_page_run(folder):
    text = (stage.HERE / "reference" / f"{folder}.md").read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```python\n(.*?)```", text, re.DOTALL))
    example = doctest.DocTestParser().get_doctest(code, {}, folder, folder, 0)
    assert 5 <= len(example.examples) <= 12
    result = doctest.DocTestRunner(verbose=False).run(example)
    assert result.failed == 0


def test_every_folder_and_public_module_has_its_place(built):
    assert tuple(sorted(stage.FOLDERS)) == tuple(REFERENCE)
    for folder in stage.FOLDERS:
        text = (built / "reference" / f"{folder}.html").read_text(encoding="utf-8")
        assert stage.modules(folder) and all(
            f"module-mechsteer.{name}" in text for name in stage.modules(folder)
        )
