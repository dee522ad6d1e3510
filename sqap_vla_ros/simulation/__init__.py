"""A robot to try it on: a MuJoCo tabletop with an arm, blocks and a tray."""
