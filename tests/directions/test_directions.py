"""Directions: geometry against known answers, honest intervals, files that say where they belong."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import xarray as xr
from safetensors.numpy import save_file
from scipy.linalg import subspace_angles

from mechsteer.directions import files, geometry
from mechsteer.directions.find import find_directions
from mechsteer.directions.geometry import cosine, null_cosine, unit

D = 12


def noise(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def planted(groups=60, per_group=3, copies=1, strength=1.5, seed=0):
    """Isotropic activations with three classes; `copies` repeats every clip inside its group."""
    rng = np.random.default_rng(seed)
    n = groups * per_group
    style = rng.integers(0, 3, n)
    x = rng.standard_normal((n, 2, D)) + strength * np.eye(D)[style][:, None]
    repeat = lambda a: np.repeat(a, copies, axis=0)
    return xr.Dataset(
        {"resid": (("clip", "layer", "d_model"), repeat(x).astype("float32"))},
        coords={
            "layer": [0, 1],
            "group": ("clip", repeat(np.arange(n) // per_group)),
            "style": ("clip", np.array(["classical", "jazz", "rock"])[repeat(style)]),
            "jazzy": ("clip", repeat(style == 1)),
        },
        attrs={"model": "planted", "model_hash": "0123"},
    )


@pytest.fixture(scope="module")
def acts():
    return planted()


@pytest.fixture(scope="module")
def found(acts):
    return find_directions(acts, "style")


@pytest.fixture(scope="module")
def table(acts):
    return geometry.direction_cosines(acts, "style", boots=40, halves=10, progress=False)


def test_unit_and_cosine_on_arrays_and_by_name():
    a, b = noise(4, D), noise(4, D, seed=1)
    np.testing.assert_allclose(np.linalg.norm(unit(a), axis=-1), 1)
    np.testing.assert_allclose(cosine(a, 3 * a), 1)
    np.testing.assert_allclose(cosine(a, -a), -1)
    named = xr.DataArray(a, dims=("layer", "d_model"), coords={"layer": [0, 1, 2, 3]})
    other = xr.DataArray(b, dims=("concept", "d_model"))
    assert cosine(named, other).dims == ("layer", "concept")
    np.testing.assert_allclose(cosine(named, other), cosine(a[:, None], b[None]))
    with pytest.raises(ValueError, match="zero or not finite"):
        unit(np.zeros(3))


def test_cosine_with_a_metric_is_correlation_of_readings_and_cosine_after_whitening():
    x = noise(4000, D) @ noise(D, D, seed=1)
    a, b = noise(2, D, seed=2)
    sample = np.cov(x.T)
    np.testing.assert_allclose(cosine(a, b, sample), np.corrcoef(x @ a, x @ b)[0, 1], atol=1e-10)
    values, vectors = np.linalg.eigh(sample)
    whiten = vectors / np.sqrt(values) @ vectors.T
    np.testing.assert_allclose(cosine(a, b, np.linalg.inv(sample)), cosine(whiten @ a, whiten @ b), atol=1e-8)
    np.testing.assert_allclose(geometry.covariance(x), sample, rtol=0.1, atol=0.05 * np.abs(sample).max())


def test_the_null_band_is_what_random_directions_do():
    for d in (4, 64, 1024):
        low, high = null_cosine(d)
        inside = np.abs(cosine(noise(4000, d), noise(4000, d, seed=1))) < high
        assert low == -high and abs(inside.mean() - 0.95) < 0.015
    assert abs(null_cosine(1024)[1] * np.sqrt(1024) - 1.96) < 0.01
    np.testing.assert_allclose(null_cosine(64, metric=np.eye(64)), null_cosine(64), atol=0.03)
    stretched = null_cosine(64, metric=np.diag([1000.0] + [1.0] * 63))
    assert stretched[1] > 3 * null_cosine(64)[1]
    with pytest.raises(ValueError, match="1 dimension"):
        null_cosine(1)


def test_the_cosine_table(acts, table):
    pair = ["label", "concept", "layer", "method_a", "method_b"]
    assert list(table.columns) == [*pair, "cosine", "lo", "hi", "null_lo", "null_hi"]
    assert len(table) == 3 * 2 * 6  # concepts, layers, pairs with themselves
    assert table.cosine.between(table.lo, table.hi).all() and table.cosine.between(-1, 1).all()
    between = table[table.method_a != table.method_b]
    assert between.cosine.min() > 0.8  # isotropic noise: every method looks for the same direction
    assert between.lo.min() > between.null_hi.max()
    again = geometry.direction_cosines(acts, "style", boots=40, halves=10, progress=False)
    assert table.equals(again)


def test_methods_are_more_alike_with_themselves_the_more_data_they_see(table):
    more = geometry.direction_cosines(planted(groups=300), "style", boots=2, halves=10, progress=False)
    own = lambda t: t[t.method_a == t.method_b].cosine.mean()
    assert own(more) > own(table) + 0.02
    nothing = planted(strength=0.0)
    halves = geometry.direction_cosines(nothing, "jazzy", boots=2, halves=20, progress=False)
    own_nothing = halves[halves.method_a == halves.method_b]
    assert (own_nothing.cosine < own_nothing.null_hi).all()  # random labels: two halves agree on nothing
    between = halves[(halves.method_a == "mse") & (halves.method_b == "diff_of_means")]
    assert between.cosine.min() > 0.5  # though methods agree with each other, as the docstring warns


def test_uncertainty_counts_groups_not_clips():
    many = planted(groups=60, per_group=1, copies=8)
    width = lambda group: (lambda t: (t.hi - t.lo)[t.method_a != t.method_b].mean())(
        geometry.direction_cosines(
            many, "jazzy", ["mse", "diff_of_means"], group=group, boots=60, alphas=[0.1], progress=False
        )
    )
    assert width("group") > 1.8 * width(None)  # sqrt(8) = 2.8 where cosines are far from 1


def test_intervals_hold_the_true_cosine():
    rng = np.random.default_rng(0)
    mix, gap = rng.standard_normal((5, 5)) * [3, 2, 1, 0.7, 0.5], np.array([0.7, 0.7, 0.4, 0.3, 0.2])

    def sample(n, rng):
        flag = rng.random(n) < 0.5
        x = (rng.standard_normal((n, 5)) @ mix.T + flag[:, None] * gap).astype("float32")
        coords = {"layer": [0], "group": ("clip", np.arange(n)), "flag": ("clip", flag)}
        return xr.Dataset({"resid": (("clip", "layer", "d_model"), x[:, None])}, coords=coords)

    options = {"methods": ["mse", "diff_of_means"], "alphas": [0.01], "halves": 2, "progress": False}
    pick = lambda t: t[(t.method_a == "mse") & (t.method_b == "diff_of_means")].iloc[0]
    truth = pick(geometry.direction_cosines(sample(300_000, rng), "flag", boots=2, **options)).cosine
    rows = [
        pick(geometry.direction_cosines(sample(400, rng), "flag", boots=50, **options)) for _ in range(40)
    ]
    held = np.mean([row.lo <= truth <= row.hi for row in rows])
    assert held >= 0.8 and np.mean([row.hi - row.lo for row in rows]) < 1


def test_other_spaces(acts):
    read, whitened = (
        geometry.direction_cosines(acts, "jazzy", space=space, layers=[1], boots=5, halves=3, progress=False)
        for space in ("read", "whitened")
    )
    assert (read.cosine != whitened.cosine).all() and read.lo.le(read.hi).all()
    with pytest.raises(ValueError, match="space='fourier'.*raw, read, whitened"):
        geometry.direction_cosines(acts, "jazzy", space="fourier")


def test_a_class_too_rare_for_some_resamples_still_gets_an_interval():
    rare = planted(groups=40, per_group=1)
    rare = rare.assign_coords(jazzy=("clip", np.arange(40) < 3))
    table = geometry.direction_cosines(rare, "jazzy", boots=60, halves=8, progress=False)
    assert np.isfinite(table[["cosine", "lo", "hi"]]).all(axis=None)


def test_one_vs_rest_directions_lean_apart_and_methods_span_the_same(found):
    a, b = (found.rename(concept=f"concept_{side}") for side in "ab")
    between = cosine(a, b).where(a.concept_a != b.concept_b)
    assert between.dims == ("concept_a", "finder", "layer", "concept_b")
    assert abs(float(between.mean()) + 0.5) < 0.1  # -1 / (3 - 1)
    axes = lambda span: np.linalg.svd(span, full_matrices=False)[2][:2].T  # the main two: classes less one
    null = np.mean([subspace_angles(*noise(2, D, 2, seed=i)) for i in range(20)], axis=0)
    for layer in (0, 1):
        logistic, mse = (axes(found.sel(finder=name, layer=layer).values) for name in ("logistic", "mse"))
        assert (subspace_angles(logistic, mse) < null).all()


def model(**changes):
    facts = {"name": "planted", "hash": "0123", "d_model": D, "n_layers": 2, "n_heads": 4}
    return SimpleNamespace(**facts | changes)


def test_a_direction_survives_its_file(found, tmp_path):
    for one in (
        found.sel(concept="jazz", finder="mse"),
        found.sel(concept="rock", finder="diff_of_means", layer=1),
    ):
        path = files.save_direction(tmp_path / "deep" / "one.safetensors", one)
        xr.testing.assert_identical(files.load_direction(path, model()), one)
    assert {"norm", "score", "slope", "bias"} <= set(files.load_direction(path).coords)


def test_a_file_on_another_model_says_so(found, tmp_path):
    path = files.save_direction(tmp_path / "jazz.safetensors", found.sel(concept="jazz", finder="mse"))
    with pytest.raises(
        ValueError, match=r"width 12, found on planted \(0123\), can't go on large \(9\): width 20"
    ):
        files.load_direction(path, model(name="large", hash="9", d_model=20))
    with pytest.raises(ValueError, match="layer 1, found on .*1 layers"):
        files.load_direction(path, model(n_layers=1))
    with pytest.warns(UserWarning, match=r"found on planted \(0123\); tuned \(4567\) has other weights"):
        files.load_direction(path, model(name="tuned", hash="4567"))
    heads = xr.DataArray(
        noise(2, 4, 3).astype("float32"),
        dims=("layer", "head", "d_head"),
        coords={"layer": [0, 1], "norm": ("layer", [1.0, 2.0])},
        attrs={**found.attrs, "site": "heads"},
    )
    path = files.save_direction(tmp_path / "heads.safetensors", heads)
    files.load_direction(path, model())
    with pytest.raises(ValueError, match="4 heads, found on .*2"):
        files.load_direction(path, model(n_heads=2, d_model=6))


def test_a_direction_without_its_card_is_refused_not_tripped_over(found):
    one = found.sel(concept="jazz", finder="mse")
    bare = one.copy().drop_vars("layer")
    bare.attrs = {"model": "planted"}
    with pytest.raises(ValueError, match="lacks layer, site, model_hash: nobody"):
        files.check_model(bare, model())
    plain = xr.DataArray(noise(2, D), dims=("layer", "d_model"))
    with pytest.raises(ValueError, match="lacks layer, site, model, model_hash"):
        files.check_model(plain, model())
    files.check_model(one, model())


def test_a_file_is_written_in_one_step(found, tmp_path, monkeypatch):
    path = files.save_direction(tmp_path / "one.safetensors", found.sel(concept="jazz", finder="mse"))
    before = path.read_bytes()

    def full(tensors, path, metadata):
        Path(path).write_bytes(b"half of it")
        raise OSError("no space left")

    monkeypatch.setattr("safetensors.numpy.save_file", full)
    with pytest.raises(OSError, match="no space left"):
        files.save_direction(path, found.sel(concept="rock", finder="mse"))
    assert path.read_bytes() == before and list(tmp_path.iterdir()) == [path]


def test_files_that_are_no_directions(found, tmp_path):
    one = found.sel(concept="jazz", finder="mse")
    with pytest.raises(ValueError, match=r"must end in .safetensors"):
        files.save_direction(tmp_path / "jazz.npy", one)
    with pytest.raises(ValueError, match="one concept and one finder"):
        files.save_direction(tmp_path / "all.safetensors", found)
    bare = one.copy().drop_vars("norm")
    bare.attrs = {k: v for k, v in one.attrs.items() if k != "model_hash"}
    with pytest.raises(ValueError, match="lacks norm, model_hash"):
        files.save_direction(tmp_path / "bare.safetensors", bare)
    with pytest.raises(ValueError, match="NaN"):
        files.save_direction(tmp_path / "nan.safetensors", one.copy(data=one.values * np.nan))
    save_file({"weight": np.zeros(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="isn't a direction"):
        files.load_direction(tmp_path / "other.safetensors")
    for card in ({}, {"card": "{}"}, {"card": "no JSON"}, {"card": "[]"}):
        save_file({"direction": np.zeros(3)}, tmp_path / "x.safetensors", {"format": files.FORMAT, **card})
        with pytest.raises(ValueError, match="isn't a direction.*or is damaged"):
            files.load_direction(tmp_path / "x.safetensors")
    path = files.save_direction(tmp_path / "jazz.safetensors", one)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match="isn't a direction.*or is damaged"):
        files.load_direction(path)
    with pytest.raises(FileNotFoundError):
        files.load_direction(tmp_path / "nowhere.safetensors")
