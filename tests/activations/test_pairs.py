"""Pairs of clips differ in one label and in nothing else that is known of them."""

import itertools

import numpy as np
import pandas as pd
import pytest
import soundfile

import mechsteer as ms
from mechsteer import paths

RATE = 8_000


def table(tmp_path, rows, seconds=1.0):
    """`ms.clips` of a DataFrame of one's own: a row for each dict, a file for each row."""
    for k, row in enumerate(rows):
        noise = 0.1 * np.random.default_rng(k).standard_normal(round(row.pop("seconds", seconds) * RATE))
        soundfile.write(row.setdefault("path", str(tmp_path / f"{k}.wav")), noise, RATE)
    return ms.clips(pd.DataFrame(rows))


def names(both) -> list[tuple[str, str]]:
    clean, changed = both
    assert list(clean.index) == list(changed.index) == list(range(len(clean)))
    return list(zip(clean["clip"], changed["clip"], strict=True))


def take(song, lead, style="jazz", **more):
    return {"clip": f"{song}-{lead}-{style}", "group": song, "lead": lead, "style": style} | more


@pytest.fixture
def songs(tmp_path):
    """Two songs by three leads in two styles."""
    made = itertools.product(("a", "b"), ("guitar", "piano", "flute"), ("jazz", "rock"))
    return table(tmp_path, [take(*one) for one in made])


# One's own clips


def test_two_values_are_clean_and_changed_in_the_order_of_the_rows(songs):
    wanted = [
        (f"{song}-guitar-{style}", f"{song}-piano-{style}") for song in "ab" for style in ("jazz", "rock")
    ]
    assert names(ms.pairs(songs, "lead", "guitar", "piano")) == wanted
    back = [(changed, clean) for clean, changed in wanted]
    assert names(ms.pairs(songs, "lead", "piano", "guitar")) == back
    clean, changed = ms.pairs(songs, "lead", "guitar", "piano")
    assert list(clean) == list(changed) == list(songs)
    rows = songs.set_index("clip", drop=False).loc[clean["clip"]].reset_index(drop=True)
    pd.testing.assert_frame_equal(clean, rows)


def test_one_value_is_paired_with_every_other(songs):
    away = names(ms.pairs(songs, "lead", clean="guitar"))
    assert len(away) == 2 * 2 * 2 and all(clean.split("-")[1] == "guitar" for clean, _ in away)
    assert set(names(ms.pairs(songs, "lead", changed="guitar"))) == {pair[::-1] for pair in away}


def test_no_value_gives_every_two_once(songs):
    every = names(ms.pairs(songs, "lead"))
    assert len(every) == 2 * 2 * 3 and len({frozenset(pair) for pair in every}) == len(every)
    place = dict(zip(songs["clip"], range(len(songs)), strict=True))
    assert all(place[clean] < place[changed] for clean, changed in every)
    for clean, changed in every:
        (song, lead, style), (other_song, other_lead, other_style) = clean.split("-"), changed.split("-")
        assert (song, style) == (other_song, other_style) and lead != other_lead


def test_a_pair_may_differ_in_what_the_label_entails_only(tmp_path):
    rows = [take("a", "guitar", lead_program=24, caption="a guitar"), take("a", "piano", caption="a piano")]
    rows[1]["lead_program"] = 0
    assert len(names(ms.pairs(table(tmp_path, rows), "lead"))) == 1
    rows[1] |= {"leading": "x"}
    rows[0] |= {"leading": "y"}
    with pytest.raises(ValueError, match="no pair varies 'lead'.*agree in .*leading"):
        ms.pairs(table(tmp_path, rows), "lead")


