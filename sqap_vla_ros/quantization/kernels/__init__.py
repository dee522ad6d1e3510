"""The integer matrix product behind one signature, with several engines that agree bit for bit."""
