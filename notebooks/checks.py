"""Checks of the notebooks' exercises, which say what is wrong and why.

Each takes the reader's answer: a function, which is tried on a small case with a known result, or something
to do to the running model, where many answers are right and the check says what came out. It prints one line
and returns whether the answer is right. A wrong one raises nothing, so an unsolved notebook runs to its end;
an exception inside the reader's own function is the reader's to see.
"""

from __future__ import annotations

import dataclasses
import functools
import operator
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd

__all__ = [
    *("push", "turned"),  # 00
    *("step_of", "kept_sorted", "within_groups"),  # 01
    *("patched", "grafted", "erased"),  # 02
    *("grouped_split", "blinded", "honest_score"),  # 03
    *("pattern", "other_way", "without"),  # 04
    *("strength_to_use", "thrifty", "rescaled"),  # 05
    *("with_itself", "contender", "hinge"),  # 06
    *("one_half", "overruled", "coin_control"),  # 07
    *("control_rows", "several"),  # 08
    *("surprise", "condition", "draw_listeners"),  # 09
    *("paired_error", "as_good"),  # 10
]

CLIPS = 6  # that a check plays of each steering
EMPTY = "nothing came back. Replace the ... by your code, and return the result"


def exercise(right: str = "") -> Callable:
    """Make a generator of problems a check: print the first, or what it returns, or `right`; return which."""

    def decorate(problems: Callable[..., Iterator[str]]) -> Callable[..., bool]:
        @functools.wraps(problems)
        def check(answer, *given) -> bool:
            try:
                chosen = answer is not None and answer is not ...
                problem = next(problems(answer, *given)) if chosen else "nothing is chosen. Replace the ..."
                said, solved = f"Not yet: {problem}", False
            except StopIteration as end:  # there is no problem
                said, solved = f"Right: {end.value or right}", True
            print(said if said[-1] in "?." else f"{said}.")
            return solved

        return check

    return decorate


def _misfit(got, shape: tuple, said: str) -> Iterator[str]:
    """The problem, if any, with the shape of an array."""
    if got is None:
        yield EMPTY
    if np.shape(got) != tuple(shape):
        yield f"the result should have {said}, {tuple(shape)}, not {tuple(np.shape(got))}"


def _unfit(new, h) -> Iterator[str]:
    """The problem, if any, with `new` in the place of an activation `h`."""
    yield from _misfit(new, h.shape, "the shape of h")
    if not new.isfinite().all():
        yield "some of its numbers aren't finite. Did you divide by a length of 0?"
    if (new == h).all():
        yield "nothing was changed"


def _tokens(got, model, right: tuple, wrong: dict, rule: str) -> Iterator[str]:
    """The problem, if any, with codes of 1 s, seed 0, for `right`, a prompt and a steering.

    `wrong` has what is said of usual mistakes, and the prompt and steering that make their codes.
    """
    if got is None:
        yield EMPTY
    prompts, rows = zip(right, *wrong.values(), strict=True)
    made = model.generate(list(prompts), 1, [0] * len(rows), steering=list(rows), progress=False).codes
    truth, wrong = made[:1], dict(zip(wrong, made[1:], strict=True))
    if got.shape != truth.shape:
        yield f"the codes of 1 s have shape {tuple(truth.shape)}, not {tuple(got.shape)}: return run.result"
    yield from (said for said, codes in wrong.items() if (got == codes).all())
    if (differ := (got != truth).float().mean()) > 0:
        yield f"{differ:.0%} of the tokens differ from those under {rule}, at every step"


def _run(model, codes, read=(), write=None):
    """The model's logits on codes, and what stands at the (site, layer) of `read`; `write` replaces some."""
    import torch

    from mechsteer.model.sites import hook

    kept = {}
    acts = [(*place, lambda h, place=place: kept.update({place: h.clone()})) for place in read]
    acts += [(*place, lambda h, new=new: new) for place, new in (write or {}).items()]
    handles = [hook(model.lm, *act) for act in acts]
    try:
        with torch.no_grad(), model.alone("check"):
            logits = model.lm(model.sequence(codes), [], model.conditions(None, len(codes))).float()
    finally:
        for handle in handles:
            handle.remove()
    return logits, [kept[place] for place in read]


def _likely(model, logits, codes) -> float:
    """Mean log-likelihood of `codes` under teacher-forced logits, nats a token."""
    goal = model.sequence(codes)[..., 1:]
    real = goal < model.lm.card
    found = logits[..., :-1, :].log_softmax(-1).gather(-1, (goal * real)[..., None])[..., 0]
    return float((found * real).sum() / real.sum())


