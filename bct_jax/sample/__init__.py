"""Samples completions, and scores completions of others."""
