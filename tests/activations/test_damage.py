"""Stores and tables that are stale, damaged or clumsy: found, named, and made again; never believed."""

import json
import shutil
import warnings

import numpy as np
import pandas as pd
import pytest
import soundfile
import xarray as xr

import mechsteer as ms
from mechsteer.activations._rows import header_of

RATE = 16_000


def tone(path, hertz=220.0, seconds=0.5, channels=1):
    path.parent.mkdir(parents=True, exist_ok=True)
    t = np.arange(round(seconds * RATE)) / RATE
    soundfile.write(path, np.stack([0.5 * np.sin(2 * np.pi * hertz * t)] * channels, 1), RATE)
    return path


def collect(model, table, **options):
    return ms.collect(model, table, **{"layers": [2], "progress": False, **options})


@pytest.fixture(scope="module")
def made(tiny, tmp_path_factory):
    """A folder with music, its store, and what that holds: six clips in three blocks. Tests get copies."""
    folder = tmp_path_factory.mktemp("made")
    for k in range(6):
        tone(folder / "music" / "ab"[k % 2] / f"{k}.wav", 200 + 40 * k)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("mechsteer.activations._job.BLOCK", 2)
        return folder, collect(tiny, ms.clips(folder / "music"), out=folder / "acts").load()


@pytest.fixture
def music(made, tmp_path):
    return shutil.copytree(made[0] / "music", tmp_path / "music")


@pytest.fixture
def store(made, music, tmp_path, monkeypatch):
    """(table, path, what it holds); the same sound under the same names is the same data."""
    monkeypatch.setattr("mechsteer.activations._job.BLOCK", 2)
    return ms.clips(music), shutil.copytree(made[0] / "acts", tmp_path / "acts"), made[1].copy(deep=True)


# Stale


def test_other_sound_under_the_same_names_is_refused_by_name(tiny, store, music, tmp_path):
    _, out, _ = store
    other = tmp_path / "other"
    shutil.copytree(music, other)
    assert collect(tiny, ms.clips(other), out=out).sizes["clip"] == 6, "a copy is the same sound"
    tone(other / "b" / "3.wav", 1000.0)
    with pytest.raises(
        ValueError, match=r"1 clips are made from other sound or text: b/3.wav\)\. Nothing was"
    ):
        collect(tiny, ms.clips(other), out=out)


def test_a_file_replaced_in_place_is_noticed_though_size_and_time_are_the_same(tiny, store, music):
    import os

    _, out, _ = store
    path = music / "a" / "0.wav"
    before = path.stat()
    tone(path, 333.0)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_size == before.st_size
    with pytest.raises(ValueError, match="other sound or text: a/0.wav"):
        collect(tiny, ms.clips(music), out=out)


def test_other_prompts_or_seeds_are_refused_by_name(tiny, tmp_path):
    generate, out = {"duration": 0.2}, tmp_path / "acts"
    collect(tiny, ["jazz", "rock"], generate=generate, out=out)
    with pytest.raises(ValueError, match="1 clips are made from other sound or text: 00001"):
        collect(tiny, ["jazz", "blues"], generate=generate, out=out)
    with pytest.raises(ValueError, match="2 clips are made from other"):
        collect(tiny, ["jazz", "rock"], generate=generate | {"seed": 3}, out=out)


# Damaged


def chunks(out):
    return sorted(p for p in (out / "arrays").rglob("*") if p.is_file() and p.name != "zarr.json")