def _played(model, steerings, prompt=None, seconds=4.0):
    """Clips under each steering, of the same seeds; and how much less likely each made them, nats a token."""
    seeds, rows = [*range(CLIPS)] * len(steerings), [s for s in steerings for _ in range(CLIPS)]
    music = model.generate(prompt, seconds, seeds, steering=rows, progress=False)
    nll = model.nll(music.codes, music.prompts).reshape(-1, CLIPS).mean(1)
    return music, nll - nll[0]


def _at_random(steering):
    """Pushes as long, at the same places and times, in directions that mean nothing."""
    draw, copy = np.random.default_rng(0).standard_normal, dataclasses.replace
    parts = (copy(p, direction=p.direction.copy(data=draw(p.direction.shape))) for p in steering.parts)
    return functools.reduce(operator.or_, parts)


def _guitar(audio, sample_rate, n):
    """The two judges' mean chance of a guitar, for every n clips."""
    import mechsteer as ms

    chances = ms.hear(audio, sample_rate).groupby("clip")["p_lead_guitar"].mean()
    return chances.to_numpy().reshape(-1, n).mean(1)


@exercise("the push is as long as you say, whatever the length of the direction")
def push(answer: Callable) -> Iterator[str]:
    """00: `answer(h, direction, norm, strength)` is h [d] moved strength x norm along the unit direction."""
    h, d = np.random.default_rng(0).standard_normal((2, 8)) * 3
    got, unit = answer(h, d, 5.0, 0.5), d / np.linalg.norm(d)
    yield from _misfit(got, h.shape, "the shape of h")
    if np.allclose(got, h + 0.5 * 5 * d) or np.allclose(got, h + 0.5 * d):
        yield "did you forget to normalise? Divide the direction by its length first"
    if np.allclose(got, h + 0.5 * unit):
        yield "a strength is a multiple of norm, the mean length of activations there"
    if np.allclose(got, 2.5 * unit):
        yield "add to h what you computed; h itself should stay in the sum"
    if not np.allclose(got, h + 2.5 * unit):
        yield f"h moved by {np.linalg.norm(got - h):.2f}; 0.5 at norm 5 is a step of 2.50 along the direction"


@exercise()
def turned(answer, model, found, prompt: str, taken: str) -> Iterator[str]:
    """00: a Steering to a concept of `found` other than `taken`, which the model then reads in its music."""
    name, layer = answer.parts[0].direction.attrs.get("concept"), model.n_layers // 2
    if name == taken or name not in found["concept"]:
        others = ", ".join(c for c in found["concept"].values if c != taken)
        yield f"this pushes towards {name}; take found[0].sel(concept=...) with one of {others}"
    music, price = _played(model, [None, answer], prompt)
    if (music.codes[:CLIPS] == music.codes[CLIPS:]).all():
        yield "not one token changed: a strength of 0 is off, and a push may begin too late for a clip of 4 s"
    probe, (_, (h,)) = found.sel(concept=name, layer=layer), _run(model, music.codes, [("resid", layer)])
    read = probe["slope"].item() * h[:, 1:].mean(1).cpu().numpy() @ probe.values
    rise = read[CLIPS:].mean() - read[:CLIPS].mean()
    told = f"the model reads {rise:+.2f} more {name} than in the twins"
    if rise < 0.3:
        yield f"{told}, and +0.30 is wanted: {'was the sign turned?' if rise < 0 else 'push harder'}"
    if price[1] > 1.5:
        yield f"{told}, but for {price[1]:.2f} nats a token the music breaks: push less"
    return f"{told}, at a price of {price[1]:.2f} nats a token"


@exercise("the codes of a frame are spread over as many steps as there are codebooks")
def step_of(answer: Callable) -> Iterator[str]:
    """01: `answer(frame, codebook)` is the sequence step at which the code of a frame and codebook stands."""
    got = [answer(t, k) for t, k in ((0, 0), (0, 3), (10, 0), (10, 3))]
    if None in got:
        yield EMPTY
    if got == [0, 0, 10, 10] or got == [1, 1, 11, 11]:
        yield "did you forget the delay? Codebook k stands k steps later than codebook 0"
    if got == [0, 3, 10, 13]:
        yield "step 0 holds the special token, so everything is one step later"
    if got == [1, -2, 11, 8]:
        yield "a delay comes later, so it is added"
    if got != [1, 4, 11, 14]:
        yield f"frame 10 of codebook 3 stands at step 14, not {got[3]}"


