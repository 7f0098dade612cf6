"""Mistakes that used to give wrong numbers without a word: refused in a sentence, or done right."""

import functools
import math
import operator
import threading
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import mechsteer as ms
from mechsteer._shared import number
from mechsteer.model.effects import plan
from mechsteer.model.steering import MODES

NAN, INF = float("nan"), float("inf")
ODD = [NAN, INF, -INF, 1j, "0.5", "", None, [1.0, 2.0], np.array([1.0]), True, 10**400, {}, b"1"]
QUICK = settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


def vector(model, seed=0):
    return np.random.default_rng(seed).standard_normal(model.d_model)


def steer(model, **options):
    return ms.Steering(vector(model), **{"layers": [1], "norm": 3.0, **options})


def sentence(error) -> str:
    """What an error says, if it is one line that a person can read."""
    said = str(error.value if hasattr(error, "value") else error)
    assert said and "\n" not in said and len(said) < 500, said
    return said


# Two threads on one model


def test_calls_in_threads_give_what_they_give_one_after_another(model):
    codes = torch.as_tensor(np.random.default_rng(0).integers(0, 50, (4, model.n_codebooks, 30)))
    table = None
    if model.name == "tiny":
        table = ms.clips("orchestra").iloc[:3]
        table = table.assign(codes=[codes[:, :50] for codes in table["codes"]], duration=2.0)
    s = steer(model, strength=0.5)
    one_step = dict(duration=0.2, progress=False)

    def trace(i):
        with model.trace(codes[i : i + 1]):
            h = model.resid[1].save()
        return h.detach().numpy().copy()

    jobs = [functools.partial(trace, i) for i in range(3)]
    jobs += [lambda i=i: model.generate("jazz", seed=i, steering=s, **one_step).audio for i in range(2)]
    jobs += [lambda: model.nll(codes, steering=s), lambda: model.nll(codes, "jazz")]
    jobs += [lambda: model.encode(model.decode(codes), model.sample_rate).numpy()]
    if table is not None:
        jobs += [lambda: ms.collect(model, table, layers=[2], progress=False)["resid"].values]
        prompts = dict(generate={"duration": 0.2}, layers=[2], progress=False)
        jobs += [lambda: ms.collect(model, ["jazz", None], **prompts)["resid"].values]
    alone, together = [job() for job in jobs], [None] * len(jobs)

    def run(k):
        together[k] = jobs[k]()

    for _ in range(2):
        threads = [threading.Thread(target=run, args=(k,)) for k in range(len(jobs))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for k, (a, b) in enumerate(zip(alone, together, strict=True)):
            np.testing.assert_array_equal(a, b, err_msg=f"job {k}")


def test_a_call_inside_a_trace_is_refused_and_the_model_goes_on(model):
    codes = torch.zeros(1, model.n_codebooks, 5, dtype=torch.long)
    for call in (lambda: model.nll(codes), lambda: model.generate(None, 0.2, progress=False)):
        with pytest.raises(RuntimeError, match="inside `with model.trace.*after the block"):  # noqa: SIM117
            with model.trace(codes):
                call()
    assert np.isfinite(model.nll(codes)).all()


# Numbers that are none


@pytest.mark.parametrize("value", ODD, ids=repr)
@pytest.mark.parametrize("name", ["strength", "start", "stop", "every", "ramp", "norm", "weights"])
def test_a_steering_takes_finite_numbers_only(name, value):
    if (name, value) in [("stop", None), ("norm", None), ("weights", None)] or (
        name in ("norm", "weights") and isinstance(value, np.ndarray | dict | list)
    ):
        return  # which mean something there
    with pytest.raises((ValueError, TypeError)) as error:
        ms.Steering(np.ones(4), layers=[0], **{"norm": 1.0, name: value})
    sentence(error)


@pytest.mark.parametrize("name", ["norm", "weights"])
@pytest.mark.parametrize("value", [[1.0, NAN], [INF, 1.0], {0: NAN, 1: 1.0}, np.array([[1, NAN]] * 2)])
def test_one_number_of_several_that_is_none_is_refused(name, value):
    site, shape = ("heads", (2, 2)) if isinstance(value, np.ndarray) else ("resid", (4,))
    with pytest.raises(ValueError, match="finite|has none"):
        ms.Steering(np.ones(shape), site, [0, 1], **{"norm": 1.0, name: value})


def test_a_norm_that_lacks_a_layer_is_no_norm_of_zero():
    with pytest.raises(ValueError, match="has none at some layer"):
        ms.Steering(np.ones(4), layers=[0, 1], norm={0: 2.0})
    known = xr.DataArray([2.0], dims="layer", coords={"layer": [0]})
    with pytest.raises(ValueError, match="has none at some layer"):
        ms.Steering(np.ones(4), layers=[0, 1], norm=known)
    with pytest.raises(ValueError, match="no norm below 0"):
        ms.Steering(np.ones(4), layers=[0], norm=-1.0)


@pytest.mark.parametrize("layers", [[], [2, 2], [1.5], ["1"], [NAN]])
def test_layers_are_named_once_each(layers):
    with pytest.raises(ValueError) as error:
        ms.Steering(np.ones(4), layers=layers, norm=1.0)
    assert "layer" in sentence(error)


@pytest.mark.parametrize("size", [1e-100, 1e-30, 1e30, 1e100])
def test_a_vector_of_any_size_is_scaled_to_unit_length(size):
    s = ms.Steering(np.array([3.0, 4.0]) / 5 * size, layers=[0], norm=1.0)
    np.testing.assert_allclose(s.direction.values, [[0.6, 0.8]])


@pytest.mark.parametrize("size", [1e-320, 1e-200, 1e200, 1e308])
def test_a_vector_whose_length_is_no_number_is_refused(size):
    with pytest.raises(ValueError, match="can't be scaled to unit length"):
        ms.Steering(np.array([3.0, 4.0]) / 5 * size, layers=[0], norm=1.0)


@pytest.mark.parametrize("value", ODD, ids=repr)
@pytest.mark.parametrize("name", ["guidance", "temperature", "top_k", "batch_size", "duration", "seed"])
def test_generate_takes_finite_numbers_only(model, name, value):
    if name == "seed" and isinstance(value, list | np.ndarray):
        value = [0.5]
    with pytest.raises((ValueError, TypeError)) as error:
        model.generate("jazz", **{"duration": 0.2, "progress": False, name: value})
    assert name in sentence(error) or "single number" in str(error.value) or "iter" in str(error.value)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"temperature": -1}, "temperature=-1 isn't a finite number of 0 or more"),
        ({"top_k": -1}, "top_k=-1 isn't a whole number of 0 or more"),
        ({"top_k": 2.5}, "top_k=2.5 isn't a whole number"),
        ({"batch_size": 0}, "batch_size=0 isn't a whole number of 1 or more"),
        ({"batch_size": -3}, "batch_size=-3"),
        ({"duration": 0}, "duration=0 s is 0 frames"),
        ({"duration": 1e9}, "duration=1000000000.0 isn't"),
        ({"seed": -1}, "seed=-1 isn't a whole number from 0"),
        ({"seed": 2**63}, "seed=9223372036854775808 isn't"),
        ({"prompts": 3}, "prompts are text, or None for no text, not 3"),
        ({"prompts": ["jazz", NAN]}, "prompts are text.*not nan"),
        ({"prompts": []}, "0 prompts"),
        ({"steering": np.ones(4)}, "4 steerings|isn't a steering; ms.Steering"),
        ({"steering": "guitar"}, "a str isn't a steering; ms.Steering"),
        ({"guidance": 1e300}, "logits became NaN or infinite: steer or guide less"),
        ({"audio_prompt": (np.ones(8000), NAN)}, r"sample_rate \(Hz\)=nan isn't a finite number from 100"),
        ({"audio_prompt": (np.ones(8000), 0)}, r"sample_rate \(Hz\)=0"),
        ({"audio_prompt": (np.ones(8000), 1e-9)}, r"sample_rate \(Hz\)=1e-09"),
        ({"audio_prompt": (np.full(8000, NAN), 16000)}, "NaN or infinite samples"),
        ({"audio_prompt": (np.ones(8000) * 1j, 16000)}, "dtype complex"),
    ],
)
def test_a_call_that_means_nothing_is_refused_in_a_sentence(model, options, said):
    with pytest.raises(ValueError, match=said) as error:
        model.generate(**{"prompts": "jazz", "duration": 0.2, "progress": False, **options})
    sentence(error)


