"""Passes compiled by numba for the CPU, float32. Imported when first used, since numba takes half a second.

May import `kernels.parallel`.
"""
