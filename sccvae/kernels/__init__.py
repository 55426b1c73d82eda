"""Operations on sparse counts: reference versions in torch, compiled versions in `cpu`, threads.

Imports nothing of the package; `data.counts.Minibatch` is named for type checkers alone.
"""
