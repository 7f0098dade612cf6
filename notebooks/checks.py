"""Checks of the notebooks' exercises, which say what is wrong and why.

Each takes the reader's answer: a function, which is tried on a small case with a known result, or a number,
which is compared with what the notebook at hand gives. It prints one sentence and returns whether the answer
is right. Nothing is raised for a wrong answer, so a notebook with unsolved exercises runs to its end; an
exception inside the reader's own function is the reader's to see.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import xarray as xr

__all__ = [
    *("safe_start", "push", "follows"),  # 00
    *("mean_over_clip", "step_of", "within_groups"),  # 01
    *("costliest", "erased", "patched"),  # 02
    *("predict", "grouped_split", "honest_score"),  # 03
    *("band_width", "pattern", "without"),  # 04
    "strength_to_use",  # 05
    *("with_itself", "hinge"),  # 06
    *("one_half", "coin_control"),  # 07
    *("guessed_place", "patched_head", "control_rows"),  # 08
    *("surprise", "draw_listeners", "chance_of"),  # 09
    *("song_of", "paired_error", "half_as_wide"),  # 10
]

EMPTY = "nothing came back. Replace the ... by your code, and return the result"
NO_NUMBER = "no number is chosen. Replace the ... by one"


def exercise(right: str) -> Callable:
    """Make a generator of problems a check: print the first, or `right`; return whether there was none."""

    def decorate(problems: Callable[..., Iterator[str]]) -> Callable[..., bool]:
        @functools.wraps(problems)
        def check(answer, *given) -> bool:
            problem = next(problems(answer, *given), None)
            said = f"Right: {right}" if problem is None else f"Not yet: {problem}"
            print(said if said.endswith("?") else f"{said}.")
            return problem is None

        return check

    return decorate


@exercise("the finest codebook is written last, so a push reaches back by the delay")
def safe_start(answer: float, start: float, n_codebooks: int, frame_rate: float) -> Iterator[str]:
    """00: the earliest second for a push to begin so that all before `start` (s) stays, in every codebook."""
    if answer is ...:
        yield NO_NUMBER
    frames = (answer - start) * frame_rate
    if frames < -1e-6:
        yield f"a push from {answer:g} s on changes what comes before {start:g} s, in every codebook"
    if frames < n_codebooks - 1 - 1e-6:
        last = n_codebooks - 1
        yield (
            f"codebook {last} of the last {last - int(frames + 1e-6)} frames before {start:g} s is written "
            "after "
            f"{answer:g} s. Codebook k of a frame is written k frames later than codebook 0"
        )
    if frames > n_codebooks - 1 + 0.5:
        yield f"that is safe, but {frames - n_codebooks + 1:.1f} frames later than it must be"


@exercise("the push is as long as you say, whatever the length of the direction")
def push(answer: Callable) -> Iterator[str]:
    """00: `answer(h, direction, norm, strength)` is h [d] moved strength x norm along the unit direction."""
    h, d = np.random.default_rng(0).standard_normal((2, 8)) * 3
    got, unit = answer(h, d, 5.0, 0.5), d / np.linalg.norm(d)
    if got is None:
        yield EMPTY
    got = np.asarray(got, float)
    if got.shape != h.shape:
        yield f"the result should have the shape of h, {h.shape}, not {got.shape}"
    if np.allclose(got, h + 0.5 * 5 * d) or np.allclose(got, h + 0.5 * d):
        yield "did you forget to normalise? Divide the direction by its length first"
    if np.allclose(got, h + 0.5 * unit):
        yield "a strength is a multiple of norm, the mean length of activations there"
    if np.allclose(got, 2.5 * unit):
        yield "add to h what you computed; h itself should stay in the sum"
    if not np.allclose(got, h + 2.5 * unit):
        yield f"h moved by {np.linalg.norm(got - h):.2f}; 0.5 at norm 5 is a step of 2.50 along the direction"


@exercise("a correlation compares shapes, whatever their means and units")
def follows(answer: Callable) -> Iterator[str]:
    """00: `answer(moved, onsets)` correlates each row of moved [layer, frame] with onsets [frame]."""
    rng = np.random.default_rng(0)
    onsets = rng.random(50) + 1
    moved = rng.random((3, 50)) + [[0.0], [0.5], [-0.5]] * onsets
    got, truth = answer(moved, onsets), [np.corrcoef(row, onsets)[0, 1] for row in moved]
    if got is None:
        yield EMPTY
    got = np.asarray(got, float)
    if got.shape != (3,):
        yield f"for 3 layers the result should have shape (3,), one number each, not {got.shape}"
    if np.allclose(got, moved @ onsets) or np.allclose(got, (moved * onsets).mean(1)):
        yield "this grows with the size of both; subtract the means and divide by both spreads"
    if np.allclose(got, [np.cov(row, onsets)[0, 1] for row in moved]):
        yield "this is the covariance; divide it by both spreads"
    if not np.allclose(got, truth):
        yield (
            f"expected {np.round(truth, 2)}, not {np.round(got, 2)}: np.corrcoef of row and onsets, off the "
            "diagonal"
        )


@exercise("only steps that have heard the clip, and nothing but the clip, count")
def mean_over_clip(answer: Callable) -> Iterator[str]:
    """01: `answer(h, n_frames)` is the mean of h [step, d] over steps 1 to n_frames; the rest is padding."""
    h = np.random.default_rng(0).standard_normal((12, 4)) + np.arange(12)[:, None]
    got, truth = answer(h, 8), h[1:9].mean(0)
    if got is None:
        yield EMPTY
    got = np.asarray(got)
    if got.shape != truth.shape:
        yield f"the result should have shape {truth.shape}, one number per dimension, not {got.shape}"
    if np.allclose(got, h.mean(0)):
        yield (
            "this averages over the padding too: a short clip in a batch would be mixed with what stands "
            "behind it"
        )
    if np.allclose(got, h[:9].mean(0)):
        yield "step 0 holds the special token, before anything was heard: leave it out"
    if np.allclose(got, h[:8].mean(0)) or np.allclose(got, h[1:8].mean(0)):
        yield "one step is missing at the end: frame t has just been heard at step t + 1"
    if not np.allclose(got, truth):
        yield "expected the mean over steps 1 to n_frames"


@exercise("the codes of a frame are spread over as many steps as there are codebooks")
def step_of(answer: Callable) -> Iterator[str]:
    """01: `answer(frame, codebook)` is the sequence step at which the code of a frame and codebook stands."""
    got = [answer(t, k) for t, k in ((0, 0), (0, 3), (10, 0), (10, 3))]
    if None in got:
        yield EMPTY
    if got == [0, 0, 10, 10]:
        yield "did you forget the delay? Codebook k stands k steps later than codebook 0"
    if got == [0, 3, 10, 13]:
        yield "step 0 holds the special token, so everything is one step later"
    if got != [1, 4, 11, 14]:
        yield f"frame 10 of codebook 3 stands at step 14, not {got[3]}"


@exercise("what belongs to the group is gone, and what differs inside it is left")
def within_groups(answer: Callable) -> Iterator[str]:
    """01: `answer(x, groups)` is x [clip, d] with the mean of its own group taken from every row."""
    rng = np.random.default_rng(0)
    groups, x = np.array(["b", "a", "c", "a", "b", "b", "c"]), rng.standard_normal((7, 3)) + 2
    got, truth = answer(x, groups), x - np.array([x[groups == g].mean(0) for g in groups])
    if got is None:
        yield EMPTY
    got = np.asarray(got)
    if got.shape != x.shape:
        yield f"the result should have the shape of x, {x.shape}: one row per clip, not {got.shape}"
    if np.allclose(got, x - x.mean(0)):
        yield "this takes off the mean of all clips. Each group has a mean of its own"
    if np.allclose(got, x - truth):
        yield "these are the means themselves; take them off x"
    if not np.allclose(got, truth):
        yield (
            "the first group's rows should now add up to 0, and add up to "
            f"{np.round(got[groups == 'b'].sum(0), 2)}"
        )


@exercise("what is lost there, no other layer makes up for")
def costliest(answer: int, cost: pd.Series) -> Iterator[str]:
    """02: the layer that has the largest `cost`."""
    if answer is ...:
        yield NO_NUMBER
    if answer not in cost:
        yield f"layers are numbered from {cost.index.min()} to {cost.index.max()}"
    if answer != cost.idxmax():
        yield (
            f"layer {answer} costs {cost[answer]:.2f} nats a token, another costs more: which layer's loss "
            "can the layers after it make up for least?"
        )


@exercise("what your loop did at every step is what mode remove does")
def erased(answer: Callable, model, direction, layer: int) -> Iterator[str]:
    """02: `answer(direction, layer)` are codes of 1 s, no prompt, seed 0, without it in `resid[layer]`."""
    import torch

    from mechsteer import Steering

    unit = np.asarray(direction, float) / np.linalg.norm(direction)
    long = torch.as_tensor(3 * unit, dtype=model.dtype, device=model.device)  # of any length, as promised
    got = answer(long, layer)
    if got is None:
        yield EMPTY
    written = lambda s: (
        model.generate(
            duration=1, steering=s and Steering(unit, layers=layer, mode="remove", strength=s), progress=False
        ).codes
    )
    truth = written(1.0)
    if got.shape != truth.shape:
        yield f"the codes of 1 s have shape {tuple(truth.shape)}, not {tuple(got.shape)}: return run.result"
    if (got == written(None)).all():
        yield "these are the tokens of the model left alone: assign to model.resid[layer], at every step"
    if (got == written(9.0)).all():
        yield "did you forget to normalise? Divide the direction by its length first"
    if (got == written(-1.0)).all():
        yield "this doubles the part along the direction: take it away from h"
    if (got != truth).any():
        wrong = (got != truth).float().mean()
        yield f"{wrong:.0%} of the tokens differ from those under h - (h . d) d, d of length 1, at every step"


@exercise("put into itself, a clip stays what it is, and another's attention does change it")
def patched(answer: Callable, model, one, other, layer: int) -> Iterator[str]:
    """02: `answer(source, target, layer)` are target's logits with the `attn` of source's run at `layer`."""
    import torch

    from mechsteer.model.sites import hook

    def logits(codes, act):
        handle = hook(model.lm, "attn", layer, act)
        try:
            with torch.no_grad(), model.alone("check"):
                return model.lm(model.sequence(codes), [], model.conditions(None, len(codes)))
        finally:
            handle.remove()

    seen = []
    alone, theirs = (logits(codes, lambda h: seen.append(h.clone())) for codes in (one, other))
    same = lambda a, b: a.shape == b.shape and torch.allclose(a.float(), b.float(), rtol=1e-3, atol=1e-3)
    itself = answer(one, one, layer)
    if itself is None:
        yield EMPTY
    if not same(itself, alone):
        yield "a clip put into itself should change nothing, and does: read and replace the same place"
    got = answer(one, other, layer)
    if same(got, theirs):
        yield "nothing was put in: the other clip's logits are those of its own run"
    if same(got, alone):
        yield "these are the source's own logits: run the target, with the source's attention in it"
    if not same(got, logits(other, lambda h: seen[0])):
        yield f"that isn't the target's run with the source's attention at layer {layer} and no other change"


@exercise("a probe is a dot product, a slope and a threshold, nothing else")
def predict(answer: Callable) -> Iterator[str]:
    """03: `answer(direction, x)` says which rows of x [n, d] a probe takes for its concept: bool [n]."""
    rng = np.random.default_rng(0)
    x, values = rng.standard_normal((200, 8)) + 1, np.eye(8)[3]
    direction = xr.DataArray(values, dims="d_model", coords={"slope": 2.0, "bias": -3.0})
    got, truth = answer(direction, x), 2 * x[:, 3] - 3 > 0
    if got is None:
        yield EMPTY
    got = np.asarray(got)
    if got.shape != truth.shape:
        yield (
            f"for 200 rows the result should have shape (200,), not {got.shape}: one dot product per row of x"
        )
    if got.dtype != bool:
        yield (
            f"the result should be true or false, not {got.dtype}: the probe says yes where its score is "
            "above 0"
        )
    if (got == (x[:, 3] > 0)).all() or (got == (x[:, 3] - 3 > 0)).all() or (got == (2 * x[:, 3] > 0)).all():
        yield "did you leave out the slope or the bias? score = slope * (x . direction) + bias"
    if (got == ~truth).all():
        yield "every answer is the wrong way round: a direction points towards its concept, so yes is above 0"
    if (got != truth).any():
        yield f"{int((got != truth).sum())} of 200 rows differ from slope * (x . direction) + bias > 0"


@exercise("no score is on both sides, and another seed draws another split")
def grouped_split(answer: Callable) -> Iterator[str]:
    """03: `answer(groups, share, seed)` says which clips test: bool [n], whole groups, about that share."""
    groups = np.repeat([f"{i:05d}" for i in range(40)], 6)
    got = answer(groups, 0.25, 0)
    if got is None:
        yield EMPTY
    got = np.asarray(got)
    if got.shape != groups.shape or got.dtype != bool:
        yield (
            f"for 240 clips the result should be 240 times true or false, not {got.dtype} of shape "
            f"{got.shape}"
        )
    torn = [g for g in np.unique(groups) if len(set(got[groups == g])) > 1]
    if torn:
        yield (
            f"{len(torn)} of 40 scores are on both sides ({torn[0]} is one): a probe could know the tune by "
            "heart. "
            "Draw scores, then take all their clips"
        )
    if not 0.15 <= got.mean() <= 0.35:
        yield (
            f"{got.mean():.0%} of the clips are for testing, and 25 % were asked for: is true training or "
            "testing?"
        )
    if (got == np.asarray(answer(groups, 0.25, 1))).all():
        yield "seeds 0 and 1 give the same split: make a generator from the seed"
    if (got != np.asarray(answer(groups, 0.25, 0))).any():
        yield (
            "the same seed gives another split each time: make a generator from the seed, inside the function"
        )


@exercise("the layer was chosen without looking at the fold that is reported")
def honest_score(answer: Callable) -> Iterator[str]:
    """03: `answer(table)` is the mean over folds of `score` at the layer that is best on the other folds."""
    rng = np.random.default_rng(0)
    grid = pd.DataFrame(rng.normal(0.5, 0.1, (5, 12))).rename_axis(index="fold", columns="layer")
    table = grid.stack().rename("score").reset_index()
    got = answer(table)
    if got is None:
        yield EMPTY
    truth = np.mean([grid.loc[f, grid.drop(f).mean().idxmax()] for f in grid.index])
    if np.isclose(got, grid.mean().max()):
        yield (
            "this is the best layer's mean. The layers of this table differ by luck only, and the best of 12 "
            "looks "
            f"like {got:.2f} where the truth is 0.50: choose the layer on the other folds"
        )
    if np.isclose(got, grid.max(axis=1).mean()):
        yield f"this takes the best layer of each fold on that very fold ({got:.2f}, where the truth is 0.50)"
    if not np.isclose(got, truth):
        yield (
            f"expected {truth:.4f}, not {float(got):.4f}: for each fold, the layer with the best mean on the "
            "others"
        )


@exercise("the more dimensions, the less two random directions share")
def band_width(answer: float, width: float) -> Iterator[str]:
    """04: the number of dimensions in which 95 % of random pairs have a cosine within +-`width`, to 10 %."""
    from mechsteer.directions.geometry import null_cosine

    if answer is ...:
        yield NO_NUMBER
    if answer != int(answer) or answer < 2:
        yield f"a number of dimensions is a whole number of 2 or more, not {answer:g}"
    band = null_cosine(int(answer))[1]
    if np.isclose(answer, 1.96 / width, rtol=0.1):
        yield (
            f"there the band is still +-{band:.2f}: it narrows with the square root of the number of "
            "dimensions"
        )
    if not np.isclose(band, width, rtol=0.05):
        yield (
            f"in {answer:g} dimensions the band is +-{band:.3f}, so {'more' if band > width else 'fewer'} "
            "are wanted"
        )


@exercise("what a read-out reacts to is not what it is made of")
def pattern(answer: Callable) -> Iterator[str]:
    """04: `answer(w, x)` is the unit vector along covariance(x) w, the pattern that a read-out w picks up."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 6)) @ rng.standard_normal((6, 6)) + 5
    w = rng.standard_normal(6)
    got = answer(w, x)
    if got is None:
        yield EMPTY
    got = np.asarray(got, float)
    if got.shape != w.shape:
        yield f"the result should have the shape of w, {w.shape}, not {got.shape}"
    of = lambda matrix: (matrix @ w) / np.linalg.norm(matrix @ w)
    truth, close = of(np.cov(x.T)), lambda a, b: np.allclose(a, b, atol=1e-3)
    if close(got, of(x.T @ x)):
        yield "did you forget to subtract the mean? A covariance is about deviations from it"
    if close(got, of(np.linalg.inv(np.cov(x.T)))):
        yield "this divides by the covariance; the pattern multiplies by it"
    if close(got / np.linalg.norm(got), truth) and not close(got, truth):
        yield "the direction is right, its length isn't: make it a unit vector"
    if not close(got, truth):
        yield f"its cosine with covariance(x) w is {got @ truth / np.linalg.norm(got):.3f}, not 1"


