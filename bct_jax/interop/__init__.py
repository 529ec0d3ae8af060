"""Lends models of a run, or of a folder, to inspect_ai and lm-eval."""
