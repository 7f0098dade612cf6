"""Patching finds a planted circuit, and gives what plain PyTorch hooks give.

The reference, `by_hand`, runs audiocraft's model once for every place; it doesn't touch the engine.
"""

import contextlib
import copy

import numpy as np
import pytest
import torch
from meta_checkpoint import lm_config

import mechsteer as ms
from mechsteer.model.sites import SITES, hook

ATOL = 1e-3  # nats, summed over a window


def noise(model, clips=2, frames=9, seed=7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.lm.card, (clips, model.n_codebooks, frames), generator=generator)


def versions(model, clips=2, frames=9, differ=slice(None)):
    """Clean and changed codes, which differ in the frames `differ`."""
    clean, changed = noise(model, clips, frames), noise(model, clips, frames)
    changed[..., differ] = noise(model, clips, frames, seed=8)[..., differ]
    return clean, changed


def spans(steps: int, windows: int) -> list[slice]:
    """As equal as can be, the longer ones first."""
    sizes = [steps // windows + (w < steps % windows) for w in range(windows)]
    stops = np.cumsum(sizes)
    return [slice(int(stop - size), int(stop)) for size, stop in zip(sizes, stops, strict=True)]


@contextlib.contextmanager
def acting(model, site, layer, act):
    handle = hook(model.lm, site, layer, act)
    try:
        yield
    finally:
        handle.remove()


def score(logits, target, windows, worth=None):
    """(pair, window) of logits (pair, codebook, step, card) and the codes that come next."""
    card = logits.shape[-1]
    if worth is None:
        steps = logits.log_softmax(-1).gather(-1, target.clamp(max=card - 1)[..., None])[..., 0]
    else:
        steps = (logits.softmax(-1) * torch.as_tensor(worth)[:, None]).sum(-1)
    steps = torch.where(target < card, steps, 0.0).sum(1)  # the special token isn't predicted
    return torch.stack([steps[:, span].sum(1) for span in spans(steps.shape[1], windows)], 1)


@torch.no_grad()
def by_hand(model, clean, changed, sites, layers, windows, told, worth=None):
    """{site: (pair, layer, [head,] window, read)} and the gap, by one forward pass for every place."""
    sequences, n = [model.sequence(codes) for codes in (clean, changed)], len(clean)
    run = lambda i: model.lm(sequences[i][..., :-1], [], model.conditions(told[i], n)).float()
    of = lambda logits: score(logits, sequences[0][..., 1:], windows, worth).numpy()
    base, found = of(run(1)), {}
    for site in sites:
        places = [slice(k, k + 1) for k in range(model.n_heads)] if site == "heads" else [slice(None)]
        gains = np.zeros((len(layers), len(places), windows, *base.shape))
        for i, layer in enumerate(layers):
            kept = []
            with acting(model, site, layer, kept.append):
                run(0)
            for k, place in enumerate(places):
                for w, span in enumerate(spans(clean.shape[-1], windows)):

                    def act(h, place=place, span=span, kept=kept):
                        h = h.clone()
                        h[:, span, place] = kept[0][:, span, place]
                        return h

                    with acting(model, site, layer, act):
                        gains[i, k, w] = of(run(1)) - base
        gains = gains.transpose(3, 0, 1, 2, 4)  # pair, layer, head, window, read
        found[site] = gains if site == "heads" else gains[:, :, 0]
    return found, of(run(0)) - base


def close(found, wanted, gap, atol=ATOL):
    for site, values in wanted.items():
        np.testing.assert_allclose(found[site], values, atol=atol, rtol=1e-4, err_msg=site)
    np.testing.assert_allclose(found["gap"], gap, atol=atol, rtol=1e-4)


# What plain hooks give


TOLD = [("jazz piano", "jazz piano"), ("violin", ["slow", None])]


@pytest.mark.parametrize("told", [(None, None), *TOLD], ids=["untold", "told", "told otherwise"])
def test_every_place_gains_what_plain_hooks_give(model, told):
    clean, changed = versions(model, frames=6)
    layers = [model.n_layers - 1, 1]  # in the order that is asked for
    wanted, gap = by_hand(model, clean, changed, SITES, layers, 2, told)
    found = ms.patch(model, clean, changed, list(SITES), layers, 2, *told, progress=False)
    close(found, wanted, gap)
    for site in SITES:
        dims = ("pair", "layer", *["head"] * (site == "heads"), "window", "read")
        assert found[site].dims == dims
        assert np.abs(found[site]).max() > 10 * ATOL or told == (None, None)  # without T5's text all 0
    assert found["layer"].values.tolist() == layers
    assert found["start"].values.tolist() == [0, 3 / model.frame_rate]


def test_one_site_one_layer_and_windows_of_unlike_length(model):
    clean, changed = versions(model, clips=1, frames=7)
    for site, layer, windows in (("heads", 0, 7), ("cross", 1, 4)):
        wanted, gap = by_hand(model, clean, changed, [site], [layer], windows, (None, "jazz"))
        found = ms.patch(model, clean, changed, site, layer, windows, changed_prompts="jazz", progress=False)
        close(found, wanted, gap)
        assert set(found) == {site, "gap"}


def test_a_worth_is_the_mean_under_the_models_probabilities(model):
    clean, changed = versions(model)
    generator = np.random.default_rng(0)
    worth = generator.normal(size=(model.n_codebooks, model.lm.card)).astype("float32")
    wanted, gap = by_hand(model, clean, changed, ["attn", "resid"], [1], 3, (None, None), worth)
    run = lambda worth, by: ms.patch(
        model, clean, changed, ["attn", "resid"], 1, 3, worth=worth, by=by, progress=False
    )
    close(run(worth, "swap"), wanted, gap)
    for by in ("swap", "gradient"):
        once, twice, even = (run(some, by) for some in (worth, 2 * worth, np.full_like(worth, 3.0)))
        for name in once:
            np.testing.assert_allclose(twice[name], 2 * once[name], atol=ATOL)
            np.testing.assert_allclose(even[name], 0, atol=ATOL)
            assert np.abs(once[name]).max() > 10 * ATOL


# What must come back


def test_the_whole_stream_recovers_all_and_its_end_its_own_window(model):
    clean, changed = versions(model, frames=12)
    whole = ms.patch(model, clean, changed, "resid", windows=1, progress=False)
    everywhere = whole["gap"].expand_dims(layer=model.n_layers, window=1).transpose(*whole["resid"].dims)
    np.testing.assert_allclose(whole["resid"], everywhere, atol=ATOL)
    last = ms.patch(model, clean, changed, "resid", model.n_layers - 1, windows=4, progress=False)
    own = last["gap"].values[:, None, :, None] * np.eye(4)
    np.testing.assert_allclose(last["resid"], own, atol=ATOL)
    np.testing.assert_allclose(last["gap"].sum("read"), whole["gap"].sum("read"), atol=ATOL)
    assert np.abs(whole["gap"]).min() > 10 * ATOL


def test_nothing_comes_back_before_what_differs(model):
    """Frame 8 of 12 stands in the input of step 9 and is predicted at step 8: windows of 4 steps."""
    clean, changed = versions(model, frames=12, differ=slice(8, None))
    for by in ("swap", "gradient"):
        found = ms.patch(model, clean, changed, list(SITES), None, 3, "jazz", by=by, progress=False)
        assert not found["gap"][:, :2].any() and found["gap"][:, 2].all()
        for site in SITES:
            assert not found[site].sel(window=[0, 1]).any(), site
            if by == "swap":
                assert not found[site].sel(read=[0, 1]).any() and found[site].sel(window=2, read=2).any()


def test_a_window_cannot_change_what_was_read_before_it(model):
    found = ms.patch(model, *versions(model), list(SITES), windows=3, progress=False)
    for site in SITES:
        for window in range(3):
            assert not found[site].sel(window=window, read=range(window)).any(), site


def test_one_clip_under_two_prompts_shows_where_the_text_is_used(model):
    codes, prompts = noise(model), ["jazz piano", "slow"]
    by_text = lambda **options: ms.patch(
        model, codes, codes, ["resid", "cross"], windows=1, progress=False, **options
    )
    found = by_text(prompts=prompts, changed_prompts=[None])
    assert (np.abs(found["gap"]) > 10 * ATOL).all()
    last = found["resid"].sel(layer=model.n_layers - 1, window=0)  # the layers above others hear the text
    np.testing.assert_allclose(last, found["gap"], atol=ATOL)
    assert (np.abs(found["cross"]) > 10 * ATOL).any(("window", "read")).all()
    back = by_text(changed_prompts=prompts)  # the other way round, of another score
    wanted, gap = by_hand(model, codes, codes, ["cross"], range(model.n_layers), 1, (None, prompts))
    close(back, wanted, gap)


def test_the_order_and_the_batch_of_pairs_change_nothing(model):
    clean, changed = versions(model, clips=5)
    prompts = ["jazz piano", None, "rock guitar with fast drums and a violin solo", "slow", "a"]
    for by in ("swap", "gradient"):
        run = lambda order=slice(None), told=prompts, by=by, **options: ms.patch(
            model,
            clean[order],
            changed[order],
            ["heads", "mlp"],
            0,
            2,
            told,
            by=by,
            progress=False,
            **options,
        )
        once, one, few = run(), run(batch_size=1), run(batch_size=3)
        turned = run([3, 0, 4, 2, 1], [prompts[k] for k in (3, 0, 4, 2, 1)])
        for name in once:
            np.testing.assert_allclose(one[name], once[name], atol=ATOL)
            np.testing.assert_allclose(few[name], once[name], atol=ATOL)
            np.testing.assert_allclose(turned[name], once[name][[3, 0, 4, 2, 1]], atol=ATOL)


# By gradient


@pytest.mark.parametrize("site", SITES)
def test_a_gradient_is_the_slope_towards_the_clean_run(model, site):
    """Central differences along (clean - changed) at one place, in float64 (rotary positions excepted)."""
    clean, changed = versions(model)
    prompts, layer, window, head, t = ["jazz piano", None], 1, 1, 2, 0.01
    found = ms.patch(
        model, clean, changed, site, [layer, 0], 3, prompts, "slow", by="gradient", progress=False
    )
    assert "read" not in found[site].dims and found["gap"].dims == ("pair", "read")
    lm = copy.deepcopy(model.lm).double()
    sequences, kept = [model.sequence(codes) for codes in (clean, changed)], []

    def run(i, act):
        told = model.conditions([prompts, "slow"][i], 2)
        told = {name: (text.double(), mask) for name, (text, mask) in told.items()}
        handle = hook(lm, site, layer, act)
        with torch.no_grad():
            logits = lm(sequences[i][..., :-1], [], told)
        handle.remove()
        return score(logits, sequences[0][..., 1:], 3)

    goal, base = run(0, kept.append), run(1, kept.append)
    np.testing.assert_allclose(found["gap"], goal - base, atol=ATOL)

    def moved(t):
        def act(h):
            place = (slice(None), spans(9, 3)[window], head if site == "heads" else slice(None))
            h = h.clone()
            h[place] += t * (kept[0][place] - kept[1][place])
            return h

        return run(1, act).sum(1)

    slope = (moved(t) - moved(-t)) / (2 * t)
    at = {"layer": layer, "window": window} | ({"head": head} if site == "heads" else {})
    np.testing.assert_allclose(found[site].sel(at), slope, atol=ATOL, rtol=1e-3)
    assert np.abs(slope).min() > ATOL


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_gains_about_the_same(meta_folder, dtype):
    full, half = (ms.load(meta_folder, "cpu", kind) for kind in ("float32", dtype))
    clean, changed = versions(full, clips=4)
    for by in ("swap", "gradient"):
        wanted, found = (
            ms.patch(model, clean, changed, list(SITES), None, 3, "jazz", "slow", by=by, progress=False)
            for model in (full, half)
        )
        for name in wanted:
            error = np.sqrt(((found[name] - wanted[name]) ** 2).mean() / (wanted[name] ** 2).mean())
            assert error < 0.5, (by, name, float(error))


# A planted circuit

LAYER, HEAD, D, CARD = 1, 2, 32, 16


@pytest.fixture(scope="module")
def planted(meta_folder):
    """A model in which one head, of layer 1, looks at all that was, and says: that again. No other moves."""
    from omegaconf import OmegaConf

    from mechsteer.model._audiocraft import MusicGen, builders
    from mechsteer.model.model import Model

    config = lm_config() | {"device": "cpu", "dtype": "float32"}
    config["transformer_lm"] |= {"dim": D, "num_heads": 4, "num_layers": 3, "n_q": 2, "card": CARD}
    config["codebooks_pattern"]["delay"]["delays"] = [0, 1]
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(3)
        lm = builders.get_lm_model(OmegaConf.create(config))
        lm.cfg = OmegaConf.create(config)
        for emb in lm.emb:
            emb.weight.normal_()
        for layer in lm.transformer.layers:
            layer.self_attn.out_proj.weight.zero_()
            layer.cross_attention.out_proj.weight.zero_()
            layer.linear2.weight.mul_(1e-4)
        copies, d_head = lm.transformer.layers[LAYER].self_attn, D // 4
        mine = slice(HEAD * d_head, (HEAD + 1) * d_head)
        value, back = torch.randn(d_head, D) / D**0.5, torch.randn(D, d_head)
        queries, keys, values = copies.in_proj_weight.chunk(3)
        queries[mine], keys[mine], values[mine] = 0, 0, value  # all places weigh the same
        copies.out_proj.weight[:, mine] = 3 * back
        for emb, linear in zip(lm.emb, lm.linears, strict=True):
            moved = emb.weight[:CARD] @ value.T @ back.T  # what copying a token adds
            linear.weight.copy_(0.3 * moved / moved.norm(dim=1, keepdim=True))
    codec = ms.load(meta_folder, "cpu").codec
    return Model(MusicGen("planted", codec, lm), "planted")


@pytest.fixture(scope="module")
def repeated(planted):
    """A clip is one token from beginning to end; changed, another token in the first window of 4 steps."""
    token = torch.randperm(CARD, generator=torch.Generator().manual_seed(0))[:6]
    clean = token[:, None, None].expand(6, 2, 16)
    changed, other = clean.clone(), token.roll(1)[:, None]
    changed[:, 0, :3], changed[:, 1, :2] = other, other
    return clean, changed


def test_swapping_finds_the_planted_head_and_nothing_else(planted, repeated):
    assert planted.engine is not None
    found = ms.patch(planted, *repeated, ("heads", "attn", "resid", "mlp"), windows=4, progress=False)
    later = found.sel(read=[1, 2, 3])  # where all tokens are alike: only the head can tell of the others
    gap, nothing = later["gap"].values, 0.01 * float(later["gap"].min())
    assert gap.min() > 0.1
    own = gap[:, None, :] * np.eye(4)[None, :, 1:]
    first = gap[:, None, :] * np.eye(4)[0][None, :, None]
    wanted = {site: np.zeros(later[site].shape) for site in ("heads", "attn", "resid", "mlp")}
    wanted["heads"][:, LAYER, HEAD] = wanted["attn"][:, LAYER] = own  # it writes where it is read
    wanted["resid"][:, 0], wanted["resid"][:, 1], wanted["resid"][:, 2] = first, own, own
    for site, gains in wanted.items():
        np.testing.assert_allclose(later[site], gains, atol=nothing, err_msg=site)


def test_the_gradient_finds_the_planted_head_and_its_sign(planted, repeated):
    swap, slope = (
        ms.patch(planted, *repeated, ("heads", "attn", "mlp"), windows=4, by=by, progress=False)
        for by in ("swap", "gradient")
    )
    swap, slope = swap.sum("read").sel(window=[1, 2, 3]), slope.sel(window=[1, 2, 3])
    mine = {"layer": LAYER, "head": HEAD}
    share = slope["heads"].sel(mine) / swap["heads"].sel(mine)
    nothing = 0.01 * float(swap["heads"].sel(mine).min())
    assert (share > 0.4).all() and (share < 4).all(), share.values
    np.testing.assert_allclose(slope["attn"].sel(layer=LAYER), slope["heads"].sel(mine), rtol=1e-3)
    others = np.abs(slope["heads"]).max(("pair", "window"))
    others[LAYER, HEAD] = 0
    assert others.max() < nothing and np.abs(slope["mlp"]).max() < nothing


# What is refused


@pytest.mark.parametrize(
    "change, error, says",
    [
        (dict(changed=slice(0, 1)), ValueError, "2 clips of 9 frames and 1 clips of 9 frames"),
        (dict(changed=(..., slice(0, 8))), ValueError, "2 clips of 9 frames and 2 clips of 8 frames: cut"),
        (dict(windows=10), ValueError, "windows=10 isn't a whole number from 1 to 9"),
        (dict(windows=0), ValueError, "windows=0"),
        (dict(windows=1.5), ValueError, "windows=1.5"),
        (dict(sites="residual"), ValueError, "'residual' isn't one of resid, attn"),
        (dict(sites=["mlp", "head"]), ValueError, "'head' isn't one of resid, attn"),
        (dict(sites=[]), ValueError, "at least one"),
        (dict(layers=[]), ValueError, "at least one"),
        (dict(layers=99), IndexError, "no layer 99: this model has layers 0 to"),
        (dict(layers=[0, -1]), IndexError, "no layer -1"),
        (dict(by="gradients"), ValueError, "by='gradients'; choose 'swap' or 'gradient'"),
        (dict(worth=np.zeros((1, 3))), ValueError, r"\(codebook, card\), not \(1, 3\)"),
        (dict(prompts=["jazz"] * 3), ValueError, "3 prompts for 2 rows"),
        (dict(changed_prompts=["jazz"] * 3), ValueError, "3 prompts for 2 rows"),
        (dict(batch_size=0), ValueError, "batch_size=0"),
        (dict(window=3), TypeError, "no option 'window'. Did you mean 'windows'?"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_patched_is_one_sentence(model, change, error, says):
    clean, changed = versions(model)
    change = dict(change)
    if "changed" in change:
        changed = changed[change.pop("changed")]
    for by in ("swap", "gradient"):
        with pytest.raises(error, match=says) as told:
            ms.patch(model, clean, changed, **({"by": by, "windows": 2, "progress": False} | change))
        assert "\n" not in str(told.value)


def test_codes_of_another_model_are_refused(model):
    clean, changed = versions(model)
    with pytest.raises(ValueError, match=f"{model.n_codebooks} codebooks"):
        ms.patch(model, clean[:, 1:], changed[:, 1:])
    with pytest.raises(ValueError, match="codes lie in"):
        ms.patch(model, clean, changed + model.lm.card)


def test_a_pair_that_does_not_differ_is_named(model):
    clean, changed = versions(model, clips=3)
    changed[1] = clean[1]
    with pytest.raises(ValueError, match="pair 1 is the same clip twice"):
        ms.patch(model, clean, changed, prompts=["a", "jazz", None])
    with pytest.raises(ValueError, match="pair 1 is the same clip twice"):
        ms.patch(model, clean, changed, prompts="jazz", changed_prompts=["a", "jazz", None])
    found = ms.patch(model, clean, changed, "cross", 0, 1, "jazz", "slow", progress=False)
    assert found["gap"].all()


def test_a_model_with_hooks_is_patched_by_gradient_only(model):
    clean, changed = versions(model)
    run = lambda by: ms.patch(model, clean, changed, ["attn", "resid"], 1, 2, by=by, progress=False)
    plain = run("gradient")
    handle = model.lm.transformer.layers[0].register_forward_hook(lambda module, args, out: 0.5 * out)
    try:
        with pytest.raises(ValueError, match="PyTorch hooks: take the hooks off"):
            run("swap")
        hooked = run("gradient")
    finally:
        handle.remove()
    assert not np.allclose(plain["gap"], hooked["gap"]) and np.isfinite(hooked["attn"]).all()
    np.testing.assert_allclose(run("gradient")["gap"], plain["gap"], atol=1e-5)


def test_nothing_stays_on_the_model(model):
    before = model.nll(noise(model))
    for by in ("swap", "gradient"):
        ms.patch(model, *versions(model), list(SITES), 0, 2, by=by, progress=False)
        assert model.engine is not None
        assert all(p.grad is None and not p.requires_grad for p in model.lm.parameters())
    np.testing.assert_array_equal(model.nll(noise(model)), before)
