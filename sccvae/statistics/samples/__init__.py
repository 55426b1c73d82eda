"""Statistics in which samples, such as donors, are the replicates, not cells."""
