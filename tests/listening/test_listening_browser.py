"""Listening tests as listeners meet them: real JupyterLab and voila, real Chromium, real answers on the disk.

With MECHSTEER_PICTURES naming a folder, every page state is also pictured there, light and dark.
"""

import io
import json
import os
import re
import signal
from pathlib import Path

import pandas as pd
import pytest
from browser import (
    command,
    jupyterlab,
    kernel_processes,
    listening_page,
    open_notebook,
    page,
    ready,
    run_all,
)
from listening_clips import make

from mechsteer.listening.answers import AnswerStore
from mechsteer.show.saving import chrome as drawer
from mechsteer.show.saving import numbers_hash, stored_figure

PICTURES = os.environ.get("MECHSTEER_PICTURES")
QUICK = {"listen": 0.3, "headphones": 1, "practice": 1}


# Playwright's own waiting for an element looks every half second; these look twenty times a second.
SHOWN = "selector => document.querySelector(selector)?.checkVisibility()"
HEARD = "k => document.querySelectorAll('.tile .fill')[k]?.style.width === '100%'"


def shown(tab, selector: str) -> None:
    """Wait for the first element of a CSS selector."""
    tab.wait_for_function(SHOWN, arg=selector, polling=50)


def state(tab, name: str) -> None:
    """Wait for a page state of the test: welcome, resume, intro, trial-headphones, trial-<kind> or done."""
    shown(tab, f".mechsteer-listening[data-page={name}]:not([aria-busy])")


def picture(tab, name: str) -> None:
    if PICTURES:
        Path(PICTURES).mkdir(parents=True, exist_ok=True)
        tab.wait_for_timeout(200)
        tab.locator(".mechsteer-listening").screenshot(path=str(Path(PICTURES) / f"listening_{name}.png"))


FOCUSED = "() => document.querySelector('.mechsteer-listening').contains(document.activeElement)"


def press(tab, name: str) -> None:
    """A button of the test: JupyterLab has a Yes of its own, now and then."""
    tab.locator(".mechsteer-listening").get_by_role("button", name=name).click()


def enter(tab, name: str) -> None:
    state(tab, "welcome")
    tab.fill(".mechsteer-listening input[type=text]", name)
    press(tab, "Begin")


def come_back(tab, where: str) -> None:
    """Begin under the name that the page remembers, and find oneself where one was."""
    state(tab, "welcome")
    press(tab, "Begin")
    state(tab, "resume")
    press(tab, "Yes, go on")
    due(tab, where)


def due(tab, where: str) -> None:
    """The page shows this trial of the test, such as "Page 2 of 3"."""
    shown(
        tab, ".mechsteer-listening:is([data-page=trial-preference], [data-page=trial-abx]):not([aria-busy])"
    )
    assert tab.locator(".where").inner_text() == where


def go_on(tab) -> None:
    state(tab, "intro")
    press(tab, "Go on")


def until_heard(tab) -> None:
    """Listen to each sound by its button until an answer may be given."""
    for k, tile in enumerate(tab.locator(".tile").all()):
        tile.click()
        tab.wait_for_function(HEARD, arg=k, polling=50)
    shown(tab, ".answers input:enabled, .sliders input:enabled")


def by_mouse(tab, choice: int) -> None:
    where = tab.locator(".where").inner_text()
    until_heard(tab)
    tab.locator(".answer input").nth(choice).click()
    press(tab, "Save and go on")
    moved_on(tab, where)


def by_letter(tab) -> None:
    """Listen to each sound by its letter."""
    for k, letter in enumerate(tab.locator(".tile .letter").all_inner_texts()):
        tab.keyboard.press(letter.lower())
        tab.wait_for_function(HEARD, arg=k, polling=50)


def by_keyboard(tab, choice: int) -> None:
    where = tab.locator(".where").inner_text()
    by_letter(tab)
    tab.keyboard.press(str(choice + 1))
    tab.keyboard.press("Enter")
    moved_on(tab, where)


def finish(tab, choice: int) -> None:
    """The last answer of a test."""
    until_heard(tab)
    tab.keyboard.press(str(choice + 1))
    tab.keyboard.press("Enter")
    state(tab, "done")


def moved_on(tab, where: str) -> None:
    tab.wait_for_function(
        "old => document.querySelector('.mechsteer-listening .where')?.innerText !== old"
        " && !document.querySelector('.mechsteer-listening[aria-busy]')",
        arg=where,
        polling=50,
    )


def answers(folder: Path) -> list[dict]:
    return AnswerStore(folder / "answers.jsonl").answers()


def complete(folder: Path, names: list[str], each: int) -> None:
    """Every listener has each trial once."""
    store = AnswerStore(folder / "answers.jsonl")
    assert list(store.listeners()) == names
    keys = [(line["listener"], line["trial"]) for line in store.answers()]
    assert len(keys) == len(set(keys)) == each * len(names)