@exercise("what is left is a unit vector that shares nothing with the second")
def without(answer: Callable) -> Iterator[str]:
    """04: `answer(a, b)` is a without its part along b, as a unit vector; a and b are unit vectors."""
    a, b = np.random.default_rng(0).standard_normal((2, 16)) + 1
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    got = answer(a, b)
    if got is None:
        yield EMPTY
    got = np.asarray(got, float)
    if got.shape != a.shape:
        yield f"the result should have the shape of a, {a.shape}, not {got.shape}"
    if np.allclose(got / np.linalg.norm(got), (a - b) / np.linalg.norm(a - b)):
        yield "this subtracts all of b; take off only as much of b as a holds: (a . b) b"
    if abs(got @ b) > 1e-6 * np.linalg.norm(got):
        yield f"its dot product with b is {got @ b:.3f}; nothing along b should be left"
    if not np.isclose(np.linalg.norm(got), 1):
        yield f"its length is {np.linalg.norm(got):.3f}; scale it to 1 again"
    if got @ a < 0:
        yield "it points away from a: was the sign turned?"
    if not np.allclose(got, (a - (a @ b) * b) / np.linalg.norm(a - (a @ b) * b)):
        yield "it is orthogonal to b, but holds something that was not in a"


@exercise("the first strength that costs too much ends the search, however cheap a later one looks")
def strength_to_use(answer: Callable) -> Iterator[str]:
    """05: `answer(table, limit)` is the strength of most success before `price` first exceeds the limit."""
    table = pd.DataFrame(
        {"strength": [0.5, 1.0, 2.0, 4.0], "success": [0.2, 0.7, 0.9, 1.0], "price": [0.1, 0.2, 1.5, 0.0]}
    )
    got = answer(table, 0.5)
    if got is None:
        yield EMPTY
    if np.isclose(got, 4):
        yield "4 comes after 2, which costs too much: its low price may be luck. Stop at the first that does"
    if np.isclose(got, 2):
        yield "at 2 the price is 1.5, above the limit of 0.5. Did you look at success only?"
    if not np.isclose(got, 1):
        yield f"in a table whose usable strengths are 0.5 and 1, with successes 0.2 and 0.7, yours is {got}"
    if answer(table.assign(price=[9.0, 0.0, 0.0, 0.0]), 0.5) != 0:
        yield "where already the first strength costs too much, the strength to use is 0"
    if not np.isclose(answer(table.assign(price=0.1), 0.5), 4):
        yield "where none costs too much, all strengths are usable: the answer there is 4"


