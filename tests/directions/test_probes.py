"""Probes: planted directions come back, groups never leak, controls sit at chance, bad input is named."""

import numpy as np
import pytest
import xarray as xr
from sklearn.linear_model import LogisticRegression, Ridge

import mechsteer as ms
from mechsteer.directions import _labels, _solvers, find
from mechsteer.directions.find import find_directions
from mechsteer.directions.geometry import cosine, direction_cosines
from mechsteer.directions.scores import PROBES, accuracy_by_layer

D, LAYERS = 16, 2
LEADS = np.array(["flute", "guitar", "piano"])


def planted(groups=60, per_group=4, strength=2.0, seed=0, dtype="float32"):
    """Activations with a class, a flag (one per group) and a value planted along orthogonal directions."""
    rng = np.random.default_rng(seed)
    n = groups * per_group
    group = np.repeat(np.arange(groups), per_group)
    lead, drums = rng.integers(0, 3, n), (rng.random(groups) < 0.5)[group]
    tempo = rng.uniform(60, 180, n)
    axes = np.linalg.qr(rng.standard_normal((D, 5)))[0].T
    x = rng.standard_normal((n, LAYERS, D)) + 3
    signal = axes[lead] + np.outer(drums, axes[3]) + np.outer((tempo - 120) / 60, axes[4])
    x[:, 1] += strength * signal  # layer 0 knows nothing
    acts = xr.Dataset(
        {"resid": (("clip", "layer", "d_model"), x.astype(dtype))},
        coords={
            "clip": [f"clip{i}" for i in range(n)],
            "layer": np.arange(LAYERS),
            "group": ("clip", [f"score{g}" for g in group]),
            "lead": ("clip", LEADS[lead]),
            "drums": ("clip", drums),
            "tempo": ("clip", tempo),
        },
        attrs={"model": "planted", "model_hash": "0123", "site": "resid", "pool": "mean"},
    )
    return acts, axes


@pytest.fixture(scope="module")
def acts():
    return planted()[0]


@pytest.fixture(scope="module")
def table(acts):
    return accuracy_by_layer(acts, ["lead", "drums", "tempo"], folds=4, progress=False)


def mean(table, **where):
    for column, value in where.items():
        table = table[table[column] == value]
    assert len(table)
    return table["score"].mean()


@pytest.mark.parametrize("method", [name for name in _solvers.METHODS if name != "random"])
def test_every_method_recovers_planted_directions_with_their_sign(method):
    acts, axes = planted(groups=150)
    expected = {("drums", "drums"): axes[3]}
    for i, lead in enumerate(LEADS):
        expected["lead", lead] = axes[i] - axes[[j for j in range(3) if j != i]].mean(0)
    if method != "logistic":
        expected["tempo", "tempo"] = axes[4]
    for (label, concept), axis in expected.items():
        found = find_directions(acts, label, [method]).sel(concept=concept, finder=method, layer=1)
        assert cosine(found.values, axis) > 0.93, (label, concept)


def test_a_direction_is_unit_and_its_probe_can_be_applied(acts):
    found = find_directions(acts, "drums")
    np.testing.assert_allclose(np.linalg.norm(found, axis=-1), 1, atol=1e-5)
    read = lambda d: d["slope"] * xr.dot(acts["resid"], d, dim="d_model") + d["bias"]
    scores = read(found).sel(concept="drums", layer=1)
    for finder in PROBES:
        assert ((scores.sel(finder=finder) > 0) == acts.drums).mean() > 0.8
    by_hand = acts.resid.sel(layer=1).values @ found.sel(concept="drums", finder="mse", layer=1).values
    probe = found.sel(concept="drums", finder="mse", layer=1)
    undecided = float(-probe.bias / probe.slope)
    np.testing.assert_array_equal(by_hand > undecided, scores.sel(finder="mse") > 0)
    tempo = find_directions(acts, "tempo", ["mse"])
    heard = read(tempo).sel(concept="tempo", finder="mse", layer=1)
    assert abs(float((heard - acts.tempo).mean())) < 3  # beats per minute
    assert float(tempo.sel(layer=1).score.squeeze()) > 0.5 > float(tempo.sel(layer=0).score.squeeze())


