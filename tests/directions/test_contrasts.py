"""Directions found by what they write: routes that must agree, and what must become likely."""

import numpy as np
import pytest
import torch
import xarray as xr

import mechsteer as ms
from mechsteer.activations.read import mean_norms

CAPTIONS = ("jazz guitar", "slow piano with drums")


def noise(model, clips, frames=16):
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, model.lm.card, (clips, model.n_codebooks, frames), generator=generator)


@pytest.mark.parametrize("site", ["resid", "heads"])
def test_caption_contrast_is_the_difference_of_two_collections(model, site):
    codes = noise(model, 3)
    d = ms.caption_contrast(model, codes, *CAPTIONS, site=site, batch_size=2)
    means = []
    for caption in CAPTIONS:
        read = []
        with torch.no_grad(), model.trace(codes, caption):
            for layer in range(model.n_layers):
                read.append(getattr(model, site)[layer][:, model.valid_steps(16)].mean((0, 1)).save())
        means.append(torch.stack(read).numpy())
    np.testing.assert_allclose(
        (d * d.found_strength * d.norm).values, means[0] - means[1], atol=2e-5 * float(d.norm.max())
    )
    back = ms.caption_contrast(model, codes, *CAPTIONS[::-1], site=site)
    xr.testing.assert_allclose(d, -back.assign_coords(norm=d.norm), atol=1e-3)
    np.testing.assert_allclose(d.norm, mean_norms(model, codes, site, CAPTIONS[1]), rtol=1e-4)


def test_captions_that_say_the_same_are_refused(model):
    with pytest.raises(ValueError, match="mean the same"):
        ms.caption_contrast(model, noise(model, 2), "guitar", "guitar")
    with pytest.raises(ValueError, match="3.*captions for 2 clips"):
        ms.caption_contrast(model, noise(model, 2), ["guitar"] * 3, "piano")


@pytest.mark.parametrize("site", ["resid", "heads"])
def test_optimised_vector_makes_its_music_likely_when_it_steers(model, site):
    """Found through nnsight, applied through steering: both must lower the same loss."""
    codes = noise(model, 1).repeat(4, 1, 1)
    options = dict(site=site, layers=[model.n_layers - 2], steps=12, batch_size=4, rate=0.1, progress=False)
    d = ms.optimised_vector(model, codes, "piano", **options)
    first, last = d.attrs["nll"]
    # the last frames' finer codebooks lie beyond a trace, so losses are compared, not numbers
    plain = model.nll(codes, "piano").mean()
    steered = model.nll(
        codes, "piano", ms.Steering(d * d.found_strength * d.norm, site=site, norm=_length(d))
    ).mean()
    assert last < first and steered < plain - 0.5 * (first - last), (first, last, plain, steered)
    again = ms.optimised_vector(model, codes, "piano", **options)
    assert np.array_equal(d.values, again.values), "the same seed finds the same vector"


def _length(d):
    return np.sqrt(np.square((d * d.found_strength * d.norm).values).sum(-1))


def test_layers_count_from_0_and_negative_ones_are_refused(model):
    codes = noise(model, 2)
    for layer in (-1, model.n_layers):
        with pytest.raises(IndexError, match=f"no layer {layer}: this model has layers 0 to"):
            ms.caption_contrast(model, codes, *CAPTIONS, layers=[layer])
        with pytest.raises(IndexError, match=f"no layer {layer}"):
            ms.optimised_vector(model, codes, "piano", layers=[layer], batch_size=2, steps=1)
    one = ms.caption_contrast(model, codes, *CAPTIONS, layers=1)
    assert one.layer.values.tolist() == [1] and one.attrs["model_hash"] == model.hash


def test_optimised_vector_wants_a_batch(model):
    with pytest.raises(ValueError, match="2 clips, 2 prompts"):
        ms.optimised_vector(model, noise(model, 2), "piano")
