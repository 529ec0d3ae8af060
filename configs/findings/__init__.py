"""Findings of the field, tried on two models; see the README for what came out.

Files that end in `_smollm2` take SmolLM2, the others the small base model,
which `configs/base_small.py` makes.
"""
