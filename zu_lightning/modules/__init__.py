"""Everything in the library that knows Lightning."""
