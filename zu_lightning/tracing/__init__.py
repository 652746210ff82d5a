"""Where knowledge sits: causal tracing, recommended layers, and representations."""
