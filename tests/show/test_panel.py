"""The live panel, asked from Python as its page would; and the player."""

import base64
import io
import re
import threading
import zlib

import numpy as np
import pytest
import soundfile
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


class Page:
    """The page's side of a panel, in Python: what it would send, and what comes back."""

    def __init__(self, panel, **settings):
        self.panel, self.number, self.came = panel, 0, []
        self.settings = {**panel.setup["begin"], **settings}
        panel.send = lambda answer, buffers=(): self.came.append((answer, list(buffers)))

    def ask(self, play="a", first=False, kind="next", **settings):
        """The answer and its buffers: sound of the twin and the steered clip, then their spectrograms."""
        self.number, self.settings = self.number + 1, self.settings | settings
        message = {"kind": kind, "id": self.number, "play": play, "first": first, **self.settings}
        self.panel._on_page(self.panel, message, [])
        answer, buffers = self.came[-1]
        assert len(self.came) == self.number and answer["reply"] == self.number
        return answer, buffers


def test_what_was_played_is_made_again_token_by_token(model, directions):
    panel = ms.steering_panel(model, directions, prompt="jazz piano", seed=3, strength=0.0)
    page = Page(panel)
    answer, (twin, steered, *pictures) = page.ask(first=True)
    assert answer["first"] == 0 and twin.dtype == "float32" and (twin == steered).all()
    assert twin.size == answer["frames"] / model.frame_rate * model.sample_rate
    columns, bands = (panel.setup[name] for name in ("columns", "bands"))
    assert {p.shape for p in pictures} == {(columns * answer["frames"], bands)}
    assert np.shape(answer["reading"]) == (2, answer["frames"])
    for concept, strength in (("guitar", 1.0), ("jazz", 1.0), ("jazz", -1.5)):
        for _ in range(3):
            answer, (twin, steered, *_) = page.ask(concept=concept, strength=strength)
        assert (twin != steered).any() and answer["strength"] == strength
    told, _ = page.ask(kind="stop")
    take = panel.played
    assert told["seconds"] == take.audio.shape[-1] / take.sample_rate
    said = [(p.direction.attrs["concept"], p.strength) for p in take.steering[1].parts]
    assert said == [("guitar", 1.0), ("jazz", 1.0), ("jazz", -1.5)] and take.steering[0] is None
    names = {"panel": panel, "model": model}
    exec(told["code"].replace("\nmodel", "\nagain = model"), names)  # the lines that the panel shows
    assert (names["again"].codes == take.codes).all() and (take.codes[0] != take.codes[1]).any()


def test_a_change_is_heard_where_the_sound_that_was_handed_out_ends(model, directions):
    page = Page(ms.steering_panel(model, directions, seed=1, strength=0.0))
    for k in range(6):
        _, (twin, steered, *_) = page.ask(first=k == 0)
        assert (twin == steered).all()
    answer, (twin, steered, *_) = page.ask(strength=2.0)
    part = page.panel._stream.schedule[1][-1]
    assert part.start == answer["first"] / model.frame_rate and (twin != steered).any()


def test_a_moving_slider_is_followed_in_steps_and_ends_where_it_stops(model, directions):
    page = Page(ms.steering_panel(model, directions, strength=0.0))
    page.ask(first=True)
    for k in range(12):
        page.ask(strength=0.1 * k)
    for _ in range(4):
        answer, _ = page.ask()
    page.ask(kind="stop")
    starts = [part.start for part in page.panel.played.steering[1].parts]
    assert answer["strength"] == pytest.approx(1.1) and len(starts) < 8
    assert min(np.diff(starts)) > 0.3


def test_another_page_takes_over_and_the_first_one_is_told(model, directions):
    page = Page(ms.steering_panel(model, directions))
    page.ask("a", first=True)
    assert "first" in page.ask("b", first=True)[0]
    answer, buffers = page.ask("a")
    assert answer["ended"] and not buffers
    assert page.panel.played is None and page.ask("a", kind="stop")[0].keys() == {"reply", "play"}


