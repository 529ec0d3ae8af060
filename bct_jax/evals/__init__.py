"""Labels completions, measures rates, checks the gate and judges arms."""
