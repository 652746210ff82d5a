"""Whether a server answers like the edited model."""
