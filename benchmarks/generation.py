"""Generators against held-out real samples: autoencoders with and without a prior, on images and on cells.

    SCCVAE_DATA=FOLDER python benchmarks/generation.py [--sets digits cortex pbmc_3tech] [--seeds 0 1 2]
        [--generators ...] [--steps 50] [--rate 0.2] [--out ROWS.jsonl] [--draw]

Each seed splits a set anew, 80/20, trains every model on the 80 % and scores as many generated samples as are held out
against these. Digits are those of scikit-learn, 1,797 x 64, binarised (ink of 8 or more of 16), with the Bernoulli
likelihood throughout; cells are counts, with batches where the set has them.

real             training samples in the generator's place: what a perfect generator scores
ae, N(0,I)       `Autoencoder`, codes from N(0, I)
ae, Gaussian     `Autoencoder`, codes from the Gaussian with the mean and covariance of the training codes
vae, prior       `SCCVAE`, prior="normal": from the prior of z, by default a mixture that is learnt
vae, aggregate   `SCCVAE`, prior="aggregate"
vae, held-out    `SCCVAE`, counts drawn for the held-out samples themselves: what is left if codes were perfect
dae, ...         `DenoisingAutoencoder`, each sample corrupted once; chains of 50 steps from data or from noise
walkback, ...    the same, trained with walkback

Prints means and standard errors over the seeds: `auc` of a classifier that tells generated from held-out samples (0.5:
it cannot), `mmd`, `coverage`, `spurious` as `sccvae.generation` defines them, on pixels or on log-normalised counts;
`auc_sum` of a classifier that sees six summaries of each cell (totals, zeros, ...); processor seconds to train and per
1,000 samples. For digits also the held-out log-likelihood in nats per image: of the VAE by importance sampling, of
independent pixels, and of a mixture of ten such (EM, best of five starts).
"""

import argparse
import json
import time

import anndata as ad
import numpy as np
import pandas as pd
from rows import Log, default_out, gather
from rows import read as read_rows
from scipy.special import logsumexp

import sccvae
from sccvae import generation

CHAINS = {f"{name}, from {start}": (name, start) for name in ("dae", "walkback") for start in ("data", "noise")}
GENERATORS = ("real", "ae, N(0,I)", "ae, Gaussian", "vae, prior", "vae, aggregate", "vae, held-out", *CHAINS)
COLUMNS = ("auc", "auc_sum", "mmd", "coverage", "spurious", "train_s", "s_per_1000")
UNITS = dict.fromkeys(COLUMNS, "1") | {"train_s": "s", "s_per_1000": "s", "log_likelihood": "nats per image"}


def read(name: str) -> ad.AnnData:
    if name != "digits":
        return sccvae.datasets.load(name)
    from sklearn.datasets import load_digits

    pixels, labels = load_digits(return_X_y=True)
    obs = pd.DataFrame({"digit": pd.Categorical(labels)}, index=[f"image{i}" for i in range(len(pixels))])
    return ad.AnnData((pixels >= 8).astype(np.float32), obs=obs)


def train(model_of: str, name: str, adata: ad.AnnData, seed: int, options: argparse.Namespace):
    """A model of a kind, and how many seconds its training took."""
    choices = {"seed": seed, "device": "cpu"}
    if name == "digits":
        choices |= {"gene_likelihood": "bernoulli", "n_latent": 10}
    elif "batch" in adata.obs:
        choices["batch_key"] = "batch"
    kinds = {"vae": sccvae.SCCVAE, "ae": sccvae.Autoencoder}
    if model_of in kinds:
        model = kinds[model_of](adata, **choices)
    else:
        if name == "digits":
            choices["corruption"] = sccvae.corruption.SaltAndPepper(options.rate)
        model = sccvae.DenoisingAutoencoder(adata, walkback=model_of == "walkback", **choices)
    start = time.process_time()
    model.train(options.epochs or (200 if name == "digits" else None), progress_bar=False)
    return model, time.process_time() - start


def draw(generator: str, model, n: int, seed: int, options: argparse.Namespace) -> ad.AnnData:
    if generator in CHAINS:
        return model.generate(n, steps=options.steps, start=CHAINS[generator][1], seed=seed)
    if generator.startswith("ae"):
        return model.generate(n, codes="prior" if generator.endswith("N(0,I)") else "fitted", seed=seed)
    return model.generate(n, prior="normal" if generator.endswith("prior") else "aggregate", seed=seed)


def score(name: str, real, generated, seed: int) -> dict[str, float]:
    if name != "digits":
        scores = generation.score_generator(real, generated, seed=seed)
        return {"auc": scores["auc_log"], "auc_sum": scores["auc_summaries"]} | {
            key: scores[key] for key in ("mmd", "coverage", "spurious")
        }
    real, generated = (x.toarray() if hasattr(x, "toarray") else np.asarray(x) for x in (real, generated))
    return {
        "auc": generation.two_sample_auc(real, generated, seed=seed),
        "mmd": generation.mmd(real, generated, n_permutations=1, seed=seed).value,
        "coverage": generation.precision_coverage(real, generated).coverage,
        "spurious": generation.spurious(real, generated),
    }


