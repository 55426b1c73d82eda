"""Files: written completely or not at all, read by their content; saved models.

Imports nothing of the package but its version.
"""
