"""Streams: chunks are the whole sound, steering on the way is kept and played again token by token."""

import itertools
import threading

import numpy as np
import pytest
import torch
from by_hand import GUIDANCE, TOP_K, attributes, pick

import mechsteer as ms
from mechsteer.model.steering import Steering
from mechsteer.model.stream import KEPT

PROMPTS, SEEDS = ["jazz piano", None, "rock guitar with fast drums"], [3, 1, 4]
thin = pytest.mark.parametrize("model", ["meta"], indirect=True)  # what doesn't depend on the model


def vector(model, seed=0):
    return np.random.default_rng(seed).standard_normal(model.d_model)


def some(model, seed=0, strength=0.5, **options) -> Steering:
    """Strong enough that other tokens come within a few frames."""
    return Steering(vector(model, seed), **{"layers": [1], "norm": 30.0, "strength": strength} | options)


def decibels(found, wanted) -> float:
    """RMS of the difference, relative to the wanted sound."""
    power = lambda x: np.mean(np.square(x, dtype="float64"))
    return 10 * float(np.log10(power(found - wanted) / power(wanted) + 1e-30))


def joined(chunks) -> np.ndarray:
    return np.concatenate(list(chunks), axis=-1)


def hop(model) -> int:
    return round(model.sample_rate / model.frame_rate)


def replayed(model, take, **options):
    """Codes of the same take streamed anew: steered by what was kept, in one go."""
    again = {name: take.settings[name] for name in ("guidance", "temperature", "top_k", "window")} | options
    return (
        model.stream(take.prompts, take.settings["duration"], take.seeds, take.steering, **again)
        .finish()
        .codes
    )


def generated(model, take):
    options = {name: take.settings[name] for name in ("duration", "guidance", "temperature", "top_k")}
    made = model.generate(take.prompts, seed=take.seeds, steering=take.steering, progress=False, **options)
    return made.codes


def settled(codes, frames) -> torch.Tensor:
    """The codes that steering at `frames` can't change any more: those of sequence steps up to there."""
    frame, book = torch.arange(codes.shape[-1]), torch.arange(codes.shape[1])[:, None]
    return codes[:, frame + book < frames]  # of the delay pattern of both models


# Sound


def test_joined_chunks_are_the_whole_decode(model):
    stream = model.stream(PROMPTS, 1.2, SEEDS)
    sound, take = joined(stream), stream.finish()
    assert decibels(sound, model.decode(take.codes)) < -60
    assert np.array_equal(take.audio, model.decode(take.codes))
    assert torch.equal(take.codes, generated(model, take))


def test_joined_chunks_are_the_whole_decode_of_a_codec_with_memory(meta_folder):
    """Random weights of an EnCodec hardly hear their codes: here they do, and its LSTM remembers for long."""
    model = ms.load(meta_folder, "cpu", "float32")
    with torch.no_grad():
        for level in model.codec.quantizer.vq.layers:
            level._codebook.embed.mul_(300)
    assert model.codec_reach[0] > 10
    stream = model.stream(PROMPTS, 1.6, SEEDS)
    sound, take = joined(stream), stream.finish()
    assert decibels(model.decode(take.codes.roll(1, 0)), take.audio) > -15
    assert decibels(sound, take.audio) < -50


def test_with_less_lookahead_chunks_are_worse_and_sound_all_the_same(model):
    found = {}
    for lookahead in (None, 0.0, 3 / model.frame_rate):
        stream = model.stream("jazz piano", 0.8, 3, lookahead=lookahead)
        sound = joined(stream)
        assert np.isfinite(sound).all() and stream.right <= model.codec_reach[1]
        found[lookahead] = decibels(sound, stream.finish().audio)
    assert found[None] < found[3 / model.frame_rate] < found[0.0] < -10
    more = model.stream("jazz piano", 1.0, 3, lookahead=100.0)
    assert more.right == model.codec_reach[1]