def test_a_mistake_is_said_in_the_panel(model, directions):
    page = Page(ms.steering_panel(model, directions))
    assert "seed=-1" in page.ask(first=True, seed=-1)[0]["error"]
    assert "bass" in page.ask(first=True, seed=1, concept="bass")[0]["error"]
    assert "first" in page.ask(first=True, concept="jazz")[0]


def test_the_line_of_code_runs_as_pasted(model, directions):
    panel = ms.steering_panel(model, directions, prompt="jazz")
    answer, _ = Page(panel).ask(first=True, strength=-1.5, concept="jazz", branch="cond", layer=0)
    steering = eval(answer["code"], {"ms": ms, "panel": panel})
    wanted = ms.Steering(directions.sel(concept="jazz"), layers=0, strength=-1.5, branch="cond")
    assert repr(steering) == repr(wanted)


def test_the_probe_reads_the_twin_as_a_trace_of_it_would(model, directions):
    """With the probe's own scale, at the layer that the panel steers, where the twin isn't steered."""
    scaled = directions.assign_coords(
        slope=(("concept", "layer"), np.full((2, model.n_layers), 0.01)),
        bias=(("concept", "layer"), np.full((2, model.n_layers), 0.5)),
    )
    page = Page(ms.steering_panel(model, scaled, strength=1.0, layer=1))
    answers = [page.ask(first=k == 0)[0] for k in range(5)]
    page.ask(kind="stop")
    take = page.panel.played
    with model.trace(take.codes[:1]):
        saved = model.resid[1].save()
    probe = directions.sel(concept="guitar", layer=1).values
    read = 0.01 * saved[0, model.valid_steps(take.codes.shape[-1])].numpy() @ probe + 0.5
    said = np.concatenate([a["reading"][0] for a in answers])
    np.testing.assert_allclose(said, read[: said.size], atol=2e-3)


def test_without_a_browser_there_is_a_picture_and_a_clip(model, directions):
    panel = ms.steering_panel(model, directions, strength=1.0)
    bundle = panel._repr_mimebundle_()
    data = bundle[0] if isinstance(bundle, tuple) else bundle
    assert "application/vnd.jupyter.widget-view+json" in data
    assert data["text/html"].count("<img") == 3 and data["text/html"].count("<audio") == 1
    assert "steered by +1 guitar" in data["text/html"] and len(panel.played.steering[1].parts) == 1
    assert "below it the unsteered twin" in data["text/html"]
    encoded = re.search(r'src="data:audio/mpeg;base64,([^"]+)"', data["text/html"])[1]
    sound, rate = soundfile.read(io.BytesIO(base64.b64decode(encoded)))
    strip = re.findall(r"data:image/png;base64,([^\"]+)", data["text/html"])[2]
    frames = int.from_bytes(base64.b64decode(strip)[16:20])
    assert abs(len(sound) / rate - frames / model.frame_rate) < 0.1, "strips and sound share a time axis"


def test_a_page_that_goes_away_leaves_nothing_running(model, directions):
    threads = threading.enumerate()
    page = Page(ms.steering_panel(model, directions))
    page.ask(first=True)
    page.ask()
    assert threading.enumerate() == threads  # and nothing runs until the page asks again


def test_the_concept_of_the_beginning_is_chosen_and_a_wrong_one_told(model, directions):
    assert ms.steering_panel(model, directions, concept="jazz").setup["begin"]["concept"] == "jazz"
    with pytest.raises(ValueError, match="no direction for 'gitar'; there are .*guitar"):
        ms.steering_panel(model, directions, concept="gitar")
    with pytest.raises(ValueError, match="layer=99; the directions have layers"):
        ms.steering_panel(model, directions, layer=99)
    with pytest.raises(ValueError, match="strength=3"):
        ms.steering_panel(model, directions, strength=3.0)


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
