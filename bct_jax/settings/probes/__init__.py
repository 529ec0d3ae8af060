"""Holds probes of what a model can do apart from its behavior."""
