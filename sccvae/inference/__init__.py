"""Outputs of a trained model, computed in chunks: arrays in, arrays out.

May import `data`, `kernels`, `modules` and `statistics`.
"""