@exercise("one method against itself must come out near 0, or the yardstick is bent")
def with_itself(answer: Callable) -> Iterator[str]:
    """06: `answer(hits)` [refit, clip] is the difference of the first and the second half of the refits."""
    hits = (np.random.default_rng(0).random((6, 5)) < 0.5).astype(float)
    got = answer(hits)
    if got is None:
        yield EMPTY
    got = np.asarray(got, float)
    if got.shape == (6, 2) or got.shape == (6,):
        yield "the clips were halved: halve the refits, which are the rows"
    if got.shape != (3, 5):
        yield f"of 6 refits on 5 clips the halves' difference has shape (3, 5), not {got.shape}"
    if (got == 0).all():
        yield "a half minus itself is 0 by arithmetic: take refits that were learnt apart"
    halves = hits[:3] - hits[3:], hits[::2] - hits[1::2]
    if not any(np.allclose(abs(got), abs(half)) for half in halves):
        yield "each row should be one refit's hits minus another's, on the same clips"


@exercise("past the margin it pays nothing, like neither of the two")
def hinge(answer: Callable) -> Iterator[str]:
    """06: `answer(score, y)` is the hinge loss, the mean of max(0, 1 - y score); tensors (clip,)."""
    import torch

    score, y = torch.tensor([3.0, 0.5, -1.0, -3.0]), torch.tensor([1.0, 1.0, 1.0, -1.0])
    got = answer(score, y)
    if got is None:
        yield EMPTY
    if got.ndim:
        yield "a loss is one number: take the mean over the clips"
    if not torch.isclose(answer(score[:1], y[:1]), torch.tensor(0.0)):
        yield "a clip with score 3 that should be above 1 costs nothing"
    if not torch.isclose(answer(score[3:], y[3:]), torch.tensor(0.0)):
        yield "for y = -1 a score of -3 is right by far. Did you multiply the score by y?"
    if not torch.isclose(got, torch.tensor(0.625)):
        yield f"scores 3, .5, -1, -3 with y = 1, 1, 1, -1 cost 0, .5, 2, 0: .625 in the mean, not {got:.3f}"


