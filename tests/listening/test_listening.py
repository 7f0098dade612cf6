"""Listening tests without a browser: the plan is balanced, the session blind, answers survive anything."""

import dataclasses
import io
import json
import runpy
import shutil
from collections import Counter

import numpy as np
import pandas as pd
import pytest
import soundfile
from listening_clips import RATE, clip, condition_of, conditions, make

from mechsteer import ListeningTest, Steering
from mechsteer.listening.design import Screening, trials
from mechsteer.listening.session import Session
from mechsteer.measures import loudness
from mechsteer.model.generation import Generation
from mechsteer.show import saving

THREE = ("steered", "unsteered", "oversteered")


def decode(sound: bytes) -> np.ndarray:
    return soundfile.read(io.BytesIO(sound), always_2d=True)[0]


def answer(page: dict, choice: str = "A", **more) -> dict:
    heard = [page["listen"]] * len(page["letters"])
    ratings = [10.0 * (k + 1) for k in range(len(page["letters"]))]
    return {
        "do": "answer",
        "token": page["token"],
        "choice": choice,
        "ratings": ratings,
        "heard": heard,
        **more,
    }


def begin(session: Session, name: str = "Ann") -> tuple[dict, list[bytes]]:
    """Enter and go on to the first trial that is due."""
    page, sounds = session.handle({"do": "name", "name": name, "again": True})
    while page["page"] == "intro":
        page, sounds = session.handle({"do": "next", "stage": page["stage"]})
    return page, sounds


def follow(
    session: Session, page: dict, sounds: list, limit: int = 99, choose=lambda page, sounds: "A"
) -> list[dict]:
    """Answer up to `limit` trials; returns the pages seen."""
    seen = []
    while page["page"] != "done" and len(seen) < limit:
        seen.append(page)
        page, sounds = session.handle(answer(page, choose(page, sounds)))
        while page["page"] == "intro":
            page, sounds = session.handle({"do": "next", "stage": page["stage"]})
    return seen


@pytest.mark.parametrize("kind", ["preference", "abx"])
def test_sides_are_balanced_within_and_between_listeners(tmp_path, kind):
    design = make(tmp_path, kind, items=8).design
    pair = [[t for t in trials(design, n) if t.stage == "main"] for n in (5, 6)]
    for own in pair:
        assert Counter(t.slots[0] for t in own) == {"steered": 4, "unsteered": 4}
        assert sorted(t.item for t in own) == list(range(8))
        if kind == "abx":
            assert Counter((t.slots[0], t.x) for t in own) == {
                (a, x): 2 for a in design.conditions for x in design.conditions
            }
    first, second = ({t.key: t.slots for t in own} for own in pair)
    assert all(first[key] == second[key][::-1] for key in first)
    assert [t.key for t in pair[0]] != [t.key for t in pair[1]]
    assert trials(design, 5) == trials(design, 5) != trials(design, 7)


def test_every_condition_visits_every_slider(tmp_path):
    design = make(tmp_path, "rating", THREE, items=6).design
    main = [t for t in trials(design, 1) if t.stage == "main"]
    for position in range(3):
        assert Counter(t.slots[position] for t in main) == dict.fromkeys(THREE, 2)


def test_repeats_come_last_with_sides_exchanged(tmp_path):
    design = make(tmp_path, items=6, repeats=3, headphones=2, practice=1).design
    plan = trials(design, 1)
    assert [t.stage for t in plan] == ["headphones"] * 2 + ["practice"] + ["main"] * 9
    once = {t.key: t.slots for t in plan if t.stage == "main" and not t.repeat}
    again = {t.key.removesuffix(":again"): t.slots for t in plan if t.repeat}
    assert len(again) == 3 and all(once[key] == slots[::-1] for key, slots in again.items())


