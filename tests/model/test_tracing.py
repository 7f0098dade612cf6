"""A traced generation: the tokens of `generate`, and of a steering where it is written by hand."""

import numpy as np
import pytest
import torch

import mechsteer as ms

FRAMES = 9
SETTINGS = {
    "one prompt": dict(prompts="jazz piano", seed=3),
    "prompts": dict(prompts=["jazz piano", None, "rock guitar with fast drums"], seed=5),
    "seeds": dict(prompts="slow", seed=[4, 9], top_k=0, temperature=0.7),
    "no prompt": dict(prompts=None, seed=[1, 2]),
    "no guidance": dict(prompts=["jazz", "slow"], guidance=1.0, top_k=20),
    "much guidance": dict(prompts=["jazz", "slow"], guidance=6.5, temperature=1.5),
    "greedy": dict(prompts=["jazz", None], temperature=0.0),
}


def seconds(model, frames=FRAMES):
    return frames / model.frame_rate


def passes(model, frames=FRAMES):
    """Sequence steps: the delay pattern adds one for each codebook but the first."""
    return frames + model.n_codebooks - 1


def hooks(model):
    return [(len(m._forward_hooks), len(m._forward_pre_hooks)) for m in model.lm.modules()]


def generated(model, **options):
    return model.generate(duration=seconds(model), progress=False, **options).codes


@pytest.fixture(autouse=True)
def nothing_stays(model):
    before = hooks(model)
    yield
    assert hooks(model) == before and model.engine is not None
    assert not model.lm._is_streaming and not model.lm.get_streaming_state()


# Reading


@pytest.mark.parametrize("name", SETTINGS)
def test_tokens_are_those_of_generate(model, name):
    with model.tracing_generation(duration=seconds(model), **SETTINGS[name]) as run:
        codes = run.result.save()
    assert codes.dtype == torch.int64 and codes.shape[1:] == (model.n_codebooks, FRAMES)
    assert torch.equal(codes, generated(model, **SETTINGS[name]))


def test_reading_every_step_changes_no_token_and_goes_on_after_the_loop(model):
    options = dict(prompts=["jazz piano", "slow"], seed=7)
    rows, heads, after = [], [], []
    with model.tracing_generation(duration=seconds(model), **options) as run:
        for _ in run.steps:
            heads.append(model.heads[1].shape)  # in the order in which the model computes
            rows.append(model.resid[1][:, 0].cpu())
        after.append(len(rows))
        codes = run.result.save()
    assert after == [len(rows)] == [passes(model)]
    assert {tuple(h.shape) for h in rows} == {(4, model.d_model)}  # both halves of guidance
    assert set(map(tuple, heads)) == {(4, 1, model.n_heads, model.d_head)}
    assert torch.equal(codes, generated(model, **options))


def test_what_is_read_is_what_a_trace_of_the_finished_clip_reads(model):
    """Conditional rows come first; without a prompt there is one row for a clip."""
    for prompts, told, n in (("jazz piano", ["jazz piano", None], 2), (None, [None], 1)):
        seen = []
        with model.tracing_generation(prompts, seconds(model), seed=2) as run:
            for _ in run.steps:
                seen.append(model.mlp[1][:, 0])
            codes = run.result.save()
        with model.trace(codes.expand(n, -1, -1), told):
            whole = model.mlp[1].save()
        assert len(seen[0]) == n
        stepwise = torch.stack(seen, 1)[:, :FRAMES]  # a trace has no steps after the last frame
        torch.testing.assert_close(stepwise, whole[:, :FRAMES], atol=1e-3, rtol=1e-3)


def test_the_last_pass_predicts_the_last_token(model):
    """A greedy choice from the logits of every pass, after guidance, is the clip."""
    logits = []
    with model.tracing_generation("jazz", seconds(model), temperature=0) as run:
        for _ in run.steps:
            logits.append(model.nn.linears[0].output[:, -1])
        codes = run.result.save()
    cond, uncond = torch.stack(logits[:FRAMES], 1).chunk(2)
    assert torch.equal((uncond + 3.0 * (cond - uncond)).argmax(-1)[0], codes[0, 0])


