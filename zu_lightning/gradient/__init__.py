"""Gradient methods: losses, and the weights that they train."""