@exercise()
def kept_sorted(answer: Callable, model, codes, leads, centres, layer: int) -> Iterator[str]:
    """01: `answer(h)` moves layer 0's stream [clip, step, d] by half its length, and keeps clips sorted."""
    _, (h,) = _run(model, codes, [("resid", 0)])
    new = answer(h.clone())
    yield from _unfit(new, h)
    told = f"the stream moved by {(new - h).norm() / h.norm():.2f} of its length"
    if (new - h).norm() < 0.5 * h.norm():
        yield f"{told}; be bolder, by 0.50 at least"
    _, (late,) = _run(model, codes, [("resid", layer)], {("resid", 0): new})
    means = late[:, model.valid_steps(codes.shape[-1])].mean(1).cpu().numpy()
    apart = np.linalg.norm(means[:, None] - centres.values, axis=-1)
    own = (centres["lead"].values[apart.argmin(1)] == leads).mean()
    told += f", and {own:.0%} of the clips lie nearest to their own lead's mean"
    if own < 0.75:
        yield f"{told}: what was lost that told them apart?"
    return f"{told}. What does such a mean not hold?"


@exercise("what belongs to the group is gone, and what differs inside it is left")
def within_groups(answer: Callable) -> Iterator[str]:
    """01: `answer(x, groups)` is x [clip, d] with the mean of its own group taken from every row."""
    rng = np.random.default_rng(0)
    groups, x = np.array(["b", "a", "c", "a", "b", "b", "c"]), rng.standard_normal((7, 3)) + 2
    got, truth = answer(x, groups), x - np.array([x[groups == g].mean(0) for g in groups])
    yield from _misfit(got, x.shape, "the shape of x, one row per clip")
    if np.allclose(got, x - x.mean(0)):
        yield "this takes off the mean of all clips. Each group has a mean of its own"
    if np.allclose(got, x - truth):
        yield "these are the means themselves; take them off x"
    if not np.allclose(got, truth):
        yield f"a group's rows should add up to 0, not {np.round(np.asarray(got)[groups == 'b'].sum(0), 2)}"


@exercise("put into itself, a clip stays what it is, and another's attention does change it")
def patched(answer: Callable, model, one, other, layer: int) -> Iterator[str]:
    """02: `answer(source, target, layer)` are target's logits with the `attn` of source's run at `layer`."""
    (alone, taken), (theirs, _) = (_run(model, codes, [("attn", layer)]) for codes in (one, other))
    same = lambda a, b: a.shape == b.shape and bool((abs(a.float() - b) < 1e-3 * (1 + abs(b))).all())
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
    if not same(got, _run(model, other, write={("attn", layer): taken[0]})[0]):
        yield f"that isn't the target's run with the source's attention at layer {layer} and no other change"


@exercise()
def grafted(answer: Callable, model, guitar, piano, layer: int) -> Iterator[str]:
    """02: `answer(h, source)` puts half of the guitar's heads [1, step, head, d] at most into the piano's."""
    place = ("heads", layer)
    (there, (source,)), (here, (h,)) = (_run(model, codes, [place]) for codes in (guitar, piano))
    new = answer(h.clone(), source.clone())
    yield from _unfit(new, h)
    if (share := float((new != h).float().mean())) > 0.5:
        yield f"{share:.0%} of the numbers were replaced; choose heads, or steps: half of them at most"
    put, _ = _run(model, piano, write={place: new})
    put, here, there = (_likely(model, logits, guitar) for logits in (put, here, there))
    told = f"{share:.0%} of layer {layer}'s numbers go {(put - here) / (there - here):.2f} of the way"
    if put < here:
        yield f"{told}: that is backwards. Did you take the source's own values, at the same steps and heads?"
    if put - here < 0.3 * (there - here):
        yield f"{told} to the guitar's run, and 0.30 is wanted: at which layer does the sound come in?"
    return f"{told} to the guitar's run"


@exercise("what your loop did at every step is what mode remove does")
def erased(answer: Callable, model, direction, layer: int) -> Iterator[str]:
    """02: `answer(direction, layer)` are codes of 1 s, no prompt, seed 0, without it in `resid[layer]`."""
    import torch

    from mechsteer import Steering

    unit = np.asarray(direction, float) / np.linalg.norm(direction)
    remove = lambda s: (None, s and Steering(unit, layers=layer, mode="remove", strength=s))
    wrong = {
        "these are the tokens of the model left alone: assign to model.resid[layer], at every step": None,
        "did you forget to normalise? Divide the direction by its length first": 9.0,
        "this doubles the part along the direction: take it away from h": -1.0,
    }
    long = torch.as_tensor(3 * unit, dtype=model.dtype, device=model.device)  # of any length, as promised
    wrong = {said: remove(s) for said, s in wrong.items()}
    yield from _tokens(answer(long, layer), model, remove(1.0), wrong, "h - (h . d) d, d of length 1")


