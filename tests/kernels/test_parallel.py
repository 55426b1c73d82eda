"""Threads and forks: neither the fitted model nor any output depends on the number of threads, and a fork goes on."""

import itertools
import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import threads
from threadpoolctl import threadpool_limits

import sccvae
from sccvae.kernels import parallel
from sccvae.kernels.parallel import LEAST_COLUMNS, MOST_COLUMNS, affine, alone, blocks_of, each_alone, multiply, share


def in_a_process(script: str, n_threads: int) -> None:
    """Run a script that has so many threads; it must end."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(n_threads)}
    options = {
        "capture_output": True,
        "text": True,
        "timeout": 900,
        "cwd": Path(__file__).parents[1],
        "env": environment,
    }
    ran = subprocess.run([sys.executable, "-W", "ignore", "-c", textwrap.dedent(script)], **options)
    assert ran.returncode == 0, ran.stderr


# --------------------------------------------------------------------------------------------------------------- parts


@pytest.mark.parametrize("n_threads", [1, 2, 3, 200])
@pytest.mark.parametrize(("n", "part"), [(1, 1), (10, 1), (100, 16), (5, 16)])
def test_shares_make_up_the_range_and_meet_at_multiples(n, part, n_threads):
    with threads(n_threads):
        ranges = share(lambda first, last: (first, last), n, part)
    assert ranges[0][0] == 0
    assert ranges[-1][1] == n
    assert all(last == first for (_, last), (first, _) in itertools.pairwise(ranges))
    assert all(first % part == 0 for first, _ in ranges)
    assert len(ranges) <= n_threads


def test_what_fails_on_a_thread_fails_here_once_all_have_ended():
    ended = []

    def work(first, last):
        if first == 0:
            raise ValueError("first")
        ended.append(first)

    with threads(3), pytest.raises(ValueError, match="first"):
        share(work, 3)
    assert sorted(ended) == [1, 2]
    with threads(2), pytest.raises(ZeroDivisionError):
        share(lambda first, last: 1 // (1 - first), 2)


def test_torch_works_on_one_thread_inside_and_as_before_outside():
    with threads(3):
        seen = []
        with alone() as n_threads:
            assert torch.get_num_threads() == 1
            assert n_threads == 3
            begun = threading.Thread(target=lambda: seen.append(torch.get_num_threads()))
            begun.start()
            begun.join()
            seen += share(lambda first, last: torch.get_num_threads(), 3)
            with alone() as again:
                assert again == 3
        assert seen == [3, 1, 1, 1]  # a thread that someone else begins meanwhile has as many as ever
        assert torch.get_num_threads() == 3


def test_between_the_items_of_a_generator_torch_has_its_threads():
    @each_alone
    def numbers():
        for _ in range(2):
            yield torch.get_num_threads()

    with threads(2):
        for inside in numbers():
            assert inside == 1
            assert torch.get_num_threads() == 2


# ------------------------------------------------------------------------------------------------------------ products


@pytest.mark.parametrize("n_columns", [1, 40, 384, 1287, 2000, 2001, 30_000])
def test_blocks_make_up_a_product_and_none_is_narrow(n_columns):
    blocks = blocks_of(n_columns)
    assert blocks[0][0] == 0
    assert blocks[-1][1] == n_columns
    assert all(last == first for (_, last), (first, _) in itertools.pairwise(blocks))
    assert min(last - first for first, last in blocks) >= min(n_columns, LEAST_COLUMNS // 2)
    assert max(last - first for first, last in blocks) <= 2 * MOST_COLUMNS


@pytest.mark.parametrize("add", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_products_are_right_and_the_same_on_any_number_of_threads(dtype, add):
    a, b, found = torch.randn(70, 30).to(dtype), torch.randn(30, 1287).to(dtype), []
    for n_threads in (1, 2, 4):
        with threads(n_threads):
            found.append(multiply(a, b, torch.ones(70, 1287, dtype=dtype), add=add))
    rtol = 1e-4 if dtype == torch.float32 else 2e-2
    torch.testing.assert_close(found[0].float(), a.float() @ b.float() + add, rtol=rtol, atol=rtol)
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_an_affine_map_has_the_gradients_of_its_formula():
    arrays = [torch.randn(size, requires_grad=True) for size in ((9, 20), (20, 500), (500,))]
    assert len(blocks_of(500)) > 1
    h, weight, bias = arrays
    for found, expected in zip(
        (affine(*arrays), *torch.autograd.grad(affine(*arrays).square().sum(), arrays)),
        (h @ weight + bias, *torch.autograd.grad((h @ weight + bias).square().sum(), arrays)),
        strict=True,
    ):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-3)


# ------------------------------------------------------------------------------------------------ models and outputs


def weights(model) -> list[np.ndarray]:
    return [t.numpy().copy() for t in model._vae.state_dict().values()]


def on_threads(numbers, work) -> list[dict[str, list[np.ndarray]]]:
    """What `work` returns on so many threads of torch and of numpy's linear algebra."""
    found = []
    for n in numbers:
        with threads(n), threadpool_limits(n, user_api="blas"):
            found.append(work())
            assert torch.get_num_threads() == n
    return found


