"""Never wrong in silence: answer files and messages that anyone may have written, or a crash torn."""

import json
import warnings

import pytest
from listening_clips import make
from test_listening import THREE, answer, begin, follow

from mechsteer import ListeningTest
from mechsteer.listening.analysis import tidy
from mechsteer.listening.answers import AnswerStore
from mechsteer.listening.design import trials
from mechsteer.listening.session import Session

UNKNOWN = [
    "null", "3", '"Ann"', "[]", "[1, 2]", "{}", '{"kind": "remark", "listener": 1}', '{"kind": ["answer"]}',
    '{"kind": "answer", "trial": "t0"}', '{"kind": "answer", "listener": 1}',
    '{"kind": "listener", "listener": 1}',
    *(f'{{"kind": "answer", "listener": {number}, "trial": "t9"}}'
      for number in ("true", "0", "-1", "1.0", '"1"', "null", "NaN", "[1]", "{}")),
    '{"kind": "answer", "listener": 1, "trial": 7}', '{"kind": "listener", "listener": 1, "name": [1]}',
    '{"kind": "answer", "listener": 1, "trial": "t9", "simulated": "yes"}',
    '{"kind": "listener", "listener": 1, "name": "somebody else"}',
]  # fmt: skip
DAMAGED = [b"\xff\xfe\x00", b"{", b'{"kind": "list', b"\x00" * 50, b"[" * 100_000, b"\xed\xa0\x80"]
DAMAGED += [b"9" * 5000]


def line(**facts) -> bytes:
    return json.dumps(facts).encode()


def listener(number: int, name: str) -> bytes:
    return line(kind="listener", listener=number, name=name)


def stored(path, *lines: bytes, torn: bytes = b"") -> AnswerStore:
    path.write_bytes(b"".join(one + b"\n" for one in lines) + torn)
    return AnswerStore(path)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "answers.jsonl"


@pytest.fixture
def test(tmp_path):
    return make(tmp_path, items=2, headphones=1, practice=0)