@exercise("no score is on both sides, and another seed draws another split")
def grouped_split(answer: Callable) -> Iterator[str]:
    """03: `answer(groups, share, seed)` says which clips test: bool [n], whole groups, about that share."""
    groups = np.repeat([f"{i:05d}" for i in range(40)], 6)
    got = answer(groups, 0.25, 0)
    yield from _misfit(got, groups.shape, "one answer per clip")
    got = np.asarray(got)
    if got.dtype != bool:
        yield f"for 240 clips the result should be 240 times true or false, not {got.dtype}"
    torn = [g for g in np.unique(groups) if len(set(got[groups == g])) > 1]
    if torn:
        yield f"{len(torn)} of 40 scores are on both sides, known by heart: draw scores, then all their clips"
    if not 0.15 <= got.mean() <= 0.35:
        yield f"{got.mean():.0%} of the clips are for testing, not 25 %: is true training or testing?"
    if (got == np.asarray(answer(groups, 0.25, 1))).all():
        yield "seeds 0 and 1 give the same split: make a generator from the seed"
    if (got != np.asarray(answer(groups, 0.25, 0))).any():
        yield "the same seed gives another split each time: make the generator inside the function"


@exercise()
def blinded(answer: Callable, model, codes, is_it, probe, layer: int) -> Iterator[str]:
    """03: `answer(h)` changes the stream [clip, step, d] below `layer`; its `probe` [d] should then guess."""
    from mechsteer.directions.scores import auc

    below, here = ("resid", layer - 1), ("resid", layer)
    free, (h, seen) = _run(model, codes, [below, here])
    new = answer(h.clone())
    yield from _unfit(new, h)
    bound, (left,) = _run(model, codes, [here], {below: new})
    before, after = (auc(x[:, 1:].mean(1).cpu().numpy() @ probe[:, None], is_it).item() for x in (seen, left))
    price = _likely(model, free, codes) - _likely(model, bound, codes)
    told = f"the probe's AUC was {before:.2f} and is {after:.2f}"
    if after > 0.8:
        yield f"{told}: layer {layer} reads it from what you left. In what else do guitar clips differ?"
    if after < 0.2:
        yield f"{told}: a probe that is always wrong knows all. Make it guess, at 0.5"
    told += f", and the music's own tokens are {price:.2f} nats less likely"
    if price > 0.6:
        yield f"{told}: take less away"
    return told


@exercise("the layer was chosen without looking at the fold that is reported")
def honest_score(answer: Callable) -> Iterator[str]:
    """03: `answer(table)` is the mean over folds of `score` at the layer that is best on the other folds."""
    rng = np.random.default_rng(0)
    grid = pd.DataFrame(rng.normal(0.5, 0.1, (5, 12))).rename_axis(index="fold", columns="layer")
    got = answer(grid.stack().rename("score").reset_index())
    if got is None:
        yield EMPTY
    truth = np.mean([grid.loc[f, grid.drop(f).mean().idxmax()] for f in grid.index])
    if np.isclose(got, grid.mean().max()):
        yield f"the best of 12 layers looks like {got:.2f}, the truth is 0.50: choose it on the other folds"
    if np.isclose(got, grid.max(axis=1).mean()):
        yield f"this takes the best layer of each fold on that very fold ({got:.2f}, where the truth is 0.50)"
    if not np.isclose(got, truth):
        yield f"expected {truth:.4f}, not {got:.4f}: for each fold, the layer that is best on the others"


