"""The pictures that explain: what ships is what the code draws, and what they say is what the code does."""

import re
from xml.etree import ElementTree as ET

import pytest
import torch
from conftest import ROOT

from mechsteer import paths
from mechsteer.model.sites import INPUT, SITES
from workshop.suite import diagrams, drawing, redraw

SVG = "{http://www.w3.org/2000/svg}"
SHIPPED = ROOT / "figures" / "diagrams"


def said(name: str) -> list[str]:
    """Every line of text of a picture."""
    return ["".join(text.itertext()) for text in ET.fromstring(diagrams.DRAWN[name]()).iter(f"{SVG}text")]


def test_what_ships_is_what_the_code_draws():
    assert {path.stem for path in SHIPPED.iterdir()} == set(diagrams.DRAWN)
    for name, drawn in diagrams.DRAWN.items():
        assert (SHIPPED / f"{name}.svg").read_text(encoding="utf-8") == drawn(), f"make figures draws {name}"


@pytest.mark.parametrize("name", diagrams.DRAWN)
def test_a_picture_is_told_to_ears_and_large_enough_to_read(name):
    root = ET.fromstring(diagrams.DRAWN[name]())
    assert root.get("role") == "img" and len(root.find(f"{SVG}desc").text) > 200
    assert root.find(f"{SVG}title").text in said(name)
    sizes = [float(part.get("font-size")) for part in root.iter() if part.get("font-size")]
    assert min(sizes) * 700 / drawing.WIDTH >= 12
    assert not [part for part in root.iter() if "href" in "".join(part.attrib)], "nothing is fetched"


def test_the_delay_pattern_is_the_models(model):
    """Codes that name their own frame, through the model's own pattern, stand where the picture has them."""
    books, frames = model.n_codebooks, diagrams.FRAMES
    codes = torch.arange(frames).repeat(1, books, 1)
    pattern = model.lm.pattern_provider.get_pattern(frames)
    sequence = pattern.build_pattern_sequence(codes, model.lm.special_token_id)[0][0]
    root = ET.fromstring(diagrams.delay_pattern())
    placed = [(t.get("x"), t.get("y"), "".join(t.itertext())) for t in root.iter(f"{SVG}text")]
    rows = {y: k for k, y in enumerate(sorted({float(y) for x, y, text in placed if y.endswith(".5")})[:-1])}
    drawn = {(rows[float(y)], (int(x) - 158) // 58): int(text) for x, y, text in placed if float(y) in rows}
    assert len(drawn) == diagrams.CODEBOOKS * frames
    for (book, step), frame in drawn.items():
        assert sequence[book, step] == frame and step == frame + book + 1
    assert (sequence[:, 0] == model.lm.special_token_id).all()
    assert model.valid_steps(frames) == slice(1, frames + 1)


def test_a_block_has_the_sites_of_the_code():
    pills = re.findall(r'<tspan font-family="[^"]*Mono[^"]*"[^>]*>(\w+)<', diagrams.residual_stream())
    assert set(pills) == {*SITES, INPUT} and len(pills) == len(SITES) + 1


def test_make_figures_draws_them_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(paths, "figures", lambda *_: tmp_path)
    assert redraw.main(["diagrams"]) == 0
    assert "diagrams/guidance" in capsys.readouterr().out
    (tmp_path / "diagrams/guidance.svg").write_text("<svg/>")
    assert redraw.main(["diagrams"]) == 0
    assert re.search(r"diagrams/guidance +picture redrawn\n", capsys.readouterr().out)
    files = [
        (tmp_path / "diagrams" / path.name).read_bytes() == path.read_bytes() for path in SHIPPED.iterdir()
    ]
    assert all(files) and len(files) == len(diagrams.DRAWN)