def test_stimuli_are_equally_loud_under_names_that_say_nothing(tmp_path):
    test = make(tmp_path)
    files = sorted((tmp_path / "stimuli").iterdir())
    assert len(files) == 4 and all(
        len(f.stem) == 24 and set(f.stem) <= set("0123456789abcdef") for f in files
    )
    levels = [loudness.loudness(soundfile.read(f, always_2d=True)[0].T, RATE) for f in files]
    assert levels == pytest.approx([test.design.loudness] * 4, abs=0.1)
    assert test.design.loudness == -23


def test_generations_are_matched_by_seed(tmp_path):
    make_one = lambda seeds, hertz: Generation(
        np.stack([clip(hertz)[0] for _ in seeds]),
        None,
        RATE,
        ["guitar"] * len(seeds),
        seeds,
        [None] * len(seeds),
    )
    test = ListeningTest(
        {"a": make_one([3, 4], 440), "b": make_one([3, 4], 220)},
        "Which?",
        name="seeds",
        folder=tmp_path / "one",
    )
    assert test.design.items == ("guitar (seed 3)", "guitar (seed 4)")
    with pytest.raises(ValueError, match="same seeds"):
        ListeningTest(
            {"a": make_one([3, 4], 440), "b": make_one([3, 5], 220)}, "Which?", "x", folder=tmp_path / "two"
        )


def test_items_are_named_by_prompt_and_seed_whatever_they_say(tmp_path):
    prompts, steering = ["jazz, <slow>, Steering the sax", None], Steering(np.ones(4), layers=[0], norm=1.0)
    audio = np.stack([clip(440)[0], clip(220)[0]])
    made = {
        name: Generation(audio, None, RATE, prompts, [3, 4], [given] * 2)
        for name, given in {"steered": steering, "unsteered": None}.items()
    }
    items = ("jazz, <slow>, Steering the sax (seed 3)", "no prompt (seed 4)")
    for k, order in enumerate((made, dict(reversed(made.items())))):
        assert ListeningTest(order, "Which?", name="names", folder=tmp_path / str(k)).design.items == items


def test_what_cannot_be_a_test_is_refused_with_the_reason(tmp_path):
    good = conditions()
    for wrong, given in {
        "at least two": {"steered": good["steered"]},
        "same number": {**good, "steered": good["steered"][:1]},
        "silent": {**good, "steered": [(0 * a, r) for a, r in good["steered"]]},
    }.items():
        with pytest.raises(ValueError, match=wrong):
            ListeningTest(given, "Which?", "x", folder=tmp_path)
    for wrong, options in {
        "a-z": {"name": "../x"},
        "kind": {"kind": "guess"},
        "must be of": {"pairs": [("steered", "absent")]},
        "question": {"question": " "},
    }.items():
        with pytest.raises(ValueError, match=wrong):
            ListeningTest(good, **{"question": "Which?", "name": "x", "folder": tmp_path, **options})
    with pytest.raises(FileNotFoundError, match="no listening test"):
        ListeningTest.open(tmp_path)


@pytest.mark.parametrize("kind", ["preference", "abx", "rating"])
def test_nothing_the_page_gets_names_a_condition_or_shows_which_sounds_are_the_same(tmp_path, kind):
    names = THREE if kind == "rating" else THREE[:2]
    session = Session(make(tmp_path, kind, names, headphones=2).design, tmp_path)
    texts, served = [session.handle({"do": "hello"})[0]], []
    page, sounds = begin(session)
    while page["page"] != "done":
        texts.append(page)
        served += [(page["kind"], sound) for sound in sounds]
        page, sounds = session.handle(answer(page))
        if page["page"] == "intro":
            texts.append(page)
            page, sounds = session.handle({"do": "next", "stage": page["stage"]})
    said = json.dumps(texts)
    secret = [
        *names,
        "quiet",
        "antiphase",
        *(t for files in session.design.stimuli.values() for t in files.values()),
    ]
    # the question on quietness is the only text in which one of these words may stand
    assert not [word for word in secret if word in said.replace("Which tone is the quietest?", "")]
    sounds = [sound for _, sound in served]
    assert len(set(sounds)) == len(sounds), "no two sounds have the same bytes"
    assert len({len(sound) for asked, sound in served if asked == kind}) == 1, "nor sizes that differ"
    music = [decode(sound) for asked, sound in served if asked == kind]
    same = [np.abs(a - b).max() for i, a in enumerate(music) for b in music[:i]]
    assert 0 < min(same) < 1e-4, "though some are the same but for dither"


