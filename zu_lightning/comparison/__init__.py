"""A comparison of methods: every method on every model, data set, and seed, and the tables that come out of it."""
