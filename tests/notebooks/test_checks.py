"""The exercises' checks: each accepts a right answer, and says of the usual wrong ones what is wrong."""

import dataclasses

import checks
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import binom, binomtest

import mechsteer as ms
from mechsteer.model._vectors import digest

unit = lambda v: v / np.linalg.norm(v)


@pytest.fixture(autouse=True)
def fewer_clips(monkeypatch):
    monkeypatch.setattr(checks, "CLIPS", 4)


def split(groups, share, seed):
    names = np.unique(groups)
    return np.isin(
        groups, np.random.default_rng(seed).choice(names, round(share * len(names)), replace=False)
    )


def honest(table):
    grid = table.pivot(index="fold", columns="layer", values="score")
    return np.mean([grid.loc[f, grid.drop(f).mean().idxmax()] for f in grid.index])


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
    "paired_error": error,
    "step_of": lambda t, k: t + k + 1,
    "grouped_split": split,
    "honest_score": honest,
    "within_groups": lambda x, groups: x - np.array([x[groups == g].mean(0) for g in groups]),
    "pattern": lambda w, x: unit(np.cov(x.T) @ w),
    "rescaled": lambda h, v: (h + v) / (h + v).norm(dim=-1, keepdim=True) * h.norm(dim=-1, keepdim=True),
    "without": lambda a, b: unit(a - (a @ b) * b),
    "with_itself": lambda hits: hits[::2] - hits[1::2],
    "hinge": lambda score, y: torch.relu(1 - y * score).mean(),
    "surprise": two_sided,
    "draw_listeners": draw,
}
WRONG = [
    ("with_itself", lambda hits: hits[:, :2] - hits[:, 2:4], "the clips were halved"),
    ("with_itself", lambda hits: hits[:2] - hits[2:4], "(3, 5), not (2, 5)"),
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
    ("paired_error", lambda a, b: np.sqrt((a.var() + b.var()) / len(a)), "that rows are pairs"),
    ("paired_error", lambda a, b: (a - b).std(), "the square root of n"),
    ("paired_error", lambda a, b: (a - b).mean(), "the mean difference itself"),
    ("paired_error", lambda a, b: 0.5, "expected"),
    ("step_of", lambda t, k: t, "forget the delay"),
    ("step_of", lambda t, k: t + k, "one step later"),
    ("step_of", lambda t, k: t + 1, "forget the delay"),
    ("step_of", lambda t, k: t - k + 1, "so it is added"),
    ("step_of", lambda t, k: t + 2 * k + 1, "stands at step 14, not 17"),
    ("grouped_split", lambda g, s, k: np.random.default_rng(k).random(len(g)) < s, "are on both sides"),
    ("grouped_split", lambda g, s, k: ~split(g, s, k), "is true training or testing?"),
    ("grouped_split", lambda g, s, k: split(g, s, 0), "seeds 0 and 1 give the same split"),
    ("honest_score", lambda t: t.groupby("layer").score.mean().max(), "the best of 12 layers looks like"),
    ("honest_score", lambda t: t.groupby("fold").score.max().mean(), "on that very fold"),
    ("honest_score", lambda t: t.score.mean(), "expected"),
    ("within_groups", lambda x, groups: x - x.mean(0), "Each group has a mean of its own"),
    ("within_groups", lambda x, groups: x - RIGHT["within_groups"](x, groups), "take them off x"),
    ("within_groups", lambda x, groups: x[groups == "a"], "one row per clip, (7, 3), not (2, 3)"),
    ("within_groups", lambda x, groups: x * 0 + 1, "should add up to 0"),
    ("pattern", lambda w, x: np.cov(x.T) @ w, "its length isn't"),
    ("pattern", lambda w, x: unit(x.T @ x @ w), "subtract the mean"),
    ("pattern", lambda w, x: unit(np.linalg.inv(np.cov(x.T)) @ w), "divides by the covariance"),
    ("pattern", lambda w, x: unit(w), "not 1"),
    ("strength_to_use", lambda t, limit: t.loc[t["success"].idxmax(), "strength"], "Stop at the first"),
    ("strength_to_use", lambda t, limit: 2, "look at success only"),
    ("strength_to_use", lambda t, limit: 0.5, "0.2 and 0.7"),
    ("strength_to_use", lambda t, limit: 1, "the strength to use is 0"),
    ("strength_to_use", lambda t, limit: 1 if t["price"][0] < 9 else 0.0, "the answer there is 4"),
    ("rescaled", lambda h, v: h + v, "the plain sum"),
    ("rescaled", lambda h, v: (h + v) / (h + v).norm(dim=-1, keepdim=True), "its length is 1"),
    ("rescaled", lambda h, v: (h + v) / (h + v).norm() * h.norm(), "each step has a length of its own"),
    ("rescaled", lambda h, v: -RIGHT["rescaled"](h, v), "point where h + v does"),
    ("rescaled", lambda h, v: v, "the shape of h, (2, 5, 8), not (8,)"),
    ("without", lambda a, b: unit(a - b), "subtracts all of b"),
    ("without", lambda a, b: a, "nothing along b should be left"),
    ("without", lambda a, b: a - (a @ b) * b, "scale it to 1 again"),
    ("without", lambda a, b: -unit(a - (a @ b) * b), "the sign turned?"),
    ("surprise", lambda k, n: two_sided(k, n) / 2, "this is one-sided"),
    ("surprise", lambda k, n: 2 * binom.sf(k - 1, n, 0.5), "are equally surprising"),
    ("surprise", lambda k, n: 2 * binom.sf(max(k, n - k) - 1, n, 0.5), "a p value of 1.18"),
    ("surprise", lambda k, n: 0.5, "15 of 20 give 0.0414, not 0.5000"),
    ("draw_listeners", lambda t, rng: t.head(4), "so 24 rows, not 4"),
    ("draw_listeners", lambda t, rng: t.sample(len(t), replace=True, random_state=rng), "single answers"),
    ("draw_listeners", lambda t, rng: t, "every listener came exactly once"),
    ("draw_listeners", lambda t, rng: draw(t, np.random.default_rng(0)), "every draw is the same"),
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


def tried(check, right, wrong, capsys):
    """A right answer is accepted, and each of the wrong ones is told why, in one line."""
    assert check(right) is True and capsys.readouterr().out.startswith("Right: ")
    for answer, told in wrong:
        assert check(answer) is False
        said = capsys.readouterr().out
        assert said.startswith("Not yet: ") and told in said and said.count("\n") == 1


@pytest.fixture
def brief(monkeypatch):
    """Makes a model's second one of so few frames, and has it write the clips of equal calls once."""

    def brief(model, frames):
        generate, kept = model.generate, {}

        def once(*args, steering=None, **options):
            steerings = steering if isinstance(steering, list) else [steering]
            call = repr((args, [s and digest(s) for s in steerings], options))
            if call not in kept:
                kept[call] = generate(*args, steering=steering, **options)
            return kept[call]

        monkeypatch.setattr(model, "generate", once)
        monkeypatch.setattr(model, "seconds_to_frames", lambda seconds: round(frames * seconds))

    return brief


def test_what_is_erased_while_writing_is_compared_token_by_token(model, brief, capsys):
    brief(model, 12)

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
        (lambda d, layer: model.generate(duration=2, progress=False).codes, "return run.result"),
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


def test_a_control_has_the_other_clips_of_the_changed_side(capsys):
    wrong = [
        (lambda clean, changed: None, "nothing came back"),
        (lambda clean, changed: clean.roll(1, 0), "those have the concept"),
        (lambda clean, changed: changed, "patched into itself"),
        (lambda clean, changed: changed[[1, 0, 0, 0]], "every clip of `changed` once"),
        (lambda clean, changed: changed[:2], "one clip for each pair"),
    ]
    tried(checks.control_rows, lambda clean, changed: changed.roll(1, 0), wrong, capsys)


def test_a_push_of_one_half_is_compared_token_by_token(model, brief, capsys):
    brief(model, 6)

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


@pytest.fixture(scope="module")
def heard(tiny):
    """Codes of a guitar and a piano, four clips of each by row the same music, and the lead directions."""
    rows = ms.clips("orchestra").query("split == 'test' and style == 'rock'")
    rows = rows.assign(codes=[codes[:, :75] for codes in rows["codes"]], duration=3.0)
    codes = [ms.codes(tiny, part[:4]) for part in ms.pairs(rows, "lead", "guitar", "piano")]
    leads = rows[rows["score"].isin(rows["score"].unique()[:12])]
    acts = ms.collect(tiny, leads, progress=False)
    found = ms.find_directions(acts, "lead", ("diff_of_means",), seed=0).isel(finder=0)
    return codes, acts, found


def test_what_keeps_clips_sorted_is_open_and_too_little_or_too_much_is_told(tiny, heard, capsys):
    (guitar, piano), acts, _ = heard
    centres = acts["resid"].sel(layer=3).groupby("lead").mean()
    leads, codes = np.repeat(["guitar", "piano"], 4), torch.cat([guitar, piano])
    wrong = [
        (lambda h: None, "nothing came back"),
        (lambda h: h, "nothing was changed"),
        (lambda h: h[:, 1:], "the shape of h, (8, 76, 256), not (8, 75, 256)"),
        (lambda h: h / 0, "aren't finite"),
        (lambda h: 1.1 * h, "be bolder"),
        (lambda h: 0 * h, "what was lost"),
    ]
    check = lambda answer: checks.kept_sorted(answer, tiny, codes, leads, centres, 3)
    tried(check, lambda h: h.flip(1), wrong, capsys)
    assert check(lambda h: h.mean(1, keepdim=True).expand_as(h))


def test_a_graft_is_measured_by_what_it_brings_and_how_much_it_takes(tiny, heard, capsys):
    (guitar, piano), _, _ = heard

    def half(h, source, layer_of=1):
        h[:, :, :2] = layer_of * source[:, :, :2]
        return h

    wrong = [
        (lambda h, source: None, "nothing came back"),
        (lambda h, source: h, "nothing was changed"),
        (lambda h, source: source, "half of them at most"),
        (lambda h, source: half(h, source, -2), "that is backwards"),
    ]
    check = lambda answer, layer=0: checks.grafted(answer, tiny, guitar[:1], piano[:1], layer)
    tried(check, half, wrong, capsys)
    assert not check(half, 4) and "at which layer does the sound come in" in capsys.readouterr().out


def test_a_blind_probe_guesses_and_the_music_goes_on(tiny, heard, capsys):
    (guitar, piano), acts, found = heard
    way = torch.tensor(found.sel(concept="guitar", layer=2).values, dtype=torch.float32)
    small, probe = 1e-3 * torch.ones(256), found.sel(concept="guitar", layer=3).values
    along = lambda h: (h @ way)[..., None] * way
    means = acts["resid"].sel(layer=2).groupby("lead").mean().values.astype("float32")
    span = torch.linalg.qr(torch.tensor(means - means.mean(0)).T[:, :5])[0]
    middle = torch.tensor(means.mean(0))
    wrong = [
        (lambda h: None, "nothing came back"),
        (lambda h: h + small, "reads it from what you left"),
        (lambda h: h - 9 * along(h), "always wrong knows all"),
        (lambda h: middle.expand_as(h), "take less away"),
    ]
    codes, is_it = torch.cat([guitar, piano]), np.repeat([True, False], 4)[:, None]
    check = lambda answer: checks.blinded(answer, tiny, codes, is_it, probe, 3)
    tried(check, lambda h: h - (h - middle) @ span @ span.T, wrong, capsys)


def test_another_way_must_be_another_and_lead_there(tiny, heard, capsys):
    (_, piano), acts, _ = heard
    is_it = acts["lead"].values == "guitar"
    x = [acts["resid"].sel(layer=k).values for k in (3, 5)]
    gap, end = (v[is_it].mean(0) - v[~is_it].mean(0) for v in x)
    noise = np.random.default_rng(0).standard_normal(256)
    aside = unit(noise - noise @ unit(gap) * unit(gap))
    wrong = [
        (..., "nothing is chosen"),
        (gap[:9], "a direction has 256 numbers"),
        (0 * gap, "not all 0"),
        (unit(gap) + 0.5 * aside, "turn it away"),
        (-gap, "0.30 is wanted"),
    ]
    check = lambda answer: checks.other_way(answer, tiny, piano, gap, end, 3)
    tried(check, unit(gap) + 1.2 * aside, wrong, capsys)


def test_places_above_layer_0_are_patched_together(tiny, heard, capsys):
    (guitar, piano), _, _ = heard
    often = [
        torch.nn.functional.one_hot(c, tiny.lm.card).sum((0, 2)).add(1).double() for c in (guitar, piano)
    ]
    worth = (often[0] / often[1]).log()
    wrong = [
        (..., "nothing is chosen"),
        ([], "0 places; one to three"),
        ([("attn", 0)], "the stream, or layer 0, brings all"),
        ([("resid", 2)], "the stream, or layer 0, brings all"),
        ([("mlp", i) for i in (1, 2, 3, 4)], "4 places"),
        ([("mlp", 5)], "begin where the map says"),
    ]
    check = lambda answer: checks.several(answer, tiny, guitar.roll(1, 0), piano, worth)
    tried(check, [("attn", 1), ("cross", 2)], wrong, capsys)


def pushed(found, concept="guitar", strength=0.2, **when):
    return ms.Steering(found.sel(concept=concept), layers=3, strength=strength, **when)


def test_a_push_is_judged_by_what_the_model_reads_and_its_price(tiny, heard, brief, monkeypatch, capsys):
    *_, found = heard
    monkeypatch.setattr(checks, "CLIPS", 2)
    brief(tiny, 8)
    wrong = [
        (..., "nothing is chosen"),
        (pushed(found), "pushes towards guitar; take found[0].sel(concept=...) with one of flute"),
        (pushed(found, "flute", 0.0), "not one token changed"),
        (pushed(found, "flute", -0.5), "was the sign turned?"),
        (pushed(found, "flute", 8.0), "the music breaks"),
    ]
    tried(
        lambda a: checks.turned(a, tiny, found, "piano", "guitar"), pushed(found, "flute", 0.6), wrong, capsys
    )


def test_a_push_is_judged_by_what_it_brings_its_price_and_its_control(tiny, heard, monkeypatch, capsys):
    *_, found = heard
    monkeypatch.setattr(checks, "CLIPS", 2)
    gap = float(2 / found["slope"].sel(concept="guitar", layer=3))
    norm = float(found["norm"].sel(layer=3))
    plain = np.random.default_rng(1).standard_normal(256)
    early = pushed(found, strength=gap / norm, stop=1.0)
    wrong = [(5 * early, "0.25 are allowed"), (-early, "better to push early")]
    tried(lambda a: checks.thrifty(a, tiny, gap), early, wrong, capsys)
    cond = pushed(found, strength=2 * gap / norm, branch="cond")
    wrong = [(-cond, "push harder, or where guidance")]
    tried(lambda a: checks.overruled(a, tiny, "jazz piano"), cond, wrong, capsys)
    rivals, hits = {"logistic": found.sel(concept="guitar", layer=3).values}, np.zeros(2)
    wrong = [
        (plain[:5], "a direction has 256 numbers"),
        (rivals["logistic"], "this is logistic again"),
        (-rivals["logistic"], "points away from all"),
    ]
    mixed = unit(plain) + rivals["logistic"]
    tried(lambda a: checks.contender(a, tiny, 3, gap, rivals, hits), mixed, wrong, capsys)


def test_a_condition_shares_seeds_and_length_and_has_more_guitar(tiny, heard, capsys):
    *_, found = heard
    prompts = np.repeat(["jazz piano", "jazz guitar", "rock guitar"], 2).tolist()
    steering = [None] * 4 + [pushed(found, strength=0.1)] * 2
    music = tiny.generate(prompts, 3, [0, 1] * 3, steering=steering, progress=False)
    made, right = {"unsteered": music[:2], "prompt": music[2:4]}, music[4:]
    other = dataclasses.replace(made["unsteered"], codes=made["unsteered"].codes.flip(0))
    wrong = [
        (made["prompt"][:1], "2 clips of 3 s"),
        (dataclasses.replace(made["prompt"], seeds=[2, 3]), "the seeds differ"),
        (made["prompt"], "'prompt' once more"),
        (other, "too little to hear"),
    ]
    tried(lambda answer: checks.condition(answer, made), right, wrong, capsys)


def test_another_push_is_held_against_the_chosen_one(heard, capsys):
    *_, found = heard
    columns = {"name": ["unsteered", "yours", "chosen"], "n": 6, "nll_unprompted": [3.0, 3.1, 3.2]}
    play = lambda yours: lambda both: pd.DataFrame(columns | {"success": [0.0, yours, 0.8]})
    chosen, other = pushed(found), pushed(found, stop=1.0)
    assert (
        checks.as_good(other, chosen, play(0.7))
        and "+0.10 nats a token against +0.20" in capsys.readouterr().out
    )
    for answer, yours, told in (
        (chosen, 0.8, "that was chosen"),
        (other, 0.5, "another layer"),
        (..., 0, "Replace"),
    ):
        assert not checks.as_good(answer, chosen, play(yours)) and told in capsys.readouterr().out


def test_every_check_is_tried_here():
    opened = {"turned", "kept_sorted", "grafted", "blinded", "other_way", "thrifty", "contender", "overruled"}
    apart = {"erased", "patched", "one_half", "control_rows", "several", "condition", "as_good"} | opened
    assert {*RIGHT, *apart} == set(checks.__all__)
