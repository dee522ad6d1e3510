"""Where the robot is in the picture; NumPy only."""
