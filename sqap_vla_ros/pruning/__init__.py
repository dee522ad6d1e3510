"""Which visual tokens stay. Imports torch only."""