@thin
@pytest.mark.parametrize("chunk, duration", [(0.2, 1.0), (0.3, 1.0), (0.5, 0.32), (0.04, 0.2)])
def test_chunks_have_the_length_that_was_asked_for(model, chunk, duration):
    frames, total = model.seconds_to_frames(chunk), model.seconds_to_frames(duration)
    stream, at = model.stream(["jazz", None], duration, chunk=chunk), 0
    for sound in stream:
        wanted = min(frames, total - at)
        assert sound.shape == (2, model.codec.channels, wanted * hop(model)) and sound.dtype == np.float32
        at += wanted
        assert stream.frames == at <= stream.begun <= total
    assert at == total
    with pytest.raises(StopIteration):
        next(stream)
    take = stream.finish()
    assert take.codes.shape[-1] == total and take.audio.shape[-1] == total * hop(model)


@thin
def test_a_stream_that_is_finished_early_runs_on_to_its_end(model):
    stream = model.stream(PROMPTS, 1.0, SEEDS)
    begun = [next(stream) for _ in range(2)]
    take = stream.finish()
    assert take.codes.shape[-1] == model.seconds_to_frames(1.0)
    assert torch.equal(take.codes, model.stream(PROMPTS, 1.0, SEEDS).finish().codes)
    rest = list(stream)  # and its chunks can still be had
    assert decibels(joined(begun + rest), take.audio) < -60


def test_without_a_duration_it_goes_on_and_finish_ends_it(model):
    stream = model.stream("jazz piano", seed=3, window=0.6)
    sound = joined(itertools.islice(stream, 5))
    assert stream.frames == 5 * model.seconds_to_frames(0.2) < stream.begun
    begun = stream.begun
    take = stream.finish()
    assert take.codes.shape[-1] == begun and take.settings["duration"] == begun / model.frame_rate
    assert decibels(sound, take.audio[..., : sound.shape[-1]]) < -60
    assert torch.equal(stream.finish().codes, take.codes)
    assert joined([sound, *stream]).shape == take.audio.shape


@thin
def test_there_is_nothing_to_finish_before_anything_was_played(model):
    with pytest.raises(ValueError, match="nothing was played yet"):
        model.stream("jazz").finish()


@thin
def test_what_was_asked_for_is_kept(model):
    options = dict(guidance=1.0, temperature=0.7, top_k=20)
    stream = model.stream(PROMPTS, 1.0, SEEDS, window=2.0, **options)
    take = stream.finish()
    assert (take.prompts, take.seeds, take.steering) == (PROMPTS, SEEDS, [None] * 3)
    assert take.settings == dict(duration=1.0, prompt_frames=0, window=2.0, **options)
    assert model.hash in take.model and take.sample_rate == model.sample_rate
    assert torch.equal(take.codes, generated(model, take))
    several = model.stream("jazz", 0.2, [1, 2, 3]).finish()
    assert several.prompts == ["jazz"] * 3 and several.seeds == [1, 2, 3]
    assert model.stream(["a", "slow"], 0.2, 5).finish().seeds == [5, 6]


# Windows


def in_windows(model, prompts, seeds, frames, window, gain, added):
    """Codes by audiocraft's loop, window by window: the last 2/5 of one begin the next; numbers go on.

    `added` x `gain`, by the step of the whole clip, is added to what layer 1 puts out.
    """
    generators, fed = [torch.Generator().manual_seed(seed) for seed in seeds], 0

    def steer(module, args, h):
        nonlocal fed
        steps = slice(before + fed, before + fed + h.shape[1])
        fed += h.shape[1]
        return h + gain[steps, None] * added

    hooks = [model.lm.transformer.layers[1].register_forward_hook(steer)]
    hooks.append(model.lm.register_forward_hook(lambda module, args, out: pick(out, generators)))
    try:
        codes, start, before = torch.empty(len(seeds), model.n_codebooks, 0, dtype=torch.long), None, 0
        while codes.shape[-1] < frames:
            fed, options = 0, dict(max_gen_len=min(window, frames - before), use_sampling=False)
            new = model.lm.generate(start, attributes(prompts), cfg_coef=GUIDANCE, **options)
            codes = torch.cat([codes[..., :before], new], -1)
            start = codes[..., -max(1, int(KEPT * window)) :]
            before = codes.shape[-1] - start.shape[-1]
    finally:
        for hook in hooks:
            hook.remove()
    return codes


