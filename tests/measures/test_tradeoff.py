"""One number a method: areas by hand, the common loss, a control's zero, intervals over the clips."""

import numpy as np
import pandas as pd
import pytest

import mechsteer as ms
from mechsteer.measures.kept import AXES
from mechsteer.measures.tradeoff import tradeoff

N = 40


def sweep(**names):
    """A frame as `dose_response` gives it: name -> [(strength, share of success, loss), ...]."""
    cells = [("unsteered", 0.0, 0.25, 0.0)] + [(name, *cell) for name, of in names.items() for cell in of]
    frames = []
    for name, strength, hit, lost in cells:
        lead = np.where(np.arange(N) < round(hit * N), "guitar", "piano")
        frame = pd.DataFrame({"name": name, "strength": strength, "clip": np.arange(N), "cnn_lead": lead})
        frame["cnn_p_lead_guitar"] = (lead == "guitar").astype(float)
        for axis in AXES:
            frame[f"twin_{axis}"] = 1 - 0.8 * lost  # unrelated clips share 0.2
            frame[f"other_{axis}"] = 0.2 if name == "unsteered" else np.nan
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


GUITAR = {"lead": "guitar"}


def test_gains_are_areas_over_the_loss_that_all_reach():
    straight, late = [(0.1, 0.75, 0.5), (0.2, 0.75, 0.9)], [(0.1, 0.25, 0.6), (0.2, 1.0, 0.8)]
    found = tradeoff(sweep(straight=straight, late=late, random=[(0.2, 0.25, 1.0)]), GUITAR)
    assert found.upto == pytest.approx(0.8)
    gain = found.table.set_index("name")["gain"]
    assert gain["straight"] == pytest.approx((0.25 * 0.5 + 0.5 * 0.3) / 0.8)
    assert gain["late"] == pytest.approx(0.5 * 0.75 * 0.2 / 0.8) and gain["random"] == 0
    row = found.table.set_index("name").loc["straight"]
    assert row["lo"] < row["gain"] < row["hi"] and row["n"] == N
    curve = found.curve[found.curve["name"] == "late"]
    np.testing.assert_allclose(curve["lost"], [0, 0.6, 0.8], atol=1e-12)
    assert curve["success"].tolist() == [0.25, 0.25, 1.0] and curve["strength"].tolist() == [0, 0.1, 0.2]


def test_the_last_segment_is_cut_where_it_reaches_the_loss_and_steps_back_count_negative():
    frame = sweep(there=[(0.1, 1.0, 0.5), (0.2, 1.0, 0.4), (0.3, 1.0, 0.8)])
    found = tradeoff(frame, GUITAR, upto=0.4).table["gain"][0]
    assert found == pytest.approx(0.5 * (0.75 * 0.4 / 0.5) * 0.4 / 0.4)
    whole = tradeoff(frame, GUITAR).table["gain"][0]
    assert whole == pytest.approx((0.375 * 0.5 - 0.75 * 0.1 + 0.75 * 0.4) / 0.8)


def test_an_axis_alone_or_another_column_may_be_the_loss():
    frame = sweep(there=[(0.1, 0.75, 0.5)]).assign(nll=lambda t: 3 + 4 * t["strength"])
    assert tradeoff(frame, GUITAR, lost="kept_melody").upto == pytest.approx(0.5)
    assert tradeoff(frame, GUITAR, lost="nll").upto == pytest.approx(0.4)
    again = tradeoff(frame.sample(frac=1, random_state=0), GUITAR).table
    pd.testing.assert_frame_equal(again, tradeoff(frame, GUITAR).table)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda t: t[t["name"] != "unsteered"], {}, "no unsteered clips"),
        (lambda t: t[t["name"] == "unsteered"], {}, "unsteered clips only"),
        (lambda t: t.assign(strength=t["strength"].where(t["strength"] != 0.1, -0.1)), {}, "both signs"),
        (lambda t: t, {"lost": "money"}, "no column 'money'"),
        (lambda t: t, {"upto": 0.9}, "give up to that"),
    ],
    ids=["steered-only", "unsteered-only", "signs", "column", "too-far"],
)
def test_what_cannot_be_weighed_is_said(change, options, message):
    frame = sweep(there=[(0.1, 0.75, 0.5), (0.2, 0.75, 0.8)])
    with pytest.raises(ValueError, match=message):
        tradeoff(change(frame), GUITAR, **options)


def test_the_figure_has_a_line_a_name_and_grey_controls():
    frame = sweep(mse=[(0.1, 0.75, 0.5)], random=[(0.1, 0.25, 0.8)])
    fig = ms.tradeoff(frame, GUITAR).figure("MSE turns half")
    colours = {trace.name: trace.line.color for trace in fig.data}
    assert list(colours) == ["mse", "random"] and colours["random"] == "#767676" != colours["mse"]
    assert fig.layout.shapes[0].x0 == pytest.approx(0.5) and fig.layout.title.text == "MSE turns half"
