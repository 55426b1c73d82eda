"""Statistics of arrays, known without a model: numpy in, numpy or pandas out.

May import `validation` and `corruption`.
"""
