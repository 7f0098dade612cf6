"""The exercises' checks: each accepts a right answer, and says of the usual wrong ones what is wrong."""

import checks
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binom, binomtest

unit = lambda v: v / np.linalg.norm(v)


def split(groups, share, seed):
    names = np.unique(groups)
    return np.isin(
        groups, np.random.default_rng(seed).choice(names, round(share * len(names)), replace=False)
    )


def honest(table):
    grid = table.pivot(index="fold", columns="layer", values="score")
    return np.mean([grid.loc[f, grid.drop(f).mean().idxmax()] for f in grid.index])


def song(path):
    return path.split("/")[-1].split(" (take")[0]


def error(a, b):
    return (a - b).std(ddof=1) / np.sqrt(len(a))


def usable(table, limit):
    rows = table[(table["price"] <= limit).cummin()]
    return rows.loc[rows["success"].idxmax(), "strength"] if len(rows) else 0.0


def draw(table, rng):
    rows = table.groupby("listener").indices
    names = table["listener"].unique()
    return table.iloc[np.concatenate([rows[name] for name in rng.choice(names, len(names))])]


def two_sided(k, n):
    return binomtest(k, n).pvalue


def coins(a, b, rng):
    made, true = (rng.choice([-1, 1], len(a))[:, None] * (a - b)).mean(0), (a - b).mean(0)
    return made * np.linalg.norm(true) / np.linalg.norm(made)


