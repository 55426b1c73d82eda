"""The model in torch: distributions, likelihoods, networks, terms of the loss, the VAE and the autoencoders.

May import `data`, `kernels`, `validation` and `corruption`.
"""
