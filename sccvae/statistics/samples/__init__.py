"""Tests between samples, such as donors or mice: the units are samples, not cells.

May import `validation`.
"""
