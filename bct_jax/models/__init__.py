"""Language models: architecture, weights, adapters."""