@pytest.mark.parametrize(
    "codes",
    [
        np.full((1, 4, 5), 0.5),
        np.full((1, 4, 5), 1j),
        np.full((1, 4, 5), True),
        -1,
        10**6,
        np.zeros((1, 4, 0)),
    ],
)
def test_codes_are_whole_numbers_of_the_codebook(model, codes):
    codes = np.full((1, 1, 5), codes) if np.ndim(codes) == 0 else codes
    codes = np.repeat(codes[:, :1], model.n_codebooks, axis=1)
    for call in (model.nll, model.decode, model.sequence, lambda c: model.generate(None, audio_prompt=c)):
        with pytest.raises(ValueError, match="codes") as error:
            call(codes)
        sentence(error)


@pytest.mark.parametrize("call", ["nll", "decode", "encode"])
def test_every_call_wants_a_batch(model, call):
    codes = torch.zeros(1, model.n_codebooks, 5, dtype=torch.long)
    given_ = (np.zeros(model.sample_rate), model.sample_rate) if call == "encode" else (codes,)
    with pytest.raises(ValueError, match="batch_size=0 isn't a whole number of 1 or more"):
        getattr(model, call)(*given_, batch_size=0)


def test_channels_that_cancel_each_other_are_refused_not_encoded_as_silence(model):
    tone = np.sin(np.arange(model.sample_rate) / 20)
    if model.codec.channels == 1:
        with pytest.raises(ValueError, match="channels cancel each other"):
            model.encode(np.stack([tone, -tone]), model.sample_rate)
    model.encode(np.stack([tone, tone]), model.sample_rate)
    model.encode(np.zeros((2, model.sample_rate)), model.sample_rate)