def test_directions_carry_what_steering_needs(acts):
    found = find_directions(acts, "lead", layers=[1])
    assert found.dims == ("concept", "finder", "layer", "d_model") and found.shape == (3, 3, 1, D)
    assert (
        found.attrs["site"] == "resid"
        and found.attrs["model_hash"] == "0123"
        and found.attrs["label"] == "lead"
    )
    norm = np.linalg.norm(acts.resid.sel(layer=1), axis=-1).mean()
    np.testing.assert_allclose(found.norm.sel(layer=1), norm, rtol=1e-5)
    steering = ms.Steering(found.sel(concept="guitar", finder="mse"), strength=0.5)
    np.testing.assert_allclose(np.linalg.norm(steering.vectors().sel(layer=1)), 0.5 * norm, rtol=1e-5)
    before_pooling = acts.assign_coords(resid_norm=("layer", [7.0, 8.0]))
    np.testing.assert_array_equal(find_directions(before_pooling, "lead", ["mse"]).norm, [7, 8])


def test_one_signature_for_arrays(acts):
    x, groups = acts.resid.sel(layer=1).values, acts.group.values
    for method in _solvers.METHODS:
        found = find.fit_direction(x, acts.lead.values, method, groups)
        assert found.dims == ("concept", "d_model") and list(found.concept.values) == list(LEADS)
    both = find_directions(acts, "lead", ["mse"], layers=[1]).squeeze("layer").sel(finder="mse")
    np.testing.assert_allclose(find.mse(x, acts.lead.values, groups), both, atol=1e-6)
    two = find.logistic(x, np.where(acts.drums, "with", "without"))
    np.testing.assert_allclose(two.sel(concept="with"), -two.sel(concept="without"), atol=0.01)


def test_solvers_agree_with_scikit_learn():
    rng = np.random.default_rng(1)
    x = rng.standard_normal((300, 12)) @ rng.standard_normal((12, 12)) + 5
    y = np.where(rng.standard_normal((300, 3)) + (x[:, :3] - 5) > 0.7, 1, -1).astype("float32")
    design = _solvers.prepare(x)
    z = (x - x.mean(0)) / x.std(0)
    w_ridge, _ = _solvers.solve_mse(design, y)
    w_logistic, b_logistic = _solvers.solve_logistic(design, y)
    for i, alpha in enumerate(_solvers.ALPHAS):
        for k in range(3):
            ridge = Ridge(alpha * len(x)).fit(z, y[:, k]).coef_ / x.std(0)
            np.testing.assert_allclose(w_ridge[i, :, k], ridge, atol=2e-3 * np.abs(ridge).max())
            theirs = LogisticRegression(C=1 / (alpha * len(x)), tol=1e-8, max_iter=5000).fit(z, y[:, k])
            ours = x @ w_logistic[i, :, k] + b_logistic[i, k]
            np.testing.assert_allclose(ours, theirs.decision_function(z), atol=0.01 * np.abs(ours).max())


def test_logistic_probes_converge_where_a_plane_separates_the_classes():
    """There first-order methods crawl: stopped early, they read as well and point elsewhere."""
    rng = np.random.default_rng(4)
    x = (
        rng.standard_normal((400, 120))
        * np.geomspace(8, 0.05, 120)
        @ np.linalg.qr(rng.standard_normal((120, 120)))[0]
    )
    normal = np.linalg.qr(rng.standard_normal((120, 1)))[0][:, 0]
    y = np.where(x @ normal > 1.0, 1, -1).astype("float32")[:, None]
    for standardize in ("feature", "layer"):
        design = _solvers.prepare(x, standardize=standardize)
        path, _ = _solvers.solve_logistic(design, y, (1.0, 1e-2, 1e-4, 1e-6))
        for w, alpha in zip(path, (1.0, 1e-2, 1e-4, 1e-6), strict=True):
            theirs = LogisticRegression(
                C=1 / (alpha * len(x)), tol=1e-10, solver="newton-cholesky", max_iter=1000
            )
            theirs = theirs.fit((x - design.mean) / design.scale, y[:, 0]).coef_[0] / design.scale
            assert cosine(w[:, 0], theirs) > 0.999
            assert np.linalg.norm(w[:, 0]) == pytest.approx(np.linalg.norm(theirs), rel=0.02)
            alone, _ = _solvers.solve_logistic(design, y, [alpha])  # from nothing, as find_directions does
            assert cosine(alone[0, :, 0], theirs) > 0.999
    with pytest.warns(RuntimeWarning, match="not converged"):
        _solvers.solve_logistic(design, y, [1e-6], tol=-1.0)  # which nothing can meet


