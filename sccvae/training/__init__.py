"""The training loop: gradients, optimiser, schedules, early stopping.

May import `data`, `kernels` and `modules`.
"""
