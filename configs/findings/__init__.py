"""Tries findings of the field on two models.

Files that end in `_smollm2` take SmolLM2, the others the small base model,
which `configs/base_small.py` makes. `README.md` beside them says what came out.
"""