def give_nothing_away(tab, design) -> None:
    """Neither the page nor anything that went over the network names a condition or a stimulus file."""
    files = [token for part in design.stimuli.values() for token in part.values()]
    secret = re.compile("|".join([*map(re.escape, design.conditions), *files, "antiphase"]))
    traffic = [f.decode("latin-1") if isinstance(f, bytes) else f for f in tab.seen.sent + tab.seen.received]
    assert any(design.question in frame for frame in traffic), "the traffic was read"
    told = [*traffic, tab.content(), *tab.seen.requests]
    assert not [found[0] for found in map(secret.search, told) if found]
    assert not tab.seen.refused, "a request would have left the machine"
    assert not tab.seen.errors


def figures_of(folder: Path, main: list[dict]) -> None:
    """Stopped by Ctrl-C, the server has drawn a figure of these very answers, without their names."""
    told = (folder / ".jupyter-test/server.log").read_text().splitlines()
    assert f"Their figures are in {folder / 'analysis'}" in told
    assert any(line.startswith("2 of 2 listeners") for line in told)
    share = sum(line["chosen"] == "steered" for line in main) / len(main)
    numbers = (folder / "analysis/listening_results.csv").read_text().partition("\n")[2]
    assert pd.read_csv(io.StringIO(numbers))["share"].tolist() == pytest.approx([share], abs=1e-5)
    drawn = stored_figure("listening_results", folder / "analysis")
    assert drawn.layout.meta["numbers"] == numbers_hash(numbers)
    written = {path.name: path.read_bytes() for path in (folder / "analysis").iterdir()}
    assert not drawer() or len(written["listening_results.png"]) > 5000
    assert not [name for name, content in written.items() if b"Ann <img" in content or b"../Bo" in content]


def test_voila_by_mouse_and_by_keyboard_with_a_killed_kernel_and_two_listeners_at_once(chrome, tmp_path):
    test = make(tmp_path, items=2, **QUICK)
    with listening_page(tmp_path) as address, page(chrome) as ann, page(chrome, color_scheme="dark") as bo:
        ann.goto(address[:-1], wait_until="commit")
        ann.get_by_text("open it as it was sent to you, with the code at its end").wait_for()
        assert not kernel_processes() and not ann.locator("script").count()
        ann.goto(address, wait_until="commit")
        enter(ann, "Ann <img src=x onerror=alert(1)>")
        assert ann.locator(".mechsteer-listening").get_attribute("data-theme") == "light"
        anns = kernel_processes()
        bo.goto(address, wait_until="commit")
        enter(bo, "../Bo")
        (bos,) = set(kernel_processes()) - set(anns)
        for tab, act in ((ann, by_mouse), (bo, by_keyboard)):
            go_on(tab)
            state(tab, "trial-headphones")
            act(tab, 0)
            go_on(tab)
            state(tab, "trial-preference")
            assert tab.locator(".answer input").first.is_disabled(), "no answer before listening"
            act(tab, 0)
            go_on(tab)
            state(tab, "trial-preference")
        by_mouse(ann, 0)
        by_keyboard(bo, 1)
        assert len(answers(tmp_path)) == 6
        until_heard(bo)
        bo.keyboard.press("2")
        os.kill(bos, signal.SIGKILL)
        bo.keyboard.press("Enter")  # into the void
        bo.locator(".mechsteer-listening .banner:has-text('The connection is lost')").wait_for()
        press(bo, "Reload")
        assert ann.locator(".mechsteer-listening img").count() == 0, "a name is text, never markup"
        come_back(bo, "Page 2 of 2")
        assert len(answers(tmp_path)) == 6, "what was never acknowledged was never stored"
        for tab, choice in ((ann, 0), (bo, 1)):
            give_nothing_away(tab, test.design)
            finish(tab, choice)
        press(ann, "Another listener")
        state(ann, "welcome")
        assert ann.input_value(".mechsteer-listening input[type=text]") == ""
    complete(tmp_path, ["Ann <img src=x onerror=alert(1)>", "../Bo"], 4)
    main = [line for line in answers(tmp_path) if line["stage"] == "main"]
    assert {line["listener"]: line["choice"] for line in main} == {1: "A", 2: "B"}
    assert all(min(line["heard"]) >= 0.3 for line in answers(tmp_path))
    figures_of(tmp_path, main)