def test_the_shortest_generation_has_one_frame(model):
    count = []
    with model.tracing_generation(duration=seconds(model, 1)) as run:
        for _ in run.steps:
            count.append(1)
        codes = run.result.save()
    assert codes.shape == (1, model.n_codebooks, 1) and len(count) == passes(model, 1)


# Writing


@pytest.mark.parametrize(
    "options", [dict(prompts=["jazz", "slow"]), dict(prompts=None, guidance=1.0)], ids=str
)
def test_a_vector_added_in_every_pass_is_a_steering_of_both_halves(model, options):
    vector, layer = np.random.default_rng(0).normal(size=model.d_model), model.n_layers - 2
    steering = ms.Steering(vector, layers=layer, strength=3.0, norm=5.0)
    push = torch.tensor(15.0 * vector / np.linalg.norm(vector), dtype=torch.float32)
    with model.tracing_generation(duration=seconds(model), seed=4, **options) as run:
        for _ in run.steps:
            model.resid[layer] = model.resid[layer] + push
        codes = run.result.save()
    assert torch.equal(codes, generated(model, seed=4, steering=steering, **options))
    assert not torch.equal(codes, generated(model, seed=4, **options))


def test_what_is_written_late_changes_only_what_is_late(model):
    options, first = dict(prompts="jazz", seed=4), 5
    step = 0
    with model.tracing_generation(duration=seconds(model), **options) as run:
        for _ in run.steps:
            if step >= first:
                model.heads[0] = -3 * model.heads[0]
            step += 1
        codes = run.result.save()
    plain = generated(model, **options)
    for k in range(model.n_codebooks):  # codebook k of frame t is chosen after pass t + k
        assert torch.equal(codes[:, k, : max(0, first - k)], plain[:, k, : max(0, first - k)])
    assert not torch.equal(codes, plain)


# What is refused


@pytest.mark.parametrize(
    "options",
    [
        dict(duration=0),
        dict(duration=1e4),
        dict(duration=float("nan")),
        dict(temperature=-1),
        dict(temperature="warm"),
        dict(top_k=2.5),
        dict(guidance=float("inf")),
        dict(seed=-1),
        dict(prompts=["a", "b"], seed=[1, 2, 3]),
        dict(prompts=3),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_generate_refuses_is_refused_in_the_same_words(model, options):
    options = {"duration": 0.2} | options
    with pytest.raises(ValueError) as theirs:
        model.generate(**options, progress=False)
    with pytest.raises(ValueError) as ours:
        model.tracing_generation(**options)
    assert str(ours.value) == str(theirs.value) and "\n" not in str(ours.value)
    with pytest.raises(TypeError, match="Did you mean 'temperature'"):
        model.tracing_generation(temprature=1)


def test_a_call_inside_is_refused_and_the_model_goes_on(model):
    codes = torch.zeros(1, model.n_codebooks, 8, dtype=torch.long)
    calls = [
        lambda: model.nll(codes),
        lambda: model.generate(None, 0.2, progress=False),
        lambda: ms.lens(model, codes),
        lambda: ms.patch(model, codes, codes + 1, "resid", 0, 1),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match="inside `with model.trace.*after the block"):  # noqa: SIM117
            with model.tracing_generation(duration=seconds(model)) as run:
                for _ in run.steps:
                    call()
        assert np.isfinite(model.nll(codes)).all()


def test_logits_that_are_no_numbers_are_told(model):
    with pytest.raises(ValueError, match="NaN or infinite"):  # noqa: SIM117
        with model.tracing_generation(duration=seconds(model)) as run:
            for _ in run.steps:
                model.resid[0] = model.resid[0] * float("nan")


def test_an_error_of_ones_own_ends_it_and_the_next_one_runs(model):
    plain = generated(model, prompts="jazz")
    with pytest.raises(KeyError, match="mine"):  # noqa: SIM117
        with model.tracing_generation("jazz", seconds(model)) as run:
            for _ in run.steps:
                {}["mine"]
    with model.tracing_generation("jazz", seconds(model)) as run:
        codes = run.result.save()
    assert torch.equal(codes, plain)