anything = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True),
    st.integers(-(2**70), 2**70),
    st.sampled_from([*ODD, 0, 1, 0.5, np.float32(0.3), np.int64(3), torch.tensor(0.25)]),
)


@given(anything, st.booleans())
def test_a_number_is_itself_or_refused(value, whole):
    try:
        found = number("x", value, whole=whole)
    except ValueError as error:
        sentence(error)
    else:
        assert math.isfinite(found) and isinstance(found, int if whole else float)
        assert found == value if whole else found == pytest.approx(float(value))


@QUICK
@given(st.dictionaries(st.sampled_from(["strength", "start", "stop", "every", "ramp", "norm"]), anything))
def test_any_steering_is_refused_or_says_finite_things(options):
    try:
        s = ms.Steering(np.ones(4), layers=[0], **{"norm": 1.0, **options})
    except ValueError as error:
        sentence(error)
        return
    gain = s.schedule(40, 25.0)
    assert np.isfinite(gain).all() and gain.min() >= 0 and gain.max() <= 1
    assert np.isfinite(s.amounts()).all() and repr(s)


@settings(QUICK, max_examples=40)
@given(
    st.dictionaries(
        st.sampled_from(["guidance", "temperature", "top_k", "batch_size", "seed", "strength"]),
        anything,
        max_size=3,
    )
)
def test_any_call_is_refused_or_gives_codes_that_repeat(shallow, options):
    model = shallow
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            own = dict(options)
            steering = steer(model, strength=own.pop("strength")) if "strength" in own else None
            call = functools.partial(
                model.generate, "jazz", 0.1, steering=[steering, None], progress=False, **own
            )
            made = call()
        except (ValueError, TypeError) as error:
            sentence(error)
            return
        again = call()
    assert torch.equal(made.codes, again.codes) and np.isfinite(made.audio).all()
    assert made.codes.min() >= 0 and made.codes.max() < model.lm.card
    one = model.generate("jazz", 0.1, progress=False, **{k: v for k, v in own.items() if k != "batch_size"})
    assert torch.equal(one.codes[0], made.codes[1]), "a row doesn't depend on its neighbour"


# What does nothing says so


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"branch": "uncond"}, "no 'uncond' half without guidance"),
        ({"stop": 0}, "its schedule holds no frame of these 0.2 s"),
        ({"start": 5}, "its schedule holds no frame"),
        ({"norm": 0.0}, "vanishes"),
        ({"strength": 1e-300}, "vanishes"),
    ],
)
def test_a_steering_that_does_nothing_warns_once_and_says_why(model, options, said):
    s = steer(model, **options)
    with pytest.warns(UserWarning, match=f"does nothing: .*{said}") as told:
        made = model.generate("jazz", 0.2, steering=[None, s, s], guidance=1, batch_size=1, progress=False)
    assert len(told) == 1 and torch.equal(made.codes[0], made.codes[1])
    codes = made.codes[:1]
    with pytest.warns(UserWarning, match=said):
        model.nll(codes, steering=s)


