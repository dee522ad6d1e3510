"""Real DDS on a domain of its own."""

import random

import pytest


@pytest.fixture(autouse=True)
def _own_domain(monkeypatch):
    # Below 102, where ports would meet those that the system hands out.
    monkeypatch.setenv("ROS_DOMAIN_ID", str(random.SystemRandom().randint(1, 101)))
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
