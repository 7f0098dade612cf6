"""The shipped scores of ears against exact notes: the axes of `kept` tell what is alike from what isn't."""

import json

import numpy as np
import pandas as pd
import pytest

from mechsteer import paths
from mechsteer.measures.kept import AXES
from workshop.tiny import notes_heard

RATE, SECONDS = 16_000, 5.0


@pytest.fixture(scope="module")
def rows():
    return pd.DataFrame(json.loads((paths.data() / "tiny" / "notes_heard.json").read_text())["rows"])


@pytest.mark.parametrize("axis", AXES)
@pytest.mark.parametrize("pair", ["another lead", "decoded"])
def test_related_clips_share_more_than_unrelated_ones(rows, axis, pair):
    of = rows[(rows["part"] == "shared") & (rows["measure"] == axis)].set_index("pair")
    assert of.loc[pair, "lo"] > of.loc["unrelated", "hi"]


def test_every_ear_hears_more_than_another_clips_music(rows):
    against = rows[
        rows["other_value"].notna() & rows["measure"].isin(["raw pitch accuracy", "beat F-measure"])
    ]
    assert len(against) >= 12 and (against["lo"] > against["other_hi"]).all()


def test_the_kept_melody_is_heard_as_well_as_by_torchcrepe(rows):
    of = rows[(rows["measure"] == "raw pitch accuracy") & (rows["sound"] == "decoded")].set_index("ear")[
        "value"
    ]
    assert of["YIN above 180 Hz (kept)"] > of["torchcrepe tiny"] - 0.05


def test_triads_are_heard_in_chords():
    t = np.arange(round(SECONDS * RATE)) / RATE
    for pitches, name in (((60, 64, 67), "C:maj"), ((57, 60, 64), "A:min"), ((66, 70, 73), "F#:maj")):
        sound = sum(np.sin(2 * np.pi * 440 * 2 ** ((p - 69) / 12) * t) for p in pitches)
        spans, labels = notes_heard.triads(sound.astype(np.float32))
        assert set(labels) == {name}
        assert spans[0, 0] == 0 and (spans[1:, 0] == spans[:-1, 1]).all()


def test_a_score_is_held_against_its_own_truth_and_the_next():
    own, other = notes_heard.against(lambda truth, found: truth == found, ["a", "b", "c"], ["a", "b", "b"])
    assert own == [True, True, False] and other == [False, False, False]
    found = notes_heard.row(own, other, ear="x")
    assert found["ear"] == "x" and found["n"] == 3 and found["value"] == pytest.approx(2 / 3)
    assert found["other_value"] == 0
