"""Steering: its algebra, and its effect on generation against PyTorch hooks and nnsight written by hand."""

import dataclasses
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import xarray as xr
from by_hand import GUIDANCE, TOP_K, edit, with_hooks, with_nnsight

from mechsteer.model._vectors import digest
from mechsteer.model.effects import check, plan
from mechsteer.model.steering import Steering, to_frames, top

PROMPTS = ["jazz piano", "rock guitar", "slow violin", "fast drums"]
SEEDS = [3, 1, 4, 1]
ROWS = [
    {},
    {"branch": "cond", "start": 0.12, "stop": 0.24},
    {"branch": "uncond", "every": 3},
    {"branch": "both", "start": 0.12, "ramp": 0.12},
]
N_FRAMES = 10


def direction(layers=6, width=8, seed=0, heads=None, norm=2.0, **attrs) -> xr.DataArray:
    shape = (layers, width) if heads is None else (layers, heads, width)
    dims = ("layer", "d_model") if heads is None else ("layer", "head", "d_head")
    values = np.random.default_rng(seed).normal(size=shape)
    coords = {"layer": np.arange(layers), "norm": ("layer", norm + np.arange(layers))}
    return xr.DataArray(values, dims=dims, coords=coords, attrs=attrs)


def for_model(model, site="resid", seed=0, norm=2.0) -> xr.DataArray:
    heads = model.n_heads if site == "heads" else None
    width = model.d_head if site == "heads" else model.d_model
    return direction(model.n_layers, width, seed, heads, norm, site=site)


def tokens(model, steering=None, prompts=PROMPTS, seed=SEEDS, frames=N_FRAMES, **options) -> torch.Tensor:
    seconds = frames / model.frame_rate
    options = {"guidance": GUIDANCE, "top_k": TOP_K, "progress": False} | options
    return model.generate(prompts, seconds, seed, steering, **options).codes


@pytest.fixture(scope="module")
def plain(model) -> torch.Tensor:
    return tokens(model)


# The value


def test_direction_becomes_unit_and_keeps_norm_and_sign():
    raw = direction()
    s = Steering(raw, layers=[2, 4], strength=0.5)
    assert s.layers == (2, 4)
    np.testing.assert_allclose((s.direction**2).sum("d_model"), 1)
    np.testing.assert_allclose(s.vectors().sel(layer=4), 0.5 * 6 * raw[4] / np.linalg.norm(raw[4]))


def test_scaling_routes_agree():
    d = direction()
    for route in (
        20 * Steering(d),
        Steering(d, strength=20),
        -(Steering(d) * -20),
        Steering(7 * d, strength=20),
    ):
        xr.testing.assert_allclose(route.vectors(), Steering(d, strength=20).vectors())


def test_fusion_is_the_weighted_sum_of_vectors():
    jazz, rock = Steering(direction(seed=1)), Steering(direction(seed=2))
    fused = 0.6 * jazz + 0.4 * rock
    np.testing.assert_allclose(fused.vectors(), 0.6 * jazz.vectors() + 0.4 * rock.vectors())
    np.testing.assert_allclose((fused.direction**2).sum("d_model"), 1)
    np.testing.assert_allclose((0.5 * fused).vectors(), 0.3 * jazz.vectors() + 0.2 * rock.vectors())


def test_fusion_refuses_what_has_no_sum():
    s = Steering(direction())
    for other in (
        Steering(direction(), start=1.0),
        Steering(direction(), layers=[1]),
        Steering(direction(), mode="blend"),
    ):
        with pytest.raises(ValueError, match=r"use `\|`"):
            s + other
    with pytest.raises(ValueError, match="zero"):
        s + (-s)


def test_weights_per_layer_and_head():
    scores = xr.DataArray([0.5, 0.9, 0.7], dims="layer", coords={"layer": [0, 1, 2]})
    np.testing.assert_array_equal(top(scores, 2), [0, 1, 1])
    s = Steering(direction(3), weights=(scores - 0.5) / 0.4)
    np.testing.assert_allclose(np.linalg.norm(s.vectors(), axis=1), [0, 3, 2])
    np.testing.assert_allclose(Steering(direction(3), weights={1: 2.0}).direction.weight, [0, 2, 0])
    heads = Steering(
        direction(3, heads=2),
        site="heads",
        weights=top(xr.DataArray([[1, 2], [5, 0], [0, 0]], dims=("layer", "head")), 2),
    )
    np.testing.assert_array_equal(heads.direction.weight, [[0, 1], [1, 0], [0, 0]])


