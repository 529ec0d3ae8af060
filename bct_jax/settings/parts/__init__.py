"""Holds parts that settings are made of: words, questions, scorers."""
