"""The classes that users hold: `SCCVAE`, `Autoencoder`, `DenoisingAutoencoder`.

May import all rooms but `tl`, `pl` and the programs.
"""
