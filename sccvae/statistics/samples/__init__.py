"""Tests whose replicates are samples, such as donors, and not cells: sums of counts in, tables out."""
