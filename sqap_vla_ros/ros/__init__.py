"""The border to ROS 2: the only folder that imports rclpy, beside the simulated robot's node."""