@exercise("so 15 of 20 is rare for a coin, and 12 of 20 isn't")
def surprise(answer: Callable) -> Iterator[str]:
    """09: `answer(k, n)` is the two-sided p value of k choices out of n under a fair coin."""
    from scipy.stats import binomtest

    cases = [(15, 20), (5, 20), (12, 20), (10, 20)]
    got = [answer(*case) for case in cases]
    if None in got:
        yield EMPTY
    truth = [binomtest(k, n).pvalue for k, n in cases]
    if np.allclose(got[0], truth[0] / 2):
        yield "this is one-sided. Before the test nobody knew which way it would go, so both tails count"
    if not np.isclose(got[0], got[1]):
        yield "15 of 20 and 5 of 20 are equally surprising: the coin doesn't know which side we hope for"
    if got[3] > 1 + 1e-9:
        yield f"a p value of {got[3]:.2f}: the middle was counted twice, so take 1 at most"
    if not np.allclose(got, truth):
        yield (
            f"15 of 20 should give {truth[0]:.4f}, not {got[0]:.4f}: add up the chances of all counts as "
            "rare as this"
        )


@exercise("whole listeners were drawn, so answers that hang together stay together")
def draw_listeners(answer: Callable) -> Iterator[str]:
    """09: `answer(table, rng)` draws listeners with replacement; one drawn twice brings its rows twice."""
    table = pd.DataFrame({"listener": np.repeat(["a", "b", "c", "d", "e", "f"], 4), "chosen": np.arange(24)})
    got = [answer(table, np.random.default_rng(seed)) for seed in range(20)]
    if any(g is None for g in got):
        yield EMPTY
    if any(len(g) != len(table) for g in got):
        yield f"as many listeners as there were should be drawn, so {len(table)} rows, not {len(got[0])}"
    times = [
        g["chosen"].value_counts().reindex(range(24), fill_value=0).to_numpy().reshape(6, 4) for g in got
    ]
    if any((t != t[:, :1]).any() for t in times):
        yield "single answers were drawn. Draw listeners, then take all the answers of each"
    if all((t == 1).all() for t in times):
        yield "every listener came exactly once: draw with replacement"
    if all((t == times[0]).all() for t in times):
        yield "every draw is the same: use the generator that is passed in"


