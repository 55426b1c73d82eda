"""Genes: denoised expression, differential expression, gene programs.

Each file has one function of `sccvae.tl`.
"""
