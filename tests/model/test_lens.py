"""The codebook lens: its last layer is the model, and each of its numbers is what its name says."""

import numpy as np
import pytest
import torch

import mechsteer as ms
from mechsteer.model.sites import hook

TEXTS = ["jazz piano", None, "rock guitar with fast drums and a violin solo", "slow", "a"]


def noise(model, clips=3, frames=14, seed=7) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, model.lm.card, (clips, model.n_codebooks, frames), generator=generator)


@torch.no_grad()
def predicted(model, codes, prompts=None):
    """Logits (clip, codebook, frame, card) where audiocraft itself puts them, and where all are predicted."""
    out = model.lm.compute_predictions(codes, [], model.conditions(prompts, len(codes)))
    return out.logits, out.mask.all((0, 1))


@torch.no_grad()
def in_order(model, codes, prompts):
    """One pass over the delay pattern."""
    return model.lm(model.sequence(codes), [], model.conditions(prompts, len(codes)))


def last(found):
    return found.isel(layer=-1)


@pytest.mark.parametrize("prompts", [None, "jazz piano", ["slow", None, "jazz"]], ids=str)
def test_the_last_layer_is_the_model(model, prompts):
    codes = noise(model)
    logits, all_predicted = predicted(model, codes, prompts)
    frames = codes.shape[-1] - (model.n_codebooks - 1)
    assert all_predicted.tolist() == [True] * frames + [False] * (model.n_codebooks - 1)
    whole = ms.lens(model, codes, prompts)
    for values in whole.values():
        assert values.dims == ("clip", "layer", "codebook", "frame")
        assert values.shape == (3, model.n_layers, model.n_codebooks, frames)
    found = last(whole)
    true, logits = codes[..., :frames], logits[..., :frames, :]
    loss = torch.nn.functional.cross_entropy(logits.permute(0, 3, 1, 2), true, reduction="none")
    np.testing.assert_allclose(-np.log(found["probability"]), loss, atol=1e-3)
    np.testing.assert_array_equal(found["choice"], logits.argmax(-1))
    own = logits.gather(-1, true[..., None])
    np.testing.assert_array_equal(found["rank"], (logits > own).sum(-1))


def test_where_no_frame_is_left_out_the_mean_is_nll(model):
    """What `nll` means over all that is predicted: the lens' frames, and the first codebooks of the rest."""
    codes = noise(model)
    found = last(ms.lens(model, codes, "jazz"))["probability"].values
    logits, _ = predicted(model, codes, "jazz")
    losses = [-np.log(found).reshape(len(codes), -1)]
    for frame in range(found.shape[-1], codes.shape[-1]):
        books = codes.shape[-1] - frame  # codebook k of frame t is predicted where t + k is a frame
        chosen = logits[:, :books, frame].log_softmax(-1).gather(-1, codes[:, :books, frame, None])
        losses.append(-chosen[..., 0].numpy())
    np.testing.assert_allclose(np.concatenate(losses, 1).mean(1), model.nll(codes, "jazz"), rtol=1e-4)


@torch.no_grad()
def test_every_layer_is_its_stream_through_the_models_own_head(model):
    """By hand: the stream at step t + k, which codebook k of frame t is predicted at."""
    codes, kept = noise(model, clips=2), []
    found = ms.lens(model, codes, TEXTS[:2])
    for layer in range(model.n_layers):
        handle = hook(model.lm, "resid", layer, kept.append)
        in_order(model, codes, TEXTS[:2])
        handle.remove()
        h = model.lm.out_norm(kept[-1])
        for k in range(model.n_codebooks):
            logits = model.lm.linears[k](h)[:, k : k + found.sizes["frame"]]
            true = codes[:, k, : found.sizes["frame"], None]
            at = found.isel(layer=layer, codebook=k)
            np.testing.assert_allclose(
                at["probability"], logits.softmax(-1).gather(-1, true)[..., 0], atol=1e-5
            )
            order = logits.argsort(-1, descending=True)
            np.testing.assert_array_equal(at["choice"], order[..., 0])
            np.testing.assert_array_equal(at["rank"], (order == true).int().argmax(-1))
    assert not np.allclose(found["probability"].isel(layer=0), found["probability"].isel(layer=-1))


def test_what_each_layer_would_play_is_sound(model):
    found = ms.lens(model, noise(model))
    audio = model.decode(found["choice"].sel(layer=0).values)
    assert audio.shape[0] == 3 and np.isfinite(audio).all()