def test_plain_arrays_need_layers_and_norm():
    v = torch.randn(8)
    s = Steering(v, layers=[1, 3], norm=[2.0, 5.0])
    np.testing.assert_allclose(np.linalg.norm(s.vectors(), axis=1), [2, 5])
    assert Steering(v, layers=2, mode="remove").layers == (2,)
    with pytest.raises(ValueError, match="layers="):
        Steering(v, norm=1.0)
    with pytest.raises(ValueError, match="mean_norms"):
        Steering(v, layers=2)


def test_norms_of_all_layers_serve_a_few():
    s = Steering(torch.randn(8), layers=[1, 3], norm=np.arange(6.0))
    np.testing.assert_allclose(np.linalg.norm(s.vectors(), axis=1), [1, 3])
    per_head = Steering(
        direction(6, heads=2).drop_vars("norm"), site="heads", layers=[4], norm=np.arange(12.0).reshape(6, 2)
    )
    np.testing.assert_allclose(np.linalg.norm(per_head.vectors(), axis=2), [[8, 9]])
    with pytest.raises(ValueError, match="2 values of norm"):
        Steering(torch.randn(8), layers=[1, 3, 5], norm=[1.0, 2.0])


def test_it_is_named_after_its_concept():
    several = xr.concat([direction(seed=i) for i in range(2)], "concept").assign_coords(
        concept=["jazz", "rock"]
    )
    jazz, rock = (Steering(several.sel(concept=c), layers=3) for c in ("jazz", "rock"))
    assert "jazz at resid[3]" in repr(jazz) and "jazz + rock" in repr(0.5 * jazz + rock)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"mode": "multiply"}, "add, blend"),
        ({"branch": "left"}, "both, cond"),
        ({"site": "embedding"}, "resid, attn"),
        ({"layers": [7]}, "layers"),
        ({"start": 2.0, "stop": 1.0}, "start <= stop"),
        ({"every": 0}, "every"),
        ({"strength": float("nan")}, "finite"),
        ({"site": "heads"}, "dims"),
    ],
)
def test_bad_options_say_what_is_allowed(options, message):
    with pytest.raises(ValueError, match=message):
        Steering(direction(), **options)


def test_bad_directions_are_refused():
    with pytest.raises(ValueError, match="unit length"):
        Steering(direction() * 0)
    with pytest.raises(ValueError, match="unit length"):
        Steering(direction().where(direction().layer != 3))
    with pytest.raises(ValueError, match="read at site 'attn'"):
        Steering(direction(site="attn"), site="resid")


def test_schedule():
    s = Steering(direction(), start=0.2, stop=0.6, every=2)
    np.testing.assert_array_equal(s.schedule(8, 10), [0, 0, 1, 0, 1, 0, 0, 0])
    ramp = Steering(direction(), start=0.1, stop=0.9, ramp=0.3)
    np.testing.assert_allclose(ramp.schedule(10, 10), np.array([0, 1, 2, 3, 3, 3, 3, 2, 1, 0]) / 3)
    assert [to_frames(x, 25) for x in (0.0, 0.02, 0.06, 1.0)] == [0, 1, 2, 25]


def shape(n_layers: int) -> SimpleNamespace:
    """What `check` and `plan` ask of a model."""
    facts = dict(n_layers=n_layers, d_model=8, n_heads=2, frame_rate=25.0, device="cpu", hash="")
    return SimpleNamespace(**facts, dtype=torch.float32)


def test_a_plan_refuses_a_direction_of_another_model():
    with pytest.raises(ValueError, match="wide"):
        check([Steering(direction(width=9))], 4, shape(6), ("cond",))
    with pytest.raises(ValueError, match="layers 0 to 2"):
        check([Steering(direction())], 4, shape(3), ("cond",))


def test_a_direction_of_another_model_warns(model):
    found_here = for_model(model).assign_attrs(model_hash=model.hash)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tokens(model, Steering(found_here), frames=2)
    with pytest.warns(UserWarning, match="0123"):
        tokens(model, Steering(found_here.assign_attrs(model_hash="0123")), frames=2)


# Its effect on generation


