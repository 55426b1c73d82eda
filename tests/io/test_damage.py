"""Models that are damaged or hostile: every flipped bit is told, and nothing is allocated for what a file only claims.

For all bits of a small model: SCCVAE_LONG=1 python -m pytest tests/io/test_damage.py
"""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sccvae
from sccvae import SCCVAE, ModelFileError, corruption

WEIGHTS, DESCRIPTION = "weights.safetensors", "model.json"
LONG = bool(os.environ.get("SCCVAE_LONG"))


@pytest.fixture(scope="module")
def small(make_adata, fit, tmp_path_factory):
    """Folder with a model of a few KB. Not to be changed."""
    folder = tmp_path_factory.mktemp("small") / "model"
    fit(make_adata(60, 12), batch_key="batch", n_hidden=4, n_latent=2, prior_components=2).save(folder)
    return folder


@pytest.fixture
def saved(small, tmp_path):
    """A copy of it."""
    return shutil.copytree(small, tmp_path / "model")


def metadata_of(folder) -> dict[str, str]:
    with safe_open(folder / WEIGHTS, framework="pt") as handle:
        return handle.metadata()


def rewrite(folder, change):
    """Change the description in both of its places."""
    description = json.loads(metadata_of(folder)["model"])
    change(description)
    text = json.dumps(description)
    (folder / DESCRIPTION).write_text(text)
    save_file(load_file(folder / WEIGHTS), folder / WEIGHTS, metadata={"model": text})


def refused(folder, kind=SCCVAE) -> str:
    """The one line that is said of a damaged model, less the folder's name."""
    with pytest.raises(ModelFileError) as caught:
        kind.load(folder)
    assert str(folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value).replace(str(folder), "")


# ----------------------------------------------------------------------------------------------------------------- bits


@pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION])
def test_every_flipped_bit_is_told(saved, name):
    content = (saved / name).read_bytes()
    n_bits = 8 * len(content)
    bits = range(n_bits) if LONG else np.random.default_rng(0).choice(n_bits, 500, replace=False)
    passed = []
    for bit in map(int, bits):
        damaged = bytearray(content)
        damaged[bit // 8] ^= 1 << bit % 8
        (saved / name).write_bytes(damaged)
        try:
            SCCVAE.load(saved)
            passed.append(bit)
        except ModelFileError:
            pass
    assert passed == []
    (saved / name).write_bytes(content)
    SCCVAE.load(saved)


@pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION])
def test_spaces_that_become_other_blanks_are_told(saved, name):
    """They mean nothing in JSON, so a parser does not tell; the header of the weights ends with spaces, too."""
    content = (saved / name).read_bytes()
    end = 8 + struct.unpack("<Q", content[:8])[0] if name == WEIGHTS else len(content)
    places = [i for i in range(8, end) if content[i : i + 1] == b" "]
    assert places
    for at in {*places[:: max(1, len(places) // 40)], *places[-8:]}:
        (saved / name).write_bytes(content[:at] + b"\t" + content[at + 1 :])
        refused(saved)


@pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION])
def test_files_cut_short_or_drawn_out_are_told(saved, name):
    content = (saved / name).read_bytes()
    for length in {*np.linspace(0, len(content) - 1, 60).astype(int).tolist(), *range(10), len(content) - 1}:
        (saved / name).write_bytes(content[:length])
        refused(saved)
    for more in (b" ", b"\0", content):
        (saved / name).write_bytes(content + more)
        refused(saved)


@pytest.mark.parametrize("n_bytes", [64, 512])
def test_blocks_of_zeros_are_told(saved, n_bytes):
    """As a disk leaves them after a power cut."""
    for name in (WEIGHTS, DESCRIPTION):
        content = (saved / name).read_bytes()
        for at in range(0, len(content), n_bytes):
            block = content[at : at + n_bytes]
            if any(block):
                (saved / name).write_bytes(content[:at] + bytes(len(block)) + content[at + n_bytes :])
                refused(saved)
        (saved / name).write_bytes(content)


@pytest.mark.parametrize("name", [WEIGHTS, DESCRIPTION])
def test_a_file_of_another_model_is_told(saved, make_adata, fit, tmp_path, name):
    other = tmp_path / "other"
    fit(make_adata(60, 12), seed=7, batch_key="batch", n_hidden=4, n_latent=2, prior_components=2).save(other)
    shutil.copy(other / name, saved / name)
    assert "describe two different models" in refused(saved)


# -------------------------------------------------------------------------------------------------------------- weights


def tensors_changed(change, *, keep_checksum=True):
    def damage(folder):
        tensors, metadata = load_file(folder / WEIGHTS), metadata_of(folder)
        change(tensors)
        if not keep_checksum:  # as a model of 0.1.0 has none
            description = json.loads(metadata["model"])
            del description["sha256"], description["replaces"]
            metadata = {"model": json.dumps(description)}
            (folder / DESCRIPTION).write_text(metadata["model"])
        save_file(tensors, folder / WEIGHTS, metadata=metadata)

    return damage


def put(name, value):
    def change(tensors):
        tensors[name].view(-1)[0] = value

    return change


def cast(name, dtype):
    return lambda tensors: tensors.update({name: tensors[name].to(dtype)})


def swap(tensors):
    a, b = "decoder.logits.bias", "decoder.dropout.bias"
    tensors[a], tensors[b] = tensors[b], tensors[a]


@pytest.mark.parametrize("keep_checksum", [True, False])
@pytest.mark.parametrize(
    ("change", "text"),
    [
        (put("decoder.logits.weight", float("nan")), "the weight 'decoder.logits.weight' holds 1 values"),
        (put("library_mean", float("inf")), "the weight 'library_mean' holds 1 values that are not finite"),
        (put("aggregate.means", float("-inf")), "the weight 'aggregate.means' holds 1 values that are not finite"),
        *((cast("encoder.z.bias", dtype), f"the weight 'encoder.z.bias' is of type {name}, expected F32")
          for dtype, name in {torch.float64: "F64", torch.int64: "I64", torch.uint8: "U8", torch.bool: "BOOL",
                              torch.float16: "F16", torch.bfloat16: "BF16"}.items()),
        (cast("aggregate.weights", torch.float32), "the weight 'aggregate.weights' is of type F32, expected F64"),
        (lambda t: t.pop("encoder.z.bias"), "the weight 'encoder.z.bias' of shape (4,) is missing"),
        (lambda t: t.pop("aggregate.means"), "the weight 'aggregate.weights' has shape (3, 1), expected"),
        (lambda t: t.update(extra=torch.zeros(3)), "the weight 'extra' is not one of the model described"),
        (lambda t: t.update({"encoder.z.bias": torch.zeros(5)}),
         "the weight 'encoder.z.bias' has shape (5,), expected (4,)"),
    ],
)  # fmt: skip
def test_weights_that_cannot_be_are_named(saved, change, text, keep_checksum):
    tensors_changed(change, keep_checksum=keep_checksum)(saved)
    said = refused(saved)
    assert text in said or (keep_checksum and "their SHA-256 differs" in said)


@pytest.mark.parametrize("change", [swap, put("encoder.z.bias", 0.25), put("aggregate.factors", 0.25)])
def test_weights_that_could_be_but_were_not_saved_are_told(saved, change):
    tensors_changed(change)(saved)
    assert "the weights have changed since they were saved: their SHA-256 differs" in refused(saved)


def test_a_model_with_weights_that_are_not_finite_is_not_saved(make_adata, fit, tmp_path):
    model = fit(make_adata(60, 12))
    with torch.no_grad():
        model._vae.decoder.logits.weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match=r"the weight 'decoder\.logits\.weight' holds 1 values that are not finite"):
        model.save(tmp_path / "model")
    assert os.listdir(tmp_path) == []


# -------------------------------------------------------------------------------------------------- claims and memory

CLAIMS = {
    "hidden": {"n_hidden": 1_000_000},
    "hidden_layers": {"n_hidden": 20_000, "n_layers": 2},
    "layers": {"n_layers": 10**9},
    "decoder": {"n_hidden": [4, 10**8]},
    "latent": {"n_latent": 10**7},
    "prior": {"prior_components": 10**7},
    "more_than_any_memory": {"n_hidden": 10**14},
    "more_than_any_number": {"n_hidden": 10**30},
}

