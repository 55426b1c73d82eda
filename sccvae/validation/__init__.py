"""Validation of user input: numbers, flags, names, cells; wording of messages.

Imports nothing of the package.
"""
