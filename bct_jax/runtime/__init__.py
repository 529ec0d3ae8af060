"""Joins a model, its weights, its devices and its compiled programs."""
