"""Figures of genes: differential expression, gene programs.

Functions of `sccvae.pl`.
"""
