"""How the demo policy was made."""
