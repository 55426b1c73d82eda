"""Bayesian differential expression: from posterior samples of two groups' mean expression to a table of genes.

Arrays in, tables out; no function takes a model. For groups A and B and gene g (Boyeau et al. 2019,
https://doi.org/10.1101/794289; Boyeau et al. 2023, https://doi.org/10.1073/pnas.2209124120):

    h_A     mean normalised expression of the cells of A, both groups decoded in the same batches
    LFC   = log2(h_A + eps) - log2(h_B + eps)
    change: proba_de = P(|LFC| > delta, and LFC more than delta from the centre of most genes);  vanilla: P(h_A > h_B)
    called: as many genes, most probable first, as keep the mean of 1 - proba_de at the false discovery rate

Groups are compared by their means. Differences of random pairs of cells would mostly be differences within a group.
Three corrections calibrate the probabilities, and a fourth orders the genes:

1. The decoder's parameters are estimates, and the posterior of z does not include their uncertainty. The counts of
   each group and batch are compared with the decoder's expectation, and the means carry the noise of the counts
   (`expression.count_evidence`).
2. Where group and batch are confounded, a residual batch effect may separate the groups. Each batch therefore has a
   random effect; only comparisons within batches are free of this effect.
3. Most genes change little. The distribution of changes is fitted to all genes (`probability.fit_prior`), as in
   adaptive shrinkage (Stephens 2017, https://doi.org/10.1093/biostatistics/kxw041).
4. A change that the decoder shows by itself is shared by many genes, and unlike a difference between donors it is seen
   in all of their cells. Genes are ordered by the evidence of the counts and, where there is any, of the decoder
   (`probability.pooled`). A change that the decoder does not show counts no less.
"""
