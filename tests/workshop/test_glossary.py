"""The glossary: links from notebooks have their entries, entries their links, and its own lead somewhere."""

import json
import re

import pytest
from conftest import ROOT

PAGE = ROOT / "workshop" / "site" / "glossary.md"
TEXT = PAGE.read_text(encoding="utf-8")
ENTRIES = dict(re.findall(r"^### (.+)\n\n(.+)\n", TEXT, re.MULTILINE))
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9][0-9]_*.ipynb"))
LINK = re.compile(r"\[((?:[^\[\]]|\[[^\]]*\])+)\]\(\.\./workshop/site/glossary\.md(#[^)]*)?\)")


def anchor(heading: str) -> str:
    """What GitHub and the site call a heading."""
    return "#" + re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-")


def linked(path) -> list[tuple[str, str, list[str]]]:
    """Every link of a notebook to the glossary: its words, its anchor, the tags of its cell."""
    book = json.loads(path.read_text(encoding="utf-8"))
    cells = [cell for cell in book["cells"] if cell["cell_type"] == "markdown"]
    found = [(cell["metadata"].get("tags", []), LINK.findall("".join(cell["source"]))) for cell in cells]
    return [(words, where, tags) for tags, links in found for words, where in links]


def test_every_entry_is_short_and_says_where_it_is_taught():
    assert len(ENTRIES) == TEXT.count("\n### ") >= 25
    for name, said in ENTRIES.items():
        assert re.search(r" \(\[\d\d\]\(\.\./\.\./notebooks/\d\d_\w+\.ipynb\)\)$", said), name
        assert len(said.split()) <= 75, f"{name}: one to three sentences"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebooks_links_to_the_glossary_have_their_entries(path):
    there = {anchor(name) for name in ENTRIES}
    links = linked(path)
    assert links and not [link for link in links if link[1] not in there]
    assert len({where for _, where, _ in links}) == len(links), "a term is linked once a notebook"
    assert not [link for link in links if "answer" in link[2]], "a run would write over it"


def test_every_entry_is_linked_from_a_notebook():
    used = {where for path in NOTEBOOKS for _, where, _ in linked(path)}
    assert not [name for name in ENTRIES if anchor(name) not in used]


def test_the_glossarys_own_links_resolve():
    headings = [anchor(name) for name in re.findall(r"^#+ (.+)$", TEXT, re.MULTILINE)]
    assert len(set(headings)) == len(headings), "two headings of one name would share an anchor"
    for target in re.findall(r"\]\(([^)]+)\)", TEXT):
        assert target in headings if target.startswith("#") else (PAGE.parent / target).is_file(), target
    for name, said in ENTRIES.items():
        assert f"]({anchor(name)})" not in said, f"{name} refers to itself"
