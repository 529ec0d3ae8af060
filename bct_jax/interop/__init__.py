"""Models of a run, or of a folder, for inspect_ai and lm-eval."""
