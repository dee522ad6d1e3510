"""The `sqap` command and its verbs."""