RIGHT = {
    "coin_control": coins,
    "strength_to_use": usable,
    "push": lambda h, d, norm, s: h + s * norm * unit(d),
    "follows": lambda moved, onsets: np.array([np.corrcoef(row, onsets)[0, 1] for row in moved]),
    "song_of": song,
    "paired_error": error,
    "mean_over_clip": lambda h, n: h[1 : n + 1].mean(0),
    "step_of": lambda t, k: t + k + 1,
    "predict": lambda d, x: d.slope.item() * (x @ d.values) + d.bias.item() > 0,
    "grouped_split": split,
    "honest_score": honest,
    "within_groups": lambda x, groups: x - np.array([x[groups == g].mean(0) for g in groups]),
    "pattern": lambda w, x: unit(np.cov(x.T) @ w),
    "without": lambda a, b: unit(a - (a @ b) * b),
    "with_itself": lambda hits: hits[::2] - hits[1::2],
    "hinge": lambda score, y: torch.relu(1 - y * score).mean(),
    "surprise": two_sided,
    "draw_listeners": draw,
    "chance_of": lambda a, b: 1 / (1 + np.exp(b - a)),
}
WRONG = [
    ("with_itself", lambda hits: hits[:, :2] - hits[:, 2:4], "the clips were halved"),
    ("with_itself", lambda hits: hits[:2] - hits[2:4], "has shape (3, 5), not (2, 5)"),
    ("with_itself", lambda hits: hits[:3] - hits[:3], "0 by arithmetic"),
    ("with_itself", lambda hits: hits[:3] + hits[3:], "one refit's hits minus another's"),
    ("hinge", lambda score, y: torch.relu(1 - y * score), "take the mean"),
    ("hinge", lambda score, y: (score - y).square().mean(), "costs nothing"),
    ("hinge", lambda score, y: torch.relu(1 - score).mean(), "multiply the score by y"),
    ("hinge", lambda score, y: torch.relu(1 - y * score).mean() * 2, ".625 in the mean, not 1.250"),
    ("coin_control", lambda a, b, rng: (rng.permutation(a - b)).mean(0), "this is the direction itself"),
    ("coin_control", lambda a, b, rng: coins(a, b, np.random.default_rng(0)), "every draw is the same"),
    ("coin_control", lambda a, b, rng: rng.standard_normal(6), "made otherwise than the direction"),
    ("coin_control", lambda a, b, rng: 2 * coins(a, b, rng), "as long as the direction"),
    ("coin_control", lambda a, b, rng: a - b, "the direction's shape, (6,), not (8, 6)"),
    ("push", lambda h, d, norm, s: h + s * norm * d, "forget to normalise"),
    ("push", lambda h, d, norm, s: h + s * unit(d), "a multiple of norm"),
    ("push", lambda h, d, norm, s: s * norm * unit(d), "h itself should stay"),
    ("push", lambda h, d, norm, s: h - s * norm * unit(d), "a step of 2.50 along"),
    ("push", lambda h, d, norm, s: h @ d, "the shape of h"),
    ("follows", lambda m, o: m @ o, "subtract the means"),
    ("follows", lambda m, o: np.array([np.cov(row, o)[0, 1] for row in m]), "this is the covariance"),
    ("follows", lambda m, o: np.corrcoef(m, o), "shape (3,), one number each"),
    ("follows", lambda m, o: np.zeros(3), "off the diagonal"),
    ("song_of", lambda path: path, "leave out folder, take and suffix"),
    ("song_of", lambda path: song(path).split(" - ")[0], "they are two songs"),
    ("song_of", lambda path: song(path).split(" - ")[1], "a title alone"),
    ("paired_error", lambda a, b: np.sqrt((a.var() + b.var()) / len(a)), "the rows are pairs"),
    ("paired_error", lambda a, b: (a - b).std(), "the square root of n"),
    ("paired_error", lambda a, b: (a - b).mean(), "the mean difference itself"),
    ("paired_error", lambda a, b: 0.5, "expected"),
    ("mean_over_clip", lambda h, n: h[1 : n + 1], "one number per dimension"),
    ("mean_over_clip", lambda h, n: h.mean(0), "over the padding too"),
    ("mean_over_clip", lambda h, n: h[: n + 1].mean(0), "before anything was heard"),
    ("mean_over_clip", lambda h, n: h[1:n].mean(0), "one step is missing"),
    ("mean_over_clip", lambda h, n: h[n], "expected the mean"),
    ("step_of", lambda t, k: t, "forget the delay"),
    ("step_of", lambda t, k: t + k, "one step later"),
    ("step_of", lambda t, k: t - k + 1, "stands at step 14, not 8"),
    ("predict", lambda d, x: x @ d.values > 0, "leave out the slope or the bias"),
    ("predict", lambda d, x: 2 * (x @ d.values) - 3, "true or false, not float64"),
    ("predict", lambda d, x: ~RIGHT["predict"](d, x), "the wrong way round"),
    ("predict", lambda d, x: x > 0, "shape (200,), not (200, 8)"),
    ("grouped_split", lambda g, s, k: np.random.default_rng(k).random(len(g)) < s, "are on both sides"),
    ("grouped_split", lambda g, s, k: ~split(g, s, k), "is true training or testing?"),
    ("grouped_split", lambda g, s, k: split(g, s, 0), "seeds 0 and 1 give the same split"),
    ("honest_score", lambda t: t.groupby("layer").score.mean().max(), "the best of 12 looks like"),
    ("honest_score", lambda t: t.groupby("fold").score.max().mean(), "on that very fold"),
    ("honest_score", lambda t: t.score.mean(), "expected"),
    ("within_groups", lambda x, groups: x - x.mean(0), "Each group has a mean of its own"),
    ("within_groups", lambda x, groups: x - RIGHT["within_groups"](x, groups), "take them off x"),
    ("within_groups", lambda x, groups: x[groups == "a"], "one row per clip, not (2, 3)"),
    ("within_groups", lambda x, groups: x * 0 + 1, "should now add up to 0"),
    ("pattern", lambda w, x: np.cov(x.T) @ w, "its length isn't"),
    ("pattern", lambda w, x: unit(x.T @ x @ w), "subtract the mean"),
    ("pattern", lambda w, x: unit(np.linalg.inv(np.cov(x.T)) @ w), "divides by the covariance"),
    ("pattern", lambda w, x: unit(w), "not 1"),
    ("strength_to_use", lambda t, limit: t.loc[t["success"].idxmax(), "strength"], "Stop at the first"),
    ("strength_to_use", lambda t, limit: 2, "look at success only"),
    ("strength_to_use", lambda t, limit: 0.5, "0.2 and 0.7"),
    ("strength_to_use", lambda t, limit: 1, "the strength to use is 0"),
    ("strength_to_use", lambda t, limit: 1 if t["price"][0] < 9 else 0.0, "the answer there is 4"),
    ("without", lambda a, b: unit(a - b), "subtracts all of b"),
    ("without", lambda a, b: a, "nothing along b should be left"),
    ("without", lambda a, b: a - (a @ b) * b, "scale it to 1 again"),
    ("without", lambda a, b: -unit(a - (a @ b) * b), "the sign turned?"),
    ("surprise", lambda k, n: two_sided(k, n) / 2, "this is one-sided"),
    ("surprise", lambda k, n: 2 * binom.sf(k - 1, n, 0.5), "are equally surprising"),
    ("surprise", lambda k, n: 2 * binom.sf(max(k, n - k) - 1, n, 0.5), "a p value of 1.18"),
    ("surprise", lambda k, n: 0.5, "15 of 20 should give 0.0414"),
    ("draw_listeners", lambda t, rng: t.head(4), "so 24 rows, not 4"),
    ("draw_listeners", lambda t, rng: t.sample(len(t), replace=True, random_state=rng), "single answers"),
    ("draw_listeners", lambda t, rng: t, "every listener came exactly once"),
    ("draw_listeners", lambda t, rng: draw(t, np.random.default_rng(0)), "every draw is the same"),
    ("chance_of", lambda a, b: 0.6, "should give one half, not 0.60"),
    ("chance_of", lambda a, b: 1 / (1 + np.exp(a - b)), "the sign of the difference"),
    ("chance_of", lambda a, b: 0.5 + max(a - b, 0) / 10, "should add up to 1"),
    ("chance_of", lambda a, b: 0.5 + (a - b) / 10, "a difference of 1 should give 0.731, not 0.600"),
]


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_answer_is_accepted_and_an_empty_one_is_not(name, capsys):
    check = getattr(checks, name)
    assert check(RIGHT[name]) is True
    assert capsys.readouterr().out.startswith("Right: ")
    assert check(lambda *arguments: None) is False
    assert "nothing came back" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "answer", "told"), WRONG, ids=[f"{name}-{told}" for name, _, told in WRONG])
