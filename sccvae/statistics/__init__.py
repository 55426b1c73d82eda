"""Statistics of arrays, independent of any model: numpy in, numpy or pandas out.

May import `validation` and `corruption`.
"""