def test_jupyterlab_by_mouse_and_by_keyboard_with_a_reload_and_a_killed_kernel(chrome, tmp_path):
    test = make(tmp_path, "abx", items=4, listen=0.3, headphones=0, practice=0)
    with jupyterlab(tmp_path) as address, page(chrome) as tab:
        open_notebook(tab, address, "take.ipynb")
        before = len(tab.locator(".jp-Cell").all())
        run_all(tab)
        state(tab, "welcome")
        assert not tab.evaluate(FOCUSED), "running a cell leaves the focus in the notebook"
        enter(tab, "Cy")
        go_on(tab)
        state(tab, "trial-abx")
        assert tab.locator(".tile .letter").all_inner_texts() == ["A", "B", "X"]
        by_mouse(tab, 0)
        # JupyterLab's own shortcuts (a, b: insert cells; x: cut) don't act while the test has the focus
        by_keyboard(tab, 1)
        assert len(tab.locator(".jp-Cell").all()) == before
        command(tab, "docmanager:save")
        saved = json.loads((tmp_path / "take.ipynb").read_text())
        assert not re.search("|".join(test.design.conditions), json.dumps(saved)), (
            "nor does the saved notebook tell"
        )

        open_notebook(
            tab, address, "take.ipynb"
        )  # the page is loaded anew, and the kernel lives on: so does the test
        due(tab, "Page 3 of 4")
        by_mouse(tab, 0)
        run_all(tab)  # a page of its own for each run of the cell
        come_back(tab, "Page 4 of 4")

        until_heard(tab)
        tab.keyboard.press("1")
        (kernel,) = kernel_processes()
        os.kill(kernel, signal.SIGKILL)
        tab.keyboard.press("Enter")  # into the void
        tab.locator(".jp-Dialog button.jp-mod-accept").click()  # "the kernel appears to have died"
        ready(tab)
        assert len(answers(tmp_path)) == 3, "what was never acknowledged was never stored"
        run_all(tab)
        come_back(tab, "Page 4 of 4")
        give_nothing_away(tab, test.design)
        finish(tab, 0)
    complete(tmp_path, ["Cy"], 4)
    found = [(line["choice"], len(line["heard"])) for line in answers(tmp_path)]
    assert found == [("A", 3), ("B", 3), ("A", 3), ("A", 3)]
    assert {line["x"] for line in answers(tmp_path)} <= set(test.design.conditions)


def test_a_rating_by_keyboard_in_the_dark(chrome, tmp_path):
    make(tmp_path, "rating", ("steered", "unsteered", "oversteered"), 1, listen=0.3, headphones=0, practice=0)
    with listening_page(tmp_path, "dark") as address, page(chrome) as tab:
        tab.goto(address, wait_until="commit")
        enter(tab, "Di")
        go_on(tab)
        state(tab, "trial-rating")
        assert tab.locator(".mechsteer-listening").get_attribute("data-theme") == "dark"
        until_heard(tab)
        for k, presses in enumerate((3, 5, 10)):
            tab.keyboard.press(str(k + 1))
            for _ in range(presses):
                tab.keyboard.press("ArrowUp")
        tab.keyboard.press("Enter")
        state(tab, "done")
        assert not tab.seen.errors and not tab.seen.refused
        (line,) = answers(tmp_path)
        (tmp_path / "answers.jsonl").unlink()  # or it is analysed as the page ends, which is tested above
    assert [line["ratings"][slot] for slot in line["slots"]] == [53, 55, 60]


if PICTURES:

    @pytest.mark.parametrize("theme", ["light", "dark"])
    def test_every_page_state_is_pictured(chrome, tmp_path, theme):
        for kind, names in (("preference", 2), ("abx", 2), ("rating", 3)):
            folder = tmp_path / kind
            make(folder, kind, ("steered", "unsteered", "oversteered")[:names], **{**QUICK, "listen": 0.8})
            with (
                listening_page(folder, theme) as address,
                page(chrome, viewport={"width": 760, "height": 800}) as tab,
            ):
                tab.goto(address, wait_until="commit")
                state(tab, "welcome")
                shot = lambda name, kind=kind, tab=tab: picture(tab, f"{kind}_{name}_{theme}")
                if kind == "preference":
                    shot("welcome")
                enter(tab, "Ann")
                for stage in ("headphones", "practice"):
                    state(tab, "intro")
                    if kind == "preference":
                        shot(f"intro_{stage}")
                    go_on(tab)
                    state(tab, f"trial-{kind}" if stage == "practice" else "trial-headphones")
                    tab.locator(".tile").first.click()
                    tab.wait_for_timeout(300)
                    if kind == "preference" or stage == "practice":
                        shot(f"{stage}_listening")
                    until_heard(tab)
                    if kind == "rating" and stage == "practice":
                        for k, presses in enumerate((20, 2, 5)):
                            tab.keyboard.press(str(k + 1))
                            for _ in range(presses):
                                tab.keyboard.press("ArrowUp" if k else "ArrowDown")
                    else:
                        tab.keyboard.press("2")
                    if kind == "preference" or stage == "practice":
                        shot(f"{stage}_answered")
                    tab.keyboard.press("Enter")
                state(tab, "intro")
                if kind == "preference":
                    shot("intro_main")
                    go_on(tab)
                    for _ in range(2):
                        state(tab, "trial-preference")
                        where = tab.locator(".where").inner_text()
                        until_heard(tab)
                        tab.keyboard.press("1")
                        tab.keyboard.press("Enter")
                        if "1 of" in where:
                            moved_on(tab, where)
                    state(tab, "done")
                    shot("done")
                    tab.reload(wait_until="commit")
                    state(tab, "welcome")
                    press(tab, "Begin")
                    state(tab, "resume")
                    shot("resume")