def test_a_wrong_answer_is_told_why(name, answer, told, capsys):
    assert getattr(checks, name)(answer) is False
    said = capsys.readouterr().out
    assert said.startswith("Not yet: ") and told in said and said.count("\n") == 1


# number checks: the right answer, the facts of the notebook, wrong answers and what is said of them
NUMBERS = {
    "safe_start": (
        *(3.2, (3.0, 6, 25.0)),
        {
            2.9: "changes what comes before 3 s",
            3.0: "codebook 5 of the last 5 frames before 3 s",
            3.08: "codebook 5 of the last 3 frames",
            4.0: "20.0 frames later than it must be",
        },
    ),
    "band_width": (
        *(1537, (0.05,)),
        {
            39: "the square root of the number",
            256: "so more are wanted",
            4096: "so fewer",
            1.5: "whole number",
        },
    ),
    "costliest": (
        *(0, (pd.Series([2.06, 0.2, 0.04], name="cost"),)),
        {1: "layer 1 costs 0.20 nats a token, another costs more", 3: "numbered from 0 to 2"},
    ),
    "half_as_wide": (24, (6,), {12: "square root of 2", 6: "100% of the width", 48: "35% of the width"}),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_are_compared_with_the_notebooks_own(name, capsys):
    check, (right, given, wrong) = getattr(checks, name), NUMBERS[name]
    assert check(right, *given) is True and capsys.readouterr().out.startswith("Right: ")
    for answer, told in {**wrong, ...: "no number is chosen"}.items():
        assert check(answer, *given) is False
        said = capsys.readouterr().out
        assert said.startswith("Not yet: ") and told in said and said.count("\n") == 1


def tried(check, right, wrong, capsys):
    """A right answer is accepted, and each of the wrong ones is told why, in one line."""
    assert check(right) is True and capsys.readouterr().out.startswith("Right: ")
    for answer, told in wrong:
        assert check(answer) is False
        said = capsys.readouterr().out
        assert said.startswith("Not yet: ") and told in said and said.count("\n") == 1


def test_what_is_erased_while_writing_is_compared_token_by_token(model, capsys):
    def erased(change):
        def erase(d, layer):
            with model.tracing_generation(duration=1, seed=0) as run:
                for _ in run.steps:
                    model.resid[layer] = change(model.resid[layer], d)
                codes = run.result.save()
            return codes

        return erase

    along = lambda h, d: (h @ d)[..., None] * d
    wrong = [
        (lambda d, layer: None, "nothing came back"),
        (erased(lambda h, d: h), "the model left alone"),
        (erased(lambda h, d: h - along(h, d)), "forget to normalise"),
        (erased(lambda h, d: h + along(h, d) / (d @ d)), "take it away from h"),
        (erased(lambda h, d: h - 9 * d), "of the tokens differ"),
        (lambda d, layer: model.generate(duration=2).codes, "return run.result"),
    ]
    check = lambda answer: checks.erased(answer, model, np.arange(model.d_model), 1)
    tried(check, erased(lambda h, d: h - along(h, d) / (d @ d)), wrong, capsys)


def test_a_clip_put_into_itself_must_stay_as_it_is(model, capsys):
    def patched(site, swap=False, idle=False):
        def put_into(source, target, layer):
            source, target = (target, source) if swap else (source, target)
            with model.trace(source):
                taken = getattr(model, site)[layer].save()
            with model.trace(target):
                if not idle:
                    model.attn[layer] = taken
                logits = model.nn.output.save()
            return logits

        return put_into

    wrong = [
        (lambda source, target, layer: None, "nothing came back"),
        (patched("mlp"), "read and replace the same place"),
        (patched("attn", idle=True), "nothing was put in"),
        (patched("attn", swap=True, idle=True), "the source's own logits"),
        (patched("attn", swap=True), "isn't the target's run"),
    ]
    clips = model.generate(duration=1, seed=[0, 1]).codes.split(1)
    tried(lambda answer: checks.patched(answer, model, *clips, 1), patched("attn"), wrong, capsys)


def test_a_guessed_place_is_compared_with_the_map(capsys):
    places = pd.MultiIndex.from_product([["attn", "cross", "mlp"], [0, 1, 2]], names=["site", "layer"])
    parts = pd.Series([0.9, 0.1, 0.0, 0.0, 0.0, 0.4, 0.8, 0.0, 0.0], places)
    wrong = [
        (..., "no place is chosen"),
        (("attn", 0), "is no place: write a site (attn, cross, mlp) and a layer (1, 2)"),
        ("cross 2", "is no place"),
        (("attn", 1), "attn of layer 1 brings back 0.10; another place 0.40"),
    ]
    tried(lambda answer: checks.guessed_place(answer, parts), ("cross", 2), wrong, capsys)


def test_a_head_patched_by_hand_is_compared_with_the_map(capsys):
    truth, whole = np.array([[0.02, 0.05], [0.4, 0.1]]), np.array([0.07, 0.55])
    wrong = [
        (lambda layer, head: None, "nothing came back"),
        (lambda layer, head: 0.0, "assign the changed values back"),
        (lambda layer, head: whole[layer], "all heads of the layer were replaced"),
        (lambda layer, head: -truth[layer, head], "the sign is wrong"),
        (lambda layer, head: truth[head, layer], "head 0 of layer 1 recovers 0.400, not 0.050"),
    ]
    tried(
        lambda answer: checks.patched_head(answer, truth, whole),
        lambda layer, head: truth[layer, head],
        wrong,
        capsys,
    )


def test_a_control_has_the_other_clips_of_the_changed_side(capsys):
    wrong = [
        (lambda clean, changed: None, "nothing came back"),
        (lambda clean, changed: clean.roll(1, 0), "those have the concept"),
        (lambda clean, changed: changed, "patched into itself"),
        (lambda clean, changed: changed[[1, 0, 0, 0]], "every clip of `changed` once"),
        (lambda clean, changed: changed[:2], "one clip for each pair"),
    ]
    tried(checks.control_rows, lambda clean, changed: changed.roll(1, 0), wrong, capsys)


def test_a_push_of_one_half_is_compared_token_by_token(model, capsys):
    def pushed(change, told="jazz piano"):
        def push_half(prompt, vector, layer):
            with model.tracing_generation(told and prompt, duration=1, seed=0) as run:
                for _ in run.steps:
                    model.resid[layer] = change(model.resid[layer], vector)
                codes = run.result.save()
            return codes

        return push_half

    first = lambda h, v, scale=1: torch.cat([h[:1] + scale * v, h[1:]])
    wrong = [
        (lambda prompt, vector, layer: None, "nothing came back"),
        (lambda prompt, vector, layer: model.generate(duration=2, progress=False).codes, "return run.result"),
        (pushed(lambda h, v: h), "the model left alone"),
        (pushed(lambda h, v: h + v, told=None), "nobody told the model the prompt"),
        (pushed(lambda h, v: h + v), "both halves were pushed"),
        (pushed(lambda h, v: torch.cat([h[:1], h[1:] + v])), "the wrong half"),
        (pushed(lambda h, v: first(h, v, 5)), "of the tokens differ"),
    ]
    vector = np.random.default_rng(0).standard_normal(model.d_model) * 10
    check = lambda answer: checks.one_half(answer, model, vector, 1)
    tried(check, pushed(first), wrong, capsys)


def test_every_check_is_tried_here():
    apart = {"erased", "patched", "one_half", "guessed_place", "patched_head", "control_rows"}
    assert {*RIGHT, *NUMBERS, *apart} == set(checks.__all__)
