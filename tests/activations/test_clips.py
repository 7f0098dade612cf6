"""Labelled clips from folders, manifests and the orchestra, good files and bad; and what frames hold."""

import numpy as np
import pandas as pd
import pytest
import soundfile
import torch
import xarray as xr

import mechsteer as ms
from mechsteer import paths
from mechsteer.activations._job import codes_for
from mechsteer.activations.clips import check, read_clip
from mechsteer.activations.frames import beats
from mechsteer.model._checkpoints import codec_hash
from mechsteer.tiny import orchestra
from mechsteer.tiny.loading import load_codec
from workshop.tiny.ship import ship_orchestra

RATE = 16_000


def tone(seconds: float = 1.0, rate: int = RATE, channels: int = 1) -> np.ndarray:
    """A 440 Hz tone, (sample, channel)."""
    t = np.arange(round(seconds * rate)) / rate
    return np.repeat(0.3 * np.sin(2 * np.pi * 440 * t)[:, None], channels, axis=1).astype("float32")


@pytest.fixture
def folder(tmp_path):
    """A folder per class, with every format, two rates, two channel counts, a name twice, one in Unicode."""
    for name, rate, channels in (
        ("jazz/take.wav", 16_000, 1),
        ("jazz/take.flac", 44_100, 2),
        ("rock/take.wav", 8_000, 1),
        ("rock/deep/Übung nº 1 – 音.ogg", 22_050, 2),
        ("rock/loud.mp3", 32_000, 1),
    ):
        path = tmp_path / "music" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, tone(1.0, rate, channels), rate)
    (tmp_path / "music" / "jazz" / "cover.txt").write_text("not a clip")
    (tmp_path / "music" / ".cache").mkdir()
    soundfile.write(tmp_path / "music" / ".cache" / "hidden.wav", tone(), RATE)
    return tmp_path / "music"


def test_a_folder_per_class(folder):
    table = ms.clips(folder, label="style")
    assert list(table) == ["clip", "path", "start", "duration", "group", "style", "problem"]
    assert list(table["clip"]) == [
        "jazz/take.flac",
        "jazz/take.wav",
        "rock/deep/Übung nº 1 – 音.ogg",
        "rock/loud.mp3",
        "rock/take.wav",
    ]
    assert list(table["style"]) == ["jazz"] * 2 + ["rock"] * 3
    assert table["duration"].between(0.99, 1.1).all() and (table["problem"] == "").all()
    assert table["group"].is_unique
    for row in table.to_dict("records"):
        audio, rate = read_clip(row)
        assert audio.dtype == np.float32 and rate == soundfile.info(row["path"]).samplerate
        assert audio.shape == (soundfile.info(row["path"]).channels, round(row["duration"] * rate))


def test_segments_of_a_file_stay_in_one_group_and_cover_it(tmp_path):
    x = np.arange(10 * 1000, dtype="float32")[:, None] / 2e4
    soundfile.write(tmp_path / "long.flac", x, 1000, subtype="PCM_24")
    soundfile.write(tmp_path / "short.flac", x[:2000], 1000, subtype="PCM_24")
    pd.DataFrame({"path": ["long.flac", "short.flac"]}).to_csv(tmp_path / "m.csv", index=False)
    table = ms.clips(tmp_path / "m.csv", segment=4)
    assert list(table["clip"]) == ["long.flac@0", "long.flac@4", "long.flac@8", "short.flac"]
    assert list(table["duration"]) == [4, 4, 2, 2]
    assert list(table["group"]) == ["long.flac"] * 3 + ["short.flac"]
    parts = [read_clip(row)[0][0] for row in table.to_dict("records")[:3]]
    np.testing.assert_allclose(np.concatenate(parts), x[:, 0], atol=1e-6)
    assert list(ms.clips(tmp_path / "m.csv", segment=6)["duration"]) == [6, 4, 2], (
        "the rest is over half a segment"
    )
    assert list(ms.clips(tmp_path / "m.csv", segment=7)["duration"]) == [7, 2], (
        "the rest is under half a segment"
    )


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_a_manifest_brings_labels_groups_and_times(folder, kind):
    manifest = pd.DataFrame(
        {
            "path": ["jazz/take.wav", "rock/take.wav", "rock/loud.mp3"],
            "artist": ["a", "b", "b"],
            "tempo": [120.0, None, 90.0],
            "start": [0.25, None, 0.0],
            "duration": [0.5, None, 0.5],
        }
    )
    path = folder / f"list.{kind}"
    manifest.to_csv(path, index=False) if kind == "csv" else manifest.to_parquet(path)
    table = ms.clips(path, group="artist")
    assert list(table["group"]) == ["a", "b", "b"]
    assert list(table["duration"]) == [0.5, 1.0, 0.5] and list(table["start"]) == [0.25, 0, 0]
    assert table["tempo"].isna().tolist() == [False, True, False]
    audio, rate = read_clip(table.iloc[0].to_dict())
    np.testing.assert_allclose(audio[0], tone()[4000:12000, 0], atol=1e-4)
    assert list(ms.clips(path, group=lambda p: p.split("/")[0])["group"]) == ["jazz", "rock", "rock"]


