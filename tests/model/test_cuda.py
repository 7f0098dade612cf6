"""On a CUDA GPU: the engine's step, captured as a graph, gives what audiocraft's own loop gives there.

Without a GPU all of it is skipped. Its step is tested on the CPU in test_engine.py, which says what a tie is.
"""

import pytest
import torch
from test_engine import (  # noqa: F401  (these run here with the `model` below)
    BUCKET,
    ROWS,
    TEXTS,
    Noted,
    by_hand,
    compared,
    noise_codes,
    ours,
    steered_by_hand,
    steering,
    test_a_clip_that_goes_on_from_codes_is_steered_in_them_too,
    test_every_token_is_that_of_plain_hooks,
    test_logits_are_audiocrafts_at_once_and_step_by_step,
    test_many_steps_at_once_are_as_many_single_steps,
    test_the_step_at_fixed_addresses_gives_the_tokens_of_the_sliced_one,
    test_unsteered_tokens_are_audiocrafts,
)
from test_steering import (  # noqa: F401
    test_branches_matter_only_under_guidance,
    test_every_mode_branch_and_schedule_gives_the_tokens_of_hooks_by_hand,
    test_no_strength_and_no_time_give_bit_for_bit_the_unsteered_tokens,
    test_steering_leaves_what_comes_before_its_start_untouched,
)
from test_stream import (  # noqa: F401
    test_many_windows_are_replayed_token_by_token,
    test_readings_are_those_of_a_trace,
    test_readings_go_on_in_the_next_windows,
    test_steering_changes_what_comes_after_and_nothing_before,
    test_streams_and_calls_between_their_chunks_do_not_disturb_each_other,
    test_what_was_played_is_kept_without_gaps_and_generates_the_same,
)

import mechsteer as ms
from mechsteer.model._decoding import Decoding
from mechsteer.model.effects import plan

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")


@pytest.fixture(scope="module", params=["meta", "tiny"])
def model(request):
    """A loaded Model in float32 on the GPU: one of Meta's format, and the embedded one."""
    name = request.getfixturevalue("meta_folder") if request.param == "meta" else "tiny"
    return ms.load(name, device="cuda", dtype="float32")


@pytest.mark.parametrize("frames, given", [(30, 0), (BUCKET + 5, BUCKET - 6)])
@pytest.mark.parametrize("mode", [None, "add", "replace"])
def test_the_captured_step_gives_the_tokens_of_the_uncaptured_one(model, mode, frames, given):
    """Bit for bit, also over into the next bucket; plain steps that follow each other are the reference."""
    rows = [steering(model, mode=mode, **o) if mode else None for o in ROWS[1:]]
    found, start = [], noise_codes(model, 3, given) if given else None
    for how in (dict(graph=False, static=True), dict(graph=True)):
        sampler, planned = Noted([1, 2, 3], 3.0, 1.0, 50), plan(rows, frames + 10, model)
        conditions = model.conditions(TEXTS[:3] + [None] * 3, 6)
        with torch.no_grad():
            clips = Decoding(model.engine, conditions, sampler, planned, frames, start, **how)
            while not clips.done:
                clips.step()
        found.append(clips.codes())
    assert len(clips.graphs) == 1 + bool(given)
    assert torch.equal(*found)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_is_as_near_to_float32_as_audiocrafts_own(model, dtype, meta_folder):
    half = ms.load("tiny" if model.name == "tiny" else meta_folder, "cuda", dtype)
    sequence, prompts = model.sequence(noise_codes(model, 3, 60)), TEXTS[:3]
    forward = lambda m: m.lm(sequence, [], m.conditions(prompts, 3)).float()
    with torch.no_grad():
        full, theirs = forward(model), forward(half)
        steps, every = sequence.shape[-1], slice(0, sequence.shape[-1])
        half.engine.positions(steps)
        text = half.engine.text(half.conditions(prompts, 3))
        found = half.engine.logits(sequence, text, plan([], 1, half), every, every).transpose(1, 2)
    error = lambda logits: float((logits - full).pow(2).mean().sqrt())
    assert error(found) < 1.5 * error(theirs)


def test_seeds_decide_and_all_is_the_same_twice(model):
    make = lambda seeds: ours(model, TEXTS[:2], seeds, 40, steering(model))
    assert torch.equal(make([1, 2]), make([1, 2])) and not torch.equal(make([1, 2]), make([3, 4]))


def test_another_batch_flips_ties_only(model):
    """Products of other sizes round otherwise; here none of so few tokens falls otherwise."""
    rows = [steering(model, **ROWS[i % 4]) for i in range(8)]
    prompts, seeds = [TEXTS[i % 5] for i in range(8)], list(range(8))
    together = ours(model, prompts, seeds, 40, rows)
    for i in range(8):
        theirs, gaps = by_hand(model, prompts[i : i + 1], seeds[i : i + 1], 40, "resid", steered_by_hand(
            model, "resid", "add", [ROWS[i % 4]]))  # fmt: skip
        compared(together[i : i + 1], theirs, gaps)
        compared(ours(model, prompts[i : i + 1], seeds[i : i + 1], 40, rows[i]), theirs, gaps)
