"""Checks of trained models in words, arrays in: the fit, over-correction, new cells, labels that do not fit.

May import what `statistics` may.
"""