def test_a_newcomer_never_gets_the_number_of_a_listener_whose_line_is_lost(path):
    store = AnswerStore(path)
    assert [store.register(name) for name in ("Ann", "Bo", "Cy")] == [1, 2, 3]
    store.add(2, "t0", {})
    whole = path.read_bytes().split(b"\n")
    for lost in ({1}, {0, 2}, {1, 2}, {0, 1, 2}, {2, 3}):
        told = [one if k not in lost else one[: len(one) // 2] for k, one in enumerate(whole)]
        path.write_bytes(b"\n".join(told))
        with pytest.warns(UserWarning, match=f"{len(lost)} line"):
            first = AnswerStore(path).register("Di")
        assert first > 3
        with pytest.warns(UserWarning):
            assert AnswerStore(path).register("Ed") == first + 1, "two in a row share a draw"


def test_a_torn_last_line_may_have_dealt_a_number_too(path):
    store = stored(path, listener(1, "Ann"), torn=listener(2, "Bo")[:-4])
    with pytest.warns(UserWarning, match="1 line"):
        assert store.register("Cy") == 3
    store = stored(path, listener(1, "Ann"), torn=listener(2, "Bo"))
    assert store.listeners() == {"Ann": 1, "Bo": 2}, "only its end was missing"
    assert store.register("Cy") == 3 and store.register("Bo") == 2
    store = stored(path, listener(1, "Ann"), line(kind="answer", listener=7, trial="t0"))
    assert store.register("Bo") == 8


@pytest.mark.parametrize("odd", [*map(str.encode, UNKNOWN), *DAMAGED], ids=lambda odd: repr(odd[:60]))
def test_damaged_and_unknown_lines_are_skipped_with_one_warning_that_counts_them(path, odd):
    good = [listener(1, "Ann"), line(kind="answer", listener=1, trial="t0")]
    store = stored(path, *good, odd, odd)
    with pytest.warns(UserWarning, match="2 line.*skipped; 2 are whole") as told:
        assert store.lines() == [json.loads(one) for one in good]
        assert store.listeners() == {"Ann": 1} and not store.add(1, "t0", {}) and store.add(1, "t1", {})
        assert store.register("Bo") == 4
    assert len(told) == 1


def test_a_line_written_twice_counts_once_and_the_first(path):
    answers = [line(kind="answer", listener=1, trial="t0", choice=choice) for choice in "AB"]
    store = stored(path, listener(1, "Ann"), *answers, listener(1, "Ann"), listener(3, "Ann"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert [one["choice"] for one in store.answers()] == ["A"]
        assert store.listeners() == {"Ann": 1} and store.register("Bo") == 4


def answered(test, name: str = "Ann") -> list[dict]:
    session = Session(test.design, test.folder)
    follow(session, *begin(session, name))
    return AnswerStore(test.folder / "answers.jsonl").lines()


def test_an_answer_whose_listener_is_lost_keeps_its_number(test):
    lines = [one for name in ("Ann", "Bo") for one in answered(test, name)][-8:]
    table = tidy([one for one in lines if one.get("name") != "Bo"], test.design)
    names = table.groupby("listener")["name"].unique().map(list).to_dict()
    assert names == {"L01": ["Ann"], "L02": ["listener 2"]}


@pytest.mark.parametrize("kind", ["preference", "abx", "rating"])
def test_answers_that_are_not_the_plans_are_skipped_and_counted(tmp_path, kind):
    test = make(tmp_path, kind, THREE, items=2, headphones=1)
    lines = answered(test)
    good = tidy(lines, test.design)
    main = next(one for one in lines if one.get("stage") == "main")
    wrong = [{"trial": "9:9"}, {"stage": "practice"}, {"item": 1 - main["item"]}, {"item": "0"}]
    wrong += [{"slots": main["slots"][::-1]}, {"slots": None}, {"design": "?"}, {"repeat": None}]
    wrong += [{"listener": 2, "slots": ["a", "b"]}]
    wrong += [{"seconds": float("nan")}, {"seconds": "long"}, {"switches": [1]}, {"x": "steered!"}]
    if kind == "rating":
        full = main["ratings"]
        for value in (-1, 101, float("nan"), float("inf"), "50", None, True, [50], 10**400):
            wrong.append({"ratings": full | {"steered": value}})
        wrong += [{"ratings": value} for value in (None, [1, 2, 3], {"steered": 1}, full | {"other": 1})]
    else:
        wrong += [{"chosen": value} for value in ("oversteered!", None, ["steered"], main["slots"][1])]
        wrong += [{"choice": value} for value in ("B", "C", None, ["A"], 0)]
    for change in wrong:
        changed = [one if one is not main else main | change for one in lines]
        with pytest.warns(UserWarning, match="1 answer.*don't belong to the plan") as told:
            table = tidy(changed, test.design)
        assert len(told) == 1
        rest = good[good["trial"] != main["trial"]].reset_index(drop=True)
        assert table.to_json() == rest.to_json(), change
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert tidy([*lines, *lines], test.design).equals(good)
        ListeningTest.open(tmp_path).analyse(test.simulate(4), boots=2)


def test_foreign_lines_do_not_end_a_listeners_test_or_confuse_where_it_goes_on(test):
    session = Session(test.design, test.folder)
    page, _ = begin(session)
    session.handle(answer(page))
    with open(test.folder / "answers.jsonl", "ab") as file:
        for k in range(5):
            file.write(line(kind="answer", listener=1, trial=f"foreign:{k}") + b"\n[]\n\xff\n")
    other = Session(test.design, test.folder)
    with pytest.warns(UserWarning, match="10 line") as told:
        page, _ = other.handle({"do": "name", "name": "Ann"})
        assert (page["done"], page["total"]) == (1, 3)
        assert len(follow(other, *begin(other))) == 2
        assert other.handle({"do": "hello"})[0] == {"page": "done", "answered": 3, "error": ""}
    assert len(told) == 1
    with pytest.warns(UserWarning) as told:
        assert len(test.answers()) == 3
    lines, plan = (str(one.message) for one in told)
    assert "10 line" in lines and "5 answer" in plan


def test_a_file_of_damaged_lines_only_still_protects_its_sounds(tmp_path):
    test = make(tmp_path)
    (tmp_path / "answers.jsonl").write_bytes(b"\xff\n")
    with pytest.raises(ValueError, match="holds answers to other"):
        make(tmp_path, seed=7)
    assert ListeningTest.open(tmp_path).design == test.design


ODD = [
    None, True, 3, float("nan"), float("inf"), -1, 10**400, "abc", "", [], ["a"], {}, {"a": 1},
    [float("nan")] * 3, [0] * 100_000, "\ud800", [[]] * 2,
]  # fmt: skip


@pytest.mark.parametrize("kind", ["preference", "rating"])
def test_any_message_gets_a_page_and_nothing_odd_is_stored(tmp_path, kind):
    session = Session(make(tmp_path, kind, THREE[:2], headphones=0, practice=0).design, tmp_path)
    for message in [*ODD, *({"do": odd} for odd in ODD)]:
        reply, _ = session.handle(message)
        assert reply["page"] == "welcome" and "reload" in reply["error"]
    for name in (odd for odd in ODD if odd != "abc"):
        reply, _ = session.handle({"do": "name", "name": name})
        assert reply["page"] == "welcome" and "name" in reply["error"]
    begin(session)
    for stage in ODD:
        assert "reload" in session.handle({"do": "next", "stage": stage})[0]["error"]
    page, _ = session.handle({"do": "hello"})
    keys = {"heard": "listen", "seconds": "reload", "switches": "reload", "token": ""}
    keys |= {"ratings": "rate"} if kind == "rating" else {"choice": "choose"}
    for key, said in keys.items():
        for odd in ODD:
            if key in ("seconds", "switches") and odd == 3 or key == "seconds" and odd is True:
                continue
            reply, _ = session.handle(answer(page) | {key: odd})
            assert reply["token"] == page["token"] and said in reply["error"], (key, odd)
            assert bool(said) == bool(reply["error"])
    assert session.store.answers() == []
    follow(session, page, [])
    assert all(json.dumps(one, allow_nan=False) for one in session.store.lines())


def test_the_widget_answers_any_message(test):
    widget, sent = test.take(), []
    widget.send = lambda page, sounds=None: sent.append(page)
    for odd in [*ODD, *({"do": "hello", "id": odd} for odd in ODD)]:
        widget._on_page(widget, odd, [])
    assert len(sent) == 2 * len(ODD) and all(json.dumps(page, allow_nan=False) for page in sent)


def test_any_file_deals_new_numbers_and_is_tidied(tmp_path):
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies
    test = make(tmp_path, items=1, headphones=0, practice=0)
    whole = answered(test) + answered(test, "Bo")
    plan = {t.key for t in trials(test.design, 1)}
    values = st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3),
                          lambda inner: st.lists(inner, max_size=2), max_leaves=3)  # fmt: skip
    texts = st.sampled_from(["Ann", "Bo", *plan, "x"])
    odd = st.fixed_dictionaries(
        {"kind": st.sampled_from(["listener", "answer", "?"]), "listener": st.integers(-1, 9) | values},
        optional={"name": texts | values, "trial": texts | values, "chosen": values, "ratings": values},
    )
    jsons = (odd | values | st.sampled_from(whole)).map(lambda value: json.dumps(value).encode())
    lines = st.lists(jsons | st.binary(max_size=20), max_size=8)

    @hypothesis.settings(max_examples=30, deadline=None, derandomize=True, database=None)
    @hypothesis.given(lines, st.binary(max_size=20))
    def check(lines, torn):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            store = stored(tmp_path / "any.jsonl", *lines, torn=torn)
            before, known = store.lines(), store.listeners()
            tidy(before, test.design)
            number = store.register("a newcomer")
            assert number > max([0, *(one["listener"] for one in before)]) and number > len(known)
            assert store.lines()[: len(before)] == before and store.register("a newcomer") == number
            assert store.register("another") == number + 1

    check()


def test_any_message_is_answered(test):
    hypothesis = pytest.importorskip("hypothesis")
    st = hypothesis.strategies
    session = Session(test.design, test.folder)
    page, _ = begin(session)
    session.handle(answer(page))
    values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=2), inner),
        max_leaves=5,
    )
    keys = ("name", "again", "stage", "heard", "seconds", "switches", "ratings", "choice")
    message = st.fixed_dictionaries(
        {"do": st.sampled_from(["hello", "name", "next", "answer"])}, optional=dict.fromkeys(keys, values)
    )

    @hypothesis.settings(max_examples=100, deadline=None, derandomize=True, database=None)
    @hypothesis.given(message | values)
    def check(message):
        token = session._served and session._served[1]["token"]
        reply, _ = session.handle(message | {"token": token} if isinstance(message, dict) else message)
        assert json.dumps(reply, allow_nan=False) and isinstance(reply.get("error", ""), str)

    check()
    for one in session.store.lines():
        json.dumps(one, allow_nan=False)


