"""Models: `SCCVAE`, `Autoencoder`, `DenoisingAutoencoder`.

May import all rooms but `tl`, `pl` and the programs.
"""