@pytest.mark.parametrize(
    "difference",
    [{"group": "b"}, {"style": "rock"}, {"seconds": 1.5}, {"first_beat": 0.25}, {"tempo": np.nan}],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_clips_that_differ_otherwise_too_are_no_pair(tmp_path, difference):
    alike = dict(first_beat=0.5, tempo=90.0)
    rows = [take("a", "guitar", **alike), take("a", "piano", **(alike | difference))]
    rows[1] |= difference
    with pytest.raises(ValueError, match="no pair varies 'lead': no two clips have two values and agree in"):
        ms.pairs(table(tmp_path, rows), "lead")
    rows = [take("a", lead, **alike) for lead in ("guitar", "piano")]
    assert len(names(ms.pairs(table(tmp_path, rows), "lead"))) == 1


def test_parts_of_files_are_paired_at_one_time(tmp_path):
    whole = table(tmp_path, [take("a", lead, seconds=4) for lead in ("guitar", "piano")])
    parts = ms.clips(whole[["clip", "path", "group", "lead", "style"]], segment=2)
    assert len(parts) == 4
    assert names(ms.pairs(parts, "lead", "guitar", "piano")) == [
        ("a-guitar-jazz@0", "a-piano-jazz@0"),
        ("a-guitar-jazz@2", "a-piano-jazz@2"),
    ]


def test_clips_without_the_label_are_in_no_pair(tmp_path):
    rows = [take("a", "guitar"), take("a", None), take("a", None, clip="other"), take("a", "piano")]
    clips = table(tmp_path, rows)
    assert names(ms.pairs(clips, "lead")) == [("a-guitar-jazz", "a-piano-jazz")]
    assert names(ms.pairs(clips, "lead", "piano")) == [("a-piano-jazz", "a-guitar-jazz")]


def test_a_label_may_be_a_number_or_yes_and_no(tmp_path):
    rows = [take("a", "piano", clip=f"{drums}-{tempo}", drums=drums, tempo=tempo)
            for drums in (True, False) for tempo in (90, 120)]  # fmt: skip
    clips = table(tmp_path, rows)
    assert names(ms.pairs(clips, "drums", True, False)) == [
        ("True-90", "False-90"),
        ("True-120", "False-120"),
    ]
    assert names(ms.pairs(clips, "drums", False)) == [("False-90", "True-90"), ("False-120", "True-120")]
    assert names(ms.pairs(clips, "tempo", 120, 90)) == [("True-120", "True-90"), ("False-120", "False-90")]


def test_rows_in_any_order_and_under_any_index(songs):
    turned = songs.iloc[::-1].set_index(pd.Index(range(50, 50 + len(songs))))
    found = names(ms.pairs(turned, "lead", "guitar", "piano"))
    assert found == names(ms.pairs(songs, "lead", "guitar", "piano"))[::-1]
    kept = turned.copy()
    ms.pairs(turned, "lead")
    pd.testing.assert_frame_equal(turned, kept)


# What is refused


@pytest.mark.parametrize(
    "asked, error, says",
    [
        (dict(label="led"), ValueError, "no label 'led' to pair clips by. Did you mean 'lead'?"),
        (dict(label="qq"), ValueError, "no label 'qq' to pair clips by. There are .*lead, style"),
        (dict(label="path"), ValueError, "no label 'path'"),
        (dict(clean="harp"), ValueError, "no clip has lead harp; there are guitar, piano, flute"),
        (dict(clean="guitar", changed="harp"), ValueError, "no clip has lead harp"),
        (dict(clean="guitar", changed="guitar"), ValueError, "no pair varies 'lead'"),
        (dict(cleaned="guitar"), TypeError, "no option 'cleaned'. Did you mean 'clean'?"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_paired_is_one_sentence(songs, asked, error, says):
    with pytest.raises(error, match=says) as told:
        ms.pairs(songs, **({"label": "lead"} | asked))
    assert "\n" not in str(told.value)


# The orchestra

if (paths.data() / "orchestra.parquet").exists():

    @pytest.fixture(scope="module")
    def orchestra():
        return ms.clips("orchestra")

    @pytest.mark.parametrize(
        "label, clean, changed, entailed",
        [("lead", "guitar", "piano", {"lead_program"}), ("style", "jazz", "rock", set())],
    )
    def test_the_orchestras_pairs_are_one_score_played_otherwise(orchestra, label, clean, changed, entailed):
        both = ms.pairs(orchestra, label, clean, changed)
        assert (both[0][label] == clean).all() and (both[1][label] == changed).all()
        assert len(both[0]) > 100 and both[0]["clip"].is_unique and both[1]["clip"].is_unique
        as_text = [table.assign(codes=[c.tobytes() for c in table["codes"]]) for table in both]
        differ = {name for name in orchestra if not as_text[0][name].equals(as_text[1][name])}
        assert differ == {label, "clip", "codes", "caption"} | entailed
        place = pd.Series(range(len(orchestra)), orchestra["clip"])
        assert (np.diff(place[both[0]["clip"]]) > 0).all()
        assert len({c.shape for table in both for c in table["codes"]}) == 1

    def test_the_orchestra_has_no_pair_that_varies_only_its_drums(orchestra):
        with pytest.raises(ValueError, match="no pair varies 'drums': no two clips have True and False"):
            ms.pairs(orchestra, "drums", True, False)

    def test_pairs_of_the_orchestra_can_be_patched(orchestra, tiny):
        both = ms.pairs(orchestra, "lead", "guitar", "piano")
        clean, changed = (np.stack(table["codes"].head(2)).astype("int64")[..., :12] for table in both)
        found = ms.patch(tiny, clean, changed, "resid", [2, 5], windows=2, progress=False)
        assert found["resid"].shape == (2, 2, 2, 2) and found["gap"].any()

    @pytest.mark.parametrize("label", ["drums", "tempo", "tonic", "mode"])
    def test_versions_of_a_score_differ_in_one_label(label):
        versions = ms.clips("orchestra_versions")
        clean, changed = ms.pairs(versions, label)
        assert len(clean) == versions["score"].nunique() and clean["clip"].str.endswith("-as it is").all()
        assert changed["clip"].str.endswith(f"-{label}").all()
        alike = [np.mean(a == b) for a, b in zip(clean["codes"], changed["codes"], strict=True)]
        assert 0 < np.mean(alike) < 0.5, "another sound in most frames, and the same score"
