"""From facts to an edited layer: keys, targets, the layer's problem, its solution, and the loop over layers."""