def test_weights_that_name_no_steered_layer_warn(model):
    with pytest.warns(UserWarning, match=r"all weights are 0 at layers \[1\]: this steering does nothing"):
        steer(model, weights={0: 1.0})


def test_what_was_switched_off_on_purpose_is_silent(model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.generate("jazz", 0.2, steering=[None, steer(model, strength=0.0)], progress=False)


@pytest.mark.parametrize("mode", MODES)
def test_too_strong_a_steering_is_refused_instead_of_turning_into_noise(model, mode):
    with pytest.raises(ValueError, match="is too strong for torch.float32|logits became NaN"):
        model.generate("jazz", 0.2, steering=steer(model, strength=1e300, mode=mode), progress=False)


# A thousand at once


@pytest.mark.parametrize("mode", MODES)
def test_many_steerings_act_as_one_after_another(mode):
    """How long planning a thousand takes: workshop/benchmarks/safety_cost.py."""
    model = SimpleNamespace(d_model=16, frame_rate=25.0, device="cpu")
    parts = [steer(model, strength=0.01, mode=mode)] * 3
    parts += [
        ms.Steering(vector(model, i), layers=[1], norm=3.0, strength=0.01, mode=mode) for i in range(60)
    ]
    made = plan([functools.reduce(operator.or_, parts)], 4, model, ("cond",))
    h = torch.randn(1, 1, 16)
    assert len(made["resid", 1]) == {"add": 1, "remove": 16}.get(mode, 63)
    by_hand = h
    for part in parts:
        by_hand = plan([part], 4, model, ("cond",)).at(by_hand, "resid", 1, 0)
    if mode == "remove":  # each takes away 1 % of what those before it left: of every direction, once
        by_hand = 0.99 * h
    torch.testing.assert_close(made.at(h, "resid", 1, 0), by_hand)


# Names, and the bar


@pytest.mark.parametrize(
    ("slip", "said"),
    [
        (
            lambda m: ms.Steering(np.ones(3), strenght=2),
            r"Steering\(\) has no option 'strenght'. .*'strength'",
        ),
        (lambda m: m.generate("jazz", durations=1), "generate.* no option 'durations'. .*'duration'"),
        (lambda m: ms.collect(m, ["a"], genrate={}), "collect.* 'genrate'. Did you mean 'generate'"),
        (lambda m: ms.clips(sorce="x"), "clips.* 'sorce'. Did you mean 'source'"),
        (lambda m: ms.load(nme="tiny"), "load.* 'nme'. Did you mean 'name'"),
        (lambda m: ms.genrate, "Did you mean 'generate'.* a method of the model"),
        (lambda m: ms.colect, "Did you mean 'collect'"),
        (lambda m: m.genrate, "a Model has no 'genrate'. Did you mean 'generate'"),
    ],
)
def test_a_slip_of_the_pen_suggests_the_right_name(model, slip, said):
    with pytest.raises((TypeError, AttributeError), match=said):
        slip(model)


@pytest.mark.parametrize("given_frames", [0, 6])
def test_the_progress_bar_ends_at_its_end(model, monkeypatch, given_frames):
    bars = []

    class Bar:
        def __init__(self, total=None, **options):
            self.total, self.n = total, 0
            bars.append(self)

        def update(self, n=1):
            self.n += n

        __enter__ = lambda self: self
        __exit__ = lambda self, *error: None

    monkeypatch.setattr("mechsteer.model.model.progress_bar", Bar)
    start = torch.zeros(1, model.n_codebooks, given_frames, dtype=torch.long) if given_frames else None
    model.generate(["a", "b", "c"], 0.5, audio_prompt=start, batch_size=2)
    assert [(bar.n, bar.total) for bar in bars] == [(bar.total, bar.total) for bar in bars] and bars[0].n > 0


def test_a_full_disk_leaves_no_empty_file_behind(model, tmp_path, monkeypatch):
    made = model.generate("jazz", 0.2, progress=False)

    def full(self, content):
        with open(self, "wb"):
            raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        made.save(tmp_path / "take.wav")
    assert not list(tmp_path.iterdir())