@exercise("strengths turn into choices by their difference alone")
def chance_of(answer: Callable) -> Iterator[str]:
    """09: `answer(strength_a, strength_b)` is the chance that a is chosen over b (Bradley and Terry)."""
    cases = [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0), (3.0, 1.0)]
    got = [answer(*case) for case in cases]
    if None in got:
        yield EMPTY
    truth = [1 / (1 + np.exp(b - a)) for a, b in cases]
    if not np.isclose(got[0], 0.5):
        yield f"two equal strengths should give one half, not {got[0]:.2f}"
    if np.isclose(got[1], 1 - truth[1]):
        yield "this is the chance that b is chosen: the sign of the difference is turned round"
    if not np.isclose(got[1] + got[2], 1):
        yield "one of the two is always chosen: the chances of a over b and of b over a should add up to 1"
    if not np.allclose(got, truth):
        yield (
            f"a difference of 1 should give {truth[1]:.3f}, not {got[1]:.3f}: log odds of 1 are odds of e to "
            "1"
        )


@exercise("what was cut from one song stays together")
def song_of(answer: Callable) -> Iterator[str]:
    """10: `answer(path)` names the song of a file called `artist - title (take 2).wav`, in any folder."""
    takes = ("rock/Ada - Rain (take 1).wav", "live/rock/Ada - Rain (take 12).flac")
    one, two = (answer(path) for path in takes)
    if one is None:
        yield EMPTY
    if one != two:
        yield f"two takes of Ada's Rain are called {one!r} and {two!r}: leave out folder, take and suffix"
    if one == answer("rock/Ada - Snow (take 1).wav"):
        yield f"Ada's Rain and Ada's Snow are both called {one!r}: they are two songs"
    if one == answer("rock/Bo - Rain (take 1).wav"):
        yield f"Ada's Rain and Bo's Rain are both called {one!r}: a title alone isn't a song"


