"""The steering panel, its widgets driven from Python; and the player that its clips arrive in."""

import base64
import re
import zlib

import numpy as np
import pytest
import xarray as xr

import mechsteer as ms
from mechsteer.show import player


@pytest.fixture
def directions(model) -> xr.DataArray:
    """Two random concepts at every layer, as `find_directions` would give them."""
    shape = (2, model.n_layers, model.d_model)
    return xr.DataArray(
        np.random.default_rng(0).standard_normal(shape),
        dims=("concept", "layer", "d_model"),
        coords={
            "concept": ["guitar", "jazz"],
            "layer": range(model.n_layers),
            "norm": ("layer", [50.0] * model.n_layers),
        },
        attrs={"site": "resid", "model": model.name, "model_hash": model.hash},
    )


def pixels(png: bytes) -> np.ndarray:
    """Colours (row, column, 3) of a PNG whose rows aren't filtered, as ours are."""
    width, height = (int.from_bytes(png[k : k + 4]) for k in (16, 20))
    data = zlib.decompress(png[png.index(b"IDAT") + 4 :])
    return (
        np.frombuffer(data, "uint8")
        .reshape(height, 1 + 3 * width)[:, 1:]
        .reshape(height, width, 3)
        .astype(int)
    )


def sounds(panel) -> list[str]:
    """The sounds of the players now shown."""
    return re.findall(r'src="data:audio/\w+;base64,([^"]+)"', panel.players.value)


def test_a_press_brings_the_clip_of_the_sliders_beside_its_twin(model, directions):
    panel = ms.steering_panel(model, directions, prompt="jazz piano", seed=3, duration=0.4, strength=1.0)
    assert not sounds(panel) and panel.layer.value == model.n_layers // 2
    panel.button.click()
    first, codes = sounds(panel), panel.clips.codes
    assert len(first) == 2 and first[0] != first[1] and (codes[0] != codes[1]).any()
    panel.concept.value, panel.strength.value, panel.layer.value, panel.start.value = "jazz", -1.5, 0, 0.25
    assert "press Generate" in panel.status.value
    assert panel.code.value == "<code>ms.Steering(jazz, layers=0, strength=-1.5, start=0.25)</code>"
    panel.button.click()
    second = sounds(panel)
    assert second[0] == first[0] and second[1] != first[1]  # the twin stays
    steering = ms.Steering(directions.sel(concept="jazz"), layers=0, strength=-1.5, start=0.25)
    alone = model.generate("jazz piano", 0.4, 3, [None, steering])
    assert (panel.clips.codes == alone.codes).all() and np.allclose(panel.clips.audio, alone.audio, atol=1e-5)
    assert not panel.button.disabled


def test_strength_0_is_the_twin_and_a_new_seed_is_a_new_twin(model, directions):
    panel = ms.steering_panel(model, directions, duration=0.4, strength=0.0)
    before = panel.generate().codes[0]
    assert "same, code by code" in panel.status.value
    panel.seed.value = 1
    after = panel.generate()
    assert (after.codes[0] == after.codes[1]).all() and (after.codes[0] != before).any()
    assert after.seeds == [1, 1] and after.prompts == [None, None]


def test_an_error_is_said_in_the_panel_and_the_button_comes_back(model, directions):
    panel = ms.steering_panel(model, directions, duration=0.4)
    panel.duration = 10 * model.max_duration
    assert panel.generate() is None
    assert "the longest this model was made for" in panel.status.value and not panel.button.disabled


def test_the_concept_of_the_beginning_is_chosen_and_a_wrong_one_told(model, directions):
    assert ms.steering_panel(model, directions, concept="guitar").concept.value == "guitar"
    with pytest.raises(ValueError, match="no direction for 'gitar'; there are .*guitar"):
        ms.steering_panel(model, directions, concept="gitar")


def test_the_start_of_the_beginning_is_the_sliders_and_the_steerings(model, directions):
    panel = ms.steering_panel(model, directions, duration=4.0, start=3.0)
    assert panel.start.value == panel.steering.start == 3.0 and "start=3)" in panel.code.value
    assert (
        ms.steering_panel(model, directions, duration=4.0, start=3.9).start.value == 3.9
    )  # off the slider's steps
    for start in (4.0, -0.25):
        with pytest.raises(ValueError, match=f"start={start:g} s isn't inside the clip, which has 4 s"):
            ms.steering_panel(model, directions, duration=4.0, start=start)


def test_directions_that_leave_a_choice_or_do_not_fit_are_refused(model, directions):
    with pytest.raises(ValueError, match="choose one finder"):
        ms.steering_panel(model, directions.expand_dims(finder=["mse", "logistic"]))
    with pytest.raises(ValueError, match="two directions are called 'guitar'"):
        ms.steering_panel(model, [directions, directions])
    with pytest.raises(ValueError, match="can't go on"):
        ms.steering_panel(model, directions.isel(d_model=slice(0, 10)))


def test_a_players_strips_share_the_sounds_time_axis():
    rate = 8000
    sound = np.sin(np.arange(2 * rate) * 0.3)[None].astype("float32")
    page = player.player(sound, rate, strips={"movement <0>": np.eye(4)})
    pictures = [base64.b64decode(code) for code in re.findall(r"data:image/png;base64,([^\"]+)", page)]
    width, height = (int.from_bytes(pictures[1][k : k + 4]) for k in (16, 20))
    assert (width, height) == (4, 4) and len(pictures) == 2
    assert "movement &lt;0&gt;" in page and "currentTime/2," in page and "<script" not in page


def test_strips_show_zero_as_white_where_signs_differ_and_dark_where_not():
    blue, white, red = pixels(player.heat_png(np.array([[-1.0, 0.0, 1.0]])))[0]
    assert white.min() > 240 and blue[2] > blue[0] and red[0] > red[2]
    top, bottom = pixels(player.heat_png(np.array([[0.0, 0.0], [1.0, np.nan]])))
    assert top[0].sum() > 600 and top[1].sum() < 10 and bottom.sum() < 20  # row 0 at the bottom, NaN as 0
    with pytest.raises(ValueError, match="row, time"):
        player.heat_png(np.ones(3))