MEASURE = """
import resource, sys
from sccvae import SCCVAE, ModelFileError
SCCVAE.load(sys.argv[1])
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for folder in sys.argv[2:]:
    try:
        SCCVAE.load(folder)
        print(folder, "was taken")
    except ModelFileError:
        pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


def sparse_description(folder):
    with (folder / DESCRIPTION).open("rb+") as handle:
        handle.truncate(20 * 2**30)


def sparse_header(folder):
    with (folder / WEIGHTS).open("wb") as handle:
        handle.write(struct.pack("<Q", 2**36))
        handle.truncate(2**37)


def large_description(folder):
    (folder / DESCRIPTION).write_text(json.dumps({"format": 1, "more": "x" * 40_000_000}))


@pytest.mark.parametrize("name", CLAIMS)
def test_a_model_that_claims_to_be_larger_than_its_weights_is_refused(saved, name):
    rewrite(saved, lambda d: d["architecture"].update(CLAIMS[name]))
    said = refused(saved)
    assert "does not contain a complete sccvae model" in said
    assert "weight" in said or "n_hidden" in said


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's peak of memory, in KB")
def test_nothing_is_allocated_for_what_a_file_only_claims(small, tmp_path):
    folders = []
    for name, claim in CLAIMS.items():
        folders.append(shutil.copytree(small, tmp_path / name))
        rewrite(folders[-1], lambda d, claim=claim: d["architecture"].update(claim))
    for damage in (sparse_description, sparse_header):
        folders.append(shutil.copytree(small, tmp_path / damage.__name__))
        damage(folders[-1])
    command = [sys.executable, "-c", textwrap.dedent(MEASURE), small, *folders]
    result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    assert int(result.stdout) < 100, result.stdout  # MB


@pytest.mark.parametrize(
    ("damage", "text"),
    [
        (sparse_description, "takes 21,474,836,480 bytes; a description takes at most 40,000,000"),
        (large_description, "takes 40,000,025 bytes; a description takes at most 40,000,000"),
        (sparse_header, "is damaged or not a safetensors file (a header of 68,719,476,736 bytes)"),
    ],
)
def test_files_without_bounds_are_not_read(saved, damage, text):
    damage(saved)
    assert text in refused(saved)


def test_a_description_that_could_not_be_read_is_not_written(make_adata, fit, tmp_path, monkeypatch):
    monkeypatch.setattr("sccvae.io.storage.LARGEST", 500)
    with pytest.raises(
        ValueError, match=r"The description of the model takes [\d,]+ bytes; load\(\) reads at most 500"
    ):
        fit(make_adata(60, 12)).save(tmp_path / "a" / "model")
    assert os.listdir(tmp_path) == []


# ------------------------------------------------------------------------------------------------------- descriptions

FIELDS = {
    "seed": [-1, 2.5, "0", None, True, 2**64],
    "best_epoch": [-1, 99, 1.0, "1", None, True],
    "frequencies": [[], [1], [0, 20, 20], [20, 20, "20"], [20.5, 20, 20], 3, None],
    "profiles": [[], [[0]], [[0], [1], [3]], [[0], [1], [-1]], [[0], [1], [1]], [[0, 0], [1, 0], [2, 0]], [0, 1, 2],
                 "a"],
    "history": [3, {"epoch": 1}, [3], [{}], [{"epoch": 1, "split": "training"}],
                [{"epoch": 0, "split": "training", "elbo": 1.0}], [{"epoch": 1, "split": "evil", "elbo": 1.0}],
                [{"epoch": 1, "split": "training", "elbo": "high"}], [{"epoch": 1, "split": "training", "elbo": None}],
                [{"epoch": 2, "split": "training", "elbo": 1.0}, {"epoch": 1, "split": "training", "elbo": 1.0}]],
    "options": [3, {"scale": 1.0}, [], "a"],
    "versions": [3, {"sccvae": 1}, ["a"]],
    "kind": ["VAE", 3, None, ["SCCVAE"]],
    "format": [True, 1.0, "1", None, 0],
    "schema": [3, {}, []],
    "architecture": [3, {}, []],
    "architecture.n_genes": [0, -1, 11, 12.0, "12", None, True],
    "architecture.n_levels": [[], [2], [3, 1], [0], ["3"], 3, None],
    "architecture.n_continuous": [1, -1, "0", None],
    "architecture.n_hidden": [0, -4, 4.0, "4", None, True, [4], [4, 4, 4], [4, "4"]],
    "architecture.n_latent": [0, 3, 2.0, "2", None],
    "architecture.n_layers": [0, 2, 1.0, "1", None],
    "architecture.dropout_rate": [-0.1, 1.0, "0.1", None, True],
    "architecture.dispersion": ["evil", None, 3, ["gene"]],
    "architecture.gene_likelihood": ["zip", None, 3, "normal", "poisson"],
    "architecture.library": ["evil", None, 3, "observed"],
    "architecture.encode_covariates": ["no", 0, 1, None, False],
    "architecture.dropout_cost": [-1.0, "0", None, True],
    "architecture.prior_components": [-1, 3, 2.0, "2", None],
    "architecture.batch_mixing": [-1.0, "0", None],
    "architecture.weight_precision": [-1.0, "0", None],
    "architecture.thinning": [-0.1, 1.0, "0", None],
    "architecture.flux": [1],
    "schema.genes": [[], ["a"], "abcdefghijkl", ["a"] * 12, [1] * 12, None],
    "schema.layer": [3, ["counts"], True],
    "schema.support": ["evil", None, "real", "binary"],
    "schema.batch_key": [3, ["batch"]],
    "schema.categorical_covariate_keys": ["kind", ["kind"], [3], None],
    "schema.continuous_covariate_keys": ["age", ["age"], None],
    "schema.size_factor_key": [3, ["a"]],
    "schema.categories": [[], [[]], [["a", "b"]], [["a", "a", "b"]], [["a", "b", 3]], ["abc"], None],
    "schema.means": [[0.0], 0.0, None, ["a"]],
    "schema.scales": [[1.0], 0.0, None],
    "schema.log_size_offset": ["0", None, True],
    "schema.flux": [1],
}  # fmt: skip


@pytest.mark.parametrize("path", FIELDS)
def test_every_field_of_the_description_has_its_type_and_range(small, saved, path):
    *above, name = path.split(".")
    for value in FIELDS[path]:
        shutil.copytree(small, saved, dirs_exist_ok=True)
        rewrite(saved, lambda d, value=value: (d[above[0]] if above else d).update({name: value}))
        said = refused(saved)
        assert "does not contain a complete" in said or path in ("kind", "format"), (value, said)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("name", ["dropout_cost", "batch_mixing", "thinning"])
def test_numbers_of_the_description_are_finite(saved, name, value):
    rewrite(saved, lambda d: d["architecture"].update({name: "HERE"}))
    text = metadata_of(saved)["model"].replace('"HERE"', value)
    (saved / DESCRIPTION).write_text(text)
    save_file(load_file(saved / WEIGHTS), saved / WEIGHTS, metadata={"model": text})
    assert f"architecture.{name} is" in refused(saved)


@pytest.mark.parametrize("name", sorted({path.split(".")[0] for path in FIELDS} - {"options", "versions", "kind"}))
def test_a_field_that_is_lost_is_named(saved, name):
    rewrite(saved, lambda d: d.pop(name))
    said = refused(saved)
    assert f"{name} is missing" in said or name == "format"


def test_a_field_that_nothing_reads_is_no_damage(saved):
    rewrite(saved, lambda d: d.update(note="of a later version"))
    assert SCCVAE.load(saved).gene_names[0] == "gene0"


@pytest.mark.parametrize("kind", ["Autoencoder", "DenoisingAutoencoder"])
def test_options_of_the_autoencoders_are_checked(adata, tmp_path, kind):
    made = getattr(sccvae, kind)
    model = made(adata, n_hidden=4, n_latent=2)
    model.train(1, progress_bar=False)
    model.save(tmp_path / "good")
    wrong = [{}, {"scale": 1.0}, {"scale": "1"}, {"scale": -1.0}, {"flux": 1}]
    if kind == "DenoisingAutoencoder":
        wrong += [{"continuation": x} for x in (1.0, -0.1, "0.5", None)]
        wrong += [{"corruption": x} for x in (3, [3], [{}], [{"process": "evil"}], [{"process": []}])]
        wrong += [{"corruption": [{"process": "GaussianNoise", "sd": 1.0}]}]
        wrong += [{"corruption": [{"process": "Thinning", "kept": x}]} for x in (0, 1.5, "half", None)]
        assert model.corruption == (corruption.Thinning(), corruption.GeneDropout())
    for change in wrong:
        shutil.copytree(tmp_path / "good", tmp_path / "bad", dirs_exist_ok=True)
        rewrite(tmp_path / "bad", lambda d, c=change: d.update(options=d["options"] | c if c else {}))
        assert "does not contain a complete" in refused(tmp_path / "bad", made), change
    assert "contains a model of" in refused(tmp_path / "good", SCCVAE)