def test_scaling_shifting_and_rotating_activations_move_directions_as_they_must():
    x, y = planted()[0].resid.sel(layer=1).values.astype(float), planted()[0].drums.values
    rng = np.random.default_rng(2)
    rotation = np.linalg.qr(rng.standard_normal((D, D)))[0]
    stretch = rng.uniform(0.2, 5, D)
    for method in PROBES:
        fit = lambda x, scaling="feature": find.fit_direction(x, y, method, standardize=scaling).values[0]  # noqa: B023
        assert cosine(fit(x), fit(100 * x + 7)) > 0.9999
        stretched = fit(x) * stretch if method == "diff_of_means" else fit(x) / stretch
        assert cosine(stretched, fit(x * stretch)) > 0.9999
        assert cosine(fit(x, "layer") @ rotation.T, fit(x @ rotation.T, "layer")) > 0.9999
    assert cosine(fit(x) @ rotation.T, fit(x @ rotation.T)) > 0.9999  # diff_of_means whatever the scaling


def test_folds_never_share_a_group_and_ignore_the_labels(acts):
    for seed in range(5):
        groups = np.random.default_rng(seed).integers(0, 23, 200)
        for folds in (2, 5):
            fold = _labels.fold_of(groups, folds, seed)
            assert set(fold) == set(range(folds))
            assert all(len(set(fold[groups == g])) == 1 for g in set(groups))
    lead, groups = _labels.read_target(acts, "lead"), _labels.read_groups(acts)
    stratified = _labels.fold_of(groups, 5, 0, lead)
    assert all(len(set(stratified[groups == g])) == 1 for g in set(groups))
    with pytest.raises(ValueError, match="cannot stratify by 'tempo'"):
        _labels.fold_of(groups, 5, 0, _labels.read_target(acts, "tempo"))


def test_a_label_that_only_the_group_knows_scores_at_chance_unless_groups_are_ignored():
    rng = np.random.default_rng(3)
    group = np.repeat(np.arange(80), 5)
    x = rng.standard_normal((80, 1, D))[group] + 0.1 * rng.standard_normal(
        (400, 1, D)
    )  # a fingerprint per group
    acts = xr.Dataset(
        {"resid": (("clip", "layer", "d_model"), x)},
        coords={"layer": [0], "group": ("clip", group), "odd": ("clip", rng.permutation(80)[group] % 2 == 1)},
    )
    kept = accuracy_by_layer(acts, "odd", progress=False)
    leaked = accuracy_by_layer(acts, "odd", group=None, progress=False)
    for method in PROBES:
        assert abs(mean(kept, metric="auc", method=method) - 0.5) < 0.15
        assert mean(leaked, metric="auc", method=method) > mean(kept, metric="auc", method=method) + 0.1


def test_the_table_has_every_control(acts, table):
    what, where = ["model", "label", "concept"], ["site", "layer", "method", "metric", "fold", "rows"]
    assert list(table.columns) == [*what, *where, "score", "chance", "shuffled"]
    assert set(table.fold) == set(range(4)) and set(table.layer) == {0, 1} and set(table.site) == {"resid"}
    assert set(table.concept[table.label == "lead"]) == {*LEADS, "all"}
    assert set(table.metric[table.label == "tempo"]) == {"r2"}
    assert set(table.method[table.label == "tempo"]) == {"mse", "diff_of_means"}
    assert not table.duplicated(["label", "concept", "layer", "method", "metric", "fold"]).any()
    for method in PROBES:
        assert mean(table, label="lead", concept="all", layer=1, method=method, metric="accuracy") > 0.7
        assert mean(table, label="drums", layer=1, method=method, metric="auc") > 0.85
        assert abs(mean(table, label="drums", layer=0, method=method, metric="auc") - 0.5) < 0.12
    shuffled = table[table.layer == 1].groupby(["label", "concept", "metric"])["shuffled"].mean()
    assert abs(shuffled["lead", "all", "accuracy"] - 1 / 3) < 0.12
    assert abs(shuffled["drums", "drums", "auc"] - 0.5) < 0.15
    assert shuffled["tempo", "tempo", "r2"] < 0.1
    chance = table.groupby(["label", "concept", "metric"])["chance"].mean()
    assert chance["lead", "all", "balanced_accuracy"] == pytest.approx(1 / 3)
    assert 0.2 < chance["lead", "all", "accuracy"] < 0.5 and chance["drums", "drums", "auc"] == 0.5


