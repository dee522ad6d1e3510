"""API-compatible subsets of ROS Python packages that no package registry carries."""
