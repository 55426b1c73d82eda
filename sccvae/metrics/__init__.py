"""Scores of embeddings (re-exported here), of their integration and of generated cells.

May import `validation`.
"""

from sccvae.metrics.embedding import (
    batch_entropy,
    batch_mixing_entropy,
    embedding_scores,
    graph_connectivity,
    kmeans_ari_nmi,
    knn_accuracy,
    silhouette_batch,
    silhouette_label,
)

__all__ = [
    "batch_entropy",
    "batch_mixing_entropy",
    "embedding_scores",
    "graph_connectivity",
    "kmeans_ari_nmi",
    "knn_accuracy",
    "silhouette_batch",
    "silhouette_label",
]
