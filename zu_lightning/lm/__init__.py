"""A causal language model that can be read and edited, and everything that knows about tokens and layers."""