@exercise("pairs share their random numbers, and what they share drops out")
def paired_error(answer: Callable) -> Iterator[str]:
    """10: `answer(steered, twin)` is the standard error of the mean difference; rows i have one seed."""
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 3, 12)
    a, b = shared + rng.normal(1, 0.3, 12), shared + rng.normal(0, 0.3, 12)
    got = answer(a, b)
    if got is None:
        yield EMPTY
    apart = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 12)
    difference = (a - b).std(ddof=1)
    if np.isclose(got, apart, rtol=0.06):
        yield (
            f"this forgets that the rows are pairs: {apart:.2f}, where the differences alone give a tenth of "
            "it"
        )
    if np.isclose(got, difference, rtol=0.06):
        yield "this is the spread of one difference; the mean of n is known better by the square root of n"
    if np.isclose(got, (a - b).mean()):
        yield "this is the mean difference itself; how far may it be off?"
    if not np.isclose(got, difference / np.sqrt(12), rtol=0.06):
        yield (
            f"expected {difference / np.sqrt(12):.3f}, not {float(got):.3f}: spread of the differences over "
            "sqrt(n)"
        )


@exercise("half the width costs four times the clips")
def half_as_wide(answer: float, clips: int) -> Iterator[str]:
    """10: how many clips give an interval half as wide as `clips` do."""
    if answer is ...:
        yield NO_NUMBER
    if answer == 2 * clips:
        yield f"twice the clips make it narrower by the square root of 2, to {2**-0.5:.0%} of the width"
    if answer != 4 * clips:
        yield (
            f"{answer:g} clips instead of {clips} give {(clips / max(answer, 1e-9)) ** 0.5:.0%} of the "
            "width, roughly"
        )


