"""Says before a run whether it fits its chips, and how fast it can be."""
