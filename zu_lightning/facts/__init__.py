"""Facts and retain text: reading, splitting, relations, and unknown subjects."""
