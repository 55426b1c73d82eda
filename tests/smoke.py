"""Try an installed sccvae without its source: version, command line, a short training, save and load.

`make smoke` runs it in an environment that holds nothing but sccvae and what it requires.
"""

import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np

import sccvae

assert Path(sccvae.__file__).is_relative_to(sys.prefix), sccvae.__file__
assert sccvae.__version__ == version("sccvae")
assert (Path(sccvae.__file__).parent / "py.typed").is_file()
command = Path(sys.executable).parent / "sccvae"
for argument, expected in (("--help", "usage: sccvae"), ("--version", f"sccvae {sccvae.__version__}")):
    found = subprocess.run([command, argument], capture_output=True, text=True, check=True)
    assert found.stdout.startswith(expected), found.stdout

adata = sccvae.simulate.simulate(200, 50, seed=0)
model = sccvae.SCCVAE(adata, batch_key="batch")
model.train(2, progress_bar=False)
z = model.get_latent_representation()
assert len(z) == 200
assert np.isfinite(z).all()
with tempfile.TemporaryDirectory() as folder:
    model.save(f"{folder}/model")
    loaded = sccvae.SCCVAE.load(f"{folder}/model")
np.testing.assert_array_equal(loaded.get_latent_representation(adata), z)
sccvae.tl.integrate(adata, batch_key="batch", train_options={"max_epochs": 1})
assert adata.obsm["X_sccvae"].shape == z.shape
print(f"sccvae {sccvae.__version__} works from {Path(sccvae.__file__).parent}")