@pytest.fixture
def bad(tmp_path):
    """(manifest, {path: what its problem should say}) of files nobody can use, among two that are fine."""
    x, told = tone(3.0), {}

    def add(name, content, says, rate=RATE, **options):
        if isinstance(content, bytes):
            (tmp_path / name).write_bytes(content)
        elif content is not None:
            soundfile.write(tmp_path / name, content, rate, **options)
        told[name] = says

    add("fine.wav", x, "")
    add("8 bit.wav", x, "", subtype="PCM_U8")
    add("surround.wav", np.repeat(x, 6, axis=1), "")
    add("missing.wav", None, "missing")
    add("empty.wav", b"", "empty")
    add("text.wav", b"this is no music" * 99, "not audio")
    add("text.mp3", b"this is no music" * 99, "not audio")
    whole = {}
    for kind in ("wav", "flac", "ogg", "mp3"):
        soundfile.write(tmp_path / f"whole.{kind}", x, RATE)
        whole[kind] = (tmp_path / f"whole.{kind}").read_bytes()
        add(f"cut.{kind}", whole[kind][: len(whole[kind]) // 3], "damaged|truncated")
        add(f"header.{kind}", whole[kind][:20], "not audio|truncated")
    add("silent.wav", np.zeros_like(x), "silent")
    add("nan.wav", np.where(np.arange(len(x))[:, None] == 77, np.nan, x), "NaN", subtype="FLOAT")
    add("one sample.wav", x[9:10], "")  # it can be read; `collect` says it is shorter than a frame
    add("out of range.wav", x, "outside")
    table = pd.DataFrame({"path": list(told), "start": [5.0 if "range" in name else None for name in told]})
    table.to_csv(tmp_path / "bad.csv", index=False)
    return tmp_path / "bad.csv", told


def test_every_bad_file_is_told_and_the_good_ones_are_kept(bad):
    manifest, told = bad
    table = ms.clips(manifest)
    assert len(table) == len(told), "bad files keep their row"
    problems = check(table).set_index("clip")["problem"]
    for name, says in told.items():
        found = problems.get(name, "")
        assert any(word in found for word in says.split("|")) and bool(found) == bool(says), (
            f"{name}: {found!r}"
        )
    assert check(table[table["clip"].isin(["fine.wav", "8 bit.wav", "surround.wav"])]).empty


def test_a_file_listed_twice_is_used_once(folder):
    path = folder / "twice.csv"
    pd.DataFrame({"path": ["jazz/take.wav", "jazz/take.wav", "jazz/take.wav"]}).to_csv(path, index=False)
    table = ms.clips(path)
    assert table["clip"].is_unique
    assert (table["problem"] == "").sum() == 1 and table["problem"].str.contains(
        "taken by an earlier"
    ).sum() == 2


def test_a_part_of_a_three_hour_file_is_read_without_the_rest(tmp_path):
    with soundfile.SoundFile(tmp_path / "long.wav", "w", 4000, 1, subtype="PCM_U8") as file:
        for _ in range(180):
            file.write(np.full(60 * 4000, 0.25, "float32"))
    pd.DataFrame({"path": ["long.wav"]}).to_csv(tmp_path / "m.csv", index=False)
    table = ms.clips(tmp_path / "m.csv", segment=30)
    assert len(table) == 360 and table["group"].nunique() == 1
    audio, _ = read_clip(table.iloc[-1].to_dict())
    assert audio.shape == (1, 30 * 4000)


@pytest.mark.parametrize(
    ("source", "options", "error", "says"),
    [
        ("nowhere", {}, FileNotFoundError, "no folder or manifest nowhere"),
        ("{tmp}", {}, ValueError, "holds no audio file"),
        ("{tmp}/notes.txt", {}, ValueError, "neither a folder nor"),
        ("{tmp}/bare.csv", {}, ValueError, "column 'path'; it has name"),
        ("{tmp}/bare.csv", {"segment": 0}, ValueError, r"segment \(s, None for whole files\)=0"),
        ("orchestra", {"segment": 2}, ValueError, "whole and grouped by score"),
    ],
)
def test_one_clear_error_for_a_source_that_cannot_be_used(tmp_path, source, options, error, says):
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "bare.csv").write_text("name\nx\n")
    with pytest.raises(error, match=says):
        ms.clips(source.format(tmp=tmp_path), **options)


def test_outside_a_checkout_the_orchestra_says_to_clone(monkeypatch):
    monkeypatch.setattr(paths, "_checkout", lambda: None)
    for wanted in (lambda: ms.clips("orchestra"), orchestra.notes, orchestra.chords):
        with pytest.raises(FileNotFoundError, match="installed without it: clone the repository"):
            wanted()


def acts_of(clips: list[str], frames: int, rate: float, **coords) -> xr.Dataset:
    return xr.Dataset(
        {"resid": (("clip", "layer", "frame", "d_model"), np.zeros((len(clips), 1, frames, 2), "float32"))},
        coords={"clip": clips, **{k: ("clip", v) for k, v in coords.items()}},
        attrs={"frame_rate": rate},
    )


def test_frames_say_which_notes_and_chords_sound_and_where_beats_fall():
    notes = pd.DataFrame(
        {
            "clip": ["a", "a", "b", "other"],
            "onset": [0.0, 0.29, 0.1, 0.0],
            "offset": [0.2, 0.41, 9.0, 1.0],
            "pitch": [60, 73, 59, 62],
            "part": ["lead", "bass", "drums", "lead"],
        }
    )
    chords = pd.DataFrame({"clip": ["b"], "onset": [0.2], "offset": [0.5], "root": [9]})
    acts = acts_of(["a", "b"], frames=6, rate=10.0, tempo=[120.0, 150.0], first_beat=[0.05, 0.0])
    found = ms.frame_labels(acts, notes, chords)
    sounding = found["sounding"]
    assert sounding.dims == ("clip", "frame", "pitch_class") and sounding.dtype == bool
    assert sounding.sel(clip="a", pitch_class="C").values.tolist() == [True, True, False, False, False, False]
    assert sounding.sel(clip="a", pitch_class="C#").values.tolist() == [
        False,
        False,
        False,
        True,
        False,
        False,
    ]
    assert not sounding.sel(clip="b").any(), "drums have no pitch class"
    assert found["chord_root"].sel(clip="b").values.tolist() == ["", "", "A", "A", "A", ""]
    assert found["beat"].sel(clip="a").values.tolist() == [True, False, False, False, False, True]
    assert found["beat"].sel(clip="b").values.tolist() == [True, False, False, False, True, False]
    assert set(acts.merge(found).data_vars) == {"resid", "sounding", "chord_root", "beat"}
    with pytest.raises(ValueError, match="none|no note"):
        ms.frame_labels(acts_of(["x"], 3, 10.0), notes, chords)
    with pytest.raises(ValueError, match="pool='frames'"):
        ms.frame_labels(acts.isel(frame=0, drop=True), notes, chords)


def test_beats_are_counted_as_the_composer_counts_them():
    for tempo, first in ((97.0, 0.0), (60.0, 0.1), (180.0, 0.04)):
        times = np.arange(first, 8.0, 60 / tempo)
        wanted = np.zeros(200, bool)
        wanted[np.floor(times * 25 + 1e-9).astype(int)] = True
        np.testing.assert_array_equal(beats(np.array([tempo]), np.array([first]), 200, 25.0)[0], wanted)


if (paths.data() / "orchestra.parquet").exists():

    def test_the_orchestra_has_codes_labels_and_truth_that_belong_together():
        table, notes, chords = ms.clips("orchestra"), orchestra.notes(), orchestra.chords()
        assert len(table) >= 2000 and table["clip"].is_unique
        assert {"lead", "style", "drums", "tempo", "tonic", "mode", "split", "score", "group"} <= set(table)
        assert table.groupby("group")["score"].nunique().max() == 1
        assert table.groupby("group")["split"].nunique().max() == 1
        assert set(notes["clip"]) == set(chords["clip"]) == set(table["clip"])
        shapes = {codes.shape for codes in table["codes"]}
        assert len(shapes) == 1 and table["codes"][0].dtype == np.uint16
        pair = table[table["score"] == table["score"].iloc[0]].iloc[:2]
        melody = [
            notes[(notes["clip"] == clip) & (notes["part"] == "lead")][["onset", "pitch"]].to_numpy()
            for clip in pair["clip"]
        ]
        np.testing.assert_allclose(*melody, err_msg="clips of one score play one melody")

    def test_codes_are_known_by_the_codec_that_made_them_and_only_read_or_decoded_as_such(tmp_path):
        own, table = ms.load("tiny", device="cpu"), ms.clips("orchestra").iloc[:2]
        codec = own.codec_hash
        assert set(table["codec"]) == {codec}, "the shipped codes are the shipped codec's"
        for part, name in (("decoder", codec), ("encoder", None), ("quantizer", None)):
            with torch.no_grad():
                parameter = next(t for t in getattr(own.codec, part).state_dict().values() if t.ndim > 1)
                parameter *= 1.5
                assert (codec_hash(own.codec.state_dict()) == name) == (part == "decoder"), part
                if part == "encoder":  # another codec: what the embedded one decodes is encoded again
                    del own.codec_hash  # it is computed once, as nobody changes a codec
                    again, _ = codes_for(own, table)
                    sound = [read_clip(row) for row in table.to_dict("records")]
                    wanted = own.encode(np.stack([audio for audio, _ in sound]), sound[0][1])
                    assert all(np.array_equal(a, b) for a, b in zip(again, wanted, strict=True))
                    assert not np.array_equal(again[0], table["codes"].iloc[0])
                parameter /= 1.5
        foreign = table.assign(codec=["0123456789ab", codec])
        for read in (
            lambda: read_clip(foreign.iloc[0]),
            lambda: ms.collect(own, foreign, progress=False),
        ):
            with pytest.raises(
                ValueError, match=f"codec 0123456789ab can be neither.*embedded codec is {codec}"
            ):
                read()

    def test_shipping_writes_the_hash_of_the_codec_that_made_the_codes(tmp_path):
        state = load_codec().state_dict()
        (work := tmp_path / "work").mkdir()
        torch.save({"modules": state, "step": 1}, work / "features.pt")
        made = np.random.default_rng(0).integers(0, 512, (4, 6, 5)).astype(np.uint16)
        np.save(work / "codes.npy", made)
        events = pd.DataFrame({"clip": [0, 2], "onset": 0.0, "offset": 1.0})
        pd.DataFrame({"clip": range(4), "paired": [True, False, True, True]}).to_parquet(
            tmp_path / "clips.parquet"
        )
        events.assign(pitch=60, velocity=90).to_parquet(tmp_path / "notes.parquet")
        events.to_parquet(tmp_path / "chords.parquet")
        (out := tmp_path / "out").mkdir()
        ship_orchestra(tmp_path, work, out)
        with np.load(out / "orchestra_codes.npz", allow_pickle=False) as shipped:
            assert shipped["codec"] == codec_hash(state)
            np.testing.assert_array_equal(shipped["codes"], made[[0, 2, 3]])