def damage(path, how):
    content = bytearray(path.read_bytes())
    if how == "missing":
        path.unlink()
        return
    if how == "cut":
        content = content[: len(content) // 2]
    elif how == "empty":
        content = bytearray()
    else:
        content[len(content) // 2] ^= 1 << 4
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("how", ["missing", "cut", "empty", "flipped"])
def test_a_damaged_block_is_named_left_out_and_made_again(tiny, store, how):
    """In any one of its arrays; made again where all of them are damaged."""
    table, out, whole = store
    there = [p for p in chunks(out) if p.relative_to(out / "arrays").parts[2] == "1"]
    keep, kept = [0, 1, 4, 5], {path: path.read_bytes() for path in there}
    for array in ("resid/", "resid_norm", "input", "n_frames", "source"):
        some = [p for p in there if f"arrays/{array}" in p.as_posix()]
        for path in some:
            damage(path, how)
        with pytest.warns(UserWarning, match=r"is damaged at 2 of 6 clips \(a/4.wav, b/1.wav\)"):
            left = ms.open_activations(out).load()
        np.testing.assert_array_equal(left["resid"], whole["resid"][keep])
        assert np.isfinite(left["resid_norm"]).all()
        for path in some:
            path.write_bytes(kept[path])
    xr.testing.assert_identical(ms.open_activations(out).load(), whole)
    for path in there:
        if "arrays/done" not in path.as_posix():  # which says that there is something to make again
            damage(path, how)
    with pytest.warns(UserWarning, match="makes them again"):
        again = collect(tiny, table, out=out).load()
    xr.testing.assert_identical(again, whole)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        xr.testing.assert_identical(ms.open_activations(out).load(), whole)


def test_no_flipped_bit_anywhere_in_a_store_goes_unseen(tiny, store):
    """Every file, one bit in the middle and one at the end: told, or numbers and labels are whole."""
    table, out, whole = store
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        kept = path.read_bytes()
        for at in (len(kept) // 2, len(kept) - 1):
            content = bytearray(kept)
            content[at] ^= 1
            path.write_bytes(bytes(content))
            with warnings.catch_warnings(record=True) as told:
                warnings.simplefilter("always")
                try:
                    found = ms.open_activations(out).load()
                except ValueError as error:
                    assert "damaged" in str(error) or "is not a store" in str(error), path
                else:
                    said = any("damaged" in str(w.message) or "so far" in str(w.message) for w in told)
                    assert said or found.identical(whole), path
            path.write_bytes(kept)
    xr.testing.assert_identical(collect(tiny, table, out=out).load(), whole)


def test_damaged_labels_are_told_and_written_anew_by_the_same_call(tiny, store):
    table, out, whole = store
    damage(out / "labels.parquet", "cut")
    with pytest.raises(ValueError, match="the labels of .* are damaged: ms.collect, called as before, mends"):
        ms.open_activations(out)
    xr.testing.assert_identical(collect(tiny, table, out=out).load(), whole)


def test_a_store_without_one_of_its_arrays_is_refused_in_a_sentence(tiny, store):
    table, out, _ = store
    (out / "arrays" / "input" / "zarr.json").unlink()
    (out / "labels.parquet").write_bytes(b"PAR1")
    for call in (lambda: ms.open_activations(out), lambda: collect(tiny, table, out=out)):
        with pytest.raises(ValueError, match="is damaged, or of another version .*: delete the folder"):
            call()


def test_damaged_labels_and_blocks_at_once_are_mended_by_the_same_call(tiny, store):
    table, out, whole = store
    damage(out / "labels.parquet", "empty")
    damage(next(p for p in chunks(out) if "arrays/resid/" in p.as_posix()), "cut")
    with pytest.raises(ValueError, match="the labels of"):
        ms.open_activations(out)
    with pytest.warns(UserWarning, match="is damaged at 2 of 6 clips"):
        xr.testing.assert_identical(collect(tiny, table, out=out).load(), whole)


def test_labels_survive_whatever_stops_their_rewriting(tiny, store, monkeypatch):
    table, out, whole = store

    def full(table, path, **options):
        path.write_bytes(b"PAR1 half of a table")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pd.DataFrame, "to_parquet", full)
    with pytest.raises(OSError, match="No space"):
        collect(tiny, table.assign(mood="calm"), out=out)
    monkeypatch.undo()
    xr.testing.assert_identical(ms.open_activations(out).load(), whole)


# A model whose activations are no numbers


def test_activations_that_are_no_numbers_are_skipped_and_told(music, capsys):
    broken = ms.load("tiny")
    broken.lm.transformer.layers[1].linear2.weight.fill_(np.nan)
    acts = collect(broken, ms.clips(music), layers=[0, 2])
    assert acts.sizes["clip"] == 0
    assert "its activations at resid are NaN, or too large for float32" in capsys.readouterr().out


def test_activations_too_large_for_float16_are_skipped_not_stored_as_infinite(music, capsys):
    loud = ms.load("tiny")
    loud.lm.transformer.layers[2].linear2.weight.mul_(1e7)
    assert collect(loud, ms.clips(music), dtype="float16").sizes["clip"] == 0
    assert "too large for float16" in capsys.readouterr().out


# Clumsy tables: skipped and listed, or one sentence with row and column


def test_a_file_name_that_is_not_utf8_is_listed_and_the_rest_is_read(tiny, music, capsys):
    try:
        (music / "a" / "0.wav").rename((music / "a").as_posix().encode().decode() + "/caf\udce9.wav")
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    table = ms.clips(music)
    assert table["problem"].str.contains("isn't UTF-8: rename the file").sum() == 1
    table["clip"].str.encode("utf-8")
    assert collect(tiny, table).sizes["clip"] == 5
    assert r"caf\udce9.wav" in capsys.readouterr().out


def test_blank_cells_and_odd_numbers_are_listed_by_row(tiny, music, tmp_path, capsys):
    rows = pd.DataFrame({"path": ["a/0.wav", "", " ", "a/2.wav", "b/1.wav", "b/3.wav", None]})
    rows["start"] = ["", "", "", "abc", "0.1", "inf", ""]
    rows["kind"] = list("xyxyxyx")
    rows.to_csv(music / "m.csv", index=False)
    table = ms.clips(music / "m.csv")
    said = table.set_index("clip")["problem"]
    assert said["a/0.wav"] == said["b/1.wav"] == ""
    assert said["row 1"] == said["row 2"] == said["row 6"] == "no path in this row"
    assert said["a/2.wav"] == "start 'abc' isn't a number (of seconds)"
    assert "lie outside" in said["b/3.wav"]
    assert collect(tiny, table)["clip"].values.tolist() == ["a/0.wav", "b/1.wav"]
    assert "start 'abc' isn't a number" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        (
            "m.csv",
            "path,kind\na.wav,x\ncafé.wav,y\n".encode("latin-1"),
            "it isn't UTF-8; save it as UTF-8",
        ),
        ("m.csv", b"", "can't be read as a table"),
        ("m.parquet", b"PAR1 garbage", "can't be read as a table"),
        ("m.parquet", b"", "can't be read as a table"),
        ("m.csv", b"path,problem\na.wav,hum\n", "has a column 'problem'.*: rename or drop it"),
    ],
)
def test_a_table_that_cannot_be_read_is_one_sentence(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=said) as error:
        ms.clips(tmp_path / name)
    assert "\n" not in str(error.value)


