"""Trains weights: the step, optimizers, the loop, checkpoints."""