@pytest.mark.parametrize("model", ["meta"], indirect=True)  # test_engine.py has the embedded model's
@pytest.mark.parametrize("mode", ["add", "blend", "replace", "remove"])
@pytest.mark.parametrize("site", ["resid", "attn", "heads", "mlp"])
def test_every_mode_branch_and_schedule_gives_the_tokens_of_hooks_by_hand(model, plain, site, mode):
    d, strength = for_model(model, site, norm=0.5), 0.8
    steering = [Steering(d, strength=strength, mode=mode, **options) for options in ROWS]
    unit = torch.tensor((d / np.sqrt((d**2).sum(d.dims[-1]))).values, dtype=torch.float32)
    norm = d.norm.values

    def change(h, step, layer):
        return edit(h, step, model.frame_rate, ROWS, mode, strength, norm[layer], unit[layer])

    by_hand = with_hooks(model, PROMPTS, SEEDS, N_FRAMES, site, range(model.n_layers), change)
    ours = tokens(model, steering)
    assert torch.equal(ours, by_hand)
    assert not torch.equal(ours[0], plain[0])


@pytest.mark.parametrize("site", ["resid", "attn", "heads", "mlp"])
def test_the_light_path_gives_the_tokens_of_nnsight(model, site):
    d = for_model(model, site)
    unit = torch.tensor((d / np.sqrt((d**2).sum(d.dims[-1]))).values, dtype=torch.float32)
    layers = [0, model.n_layers - 1]

    def change(h, step, layer):
        return edit(h, step, model.frame_rate, ROWS, "add", 0.8, d.norm.values[layer], unit[layer])

    in_nnsight = with_nnsight(model, PROMPTS, SEEDS, N_FRAMES, site, layers, change)
    assert torch.equal(
        tokens(model, [Steering(d, layers=layers, strength=0.8, **o) for o in ROWS]), in_nnsight
    )


@pytest.mark.filterwarnings("ignore:a steering from")
@pytest.mark.parametrize("mode", ["add", "blend", "replace", "remove"])
def test_no_strength_and_no_time_give_bit_for_bit_the_unsteered_tokens(model, plain, mode):
    s = Steering(for_model(model), mode=mode)
    far = Steering(for_model(model), mode=mode, start=100.0)
    never = Steering(for_model(model), mode=mode, start=0.1, stop=0.1)
    for off in (0 * s, never, far, *[s | -s] * (mode == "add")):
        assert torch.equal(tokens(model, off), plain)
    mixed = tokens(model, [s, None, 0 * s, far])
    assert torch.equal(mixed[1:], plain[1:]) and not torch.equal(mixed[0], plain[0])


def test_a_start_after_the_clips_end_is_told(model):
    with pytest.warns(UserWarning, match="100-end s> does nothing: its schedule holds no frame of these"):
        tokens(model, Steering(for_model(model), start=100.0))


def test_two_halves_are_the_whole_and_removing_twice_is_removing_once(model):
    s = Steering(for_model(model), strength=0.7)
    whole = tokens(model, s)
    assert torch.equal(tokens(model, 0.5 * s | 0.5 * s), whole)
    assert torch.equal(tokens(model, 0.5 * s + 0.5 * s), whole)
    gone = Steering(for_model(model), mode="remove")
    assert torch.equal(tokens(model, gone | gone), tokens(model, gone))


def test_removing_two_directions_leaves_neither():
    a, b = Steering(direction(seed=1), mode="remove"), Steering(direction(seed=2), mode="remove")
    planned = plan([a | b], 3, shape(6), halves=("cond",))
    h = planned.at(torch.randn(1, 3, 8), "resid", 4, 0)
    for s in (a, b):
        d = torch.tensor(s.direction.sel(layer=4).values, dtype=torch.float32)
        torch.testing.assert_close(h @ d, torch.zeros(1, 3), atol=1e-6, rtol=0)


def test_both_act_where_they_are(model, plain):
    first, last = 0, model.n_layers - 1
    low, high = (
        Steering(for_model(model), layers=first),
        Steering(for_model(model, seed=1), layers=last, mode="blend"),
    )
    together = tokens(model, low | high)
    assert all(not torch.equal(together, other) for other in (tokens(model, low), tokens(model, high), plain))
    planned = plan([low | high], 4, model)
    assert set(planned) == {("resid", first), ("resid", last)}