def mixture_of_bernoullis(train: np.ndarray, test: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """Log-likelihood of each row of `test` under k products of Bernoullis fitted to `train` by EM: (rows,)."""
    share = rng.dirichlet(np.ones(k), size=len(train))
    for _ in range(200):
        weight, ones = share.mean(0), (share.T @ train + 0.5) / (share.sum(0)[:, None] + 1)
        joint = train @ np.log(ones).T + (1 - train) @ np.log1p(-ones).T + np.log(weight)
        share = np.exp(joint - logsumexp(joint, axis=1, keepdims=True))
    return logsumexp(test @ np.log(ones).T + (1 - test) @ np.log1p(-ones).T + np.log(weight), axis=1)


def likelihoods(model, train: np.ndarray, held_out: ad.AnnData, seed: int) -> dict[str, float]:
    """Held-out log-likelihood in nats per image."""
    rng, test = np.random.default_rng(seed), np.asarray(held_out.X)
    mixtures = [mixture_of_bernoullis(train, test, 10, rng).mean() for _ in range(5)]
    return {
        "VAE": model.get_marginal_ll(held_out, n_samples=500, seed=seed),
        "independent pixels": float(mixture_of_bernoullis(train, test, 1, rng).mean()),
        "mixture of 10": float(max(mixtures)),
    }


def measure(name: str, seed: int, options: argparse.Namespace):
    """Rows of the result, one after another."""
    adata = read(name)
    order, n = np.random.default_rng(seed).permutation(adata.n_obs), round(0.2 * adata.n_obs)
    held_out, training = adata[order[:n]].copy(), adata[order[n:]].copy()
    models: dict[str, tuple] = {}
    for generator in options.generators:
        if generator == "real":
            yield {"generator": generator, **score(name, held_out.X, training.X[:n], seed)}
            continue
        kind = generator.split(",")[0]
        if kind not in models:
            models[kind] = train(kind, name, training, seed, options)
            if kind == "vae" and name == "digits":
                found = likelihoods(models[kind][0], np.asarray(training.X), held_out, seed)
                yield from ({"generator": key, "log_likelihood": value} for key, value in found.items())
        model, seconds = models[kind]
        row = {"generator": generator, "train_s": seconds}
        if generator == "vae, held-out":
            yield row | score(name, held_out.X, model.posterior_predictive_sample(held_out, seed=seed), seed)
            continue
        generated = draw(generator, model, n, seed, options)
        start = time.process_time()
        draw(generator, model, 1000, seed + 1, options)
        row["s_per_1000"] = time.process_time() - start
        yield row | score(name, held_out.X, generated.X, seed)


def table(rows: list[dict]) -> str:
    """Mean and standard error over seeds: a table per set."""
    parts, frame = [], pd.DataFrame(rows).drop_duplicates(["set", "seed", "generator"], keep="last")
    for name, of_set in frame.groupby("set", sort=False):
        groups = of_set.groupby("generator", sort=False)
        lines = [f"{name}, {groups['seed'].nunique().max()} seeds", "", f"| generator | {' | '.join(COLUMNS)} |"]
        lines.append("|---" * (len(COLUMNS) + 1) + "|")
        for generator, group in groups:
            if generator in GENERATORS:
                lines.append(f"| {generator} | {' | '.join(_cell(group.get(column)) for column in COLUMNS)} |")
        parts.append("\n".join(lines))
        if "log_likelihood" in of_set and of_set["log_likelihood"].notna().any():
            values = {g: group["log_likelihood"] for g, group in groups if g not in GENERATORS}
            found = [f"{g} {v.mean():.2f} ± {v.std() / np.sqrt(len(v)):.2f}" for g, v in values.items()]
            parts.append(f"Held-out log-likelihood, nats per image: {'; '.join(found)}.")
    return "\n\n".join(parts)


def _cell(values: pd.Series | None) -> str:
    if values is None or values.isna().all():
        return ""
    digits = 3 if values.abs().mean() < 10 else 1
    error = values.std() / np.sqrt(len(values)) if len(values) > 1 else np.nan
    return f"{values.mean():.{digits}f} ± {error:.{digits}f}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", default=["digits", "cortex", "pbmc_3tech"])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--generators", nargs="+", default=GENERATORS, choices=GENERATORS)
    parser.add_argument("--steps", type=int, default=50, help="of each chain")
    parser.add_argument("--rate", type=float, default=0.2, help="of salt and pepper on digits")
    parser.add_argument("--epochs", type=int, help="at most; by default 200 for digits, the model's own for cells")
    parser.add_argument(
        "--out", default=default_out(__file__), help="file to append the rows to (default: %(default)s)"
    )
    parser.add_argument("--draw", action="store_true", help="print the table of what --out holds")
    options = parser.parse_args()
    log = Log(__file__, options.out, UNITS)
    conditions = {name: getattr(options, name) for name in ("steps", "rate", "epochs")}
    for name in () if options.draw else options.sets:
        for seed in options.seeds:
            for row in measure(name, seed, options):
                print(json.dumps({"set": name, "seed": seed, "steps": options.steps, **row}), flush=True)
                generator = row.pop("generator")
                log.add(row, data_set=name, method=generator, seeds=[seed], **conditions)
    measured = [row | {"generator": row["method"]} for row in gather(read_rows(options.out)) if row["date"]]
    print("\n" + (table(measured) if measured else "There are no rows yet."))


if __name__ == "__main__":
    main()