@exercise("what a read-out reacts to is not what it is made of")
def pattern(answer: Callable) -> Iterator[str]:
    """04: `answer(w, x)` is the unit vector along covariance(x) w, the pattern that a read-out w picks up."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((500, 6)) @ rng.standard_normal((6, 6)) + 5
    w = rng.standard_normal(6)
    got = answer(w, x)
    yield from _misfit(got, w.shape, "the shape of w")
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


@exercise()
def other_way(answer, model, codes, gap, end, layer: int) -> Iterator[str]:
    """04: a direction [d] with a cosine of .7 or less with `gap` that moves the last layer alike."""
    way, last = np.asarray(answer, float), ("resid", model.n_layers - 1)
    if way.shape != gap.shape or not 0 < np.linalg.norm(way) < np.inf:
        yield f"a direction has {gap.size} numbers, finite and not all 0; yours has shape {way.shape}"
    way *= np.linalg.norm(gap) / np.linalg.norm(way)
    if (cosine := way @ gap / (gap @ gap)) > 0.7:
        yield f"its cosine with the difference of means is {cosine:.2f}: turn it away, to 0.70 or less"
    _, (h,) = _run(model, codes, [("resid", layer)])
    pushed = [h + h.new_tensor(v) for v in (0 * gap, gap, way)]
    seen = [_run(model, codes, [last], {("resid", layer): x})[1][0][:, 1:].mean((0, 1)) for x in pushed]
    none, means, mine = (x.cpu().numpy() @ end for x in seen)
    told = (
        f"with cosine {cosine:.2f} it moves the last layer {(mine - none) / (means - none):.2f} times as far"
    )
    if mine - none < 0.3 * (means - none):
        yield f"{told} towards guitar as the means do, and 0.30 is wanted: what should it share with them?"
    return f"{told} towards guitar as the difference of means does"


@exercise("what is left is a unit vector that shares nothing with the second")
def without(answer: Callable) -> Iterator[str]:
    """04: `answer(a, b)` is a without its part along b, as a unit vector; a and b are unit vectors."""
    a, b = np.random.default_rng(0).standard_normal((2, 16)) + 1
    a, b = a / np.linalg.norm(a), b / np.linalg.norm(b)
    got = answer(a, b)
    yield from _misfit(got, a.shape, "the shape of a")
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
    columns = {"strength": [0.5, 1.0, 2.0, 4.0], "success": [0.2, 0.7, 0.9, 1.0]}
    table = pd.DataFrame(columns | {"price": [0.1, 0.2, 1.5, 0.0]})
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


@exercise()
def thrifty(answer, model, gap: float) -> Iterator[str]:
    """05: a Steering to guitar that adds a quarter of a class gap a step, and is heard from 2 s on."""
    frames = model.seconds_to_frames(5)
    gains = [p.schedule(frames, model.frame_rate).mean() for p in answer.parts]
    spent = sum(g * np.linalg.norm(p.vectors()) / gap for g, p in zip(gains, answer.parts, strict=True))
    if spent > 0.26:
        yield f"this adds {spent:.2f} class gaps a step, over 5 s; 0.25 are allowed: at fewer steps, or less"
    music, price = _played(model, [None, answer], seconds=5.0)
    before, after = _guitar(music.audio[..., 2 * music.sample_rate :], music.sample_rate, CLIPS)
    told = f"for {spent:.2f} gaps a step, a guitar's chance goes from {before:.2f} to {after:.2f}"
    if after < before + 0.15:
        yield f"{told}, and 0.15 more is wanted: is it better to push early, or seldom, or all the time?"
    return f"{told}, at a price of {price[1]:.2f} nats a token"


@exercise("the stream is turned towards the push, and as long as it was")
def rescaled(answer: Callable) -> Iterator[str]:
    """05: `answer(h, v)` is h + v, brought back to the length that each row of h [row, step, d] had."""
    import torch

    h, v = torch.randn(2, 5, 8, generator=torch.Generator().manual_seed(0)) * 3, torch.ones(8)
    got, long = answer(h.clone(), v), lambda x: x.norm(dim=-1, keepdim=True)
    yield from _unfit(got, h)
    if torch.allclose(got, h + v):
        yield "this is the plain sum; scale it to the length that h had"
    if torch.allclose(long(got), torch.ones(1)):
        yield "its length is 1: multiply by the length that h had"
    if torch.allclose(got / got.norm(), (h + v) / (h + v).norm(), atol=1e-5):
        yield "one length for all: each step has a length of its own, norm(dim=-1, keepdim=True)"
    if not torch.allclose(got, (h + v) / long(h + v) * long(h), atol=1e-4):
        yield "each row should point where h + v does, and be as long as it was in h"


@exercise("one method against itself must come out near 0, or the yardstick is bent")
def with_itself(answer: Callable) -> Iterator[str]:
    """06: `answer(hits)` [refit, clip] is the difference of the first and the second half of the refits."""
    hits = (np.random.default_rng(0).random((6, 5)) < 0.5).astype(float)
    got = answer(hits)
    if np.shape(got) in ((6, 2), (6,)):
        yield "the clips were halved: halve the refits, which are the rows"
    yield from _misfit(got, (3, 5), "the halves of 6 refits on 5 clips")
    if (got == 0).all():
        yield "a half minus itself is 0 by arithmetic: take refits that were learnt apart"
    halves = hits[:3] - hits[3:], hits[::2] - hits[1::2]
    if not any(np.allclose(abs(got), abs(half)) for half in halves):
        yield "each row should be one refit's hits minus another's, on the same clips"


@exercise()
def contender(answer, model, layer: int, length: float, rivals: dict, hits) -> Iterator[str]:
    """06: a direction [d] of one's own, pushed as far as the rivals; `hits` [clip] are logistic's shares."""
    import mechsteer as ms
    from mechsteer.measures.intervals import mean_interval

    way = np.asarray(answer, float)
    if way.shape != (model.d_model,) or not 0 < np.linalg.norm(way) < np.inf:
        yield f"a direction has {model.d_model} numbers, finite and not all 0; yours has shape {way.shape}"
    alike = {name: way @ w / np.linalg.norm(way) / np.linalg.norm(w) for name, w in rivals.items()}
    closest = max(alike, key=alike.get)
    if alike[closest] > 0.98:
        yield f"this is {closest} again, with a cosine of {alike[closest]:.2f}: what would you do otherwise?"
    if alike[closest] < 0:
        yield "it points away from all the others: a direction points towards its concept"
    steer = ms.Steering(way, layers=[layer], norm=length)
    music = model.generate(None, 4.0, [*range(len(hits))], steering=steer, progress=False)
    mine = ms.success(ms.describe(music), {"lead": "guitar"}, "both").to_numpy(float)
    value, lo, hi = mean_interval(mine - hits)
    verdict = "more than logistic" if lo > 0 else "fewer than logistic" if hi < 0 else "open"
    told = f"it turns {mine.mean():.2f} of the clips, {value:+.2f} [{lo:.2f}, {hi:.2f}] against logistic"
    return f"{told}: {verdict}. How many clips would settle it?"


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
    if answer(score[:1], y[:1]) != 0:
        yield "a clip with score 3 that should be above 1 costs nothing"
    if answer(score[3:], y[3:]) != 0:
        yield "for y = -1 a score of -3 is right by far. Did you multiply the score by y?"
    if not torch.isclose(got, torch.tensor(0.625)):
        yield f"scores 3, .5, -1, -3 with y = 1, 1, 1, -1 cost 0, .5, 2, 0: .625 in the mean, not {got:.3f}"


@exercise("that is branch='cond', token for token: only the answer to the prompt was touched")
def one_half(answer: Callable, model, vector, layer: int) -> Iterator[str]:
    """07: `answer(prompt, vector, layer)` are codes of 1 s, seed 0, `vector` added to the first half only."""
    import torch

    from mechsteer import Steering

    prompt, norm = "jazz piano", float(np.linalg.norm(vector))
    steering = lambda branch: Steering(np.asarray(vector, float), layers=layer, norm=norm, branch=branch)
    added = torch.from_numpy(steering("cond").vectors().values[0]).to(model.device, model.dtype)
    alone = "these are the tokens of the model left alone: assign to model.resid[layer], at every step"
    untold = "nobody told the model the prompt: give it to tracing_generation"
    wrong = {alone: (prompt, None), untold: (None, steering("both"))}
    both = "both halves were pushed: of the two rows, only the first answers the prompt"
    back = "the wrong half was pushed, and so the music backwards: the prompt's row is the first"
    wrong |= {said: (prompt, steering(of)) for said, of in ((both, "both"), (back, "uncond"))}
    right = prompt, steering("cond")
    yield from _tokens(answer(prompt, added, layer), model, right, wrong, "h[:1] + vector")


@exercise()
def overruled(answer, model, prompt: str) -> Iterator[str]:
    """07: a Steering under which a prompt for a piano gives guitars, more than a random push as long does."""
    music, price = _played(model, [None, answer, _at_random(answer)], prompt)
    if (music.codes[:CLIPS] == music.codes[CLIPS : 2 * CLIPS]).all():
        yield "not one token changed: is its strength 0?"
    plain, mine, chance = _guitar(music.audio, music.sample_rate, CLIPS)
    told = f"the judges' chance of a guitar is {mine:.2f}, {plain:.2f} without, {chance:.2f} at random"
    if mine < plain + 0.15:
        yield f"{told}: push harder, or where guidance makes a push count for more (section 3)"
    if mine < chance + 0.1:
        yield f"{told}: any push as long does that, so it isn't the direction's doing"
    return f"{told}; the price is {price[1]:.2f} nats a token, at random {price[2]:.2f}"


@exercise("it was made as the direction was, from the same clips, and knows nothing of the guitar")
def coin_control(answer: Callable) -> Iterator[str]:
    """07: `answer(a, b, rng)` is the mean of +-(a - b), a coin for each row, as long as that of a - b."""
    a, b = np.random.default_rng(0).standard_normal((2, 8, 6)) + np.eye(6)[0]
    got = [answer(a + np.eye(6)[1], b, np.random.default_rng(seed)) for seed in range(20)]
    apart = a + np.eye(6)[1] - b
    true = apart.mean(0)
    yield from _misfit(got[0], (6,), "the direction's shape")
    got = np.asarray(got, float)
    if np.isclose(abs(got @ true), np.linalg.norm(got, axis=1) * np.linalg.norm(true)).all():
        yield "this is the direction itself: in another order rows have the same mean. Turn some pairs round"
    if (got == got[0]).all():
        yield "every draw is the same: use the generator that is passed in"
    possible = (1 - 2 * (np.arange(256)[:, None] >> np.arange(8) & 1)) @ apart / 8  # all coins there are
    cosines = got @ possible.T / np.linalg.norm(got, axis=1)[:, None] / np.linalg.norm(possible, axis=1)
    if not np.isclose(cosines.max(1), 1).all():
        yield "made otherwise than the direction: take the same differences a - b, each with a sign by coin"
    length, wanted = np.linalg.norm(got, axis=1), np.linalg.norm(true)
    if not np.allclose(length, wanted):
        yield f"a fair control is as long as the direction, {wanted:.2f}, not {length.mean():.2f}: scale it"


@exercise("they share everything with the patched clips but the score, and lack what is looked for")
def control_rows(answer: Callable) -> Iterator[str]:
    """08: `answer(clean, changed)` are the rows of `changed`, each in another row's place."""
    import torch

    clean, changed = torch.arange(8).reshape(4, 2, 1), torch.arange(8, 16).reshape(4, 2, 1)
    got = answer(clean, changed)
    yield from _misfit(got, changed.shape, "one clip for each pair")
    got = torch.as_tensor(got)
    rows = [tuple(row.flatten().tolist()) for row in got]
    if set(rows) & {tuple(row.flatten().tolist()) for row in clean}:
        yield "those have the concept. A control should lack it, and otherwise be as strange"
    if any((a == b).all() for a, b in zip(got, changed, strict=True)):
        yield "some clip is patched into itself, which changes nothing by construction: take another score's"
    if set(rows) != {tuple(row.flatten().tolist()) for row in changed}:
        yield "take every clip of `changed` once, in another order: so only the order differs"


