"""Names of scvi-tools: what stands for them here, or why there is nothing.

Imports `validation` alone.
"""

__all__: list[str] = []