def test_maps_act_on_the_stream_before_the_head(model):
    codes, kept = noise(model), []
    plain = ms.lens(model, codes, "jazz")
    same = ms.lens(model, codes, "jazz", maps=[lambda h: h] * model.n_layers)
    for name in plain:
        np.testing.assert_array_equal(same[name], plain[name])

    handle = hook(model.lm, "resid", model.n_layers - 1, kept.append)
    in_order(model, codes, "jazz")
    handle.remove()
    assert kept[0].shape == (3, codes.shape[-1] + 1, model.d_model)
    moved = ms.lens(model, codes, "jazz", maps=[lambda h: h + (kept[0] - h)] * model.n_layers)
    for layer in range(model.n_layers):
        np.testing.assert_allclose(
            moved["probability"].isel(layer=layer), last(plain)["probability"], atol=1e-5
        )

    first = [lambda h: h] * (model.n_layers - 1) + [torch.zeros_like]  # each layer has its own
    ends = ms.lens(model, codes, "jazz", maps=first)
    np.testing.assert_array_equal(
        ends["rank"].isel(layer=slice(None, -1)), plain["rank"].isel(layer=slice(None, -1))
    )
    assert not np.allclose(last(ends)["probability"], last(plain)["probability"])


def test_a_layer_that_says_nothing_chooses_the_same_everywhere(model):
    """An empty stream leaves what the head says anyway; ranks are those of its probabilities."""
    codes = noise(model)
    found = ms.lens(model, codes, maps=[torch.zeros_like] * model.n_layers)
    assert (found["choice"] == found["choice"].isel(clip=0, layer=0, frame=0)).all()
    true = codes[:, None, :, : found.sizes["frame"]].numpy()
    first = found["probability"].where(found["choice"] == true)
    assert (found["rank"].where(first.notnull(), 0) == 0).all()


def test_the_batch_and_the_order_of_clips_change_nothing(model):
    codes = noise(model, clips=5)
    whole = ms.lens(model, codes, TEXTS)
    for size in (1, 2, 32):
        parts = ms.lens(model, codes, TEXTS, batch_size=size)
        np.testing.assert_allclose(parts["probability"], whole["probability"], atol=1e-5)
        np.testing.assert_array_equal(parts["choice"], whole["choice"])
    order = [3, 0, 4, 2, 1]
    turned = ms.lens(model, codes[order], [TEXTS[k] for k in order], batch_size=2)
    np.testing.assert_allclose(turned["probability"], whole["probability"][order], atol=1e-5)


def test_prompts_matter(model):
    codes = noise(model)
    untold, told = ms.lens(model, codes), ms.lens(model, codes, "jazz piano")
    each = ms.lens(model, codes, ["jazz piano", None, None])
    assert not np.allclose(untold["probability"], told["probability"], atol=1e-6)
    for row, wanted in enumerate((told, untold, untold)):
        np.testing.assert_allclose(each["probability"][row], wanted["probability"][row], atol=1e-5)


def test_the_shortest_clip_has_one_frame(model):
    assert ms.lens(model, noise(model, frames=model.n_codebooks)).sizes["frame"] == 1
    with pytest.raises(ValueError, match=f"clips of {model.n_codebooks - 1} frames are no longer than"):
        ms.lens(model, noise(model, frames=model.n_codebooks - 1))


@pytest.mark.parametrize(
    "options, error, says",
    [
        (dict(maps=[lambda h: h] * 2), ValueError, r"2 maps for \d layers; give one each"),
        (dict(prompts=["jazz"] * 2), ValueError, "2 prompts for 3 rows"),
        (dict(batch_size=0), ValueError, "batch_size=0"),
        (dict(codes=torch.zeros(3, 1, 14, dtype=torch.long)), ValueError, "codebooks"),
        (dict(map=None), TypeError, "no option 'map'. Did you mean 'maps'?"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_cannot_be_read_is_one_sentence(model, options, error, says):
    with pytest.raises(error, match=says) as told:
        ms.lens(model, **({"codes": noise(model)} | options))
    assert "\n" not in str(told.value)


def test_nothing_stays_on_the_model(model):
    ms.lens(model, noise(model))
    assert model.engine is not None

    def broken(h):
        raise KeyError("a map of the user's")

    with pytest.raises(KeyError, match="user's"):
        ms.lens(model, noise(model), maps=[broken] * model.n_layers)
    assert model.engine is not None


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_reads_about_the_same(meta_folder, dtype):
    full, half = (ms.load(meta_folder, "cpu", kind) for kind in ("float32", dtype))
    wanted, found = (ms.lens(model, noise(full))["probability"] for model in (full, half))
    np.testing.assert_allclose(np.log(found), np.log(wanted), atol=0.1)
