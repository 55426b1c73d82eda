"""Outputs of a trained `SCCVAE`: embedding, expression, likelihoods, samples (`posterior`), new cells (`generation`).

Each file is a part of the class: `generation` extends `posterior`. They may import what `models` may.
"""
