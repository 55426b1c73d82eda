"""Statistics in which samples, such as donors, are the replicates, not cells.

Sums of counts of each sample in, tables out: comparisons of groups, abundance of cell types, confounding.
"""
