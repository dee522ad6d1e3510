"""What compression costs: metrics, closed loop, bag replay, report."""