@exercise("that is where the instrument goes on, whoever's notes it plays")
def guessed_place(answer: tuple[str, int], parts: pd.Series) -> Iterator[str]:
    """08: the (site, layer) beyond layer 0 at which a stranger's clip brings back most; `parts` has all."""
    if answer is ...:
        yield NO_NUMBER.replace("number", "place").replace("by one", "by a site and a layer")
    rest = parts.drop(0, level="layer")
    if not (isinstance(answer, tuple) and len(answer) == 2 and answer in rest.index):
        sites, layers = (", ".join(map(str, rest.index.unique(k))) for k in (0, 1))
        yield f"{answer!r} is no place: write a site ({sites}) and a layer ({layers}), as in ('mlp', 4)"
    if (place := rest.idxmax()) != answer:
        yield (
            f"{answer[0]} of layer {answer[1]} brings back {rest[answer]:.2f}; another place "
            f"{rest[place]:.2f}. What does a model that knows its instruments by name do with a sound?"
        )


@exercise("one head, put into the other run by hand, does what the map says")
def patched_head(answer: Callable, truth: np.ndarray, all_heads: np.ndarray) -> Iterator[str]:
    """08: `answer(layer, head)` is the share recovered by one head; `truth` [layer, head] is right, and
    `all_heads` [layer] is what the layer's attention recovers."""
    layer, head = np.unravel_index(truth.argmax(), truth.shape)
    got = answer(int(layer), int(head))
    if got is None:
        yield EMPTY
    got, right = float(got), truth[layer, head]
    if abs(got) < 1e-6:
        yield "nothing changed. Did you assign the changed values back: model.heads[layer] = h?"
    if abs(got - all_heads[layer]) < 5e-3 and abs(right - all_heads[layer]) > 1e-2:
        yield "all heads of the layer were replaced: index the third dim, h[:, :, head]"
    if abs(got + right) < 5e-3:
        yield "the sign is wrong: subtract the changed run's score from both"
    if abs(got - right) > 5e-3:
        yield f"head {head} of layer {layer} recovers {right:.3f}, not {got:.3f}"