def test_a_users_columns_stay_theirs(tiny, music):
    table = ms.clips(music)[["path", "genre"]].assign(
        seconds=list("abcdef"), prompt=list("uvwxyz"), problem=""
    )
    acts = collect(tiny, ms.clips(table))
    assert acts["seconds"].values.tolist() == list("abcdef")
    assert acts["prompt"].values.tolist() == list("uvwxyz"), "a label, told to nobody"
    with pytest.raises(ValueError, match="column 'problem'.*rename or drop"):
        ms.clips(table.assign(problem="hum"))
    prompts = pd.DataFrame({"prompt": ["a", "b"], "problem": ["", "hum"]})
    with pytest.raises(ValueError, match="column 'problem'.*rename or drop"):
        collect(tiny, prompts, generate={"duration": 0.2})
    with pytest.raises(ValueError, match="leave prompt= out"):
        collect(tiny, ["a"], generate={"duration": 0.2}, prompt="b")


@pytest.mark.parametrize("value", [["a", "b"], ("a",), {"a": 1}, np.arange(2)], ids=repr)
def test_lists_in_a_label_are_refused_with_row_and_column(tiny, music, value):
    table = ms.clips(music)
    table["tags"] = ["x", "y", value, "z", "x", "y"]
    with pytest.raises(ValueError, match="label 'tags' has a .* in row 2: give one value per cell"):
        collect(tiny, table)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("codes", np.full((6, 20), 0.5), "codes float64 .* are not of this model's codec"),
        ("codes", np.full((6, 20), -1), "not of this model's codec"),
        ("codes", np.full((6, 20), 10**6), "not of this model's codec"),
        ("codes", np.zeros((6, 2000), int), r"80.00 s of codes, where duration says 8.0 s"),
        ("duration", 0.0, "8.00 s of codes, where duration says 0.0 s"),
        ("duration", -1.0, "where duration says -1.0 s"),
        ("duration", np.nan, "s of codes"),
        ("duration", 3.0, "8.00 s of codes, where duration says 3.0 s"),
    ],
)
def test_codes_that_are_not_what_their_row_says_are_skipped(tiny, column, value, said, capsys):
    table = ms.clips("orchestra").iloc[:3].reset_index(drop=True)
    table[column] = table[column].astype(object)
    table.at[1, column] = value
    acts = collect(tiny, table)
    if column == "duration" and np.isnan(value):
        assert acts.sizes["clip"] == 3, "codes need no duration"
    else:
        assert acts.sizes["clip"] == 2
        (skipped,) = json.loads(acts.attrs["skipped"])
        assert pd.Series([skipped["problem"]]).str.contains(said)[0], skipped