def test_a_plan_that_reaches_out_of_its_folder_is_refused(tmp_path):
    folder = tmp_path / "test"
    test, plan = make(folder), folder / "design.json"
    whole = json.loads(plan.read_text())
    token = whole["stimuli"]["steered"]["0"]
    (tmp_path / "deadbeefdeadbeef.flac").write_bytes((folder / f"stimuli/{token}.flac").read_bytes())
    (folder / "stimuli/0123456789abcdef.flac").symlink_to(tmp_path / "deadbeefdeadbeef.flac")
    for name in (
        "../../deadbeefdeadbeef", "/etc/passwd", "..", "", f"{token}\n", f"./{token}", token.upper(),
        "a" * 300, 7, None, [token], "0123456789abcdef",
    ):  # fmt: skip
        whole["stimuli"]["steered"]["0"] = name
        plan.write_text(json.dumps(whole))
        with pytest.raises(ValueError, match="a sound that isn't in its own stimuli/"):
            ListeningTest.open(folder)
    whole["stimuli"]["steered"]["0"] = token
    less = json.dumps(whole | {"stimuli": {}})
    for broken in ("", "[" * 100_000, "[]", "{}", less, json.dumps(whole)[:-9]):
        plan.write_text(broken)
        with pytest.raises(ValueError, match="isn't what it should be.*plan of the listening test"):
            ListeningTest.open(folder)
    plan.write_text(json.dumps(whole))
    assert ListeningTest.open(folder).design == test.design
    (folder / "stimuli").rename(tmp_path / "elsewhere")
    (folder / "stimuli").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ValueError, match="own stimuli/"):
        ListeningTest.open(folder)