@exercise("they share everything with the patched clips but the score, and lack what is looked for")
def control_rows(answer: Callable) -> Iterator[str]:
    """08: `answer(clean, changed)` are the rows of `changed`, each in another row's place."""
    import torch

    clean, changed = torch.arange(8).reshape(4, 2, 1), torch.arange(8, 16).reshape(4, 2, 1)
    got = answer(clean, changed)
    if got is None:
        yield EMPTY
    got = torch.as_tensor(got)
    if got.shape != changed.shape:
        yield f"one clip for each pair: the shape should stay {tuple(changed.shape)}, not {tuple(got.shape)}"
    rows = [tuple(row.flatten().tolist()) for row in got]
    if set(rows) & {tuple(row.flatten().tolist()) for row in clean}:
        yield "those have the concept. A control should lack it, and otherwise be as strange"
    if any((a == b).all() for a, b in zip(got, changed, strict=True)):
        yield "some clip is patched into itself, which changes nothing by construction: take another score's"
    if set(rows) != {tuple(row.flatten().tolist()) for row in changed}:
        yield "take every clip of `changed` once, in another order: so only the order differs"


@exercise("that is branch='cond', token for token: only the answer to the prompt was touched")
def one_half(answer: Callable, model, vector, layer: int) -> Iterator[str]:
    """07: `answer(prompt, vector, layer)` are codes of 1 s, seed 0, `vector` added to the first half only."""
    import torch

    from mechsteer import Steering

    prompt, norm = "jazz piano", float(np.linalg.norm(vector))
    steering = lambda branch: Steering(np.asarray(vector, float), layers=layer, norm=norm, branch=branch)
    added = torch.from_numpy(steering("cond").vectors().values[0]).to(model.device, model.dtype)
    got = answer(prompt, added, layer)
    if got is None:
        yield EMPTY
    written = lambda prompt, by: model.generate(prompt, 1, steering=by, progress=False).codes
    truth = written(prompt, steering("cond"))
    if got.shape != truth.shape:
        yield f"the codes of 1 s have shape {tuple(truth.shape)}, not {tuple(got.shape)}: return run.result"
    if (got == written(prompt, None)).all():
        yield "these are the tokens of the model left alone: assign to model.resid[layer], at every step"
    if (got == written(None, steering("both"))).all():
        yield "nobody told the model the prompt: give it to tracing_generation"
    if (got == written(prompt, steering("both"))).all():
        yield "both halves were pushed: of the two rows, only the first answers the prompt"
    if (got == written(prompt, steering("uncond"))).all():
        yield "the wrong half was pushed, and so the music backwards: the prompt's row is the first"
    if (got != truth).any():
        wrong = (got != truth).float().mean()
        yield f"{wrong:.0%} of the tokens differ from those under h[:1] + vector, at every step"


@exercise("it was made as the direction was, from the same clips, and knows nothing of the guitar")
def coin_control(answer: Callable) -> Iterator[str]:
    """07: `answer(a, b, rng)` is the mean of +-(a - b), a coin for each row, as long as that of a - b."""
    a, b = np.random.default_rng(0).standard_normal((2, 8, 6)) + np.eye(6)[0]
    got = [answer(a + np.eye(6)[1], b, np.random.default_rng(seed)) for seed in range(20)]
    if any(g is None for g in got):
        yield EMPTY
    got, apart = np.asarray(got, float), a + np.eye(6)[1] - b
    true = apart.mean(0)
    if got.shape != (20, 6):
        yield f"the control should have the direction's shape, (6,), not {got.shape[1:]}"
    if np.isclose(abs(got @ true), np.linalg.norm(got, axis=1) * np.linalg.norm(true)).all():
        yield "this is the direction itself: in another order rows have the same mean. Turn some pairs round"
    if (got == got[0]).all():
        yield "every draw is the same: use the generator that is passed in"
    coins = 1 - 2 * (np.arange(256)[:, None] >> np.arange(8) & 1)  # all there are
    possible = coins @ apart / 8
    cosines = got @ possible.T / np.linalg.norm(got, axis=1)[:, None] / np.linalg.norm(possible, axis=1)
    if not np.isclose(cosines.max(1), 1).all():
        yield "made otherwise than the direction: take the same differences a - b, each with a sign by coin"
    length, wanted = np.linalg.norm(got, axis=1).mean(), np.linalg.norm(true)
    if not np.allclose(np.linalg.norm(got, axis=1), wanted):
        yield f"a fair control is as long as the direction, {wanted:.2f}, and not {length:.2f}: scale it"