def test_a_score_is_the_same_alone_and_beside_other_labels(acts, table):
    alone = accuracy_by_layer(acts, "drums", folds=4, progress=False)
    beside = table[table.label == "drums"].reset_index(drop=True)
    keys = ["layer", "method", "metric", "fold"]
    a, b = (t.set_index(keys)[["score", "chance", "shuffled"]].sort_index() for t in (alone, beside))
    np.testing.assert_allclose(a, b, atol=0.03)
    again = accuracy_by_layer(acts, "drums", folds=4, progress=False)
    assert again.equals(alone)


def test_random_directions_read_little(acts):
    table = accuracy_by_layer(acts, "drums", ["mse", "random"], layers=[1], progress=False)
    assert mean(table, method="random", metric="auc") < mean(table, method="mse", metric="auc") - 0.1


def test_shuffling_keeps_the_level_at_which_a_label_varies(acts):
    groups = _labels.read_groups(acts)
    per_group = lambda t: [len(np.unique(t.y[groups == g])) for g in np.unique(groups)]
    drums, lead = (_labels.read_target(acts, name) for name in ("drums", "lead"))
    moved = _labels.shuffled(drums, groups, 1)
    assert max(per_group(moved)) == 1 and not np.array_equal(moved.y, drums.y)
    moved = _labels.shuffled(lead, groups, 1)
    np.testing.assert_array_equal(np.sort(moved.y.argmax(1)), np.sort(lead.y.argmax(1)))
    assert not np.array_equal(moved.y, lead.y)
    beat = _labels.as_target(np.arange(12).reshape(3, 4) % 5 == 0, "beat")
    courses = {tuple(row) for row in beat.y[..., 0]}
    assert {tuple(row) for row in _labels.shuffled(beat, np.arange(3), 1).y[..., 0]} == courses
    gaps = _labels.as_target(np.array(["a", None, "b", "a", ""] * 4, object), "x")
    moved = _labels.shuffled(gaps, np.arange(20), 1)
    np.testing.assert_array_equal(np.isnan(moved.y), np.isnan(gaps.y))