@pytest.mark.parametrize("steered", [False, True])
def test_windows_are_audiocrafts_own(model, steered):
    """Steering that ended is heard again where a window begins with frames that it steered."""
    frames, unit = model.seconds_to_frames(0.9), vector(model) / np.linalg.norm(vector(model))
    steering = None
    if steered:
        steering = Steering(vector(model), layers=[1], norm=30.0, strength=0.5, start=0.12, stop=0.44)
    stream = model.stream(PROMPTS, 0.9, SEEDS, steering, window=0.5, top_k=TOP_K, guidance=GUIDANCE)
    sound, take = joined(stream), stream.finish()
    gain = torch.zeros(2 * frames)
    if steered:
        gain[model.seconds_to_frames(0.12) : model.seconds_to_frames(0.44)] = 1.0
    added = torch.tensor(0.5 * 30.0 * unit, dtype=torch.float32)
    theirs = in_windows(model, PROMPTS, SEEDS, frames, model.seconds_to_frames(0.5), gain, added)
    assert torch.equal(take.codes, theirs)
    assert decibels(sound, take.audio) < -60


def test_many_windows_are_replayed_token_by_token(model):
    a, b = some(model), some(model, 1, mode="blend", branch="cond", every=2)
    stream = model.stream(PROMPTS[:2], 1.8, SEEDS[:2], [a, None], window=1.2)
    for changed, chunks in (([b, a], 2), ([None, b | a], 6)):  # well within a window
        list(itertools.islice(stream, chunks))
        stream.steer(changed)
    take = stream.finish()
    assert torch.equal(replayed(model, take, chunk=0.9), take.codes)


@thin
def test_a_chunk_may_be_longer_than_a_window(model):
    stream = model.stream("jazz piano", 1.2, 3, some(model), window=0.4, chunk=0.6)
    sound, take = joined(stream), stream.finish()
    assert decibels(sound, take.audio) < -60
    assert torch.equal(replayed(model, take, chunk=0.2), take.codes)


# Steering on the way


