"""Observation in, actions out; knows no ROS."""