def test_choices_are_stored_as_the_condition_that_was_heard(tmp_path):
    session = Session(make(tmp_path, items=4).design, tmp_path)
    higher = lambda page, sounds: "AB"[int(condition_of(decode(sounds[1]), RATE) == "steered")]
    follow(session, *begin(session), choose=lambda p, s: higher(p, s) if p["kind"] == "preference" else "A")
    table = ListeningTest.open(tmp_path).answers()
    main = table[table["stage"] == "main"]
    assert set(main["chosen"]) == {"steered"} and set(main["choice"]) == {"A", "B"} and len(main) == 4


def test_abx_knows_which_answer_is_right(tmp_path):
    session = Session(make(tmp_path, "abx", items=4).design, tmp_path)

    def by_ear(page, sounds):
        heard = [condition_of(decode(sound), RATE) for sound in sounds]
        return "AB"[heard.index(heard[2])] if page["kind"] == "abx" else "A"

    follow(session, *begin(session), choose=by_ear)
    table = ListeningTest.open(tmp_path).answers()
    assert table.loc[table["stage"] == "main", "correct"].all()


def test_a_new_session_goes_on_at_the_same_trial_with_nothing_lost_or_doubled(tmp_path):
    test = make(tmp_path, items=4, headphones=2)
    session = Session(test.design, tmp_path)
    follow(session, *begin(session), limit=4)
    due, _ = session.handle({"do": "hello"})
    other = Session(ListeningTest.open(tmp_path).design, tmp_path)  # the kernel was killed
    page, _ = other.handle({"do": "name", "name": "Ann"})
    assert (page["page"], page["done"], page["total"]) == ("resume", 4, 7)
    page, sounds = begin(other)
    assert {k: page[k] for k in ("stage", "number")} == {k: due[k] for k in ("stage", "number")}
    assert page["token"] != due["token"]
    seen = follow(other, page, sounds)
    keys = [line["trial"] for line in session.store.answers(1)]
    assert len(seen) == 3 and len(keys) == len(set(keys)) == 7
    # the old page wakes up and sends what it had: told that the test is over, nothing is written
    assert session.handle(answer(due))[0]["page"] == "done" and len(session.store.answers(1)) == 7


def test_an_answer_sent_twice_counts_once(tmp_path):
    session = Session(make(tmp_path, headphones=0, practice=0).design, tmp_path)
    page, _ = begin(session)
    twice = [session.handle(answer(page))[0] for _ in range(2)]
    assert twice[0]["token"] == twice[1]["token"] != page["token"]
    assert len(session.store.answers()) == 1


def test_an_answer_without_listening_or_choosing_is_not_taken(tmp_path):
    session = Session(make(tmp_path, headphones=0, practice=0).design, tmp_path)
    page, _ = begin(session)
    for wrong, said in (
        ({"heard": [5, 0]}, "listen"),
        ({"heard": []}, "listen"),
        ({"choice": "X"}, "choose"),
    ):
        reply, _ = session.handle(answer(page) | wrong)
        assert said in reply["error"] and reply["token"] == page["token"]
    assert session.store.answers() == []


