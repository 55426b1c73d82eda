"""Input and output: atomic writing, reading by content, saved models.

Imports nothing of the package but its version.
"""
