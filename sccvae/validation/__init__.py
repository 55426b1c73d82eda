"""Checks of what users pass: numbers, switches, names, cells; the wording of messages.

Imports nothing of the package.
"""
