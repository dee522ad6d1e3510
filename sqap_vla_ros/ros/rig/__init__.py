"""The policy's node on a test rig: real DDS, a robot that is only messages, faults on demand."""
