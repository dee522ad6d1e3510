"""Which visual tokens stay. Imports torch and NumPy only."""