def assert_same(found) -> None:
    first, *others = found
    assert first
    for other in others:
        assert first.keys() == other.keys()
        for name, arrays in first.items():
            for one, another in zip(arrays, other[name], strict=True):
                np.testing.assert_array_equal(one, another, err_msg=name)


@pytest.fixture(scope="module")
def cells():
    """Genes enough that products are cut into blocks."""
    return sccvae.simulate.simulate(300, 901, seed=0)


KINDS = {
    "default": (sccvae.SCCVAE, {}),
    "more heads": (sccvae.SCCVAE, {"dispersion": "gene-cell", "n_layers": 2, "n_hidden": 384}),
    "real values": (sccvae.SCCVAE, {"gene_likelihood": "normal"}),
    "autoencoder": (sccvae.Autoencoder, {}),
    "denoiser": (sccvae.DenoisingAutoencoder, {"n_hidden": 64}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_fitted_model_does_not_depend_on_the_number_of_threads(cells, kind):
    of, options = KINDS[kind]

    def train():
        model = of(cells, batch_key="batch", **options)
        model.train(max_epochs=2, progress_bar=False)
        return {"weights": weights(model)}

    assert_same(on_threads((1, 2, 3), train))


@pytest.fixture(scope="module", params=["zinb", "normal"])
def fitted(request, cells):
    model = sccvae.SCCVAE(cells, batch_key="batch", gene_likelihood=request.param)
    model.train(max_epochs=2, progress_bar=False)
    return model


def outputs(model) -> dict[str, list[np.ndarray]]:
    """Those of any `SCCVAE`."""
    said, codes = {}, np.random.default_rng(0).standard_normal((99, 20))
    said["latent"] = [*model.get_latent_representation(return_variance=True)]
    said["expression"] = [model.get_normalized_expression(transform_batch="all", return_numpy=True)]
    said["drawn expression"] = [model.get_normalized_expression(n_samples=3, return_numpy=True)]
    said["parameters"] = [*model.get_likelihood_parameters().values()]
    said["reconstruction"] = [model.get_reconstruction()]
    said["decoded"] = [model.decode(codes, batch=model.batches[0])]
    said["elbo"] = [model.get_elbo(return_mean=False), model.get_reconstruction_error(return_mean=False)]
    said["marginal"] = [model.get_marginal_ll(n_samples=3, return_mean=False)]
    said["predictive"] = [model.posterior_predictive_sample(n_samples=2)]
    model._aggregate = None
    for prior in ("normal", "aggregate"):
        new = model.generate(100, prior=prior)
        said[prior] = [new.X.toarray(), new.obsm["X_sccvae"]]
    said["diagnosis"] = [np.array(str(model.diagnose(n_samples=2)))]
    return said


def analyses(model, adata) -> dict[str, list[np.ndarray]]:
    """What only models of counts are asked."""
    said, genes, found = {}, ["gene_1", "gene_7"], model.diagnose(n_samples=2)
    table = model.differential_expression(groupby="cell_type", n_samples=20).select_dtypes("number")
    said["differential expression"] = [table.to_numpy(float)]
    said["diagnosis of genes"] = [found.genes.to_numpy(float), found.ranks]
    adata = adata.copy()
    adata.obs["sccvae_pseudotime"] = np.linspace(0, 1, len(adata))
    sccvae.tl.trends(adata, model, genes, n_samples=20, key_added="trends")
    said["trends"] = [adata.uns["trends"][["mean", "lower", "upper"]].to_numpy()]
    sccvae.tl.denoise(adata, model, genes, n_samples=20)
    said["denoised"] = [adata.obs.filter(like="_denoised").to_numpy(float)]
    return said


def test_no_output_depends_on_the_number_of_threads(fitted, cells):
    counts = fitted.likelihood.support == "counts"
    found = on_threads((1, 2, 4), lambda: outputs(fitted) | (analyses(fitted, cells) if counts else {}))
    assert len(found[0]) == (16 if counts else 12)
    assert_same(found)


def test_no_output_depends_on_chunks(fitted, cells, monkeypatch):
    """Those that a caller chooses, and those that follow from the number of genes and the device."""
    counts, found, drawn = fitted.likelihood.support == "counts", [], []
    for size in (50, 100, 10_000):
        for module in ("inference.posterior", "data.gpu.device_loading", "training.loop"):
            monkeypatch.setattr(f"sccvae.{module}.chunk_of", lambda n_genes, device, size=size: size)
        found.append(outputs(fitted) | (analyses(fitted, cells) if counts else {}))
    assert_same(found)
    for size in (1, 17, 100, 299, 999):
        options = {"n_samples": 3, "seed": 1, "chunk_size": size}
        draws = fitted.get_normalized_expression(return_mean=False, **options)
        drawn.append({"draws": [draws, fitted.get_normalized_expression(return_numpy=True, **options)]})
        if counts:
            table = fitted.differential_expression(groupby="batch", n_samples=20, chunk_size=size)
            drawn[-1]["table"] = [table.select_dtypes("number").to_numpy(float)]
    assert_same(drawn)


def test_chains_depend_neither_on_threads_nor_on_chunks(cells, monkeypatch):
    model = sccvae.DenoisingAutoencoder(cells, n_hidden=16)
    model.train(max_epochs=1, progress_bar=False)

    def walk():
        new = model.generate(150, steps=2)
        return {"chains": [new.X.toarray(), new.obsm["X_sccvae"], model.get_reconstruction()]}

    found = on_threads((1, 2, 4), walk)
    monkeypatch.setattr("sccvae.inference.posterior.chunk_of", lambda n_genes, device: 40)
    assert_same([*found, walk()])


FORKED = """
    import multiprocessing, os, threading, torch, sccvae
    adata = sccvae.simulate.simulate(200, 600, seed=0)

    def train_and_ask():
        model = sccvae.SCCVAE(adata, batch_key="batch", n_hidden=16)
        model.train(max_epochs=1, progress_bar=False)
        expression = model.get_normalized_expression(return_numpy=True, n_samples=2)
        return [model.get_elbo(), float(expression[3, 5]), len(model.generate(5))]

    torch.set_num_threads(2)
    expected, fork = train_and_ask(), multiprocessing.get_context("fork")
    if OF_TORCH:
        (torch.ones(600, 600) @ torch.ones(600, 600)).sum()  # torch's own threads have begun
    answers = fork.Queue()
    child = fork.Process(target=lambda: answers.put(train_and_ask()))
    child.start()
    assert answers.get(timeout=400) == expected
    child.join()
    assert child.exitcode == 0
    with fork.Pool(2) as pool:
        assert pool.apply_async(train_and_ask).get(timeout=400) == expected
    assert train_and_ask() == expected
"""


@pytest.mark.parametrize("of_torch", [False, True], ids=["sccvae alone", "torch before"])
def test_a_process_that_is_forked_after_training_goes_on(of_torch):
    in_a_process(FORKED.replace("OF_TORCH", str(of_torch)), 2)


def test_threads_of_users_ask_at_once():
    """Each takes its turn with the workers; none changes how many threads another has."""
    found = []

    def ask():
        with alone() as n_threads:
            found.append((n_threads, sum(share(lambda first, last: sum(range(first, last)), 1000))))

    with threads(3):
        asking = [threading.Thread(target=ask) for _ in range(8)]
        for thread in asking:
            thread.start()
        for thread in asking:
            thread.join()
        assert torch.get_num_threads() == 3
    assert found == [(3, 499_500)] * 8


def test_workers_record_no_gradients():
    with threads(2):
        assert share(lambda first, last: torch.is_grad_enabled(), 2) == [True, False]
    with threads(1):
        assert parallel.share(lambda first, last: last, 7) == [7]


def test_sums_over_cells_are_in_their_order(monkeypatch):
    """The compiled likelihood: one thread adds as it goes, several write rows that are added afterwards."""
    from helpers import small_counts

    from sccvae.kernels.cpu import count_likelihood
    from sccvae.kernels.reference import stored

    monkeypatch.setattr(parallel, "WORTH", 1)
    counts, rng = small_counts(90, 40), np.random.default_rng(0)
    x, weight = stored(counts.minibatch(slice(None))), np.full(90, -1 / 90, np.float32)

    def draw(*shape):
        return rng.normal(size=shape).astype(np.float32)

    for n_rows in (1, 3):
        row = rng.integers(n_rows, size=90)
        table, theta = count_likelihood.Table(draw(n_rows, 40), row), count_likelihood.Table(draw(n_rows, 40), row)
        heads = count_likelihood.Heads(draw(90, 40), table, counts.log_total, theta, draw(90, 40), draw(40))
        halved = heads._replace(logits=heads.logits.view(np.uint32).__rshift__(16).astype(np.uint16))
        halved = halved._replace(pi=heads.pi.view(np.uint32).__rshift__(16).astype(np.uint16))
        for given in (heads, halved):
            found = []
            for n_threads in (1, 2, 4):
                with threads(n_threads):
                    found.append(count_likelihood.count_log_likelihood(x, given, 0.02, weight))
            for one, *others in zip(*found, strict=True):
                assert all(np.array_equal(one, other) for other in others)


def test_training_goes_on_when_the_main_thread_has_ended():
    """Python then starts no worker any more."""
    in_a_process(
        """
        import os, threading, time, torch, sccvae
        torch.set_num_threads(2)
        model = sccvae.SCCVAE(sccvae.simulate.simulate(300, 900, seed=0), batch_key="batch", n_hidden=16)

        def train():
            threading.main_thread().join()
            time.sleep(0.5)
            model.train(max_epochs=1, progress_bar=False)
            print(model.get_elbo(), flush=True)
            os._exit(0 if torch.get_num_threads() == 2 else 1)

        threading.Thread(target=train).start()
        threading.excepthook = lambda arguments: os._exit(2)
        """,
        2,
    )
