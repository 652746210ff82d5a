"""The causal language model: reading and editing it, tokens, layers, and batched passes."""