def test_a_clip_whose_channels_cancel_is_skipped_and_its_neighbours_are_read(tiny, tmp_path, capsys):
    for k in range(3):
        tone(tmp_path / "x" / f"{k}.wav", 200 + 50 * k, channels=2)
    audio, rate = soundfile.read(tmp_path / "x" / "1.wav")
    soundfile.write(tmp_path / "x" / "1.wav", audio * [1, -1], rate)
    acts = collect(tiny, ms.clips(tmp_path))
    assert acts["clip"].values.tolist() == ["x/0.wav", "x/2.wav"]
    assert "the channels cancel each other" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"batch_size": 0}, "batch_size=0 isn't a whole number of 1 or more"),
        ({"batch_size": "many"}, "batch_size='many'"),
        ({"layers": []}, "layers=.*; this model has layers 0 to 5"),
        ({"generate": {"duration": 0.2, "seed": -1}}, "seed=-1"),
        ({"generate": {"duration": np.nan}}, "duration=nan"),
        (
            {"generate": {"duration": 0.2}, "clips": ["jazz", 3]},
            "prompts are text, or None for no text, not 3",
        ),
        ({"generate": {"duration": 0.2, "guidance": np.inf}}, "guidance=inf"),
    ],
)
def test_options_that_mean_nothing_leave_no_store_behind(tiny, tmp_path, options, said):
    given = ms.clips("orchestra").iloc[:2] if "generate" not in options else ["jazz"]
    with pytest.raises(ValueError, match=said):
        collect(tiny, options.pop("clips", given), out=tmp_path / "acts", **options)
    assert not (tmp_path / "acts").exists()


def test_a_name_that_no_concept_has_suggests_the_right_one(tiny):
    table = ms.clips("orchestra").query("split == 'test'").groupby("lead").head(4)
    table = table.assign(codes=[codes[:, :25] for codes in table["codes"]], duration=1.0)
    acts = collect(tiny, table)
    found = ms.find_directions(acts, "lead", group=None)
    with pytest.raises(KeyError, match="no concept 'gitar'. Did you mean 'guitar'"):
        found.sel(concept="gitar")
    with pytest.raises(KeyError, match="no finder 'msee'. Did you mean 'mse'"):
        found.sel(concept="guitar").sel({"finder": "msee"})
    with pytest.raises(KeyError, match="99"):
        found.sel(layer=99)
    for layers in ([], [2, 2]):
        with pytest.raises(ValueError, match="name at least one, and each only once"):
            ms.find_directions(acts, "lead", layers=layers, group=None)


def test_a_header_is_read_once_per_file_and_says_what_is_wrong(tmp_path):
    assert header_of(tmp_path, "no.wav") == ("missing file", 0.0)
    assert header_of(tmp_path, "") == ("no path in this row", 0.0)