def test_steering_changes_what_comes_after_and_nothing_before(model):
    plain, stream = (model.stream("jazz piano", 1.2, 3) for _ in range(2))
    unsteered, take = joined(plain), plain.finish()
    before = joined(next(stream) for _ in range(3))
    frames, one = stream.frames, hop(model)
    stream.steer(some(model))
    after, changed = joined(stream), stream.finish()
    assert np.array_equal(before, unsteered[..., : frames * one])
    assert torch.equal(settled(changed.codes, frames), settled(take.codes, frames))
    assert not torch.equal(changed.codes[..., frames:], take.codes[..., frames:])
    whole, late = changed.audio, unsteered[..., frames * one :]
    calm = (frames - model.n_codebooks + 1 - stream.right) * one  # finer codebooks change, and who hears them
    assert decibels(before[..., :calm], whole[..., :calm]) < -60
    # it begins where it would have gone on, and within a frame is the sound of the new tokens
    assert decibels(after[..., : one // 50], late[..., : one // 50]) < -20
    assert decibels(after[..., one:], whole[..., (frames + 1) * one :]) < -60
    assert decibels(after, late) > (-10 if model.name == "tiny" else -70)


def test_what_was_played_is_kept_without_gaps_and_generates_the_same(model):
    stream, rate = model.stream(PROMPTS, 1.0, SEEDS, some(model)), model.frame_rate
    at, steerings = [], [some(model, seed, mode=m) for seed, m in enumerate(("blend", "replace", "remove"))]
    for steering in steerings:
        next(stream)
        stream.steer(steering)
        at.append(stream.begun / rate)
    take = stream.finish()
    assert at == sorted(set(at)) and at[0] * rate == pytest.approx(stream.chunk)
    for row in take.steering:
        assert [part.start for part in row.parts] == [0.0, *at]
        assert [part.stop for part in row.parts] == [*at, None]
        assert [part.mode for part in row.parts] == ["add", "blend", "replace", "remove"]
    assert torch.equal(generated(model, take), take.codes)


def test_steering_ends_with_none_and_clips_are_steered_each_by_its_own(model):
    plain = model.stream(PROMPTS, 1.0, SEEDS).finish()
    stream = model.stream(PROMPTS, 1.0, SEEDS, [some(model), None, None])
    next(stream)
    stream.steer([None, None, some(model, 1)])
    next(stream), next(stream)
    stream.steer(None)
    next(stream)
    take = stream.finish()
    (first,), (third,) = take.steering[0].parts, take.steering[2].parts
    chunk = stream.chunk / model.frame_rate
    assert (first.start, first.stop) == (0.0, chunk) and take.steering[1] is None
    assert (third.start, third.stop) == pytest.approx((chunk, 3 * chunk))
    assert torch.equal(take.codes[1], plain.codes[1])  # rows don't depend on each other
    assert not torch.equal(take.codes[0], plain.codes[0]) and not torch.equal(take.codes[2], plain.codes[2])
    assert torch.equal(settled(take.codes, stream.chunk)[2], settled(plain.codes, stream.chunk)[2])
    assert torch.equal(generated(model, take), take.codes)


@thin
def test_start_and_stop_count_from_now(model):
    stream = model.stream("jazz piano", 1.6, 3)
    next(stream)
    stream.steer(some(model, start=0.2, stop=0.4) | some(model, 1, start=1.0))
    for _ in range(4):
        next(stream)
    now = stream.frames / model.frame_rate
    stream.steer(some(model, 2, stop=0.2))
    take = stream.finish()
    found = [(part.start, part.stop) for part in take.steering[0].parts]
    assert found[0] == pytest.approx((0.4, 0.6))  # it ended by itself, and the second never began
    assert found[1] == pytest.approx((now, now + 0.2)) and len(found) == 2
    assert torch.equal(generated(model, take), take.codes)


@thin
def test_of_many_changes_within_a_chunk_the_last_is_kept(model):
    stream = model.stream("jazz piano", 1.2, 3, some(model))
    steerings = [some(model, seed) for seed in range(20)]
    stream.steer(steerings[1])  # before anything was played
    for _ in range(3):
        next(stream)
        for steering in steerings:
            stream.steer(steering)
    chunk = stream.chunk / model.frame_rate
    take = stream.finish()
    parts = take.steering[0].parts
    assert [part.start for part in parts] == pytest.approx([0, chunk, 2 * chunk, 3 * chunk])
    for part, seed in zip(parts, (1, 19, 19, 19), strict=True):
        unit = vector(model, seed) / np.linalg.norm(vector(model, seed))
        np.testing.assert_allclose(part.direction[0], unit)
    assert torch.equal(generated(model, take), take.codes)


@thin
def test_what_does_not_fit_is_refused_before_anything_changes(model):
    twin = model.stream(PROMPTS, 0.8, SEEDS, some(model))
    stream = model.stream(PROMPTS, 0.8, SEEDS, some(model))
    next(twin), next(stream)
    wide = Steering(np.ones(model.d_model + 1), layers=[1], norm=1.0)
    for steering, message in (
        ([None, None], "2 steerings for 3 rows"),
        ([None] * 4, "4 steerings for 3 rows"),
        (some(model, ramp=0.5), "ramp=0"),
        ([None, some(model, ramp=0.5), None], "ramp=0"),
        (wide, "wide"),
        (some(model, layers=[99]), "acts at layers"),
        (vector(model), "steering"),
        ("louder", "isn't a steering"),
    ):
        with pytest.raises(ValueError, match=message) as error:
            stream.steer(steering)
        assert "\n" not in str(error.value)
    assert stream.frames == twin.frames and stream.begun == twin.begun
    assert np.array_equal(next(stream), next(twin))
    taken, wanted = stream.finish(), twin.finish()
    assert torch.equal(taken.codes, wanted.codes)
    assert [len(row.parts) for row in taken.steering] == [1, 1, 1]


# Readings


@pytest.mark.parametrize("site", ["resid", "attn", "heads", "cross", "mlp"])
def test_readings_are_those_of_a_trace(model, site):
    """Also where it steers: at the last layer nothing that a later step reads depends on it."""
    layer, prompts = model.n_layers - 1, ["jazz piano", "rock guitar"]
    wide = model.n_heads, model.d_head
    strong = Steering(
        vector(model).reshape(wide) if site == "heads" else vector(model), site, layer, 5.0, norm=3.0
    )
    stream = model.stream(prompts, 0.6, SEEDS[:2], [None, strong], chunk=0.28, read=(site, layer))
    assert stream.readings is None
    readings = []
    for sound in stream:
        assert stream.readings.dtype == np.float32
        assert stream.readings.shape[1] == sound.shape[-1] // hop(model)
        readings.append(stream.readings)
    readings, take = np.concatenate(readings, axis=1), stream.finish()
    frames = take.codes.shape[-1]
    assert readings.shape == (2, frames, *(wide if site == "heads" else (model.d_model,)))
    with model.trace(take.codes, prompts):
        h = getattr(model, site)[layer].save()
    np.testing.assert_allclose(readings, h[:, model.valid_steps(frames)].cpu().numpy(), atol=1e-4, rtol=1e-4)
    plain = model.stream(prompts, 0.6, SEEDS[:2], [None, strong]).finish()
    assert torch.equal(plain.codes, take.codes)  # reading changes nothing


def test_readings_follow_a_change_on_the_way(model):
    stream, readings = model.stream("jazz piano", 1.0, 3, read=("resid", 2)), []
    for i, _ in enumerate(stream):
        readings.append(stream.readings)
        if i == 2:
            stream.steer(some(model, strength=1.0, layers=[2]))
    frames, take = stream.frames, stream.finish()
    with model.trace(take.codes, "jazz piano"):
        h = model.resid[2].save()
    found, wanted = np.concatenate(readings, 1), h[:, model.valid_steps(frames)].cpu().numpy()
    assert found.shape == wanted.shape
    played = 3 * stream.chunk - model.n_codebooks  # then finer codebooks were chosen again
    np.testing.assert_allclose(found[:, :played], wanted[:, :played], atol=1e-4, rtol=1e-4)


@thin
def test_readings_go_on_in_the_next_windows(model):
    stream = model.stream(["jazz", "slow"], 2.0, 3, window=0.6, read=("mlp", 0))
    shapes = [stream.readings.shape for _ in stream]
    assert shapes == [(2, stream.chunk, model.d_model)] * 10


# Side by side


def test_streams_and_calls_between_their_chunks_do_not_disturb_each_other(model):
    a, b = some(model), some(model, 1)
    alone = [joined(model.stream("jazz", 0.8, 2, a, window=0.6)), joined(model.stream("slow", 0.6, 9))]
    first, second = model.stream("jazz", 0.8, 2, a, window=0.6), model.stream("slow", 0.6, 9)
    sounds = [[], []]
    for one, other in itertools.zip_longest(first, second):
        sounds[0].append(one)
        sounds[1] += [] if other is None else [other]
        made = model.generate("rock", 0.12, 1, b, progress=False)
        model.nll(made.codes, "rock", b)
        with model.trace(made.codes):
            model.resid[0] = model.resid[0] + 1.0
    for sound, wanted in zip(sounds, alone, strict=True):
        np.testing.assert_array_equal(joined(sound), wanted)


@thin
def test_no_thread_and_no_hook_stays(model):
    hooks = lambda: [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.lm.modules()]
    before, threads, state = hooks(), threading.enumerate(), torch.get_rng_state()
    stream = model.stream("jazz", seed=1, read=("resid", 0))
    next(stream)
    assert hooks() == before and threading.enumerate() == threads
    stream.steer(some(model))
    next(stream), stream.finish()
    assert hooks() == before and threading.enumerate() == threads
    assert torch.equal(torch.get_rng_state(), state)


# Mistakes


@thin
@pytest.mark.parametrize(
    "options, kind, message",
    [
        ({"chunk": float("nan")}, ValueError, "chunk=nan"),
        ({"chunk": -0.1}, ValueError, "chunk=-0.1"),
        ({"window": -1}, ValueError, "window=-1"),
        ({"window": 1e4}, ValueError, "window=10000 s; this model takes 2 frames to"),
        ({"lookahead": "x"}, ValueError, "lookahead='x'"),
        ({"duration": float("inf")}, ValueError, "duration=inf"),
        ({"guidance": None}, ValueError, "guidance=None"),
        ({"temperature": -1}, ValueError, "temperature=-1"),
        ({"top_k": 1.5}, ValueError, "top_k=1.5"),
        ({"seed": [1, 2], "prompts": ["a", "b", "c"]}, ValueError, "2 seeds for 3 rows"),
        ({"read": ("resid", 99)}, IndexError, "no layer 99"),
        ({"read": ("resid", -1)}, IndexError, "no layer -1"),
        ({"read": ("nope", 0)}, ValueError, "site='nope' isn't one of"),
        ({"chunks": 0.2}, TypeError, "no option 'chunks'. Did you mean 'chunk'"),
        ({"audio_prompt": None}, TypeError, "no option 'audio_prompt'"),
    ],
    ids=str,
)
def test_a_mistake_is_one_sentence(model, options, kind, message):
    with pytest.raises(kind, match=message) as error:
        model.stream(**{"prompts": "jazz"} | options)
    assert "\n" not in str(error.value)


@thin
def test_too_strong_a_steering_is_told(model):
    stream = model.stream("jazz", 1.0, 1, some(model, strength=1e30, norm=1e8, mode="add"))
    with pytest.raises(ValueError, match="became NaN or infinite"):
        next(stream)


# What was wrong once


def after_a_window(model, **options):
    """A stream that has just begun its second window: of the first it keeps 10 of 25 frames."""
    stream = model.stream(PROMPTS, seed=SEEDS, window=0.5, chunk=0.52, **options)
    next(stream)
    return stream


@thin
def test_steering_just_after_a_window_began_is_replayed(model):
    stream = after_a_window(model)
    stream.steer(some(model, strength=2.0))
    next(stream)
    take = stream.finish()
    assert torch.equal(replayed(model, take), take.codes)


@thin
def test_finish_just_after_a_window_began_keeps_what_was_heard(model):
    stream = after_a_window(model)
    stream.steer(some(model, strength=2.0))
    whole = model.stream(PROMPTS, 2.0, SEEDS, window=0.5).finish()
    assert torch.equal(stream.finish().codes[..., :25], whole.codes[..., :25])


@thin
def test_of_many_changes_the_last_is_kept_at_every_frame(model):
    stream = model.stream("jazz piano", seed=3, chunk=0.58)
    next(stream)
    for seed in range(5):
        stream.steer(some(model, seed))
    next(stream)
    assert [part.start for part in stream.finish().steering[0].parts] == [0.58]


@thin
def test_too_strong_a_steering_is_told_by_finish(model):
    stream = model.stream("jazz", 1.0, 1, some(model, strength=1e30, norm=1e8))
    with pytest.raises(ValueError, match="became NaN or infinite"):
        stream.finish()


@thin
def test_a_window_of_one_frame_is_refused(model):
    with pytest.raises(ValueError, match="window"):
        model.stream("jazz", window=0.0)


@thin
def test_a_hook_on_the_way_is_one_sentence(model):
    stream = model.stream("jazz", seed=1, window=0.5)
    next(stream)
    hook = model.lm.linears[0].register_forward_hook(lambda module, args, out: None)
    try:
        with pytest.raises(ValueError, match="only the engine streams"):
            list(itertools.islice(stream, 5))
    finally:
        hook.remove()


@thin
def test_it_goes_on_when_the_hook_is_gone(model):
    stream = model.stream("jazz", 1.2, 1, window=0.5)
    hook = model.lm.linears[0].register_forward_hook(lambda module, args, out: None)
    with pytest.raises(ValueError, match="only the engine streams"):
        list(stream)
    hook.remove()
    list(stream)
    whole = model.stream("jazz", 1.2, 1, window=0.5).finish()
    assert torch.equal(stream.finish().codes, whole.codes)


@thin
@pytest.mark.parametrize("read", ["resid", 7, ("resid",), ("resid", 1.5), (0, "resid")], ids=str)
def test_a_place_that_is_none_is_one_sentence(model, read):
    with pytest.raises((ValueError, IndexError), match="read="):
        model.stream("jazz", read=read)