def test_heads_are_scored_one_by_one():
    rng = np.random.default_rng(4)
    flag = rng.random(200) < 0.5
    x = rng.standard_normal((200, 2, 3, 8))
    x[flag, 1, 2, 0] += 3
    acts = xr.Dataset(
        {"heads": (("clip", "layer", "head", "d_head"), x)},
        coords={
            "layer": [4, 7],
            "head": [0, 1, 2],
            "group": ("clip", np.arange(200) // 2),
            "flag": ("clip", flag),
        },
    )
    table = accuracy_by_layer(acts, "flag", ["mse"], site="heads", shuffles=0, progress=False)
    auc = table[table.metric == "auc"].groupby(["layer", "head"])["score"].mean()
    assert auc.idxmax() == (7, 2) and auc[7, 2] > 0.9 and auc.drop((7, 2)).max() < 0.65
    assert table["shuffled"].isna().all()
    found = find_directions(acts, "flag", ["mse"], site="heads")
    assert found.dims == ("concept", "finder", "layer", "head", "d_head") and found.norm.dims == (
        "layer",
        "head",
    )
    assert abs(float(found.sel(layer=7, head=2).squeeze()[0])) > 0.95


def test_frames_with_several_flags_and_padding():
    rng = np.random.default_rng(5)
    sounding = rng.random((40, 30, 3)) < 0.3
    axes = np.linalg.qr(rng.standard_normal((D, 3)))[0].T
    x = rng.standard_normal((40, 2, 30, D)) + 3 * (sounding @ axes)[:, None]
    x[:, :, 25:] = np.nan  # clips end here
    acts = xr.Dataset(
        {"resid": (("clip", "layer", "frame", "d_model"), x.astype("float32"))},
        coords={"layer": [0, 1], "group": ("clip", np.arange(40) // 2), "pitch": ["C", "D", "E"]},
    ).assign(sounding=(("clip", "frame", "pitch"), sounding), key=("clip", np.arange(40) % 2 == 0))
    table = accuracy_by_layer(acts, ["sounding", "key"], ["logistic", "mse"], max_rows=600, progress=False)
    assert set(table.concept) == {"C", "D", "E", "key"}
    assert mean(table, label="sounding", metric="auc") > 0.9
    assert abs(table[(table.label == "sounding") & (table.metric == "auc")]["shuffled"].mean() - 0.5) < 0.1
    found = find_directions(acts, "sounding", ["mse"], max_rows=600)
    assert (
        min(cosine(found.sel(concept=c, layer=1).values[0], a) for c, a in zip("CDE", axes, strict=True))
        > 0.9
    )
    pooled = acts.assign(resid=acts.resid.mean("frame"))
    with pytest.raises(ValueError, match="'sounding' has a value per frame but the activations are pooled"):
        find_directions(pooled, "sounding")


@pytest.mark.parametrize("site", ["resid", "heads"])
def test_the_input_is_a_site_of_its_own_and_has_no_layer(acts, site):
    with_input = acts.assign(input=(("clip", "feature"), np.random.default_rng(6).standard_normal((240, 5))))
    halves = acts.resid.values.reshape(240, LAYERS, 2, D // 2)
    with_input = with_input.assign(heads=(("clip", "layer", "head", "d_head"), halves))
    table = accuracy_by_layer(with_input, "drums", ["mse"], site=site, progress=False)
    inside, outside = table[table.site == site], table[table.site == "input"]
    assert len(inside) and len(outside) and len(inside) + len(outside) == len(table)
    for place in ("layer", "head") if site == "heads" else ("layer",):
        assert str(table[place].dtype) == "Int64" and outside[place].isna().all()
        assert set(inside[place]) == {0, 1}
    assert mean(table, site="input", metric="auc") < 0.65 < mean(table, site=site, layer=1, metric="auc")


def test_values_and_classes_share_a_call(acts, table):
    """Numbers are fitted apart from classes on the same rows, and score as they do alone."""
    alone = accuracy_by_layer(acts, "tempo", folds=4, progress=False)
    beside = table[table.label == "tempo"].reset_index(drop=True)
    assert alone.equals(beside)


def test_options_of_the_fit_are_said_once_and_typos_are_told(acts):
    x, y = acts.resid.sel(layer=1).values, acts.drums.values
    options = {"alphas": [0.1], "folds": 2, "standardize": "layer", "seed": 3}
    here = find_directions(acts, "drums", ["mse"], layers=[1], group=None, **options)
    np.testing.assert_array_equal(here.squeeze().values, ms.mse(x, y, **options).squeeze().values)
    assert float(ms.logistic(x, y, alphas=[0.1]).alpha.item()) == 0.1
    for call, name, meant in (
        (lambda **k: ms.mse(x, y, **k), "group", "groups"),
        (lambda **k: find_directions(acts, "drums", **k), "alpha", "alphas"),
        (lambda **k: accuracy_by_layer(acts, "drums", **k), "inner_fold", "inner_folds"),
        (lambda **k: direction_cosines(acts, "drums", **k), "method", "methods"),
    ):
        with pytest.raises(TypeError, match=f"has no option {name!r}. Did you mean {meant!r}"):
            call(**{name: None})
    with pytest.raises(
        TypeError, match=r"find_directions\(\) has no option 'colour'. It takes acts, .*alphas, folds"
    ):
        find_directions(acts, "drums", colour="red")


def test_gaps_in_a_label_drop_those_clips_only(acts):
    gap = np.arange(acts.sizes["clip"]) % 3 == 0
    holey = acts.assign_coords(
        lead=("clip", np.where(gap, None, acts.lead.values)),
        tempo=acts.tempo.where(xr.DataArray(~gap, dims="clip")),
    )
    for label in ("lead", "tempo"):
        with_gaps = find_directions(holey, label, ["mse"], group=None, alphas=[0.1])
        without = find_directions(acts.isel(clip=~gap), label, ["mse"], group=None, alphas=[0.1])
        assert np.isfinite(with_gaps).all() and (with_gaps.alpha == 0.1).all()
        np.testing.assert_allclose(with_gaps, without, atol=1e-5)
    table = accuracy_by_layer(holey, ["lead", "drums"], ["mse"], progress=False)
    assert set(table.label) == {"lead", "drums"}


def test_kinds_are_told_apart_and_can_be_overruled():
    kind = lambda values, **k: _labels.as_target(np.array(values), "x", **k).kind
    assert kind(["a", "b", "a"]) == "class" and kind([True, False]) == "flag" and kind([0, 1, 1]) == "flag"
    assert (
        kind([0.5, 1.5]) == "value" and kind(np.arange(12)) == "class" and kind(np.arange(60, 180)) == "value"
    )
    assert kind([0.0, 3.0, np.nan, 11.0]) == "class"  # a tonic with a gap
    assert kind(np.array([True, None, False], object)) == "flag"
    assert kind(np.arange(12), kind="value") == "value"
    assert _labels.as_target(np.array([10, 9, 2]), "x").concepts == ("2", "9", "10")


def test_half_precision_and_constant_features_are_fine():
    acts, axes = planted(dtype="float16")
    acts.resid[..., 3] = 500.0
    found = find_directions(acts, "drums", layers=[1])
    assert np.abs(found[..., 3]).max() < 1e-6
    rest = np.arange(D) != 3
    assert cosine(found.sel(finder="mse").values[0, 0, rest], axes[3, rest]) > 0.85


def test_a_store_on_disk_reads_like_memory(acts, tmp_path):
    acts.to_zarr(tmp_path / "acts.zarr")
    with xr.open_zarr(tmp_path / "acts.zarr", chunks=None) as stored:
        xr.testing.assert_identical(
            find_directions(stored, "lead", ["mse"]), find_directions(acts, "lead", ["mse"])
        )


@pytest.mark.parametrize(
    ("change", "call", "message"),
    [
        ({}, {"label": "leed"}, "no label 'leed' on clip. Did you mean 'lead'"),
        ({}, {"label": "lead", "methods": ["logstic"]}, "unknown method.*logstic.*Did you mean 'logistic'"),
        ({}, {"label": "genre"}, "no label 'genre'.*drums, group, lead, tempo"),
        ({}, {"label": "lead", "site": "attn"}, "no site 'attn'.*resid"),
        ({}, {"label": "lead", "layers": [1, 9]}, r"no layer \[9\].*0, 1"),
        ({}, {"label": "lead", "methods": ["svm"]}, "unknown method.*svm.*logistic, mse, diff_of_means"),
        ({}, {"label": "tempo", "methods": ["logistic"]}, "logistic needs classes, and 'tempo' is a number"),
        ({}, {"label": "lead", "group": "track"}, "no coordinate 'track' on clip"),
        ({}, {"label": "lead", "standardize": "batch"}, "standardize='batch'"),
        ({}, {"label": "lead", "alphas": [0.0]}, "above 0"),
        ({"lead": "piano"}, {"label": "lead"}, "one value only"),
        ({"lead": ""}, {"label": "lead"}, "no value at all"),
        ({"group": "one"}, {"label": "lead"}, "3 folds need.*1 groups"),
        ({"nan": True}, {"label": "lead"}, "1 of 240 rows of activations hold NaN"),
        ({"flat": True}, {"label": "lead"}, "do not vary"),
    ],
)
def test_bad_input_is_named(acts, change, call, message):
    bad = acts.copy(deep=True)
    if "nan" in change:
        bad.resid[5, 0, 0] = np.nan
    elif "flat" in change:
        bad.resid[:] = 1
    else:
        bad = bad.assign_coords({k: ("clip", np.full(240, v)) for k, v in change.items()})
    with pytest.raises(ValueError, match=message):
        find_directions(bad, **call)


def test_a_class_in_too_few_groups_is_named(acts):
    rare = acts.assign_coords(lead=("clip", np.where(np.arange(240) < 4, "harp", acts.lead.values)))
    with pytest.raises(ValueError, match="'lead' = 'harp' doesn't vary in the training part of fold"):
        accuracy_by_layer(rare, "lead", progress=False)
