"""How a linear layer becomes 4 bits. Imports torch only."""