def test_steering_leaves_what_comes_before_its_start_untouched(model, plain):
    start = 6
    s = Steering(for_model(model), strength=2.0, start=start / model.frame_rate)
    steered = tokens(model, s)
    for k in range(model.n_codebooks):  # codebook k of frame t is written at step t + k
        assert torch.equal(plain[:, k, : start - k], steered[:, k, : start - k])
    assert not torch.equal(plain[..., start:], steered[..., start:])


def test_branches_matter_only_under_guidance(model):
    cond, uncond = (Steering(for_model(model), branch=b) for b in ("cond", "uncond"))
    both = tokens(model, Steering(for_model(model)), guidance=1.0)
    assert torch.equal(tokens(model, cond, guidance=1.0), both)
    assert torch.equal(tokens(model, uncond, guidance=1.0), tokens(model, guidance=1.0))
    assert not torch.equal(tokens(model, cond), tokens(model, uncond))


def test_a_teacher_forced_pass_is_steered_like_generation(model):
    """The likelihood of what a steered model wrote is higher under that steering than without it."""
    s = Steering(for_model(model), strength=12.0)
    codes = tokens(model, s, guidance=1.0, top_k=0, frames=40)
    assert (model.nll(codes, PROMPTS, s) < model.nll(codes, PROMPTS)).all()


def test_a_steering_says_all_that_it_does():
    s = Steering(direction(), start=0.0, stop=0.0, every=2, ramp=0.5, branch="cond")
    assert "0-0 s, every 2 frames, ramp 0.5 s, cond>" in repr(s)
    assert "s" not in repr(Steering(direction(), layers=3)).split(" at ")[1].removeprefix("resid")


def test_a_mode_that_needs_a_norm_is_refused_without_one_also_later():
    free = direction().drop_vars("norm")
    blend = Steering(free, mode="blend")
    for mode in ("add", "replace"):
        with pytest.raises(ValueError, match="has none.*mean_norms"):
            Steering(free, mode=mode)
        with pytest.raises(ValueError, match="has none"):
            dataclasses.replace(blend, mode=mode)
    assert dataclasses.replace(blend, mode="remove").mode == "remove"


def test_a_fusion_of_two_models_directions_keeps_both_names(model):
    here = for_model(model).assign_attrs(model_hash=model.hash, model=model.name)
    there = for_model(model, seed=1).assign_attrs(model_hash="another", model="other")
    for pair in ((here, there), (there, here)):
        with pytest.warns(UserWarning, match="fuses directions of different models"):
            fused = Steering(pair[0]) + Steering(pair[1])
        assert set(fused.direction.attrs["model_hash"].split(" + ")) == {model.hash, "another"}
        with pytest.warns(UserWarning, match="another"):
            tokens(model, fused)
    same = Steering(here) + Steering(here)
    assert same.direction.attrs["model_hash"] == model.hash


def test_the_unconditional_half_alone_at_guidance_1_warns(model):
    s = Steering(for_model(model), branch="uncond")
    with pytest.warns(UserWarning, match="does nothing: no 'uncond' half without guidance"):
        made = model.generate("jazz", 1.0, steering=[None, s], guidance=1.0, progress=False)
    assert torch.equal(made.codes[0], made.codes[1])


def test_layers_count_from_0_and_never_backwards(model):
    last = Steering(np.ones(model.d_model), layers=-1, norm=1.0)
    with pytest.raises(IndexError, match="layers 0 to"):
        model.module_of("resid", -1)
    with pytest.raises(ValueError, match="acts at layers"):
        model.generate(None, 1.0, steering=last, progress=False)


def test_two_digests_differ_where_any_option_does():
    s = Steering(direction(), strength=0.5)
    changed = (
        {"strength": 0.6},
        {"mode": "replace"},
        {"start": 0.1},
        {"stop": 2.0},
        {"every": 2},
        {"ramp": 0.1},
    )
    others = [dataclasses.replace(s, **change) for change in (*changed, {"branch": "cond"})]
    others += [Steering(direction(seed=5), strength=0.5), Steering(direction(), strength=0.5, norm=2.0)]
    assert len({digest(s), digest(s | s), *map(digest, others)}) == 2 + len(others)
    assert digest(s) == digest(Steering(direction(), strength=0.5))


def test_many_parts_are_shown_in_one_short_line():
    s = Steering(direction(), layers=3)
    assert repr(s | -s) == f"{s!r} | {-s!r}"
    many = s | s | s | s | s
    assert repr(many).endswith(" | ... (5 in all)") and repr(many).count("Steering") == 3
