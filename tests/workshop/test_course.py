"""The notebooks as a course: one prediction each, exercises with hints in two stages, something left open."""

import re

import nbformat
import pytest

from workshop.suite import notebooks

STORED = notebooks.find()
BOOKS = {path.stem: nbformat.read(path, 4).cells for path in STORED}
each = pytest.mark.parametrize("cells", BOOKS.values(), ids=list(BOOKS))
FIRST, SECOND = "<details><summary>A first hint</summary>", "<details><summary>A second hint</summary>"


def tagged(cells, tag):
    return [k for k, cell in enumerate(cells) if tag in cell.metadata.get("tags", [])]


@each
def test_one_prediction_stands_before_the_main_picture(cells):
    told = [(k, cell.source) for k, cell in enumerate(cells) if cell.cell_type == "markdown"]
    guesses = [k for k, text in told for _ in re.findall(r"\bGuess\b", text)]
    assert len(guesses) == 1 and "**Guess, then look:**" in cells[guesses[0]].source
    assert "](../figures/" in "".join(cell.source for cell in cells[:4]), "a notebook opens with its picture"
    after = [c.source for c in cells[guesses[0] :] if c.cell_type == "code"]
    assert any("save_figure" in source for source in after), "there is something to look at after the guess"


@each
def test_two_or_three_exercises_are_numbered_and_one_is_open_and_one_goes_on(cells):
    asked = tagged(cells, "exercise")
    numbers = [re.search(r"^\*\*(\d)\.\*\* ", cells[k].source, re.MULTILINE)[1] for k in asked]
    assert numbers == [*"123"[: len(asked)]] and 2 <= len(asked) <= 3
    for tag, said in (("intervention", "*An intervention, open:*"), ("extension", "*An extension:*")):
        (k,) = tagged(cells, tag)
        assert k in asked and re.search(rf"^\*\*\d\.\*\* {re.escape(said)}", cells[k].source, re.MULTILINE)
        assert sum(said in cell.source for cell in cells) == 1
    (k,) = tagged(cells, "intervention")
    assert re.search("^_ = checks", cells[k + 1].source, re.MULTILINE), "the check says what came out"


@each
def test_hints_come_in_two_stages_and_the_solution_is_folded_and_short(cells):
    for k in tagged(cells, "exercise"):
        text = cells[k].source
        assert text.count(FIRST) == text.count(SECOND) == 1 and text.index(FIRST) < text.index(SECOND)
        assert text.count("<details>") == text.count("</details>") <= 3
    for k in tagged(cells, "solution"):
        assert k - 2 in tagged(cells, "exercise"), "exercise, the reader's cell, solution"
        assert cells[k].metadata["jupyter"]["source_hidden"] is True
        assert len(cells[k].source.splitlines()) <= 12


def test_no_exercise_comes_twice_in_the_course():
    """Each check is used by one exercise, its solution included; and no two ask the same in other words."""
    uses = {}
    for stem, cells in BOOKS.items():
        for k in tagged(cells, "exercise"):
            for name in set(re.findall(r"checks\.(\w+)", "".join(c.source for c in cells[k + 1 : k + 3]))):
                uses.setdefault(name, set()).add((stem, k))
    assert len(uses) >= 2 * len(BOOKS)
    assert not {name: places for name, places in uses.items() if len(places) > 1}


@pytest.mark.parametrize("stem", BOOKS)
def test_a_lesson_is_no_longer_than_one_sitting(stem):
    code = [c for c in BOOKS[stem] if c.cell_type == "code"]
    code = [c for c in code if not {"solution", "parameters"} & {*c.metadata.get("tags", [])}]
    long = [c.id for c in code if len(c.source.splitlines()) > 12]
    assert len(code) <= 21 and not long, long


@each
def test_the_first_screen_is_read_in_a_minute(cells):
    """Title, cost and answer, down to the picture."""
    picture = next(k for k, cell in enumerate(cells) if "](../figures/" in cell.source)
    assert len(" ".join(cell.source for cell in cells[:picture]).split()) <= 120


def test_the_checks_stay_one_file_that_can_be_read():
    assert len((STORED[0].parent / "checks.py").read_text(encoding="utf-8").splitlines()) <= 700
