"""Models with a condition: a covariate, to which belongs what its batches have in common."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch

import sccvae
from sccvae.inference import posterior
from sccvae.inference.conditions import effects
from sccvae.modules.batch_offsets import batch_levels, centre_within_conditions

CHANGED = np.arange(0, 60, 6)


def of_donors(seed: int = 0, n_cells: int = 800, donors: int = 8):
    """Cells of donors, four of them with a drug that halves the counts of the genes `CHANGED`."""
    adata = sccvae.simulate.simulate(n_cells, 60, seed=seed)
    rng = np.random.default_rng(seed)
    donor = rng.integers(0, donors, n_cells)
    x = adata.X.toarray()
    treated = donor % 2 == 1
    some = np.ix_(treated, CHANGED)
    x[some] = rng.binomial(x[some].astype(int), 0.5)
    adata.X = sp.csr_matrix(x.astype(np.float32))
    adata.obs["donor"] = [f"donor_{k}" for k in donor]
    adata.obs["drug"] = np.where(treated, "drug", "none")
    return adata


def effect_of(model):
    return np.vstack([change for _, change, _ in effects(model._vae, model._counts, 1, (0, 1))])


@pytest.fixture(scope="module")
def trained():
    model = sccvae.SCCVAE(of_donors(), batch_key="donor", condition_key="drug")
    model.train(max_epochs=150, progress_bar=False)
    return model


def test_the_condition_is_the_last_covariate(trained):
    adata, schema = of_donors(), trained._schema
    assert schema.categorical_covariate_keys == ("drug",)
    assert schema.condition == 1
    assert np.array_equal(trained._counts.codes[:, 1], adata.obs["drug"].eq("none"))
    assert trained.describe()["parameters"]["condition_key"] == "drug"


def test_the_batches_of_a_condition_have_offsets_with_mean_zero_at_every_layer(trained):
    treated = np.array([name in {f"donor_{k}" for k in (1, 3, 5, 7)} for name in trained.batches])
    for levels in batch_levels(trained._vae):
        for batches in (treated, ~treated):
            assert levels[batches].mean(0).abs().max() < 1e-5


def test_moving_offsets_from_batches_to_conditions_changes_no_output():
    model = sccvae.SCCVAE(of_donors(n_cells=100), batch_key="donor", condition_key="drug", dropout_rate=0.0)
    for levels in model._vae.parameters():
        levels.data.add_(torch.randn(levels.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    before = posterior.latent(model._vae, model._counts), effect_of(model)
    mean = posterior.likelihood_parameters(model._vae, model._counts)["mean"]
    centre_within_conditions(model._vae, 1, model._counts.codes)
    assert np.allclose(posterior.latent(model._vae, model._counts), before[0], atol=1e-4)
    assert np.allclose(posterior.likelihood_parameters(model._vae, model._counts)["mean"], mean, rtol=1e-3)
    assert not np.allclose(effect_of(model), before[1], atol=0.1)


def test_conditions_that_share_batches_keep_their_difference():
    adata = of_donors(n_cells=100)
    adata.obs["drug"] = np.where(np.arange(100) % 2, "drug", "none")
    model = sccvae.SCCVAE(adata, batch_key="donor", condition_key="drug")
    for levels in model._vae.parameters():
        levels.data.add_(torch.randn(levels.shape, generator=torch.Generator().manual_seed(1)), alpha=0.1)
    levels = model._vae.decoder.offset.levels[1].detach().clone()
    centre_within_conditions(model._vae, 1, model._counts.codes)
    moved = model._vae.decoder.offset.levels[1].detach()
    assert torch.allclose(moved[1] - moved[0], levels[1] - levels[0], atol=1e-6)


def test_the_effect_is_that_of_the_counts_of_all_cells(trained):
    adata, found = of_donors(), effect_of(trained).mean(0)
    x, drug = adata.X.toarray(), (adata.obs["drug"] == "drug").to_numpy()
    rates = [x[cells].sum(0) / x[cells].sum() for cells in (drug, ~drug)]
    observed = np.log2(rates[0] / rates[1])
    assert (observed[CHANGED] < -0.3).all()
    assert np.corrcoef(found, observed)[0, 1] > 0.9
    assert 0.8 < (found * observed).sum() / (observed**2).sum() < 1.2


def test_samples_have_a_scatter_and_the_reverse_effect_is_the_negative(trained):
    some = trained._counts[np.arange(50)]
    genes = np.array([3, 1])
    ((rows, change, sd),) = effects(trained._vae, some, 1, (0, 1), genes, n_samples=5, seed=1)
    ((_, back, _),) = effects(trained._vae, some, 1, (1, 0), genes, n_samples=5, seed=1)
    assert rows == slice(0, 50)
    assert change.shape == sd.shape == (50, 2)
    assert (sd > 0).all()
    assert np.allclose(change, -back, atol=1e-6)


def test_a_saved_model_keeps_its_condition_and_can_be_cross_validated(trained, tmp_path):
    trained.save(tmp_path / "model")
    loaded = sccvae.SCCVAE.load(tmp_path / "model", of_donors())
    assert loaded._schema == trained._schema
    assert np.array_equal(loaded.get_latent_representation(), trained.get_latent_representation())
    table = loaded.cross_validate(options={"max_epochs": 1}, n_splits=2, progress_bar=False)
    assert "this model" in table.index


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"condition_key": "donor"}, "condition_key is 'donor', and so is batch_key; expected a column of its own"),
        ({"condition_key": "drug", "categorical_covariate_keys": ["drug"]}, "so is a categorical covariate"),
        ({"condition_key": "same"}, "condition_key is 'same', which has one value, 'a'; expected at least two"),
    ],
)
def test_a_column_that_is_no_condition_is_one_sentence(options, message):
    adata = of_donors(n_cells=60)
    adata.obs["same"] = "a"
    with pytest.raises(ValueError, match=message):
        sccvae.SCCVAE(adata, batch_key="donor", **options)


def test_an_unknown_column_is_named():
    with pytest.raises(KeyError, match="'dose'"):
        sccvae.SCCVAE(of_donors(n_cells=60), batch_key="donor", condition_key="dose")