@exercise()
def several(answer, model, source, target, worth) -> Iterator[str]:
    """08: one to three (site, layer) above layer 0 that bring .45 of a concept back, from another score."""
    places = [*dict.fromkeys(map(tuple, answer))]
    if any(s not in ("attn", "cross", "mlp") or i not in range(1, model.n_layers) for s, i in places):
        yield f"take attn, cross or mlp, layers 1 to {model.n_layers - 1}: the stream, or layer 0, brings all"
    if not 0 < len(places) < 4:
        yield f"{len(places)} places; one to three, so that it says where"
    theirs, kept = _run(model, source, places)
    mixed, _ = _run(model, target, write=dict(zip(places, kept, strict=True)))
    runs = (_run(model, target)[0], mixed, theirs)
    of = lambda logits: float((logits[..., :-1, :].softmax(-1) * worth[:, None]).sum(-1).mean())
    nothing, mine, everything = map(of, runs)
    share = (mine - nothing) / (everything - nothing)
    told = f"{' and '.join(f'{s} {i}' for s, i in places)} bring back {share:.2f}"
    if share < 0.45:
        yield f"{told}, and 0.45 is wanted: begin where the map says, and look at what feeds that place"
    return f"{told}. Is that more than the sum of each alone?"


@exercise("so 15 of 20 is rare for a coin, and 12 of 20 isn't")
def surprise(answer: Callable) -> Iterator[str]:
    """09: `answer(k, n)` is the two-sided p value of k choices out of n under a fair coin."""
    from scipy.stats import binomtest

    cases = [(15, 20), (5, 20), (12, 20), (10, 20)]
    got, truth = [answer(*case) for case in cases], [binomtest(*case).pvalue for case in cases]
    if None in got:
        yield EMPTY
    if np.allclose(got[0], truth[0] / 2):
        yield "this is one-sided. Before the test nobody knew which way it would go, so both tails count"
    if not np.isclose(got[0], got[1]):
        yield "15 of 20 and 5 of 20 are equally surprising: the coin doesn't know which side we hope for"
    if got[3] > 1 + 1e-9:
        yield f"a p value of {got[3]:.2f}: the middle was counted twice, so take 1 at most"
    if not np.allclose(got, truth):
        yield f"15 of 20 give {truth[0]:.4f}, not {got[0]:.4f}: add up the chances of all counts as rare"


