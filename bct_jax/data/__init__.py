"""Turns settings, files and data sets into tokens, rows and batches."""
