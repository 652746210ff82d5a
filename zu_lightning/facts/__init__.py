"""What is forgotten and what is kept: facts, retain text, and how they are read and split."""
