"""Models in files that run without this package: written, checked, and run again behind one interface."""