@exercise()
def condition(answer, made: dict) -> Iterator[str]:
    """09: clips of a condition of one's own: seeds and length as the others, and for judges more guitar."""
    plain, n = made["unsteered"], len(made["unsteered"])
    if answer.codes.shape != plain.codes.shape:
        yield f"the others are {n} clips of {plain.settings['duration']:g} s: make as many, and as long"
    if answer.seeds != plain.seeds:
        yield "the seeds differ: then clips differ in more than the condition. Give seed=seeds"
    for name, other in made.items():
        if (other.codes == answer.codes).all():
            yield f"these are the clips of {name!r} once more"
    before, after = (_guitar(g.audio, g.sample_rate, n).item() for g in (plain, answer))
    told = f"the judges' chance of a guitar is {after:.2f} in your clips, {before:.2f} in unsteered ones"
    if after < before + 0.1:
        yield f"{told}: too little to hear, so it isn't worth a listener's time yet"
    return f"{told}. Which of the others would you play it against?"


@exercise("whole listeners were drawn, so answers that hang together stay together")
def draw_listeners(answer: Callable) -> Iterator[str]:
    """09: `answer(table, rng)` draws listeners with replacement; one drawn twice brings its rows twice."""
    table = pd.DataFrame({"listener": np.repeat([*"abcdef"], 4), "chosen": np.arange(24)})
    got = [answer(table, np.random.default_rng(seed)) for seed in range(20)]
    if any(g is None for g in got):
        yield EMPTY
    if any(len(g) != len(table) for g in got):
        yield f"as many listeners as there were should be drawn, so {len(table)} rows, not {len(got[0])}"
    times = [np.bincount(g["chosen"], minlength=24).reshape(6, 4) for g in got]
    if any((t != t[:, :1]).any() for t in times):
        yield "single answers were drawn. Draw listeners, then take all the answers of each"
    if all((t == 1).all() for t in times):
        yield "every listener came exactly once: draw with replacement"
    if all((t == times[0]).all() for t in times):
        yield "every draw is the same: use the generator that is passed in"


