"""Answers on disk: nothing lost, nothing doubled, nobody mixed up, whatever is killed or torn."""

import json
import multiprocessing
import signal
import time
from pathlib import Path

import pytest

from mechsteer.listening.answers import AnswerStore, clean_name


def test_answers_come_back_in_order_and_names_get_numbers(tmp_path):
    store = AnswerStore(tmp_path / "deep/answers.jsonl")
    assert store.lines() == [] and store.listeners() == {}
    assert [store.register(name) for name in ("Ann", "Bo", "Ann")] == [1, 2, 1]
    assert store.add(1, "t0", {"chosen": "A"}) and store.add(2, "t0", {"chosen": "B"})
    assert [a["chosen"] for a in store.answers()] == ["A", "B"]
    assert [a["chosen"] for a in store.answers(2)] == ["B"]
    assert all(line["time"].endswith("+00:00") for line in store.lines())


def test_a_second_answer_to_the_same_trial_is_refused(tmp_path):
    store = AnswerStore(tmp_path / "answers.jsonl")
    assert store.add(store.register("Ann"), "t0", {"chosen": "A"})
    assert not store.add(1, "t0", {"chosen": "B"})
    assert [a["chosen"] for a in store.answers()] == ["A"]


def test_nothing_written_is_ever_changed(tmp_path):
    store, before = AnswerStore(tmp_path / "answers.jsonl"), b""
    for k in range(5):
        store.add(store.register("Ann"), f"t{k}", {"n": k})
        now = store.path.read_bytes()
        assert now.startswith(before) and len(now) > len(before)
        before = now


def test_a_line_cut_short_by_a_crash_costs_that_line_only(tmp_path):
    store = AnswerStore(tmp_path / "answers.jsonl")
    store.add(store.register("Ann"), "t0", {"chosen": "A"})
    with open(store.path, "ab") as file:
        file.write(b'{"kind": "answer", "listener": 1, "tri')
    with pytest.warns(UserWarning, match="1 line.*damaged.*2 are whole"):
        assert len(store.answers()) == 1
    assert store.add(1, "t1", {"chosen": "B"})
    with pytest.warns(UserWarning, match="1 line.*damaged.*3 are whole"):
        assert [a["trial"] for a in AnswerStore(store.path).answers()] == ["t0", "t1"]


NAMES = [
    "../../etc/passwd",
    "/absolute/path",
    "a\x00b\nc",
    "<script>alert(1)</script>",
    "名前 🎧",
    '"quote"',
    "e\u0301",
]


def test_names_are_free_text_and_never_a_path(tmp_path):
    store = AnswerStore(tmp_path / "test/answers.jsonl")
    for name in NAMES:
        store.add(store.register(name), "t0", {})
    assert list(store.listeners()) == [clean_name(name) for name in NAMES] and len(store.answers()) == len(
        NAMES
    )
    assert [p.name for p in tmp_path.rglob("*")] == ["test", "answers.jsonl"]
    assert clean_name("  e\u0301  x ") == "\u00e9 x" and "\n" not in clean_name("a\nb")
    for bad in ("", " \t\n", "x" * 81):
        with pytest.raises(ValueError, match="Please"):
            store.register(bad)


def _write(path: str, name: str, start, trials: int) -> None:
    store = AnswerStore(Path(path))
    start.wait()
    number = store.register(name)
    for k in range(trials):
        store.add(number, f"t{k}", {"name": name})


def test_listeners_at_once_do_not_mix_and_the_same_name_twice_doubles_nothing(tmp_path):
    context = multiprocessing.get_context("spawn")
    start, path = context.Event(), str(tmp_path / "answers.jsonl")
    people = [context.Process(target=_write, args=(path, name, start, 20)) for name in ("Ann", "Bo", "Bo")]
    for person in people:
        person.start()
    start.set()
    for person in people:
        person.join(60)
    store = AnswerStore(Path(path))
    assert sorted(store.listeners().values()) == [1, 2]
    seen = [(a["listener"], a["trial"]) for a in store.answers()]
    assert len(seen) == len(set(seen)) == 40
    assert all(store.listeners()[a["name"]] == a["listener"] for a in store.answers())


def _write_for_ever(path: str) -> None:
    store, k = AnswerStore(Path(path)), 0
    number = store.register("Ann")
    while True:
        store.add(number, f"t{k}", {})
        print(k, flush=True)
        k += 1


def test_a_killed_writer_has_lost_nothing_it_was_told_was_written(tmp_path):
    import subprocess
    import sys

    call = f"_write_for_ever({str(tmp_path / 'answers.jsonl')!r})"
    code = f"from test_listening_store import _write_for_ever; {call}"
    writer = subprocess.Popen(
        [sys.executable, "-c", code], cwd=Path(__file__).parent, stdout=subprocess.PIPE, text=True
    )
    said = [int(writer.stdout.readline()) for _ in range(10)]
    time.sleep(0.05)
    writer.send_signal(signal.SIGKILL)
    said += [int(line) for line in writer.stdout.read().split()]
    writer.wait()
    store = AnswerStore(tmp_path / "answers.jsonl")
    kept = [int(a["trial"][1:]) for a in store.answers()]
    assert kept == list(range(len(kept))) and set(said) <= set(kept)
    assert store.register("Bo") == 2
    assert all(json.loads(line) for line in store.path.read_text().splitlines() if line.endswith("}"))
