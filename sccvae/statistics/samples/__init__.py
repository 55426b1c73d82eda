"""Tests whose replicates are samples, such as donors, and not cells: sums of counts in, tables out.

`design` holds the linear models, `moderated` their t-statistics, `evidence` the mixture of two sources of evidence,
`comparison` the test of one pair of groups, `tables` the tables of all; `regions` tests where an effect is largest.
`abundance` and `neighbourhoods` test numbers of cells; `confounding` says which columns cannot be told apart.
"""
