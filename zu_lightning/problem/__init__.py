"""From facts to what a rule solves at one layer: keys, residuals, values and second moments."""