@exercise("pairs share their random numbers, and what they share drops out")
def paired_error(answer: Callable) -> Iterator[str]:
    """10: `answer(steered, twin)` is the standard error of the mean difference; rows i have one seed."""
    rng = np.random.default_rng(0)
    shared = rng.normal(0, 3, 12)
    a, b = shared + rng.normal(1, 0.3, 12), shared + rng.normal(0, 0.3, 12)
    got = answer(a, b)
    if got is None:
        yield EMPTY
    apart, spread = np.sqrt((a.var(ddof=1) + b.var(ddof=1)) / 12), (a - b).std(ddof=1)
    if np.isclose(got, apart, rtol=0.06):
        yield f"this forgets that rows are pairs: {apart:.2f}, where the differences give a tenth of it"
    if np.isclose(got, spread, rtol=0.06):
        yield "this is the spread of one difference; the mean of n is known better by the square root of n"
    if np.isclose(got, (a - b).mean()):
        yield "this is the mean difference itself; how far may it be off?"
    if not np.isclose(got, spread / 12**0.5, rtol=0.06):
        yield f"expected {spread / 12**0.5:.3f}, not {float(got):.3f}: spread of the differences over sqrt(n)"


@exercise()
def as_good(answer, chosen, play: Callable) -> Iterator[str]:
    """10: another Steering than `chosen` that turns as many; `play` gives the `dose_table` of several."""
    if repr(answer) == repr(chosen):
        yield "this is the push that was chosen. Change its place, its time or its strength"
    table = play({"yours": answer, "chosen": chosen}).set_index("name")
    yours, best, n = *table.loc[["yours", "chosen"], "success"], table["n"].iloc[-1]
    told = f"yours turns {yours:.2f} of {n} clips, the chosen one {best:.2f}"
    if yours < best - 1 / n - 1e-9:
        yield f"{told}: another layer, more layers, or a little more?"
    cost = table["nll_unprompted"] - table.loc["unsteered", "nll_unprompted"]
    return f"{told}; surprise {cost['yours']:+.2f} nats a token against {cost['chosen']:+.2f}"