def test_two_listeners_at_once_do_not_mix(tmp_path):
    design = make(tmp_path, headphones=0).design
    sessions = [Session(design, tmp_path) for _ in range(2)]
    pages = [begin(session, name) for session, name in zip(sessions, ("Ann", "../Bo"), strict=True)]
    for _ in range(3):
        pages = [s.handle(answer(p, c)) for s, (p, _), c in zip(sessions, pages, "AB", strict=True)]
        pages = [s.handle({"do": "next", "stage": p["stage"]}) if p["page"] == "intro" else (p, x)
                 for s, (p, x) in zip(sessions, pages, strict=True)]  # fmt: skip
    table = ListeningTest.open(tmp_path).answers()
    assert table.groupby("name")["choice"].unique().map(list).to_dict() == {"Ann": ["A"], "../Bo": ["B"]}


def test_the_same_call_finds_its_folder_and_another_test_is_refused_once_there_are_answers(tmp_path):
    first = make(tmp_path)
    files = set((tmp_path / "stimuli").iterdir())
    assert make(tmp_path).design == first.design and set((tmp_path / "stimuli").iterdir()) == files
    changed = make(tmp_path, seed=1)  # nobody has answered: the plan may change
    assert changed.design.seed == 1 and not files & set((tmp_path / "stimuli").iterdir())
    begin(Session(changed.design, tmp_path))
    with pytest.raises(ValueError, match="another name"):
        make(tmp_path, seed=2)
    shutil.rmtree(tmp_path / "stimuli")  # lost: the same call makes them again, and the answers stay
    again, answers = make(tmp_path, seed=1), (tmp_path / "answers.jsonl").read_bytes()
    assert len(list((tmp_path / "stimuli").iterdir())) == len(files) and answers
    assert again.design.test_hash == changed.design.test_hash


def test_simulated_listeners_are_called_so_and_never_stored(tmp_path):
    test = make(tmp_path, names=THREE, items=6)
    table = test.simulate(12, strengths={"steered": 1.5}, careless=2, seed=1)
    assert table["simulated"].all() and table["listener"].str.startswith("S").all()
    assert table["name"].str.startswith("simulated").all() and not (tmp_path / "answers.jsonl").exists()
    found = test.analyse(table, boots=100)
    assert found.simulated and found.strengths["condition"].iloc[0] == "steered"
    assert list(found.listeners.query("not kept")["listener"]) == ["S11", "S12"]
    for shown in (
        repr(found),
        found._repr_html_(),
        *(fig.layout.title.text for fig in found.figures().values()),
    ):
        assert "10 of 12 simulated listeners" in shown
    assert all(frame["simulated"].all() for frame in (found.results, found.strengths, found.listeners))
    with pytest.raises(ValueError, match="no condition"):
        test.simulate(2, strengths={"absent": 1})


def test_screening_follows_the_rule_of_the_plan(tmp_path):
    test = make(tmp_path, items=12, screening=Screening(headphones_wrong=None, one_side=None, answered=None))
    table = test.simulate(10, strengths={"steered": 1.0}, careless=3)
    assert test.analyse(table, boots=10).listeners["kept"].all()
    test.design = dataclasses.replace(test.design, screening=Screening())
    strict = test.analyse(table, boots=10)
    assert list(strict.listeners["kept"]) == [True] * 7 + [False] * 3
    assert (
        strict.listeners["why"].iloc[-1].startswith("headphone check")
        or "same side" in strict.listeners["why"].iloc[-1]
    )


@pytest.mark.parametrize("kind", ["abx", "rating"])
def test_the_other_kinds_are_analysed_too(tmp_path, kind):
    test = make(tmp_path, kind, THREE, items=4, reference="unsteered" if kind == "rating" else None)
    found = test.analyse(test.simulate(10, strengths={"steered": 2.0}), boots=50)
    top = found.results.iloc[0]
    if kind == "rating":
        assert top["condition"] == "steered" and top["difference"] > 10 and found.agreement > 0.1
    else:
        easy = found.results[(found.results[["condition", "against"]] == "steered").any(axis=1)]
        assert len(easy) == 2 and (easy["share"] > 0.6).all()


