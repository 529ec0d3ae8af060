"""Holds language models: their architecture, weights and adapters."""
