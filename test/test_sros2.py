# Copyright 2026 sqap_vla_ros maintainers
#
# Licensed under the Apache License, Version 2.0 (the "License");
# you may not use this file except in compliance with the License.
# You may obtain a copy of the License at
#
#     http://www.apache.org/licenses/LICENSE-2.0
#
# Unless required by applicable law or agreed to in writing, software
# distributed under the License is distributed on an "AS IS" BASIS,
# WITHOUT WARRANTIES OR CONDITIONS OF ANY KIND, either express or implied.
# See the License for the specific language governing permissions and
# limitations under the License.

"""The SROS 2 policy allows the nodes what the interface tables say, and nothing else."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
import rclpy
from rclpy.context import Context
from rclpy.lifecycle import LifecycleNode
from rclpy.node import Node

from sqap_vla_ros.ros import interface
from sqap_vla_ros.ros.interface import Role

POLICY = ElementTree.parse(Path(__file__).parents[1] / "config" / "sros2" / "policy.xml").getroot()
TABLES = {"policy_node": interface.POLICY_NODE, "watchdog_node": interface.WATCHDOG_NODE,
          "sim_robot": interface.SIM_ROBOT}
# Role to (element, attribute) of the policy's format.
RULES = {Role.PUBLISHES: ("topics", "publish"), Role.SUBSCRIBES: ("topics", "subscribe"),
         Role.SERVES: ("services", "reply"), Role.CALLS: ("services", "request"),
         Role.SERVES_ACTION: ("actions", "execute"), Role.CALLS_ACTION: ("actions", "call")}
PARAMETERS = ("describe_parameters", "get_parameter_types", "get_parameters", "get_type_description",
              "list_parameters", "set_parameters", "set_parameters_atomically")
LIFECYCLE = ("change_state", "get_available_states", "get_available_transitions", "get_state", "get_transition_graph")
DRY_RUN = (interface.TWIST, interface.POSE, interface.GRIPPER_TRAJECTORY)


def allowed(node):
    """(element, attribute, name) of everything that the policy allows a node."""
    (profile,) = [item for item in POLICY.iter("profile") if item.get("node") == node]
    assert profile.get("ns") == "/"
    rules = []
    for group in profile:
        ((attribute, value),) = group.attrib.items()
        assert value == "ALLOW"
        rules += [(group.tag, attribute, item.text) for item in group]
    assert len(rules) == len(set(rules))
    return set(rules)


def common(node):
    """What every node of its kind has besides its table."""
    rules = {("topics", "publish", "/rosout"), ("topics", "publish", "/parameter_events"),
             ("topics", "subscribe", "/parameter_events"), ("topics", "subscribe", "/clock")}
    rules |= {("services", "reply", f"~/{name}") for name in PARAMETERS}
    if node == "policy_node":
        rules |= {("services", "reply", f"~/{name}") for name in LIFECYCLE}
        rules.add(("topics", "publish", "~/transition_event"))
        rules |= {("topics", "publish", f"~/dry_run/{end.name}") for end in DRY_RUN}
    return rules


def test_policy_has_one_enclave_for_each_node():
    assert (POLICY.tag, POLICY.get("version")) == ("policy", "0.2.0")
    assert [item.get("path") for item in POLICY.iter("enclave")] == [f"/sqap_vla_ros/{node}" for node in TABLES]


@pytest.mark.parametrize("node", TABLES)
def test_policy_allows_what_the_tables_say(node):
    assert allowed(node) == common(node) | {(*RULES[role], end.name) for role, end in TABLES[node]}


def resolve(name, node):
    """The full name of what a node in no namespace calls its own."""
    return name.replace("~", f"/{node}") if name[0] in "/~" else f"/{name}"


@pytest.mark.parametrize(("node", "kind"), [("policy_node", LifecycleNode), ("watchdog_node", Node)])
def test_a_bare_node_needs_no_more_than_is_allowed(node, kind):
    context = Context()
    rclpy.init(context=context)
    try:
        bare = kind(node, context=context)
        served = {service.srv_name for service in bare.services}
        published = {publisher.topic for publisher in bare.publishers}
        bare.destroy_node()
    finally:
        rclpy.shutdown(context=context)
    names = {name.replace("~", f"/{node}") for _, attribute, name in allowed(node) if attribute in ("reply", "publish")}
    assert {resolve(name, node) for name in served | published} <= names
    assert len(served) >= 6 and published