@pytest.mark.parametrize("kind", ["preference", "abx"])
def test_agreement_is_0_for_coins_and_1_where_all_agree(tmp_path, kind):
    test = make(
        tmp_path, kind, THREE, items=8, headphones=0, practice=0, screening=Screening(None, None, None, None)
    )
    coins = [
        test.analyse(test.simulate(18, listener_sd=0, item_sd=0, seed=k), boots=2).agreement for k in range(4)
    ]
    assert abs(np.mean(coins)) < 0.03 and np.abs(coins).max() < 0.1
    table = test.simulate(6)
    even = table["item"].str.extract(r"(\d+)$")[0].astype(int) % 2 == 0
    names = np.sort(table[["left", "right"]].to_numpy(str), axis=1)
    if kind == "abx":  # all are right on even items and wrong on odd ones, whichever X each of them gets
        other = table["left"].where(table["left"] != table["x"], table["right"])
        table["chosen"], table["correct"] = np.where(even, table["x"], other), even
    else:
        table["chosen"] = np.where(even, *names.T)
    assert test.analyse(table, boots=2).agreement == 1


def test_no_answers_or_mixed_ones_are_not_analysed(tmp_path):
    test = make(tmp_path)
    with pytest.raises(ValueError, match="no answers"):
        test.analyse()
    table = test.simulate(4)
    with pytest.raises(ValueError, match="together"):
        test.analyse(pd.concat([table, table.assign(simulated=False)]))


def test_an_export_makes_the_same_figures_again(tmp_path, monkeypatch):
    test = make(tmp_path / "test", headphones=0, items=3)
    for name in ("Ann Smith", "Bo", "Cy"):
        session = Session(test.design, test.folder)
        follow(session, *begin(session, name))
    monkeypatch.setattr(saving, "chrome", lambda: None)
    with pytest.warns(UserWarning, match="was not written"):
        out = test.export(tmp_path / "out")
    assert "Ann" not in "".join(
        p.read_text() for p in out.rglob("*") if p.suffix in {".jsonl", ".csv", ".md", ".json"}
    )
    assert {p.name for p in out.iterdir()} == {
        "README.md",
        "analyse.py",
        "analysis",
        "answers.csv",
        "design.json",
        "stimuli",
    }
    tables = {p.name: p.read_bytes() for p in (out / "analysis").glob("*.csv")}
    answers = test.answers()
    shutil.rmtree(out / "analysis")
    shutil.rmtree(test.folder)
    with pytest.warns(UserWarning, match="was not written"):
        runpy.run_path(str(out / "analyse.py"))
    assert {p.name: p.read_bytes() for p in (out / "analysis").glob("*.csv")} == tables and len(tables) == 2
    with pytest.raises(FileExistsError):
        test.export(out)
    shutil.copytree(out, test.folder)
    with pytest.warns(UserWarning, match="was not written"):
        given = test.export(tmp_path / "given", answers=answers.assign(name="Ann Smith"))
    assert "Ann" not in (given / "answers.csv").read_text()


def test_the_widget_passes_messages_on_and_keeps_nothing_in_its_state(tmp_path):
    widget = make(tmp_path).take()
    sent = []
    widget.send = lambda page, sounds=None: sent.append((page, sounds))
    for message in (
        {"do": "hello", "id": 7},
        {"do": "name", "name": "Ann", "id": 8},
        {"do": "next", "stage": "headphones"},
    ):
        widget._on_page(widget, message, [])
    pages, (*_, sounds) = zip(*sent, strict=True)
    assert [page["page"] for page in pages] == ["welcome", "intro", "trial"] and len(sounds) == 3
    assert pages[0]["reply"] == 7
    state = json.dumps(
        {k: v for k, v in widget.get_state().items() if isinstance(v, (str, int, float, list))}
    )
    assert "mechsteer-listening" in state and not any(
        word in state for word in ("Ann", "unsteered", "quiet.")
    )
