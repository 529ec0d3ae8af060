"""Reads run directories into checked values."""
