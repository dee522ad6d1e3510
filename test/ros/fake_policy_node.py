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

"""The policy node with a policy that needs no model; run as a script it is a process of its own.

What the policy does is said by the instruction, so that a test decides it over DDS; how long it takes and how many
steps it answers with, by FAKE_DELAY_S and FAKE_CHUNK_STEPS in the environment.
"""

import os
import sys
import threading
from dataclasses import replace

import numpy as np

from sqap_vla_ros.data import ActionChunk, Inference, StageTimes, TokenUse
from sqap_vla_ros.errors import InferenceError, InputError
from sqap_vla_ros.geometry.image_map import resize_map
from sqap_vla_ros.ros.lifecycle import run_node
from sqap_vla_ros.ros.policy_node import PolicyNode

STEP_NS = 100_000_000
CHUNK_STEPS = 6
SIZE = 32
# The first step of each instruction: m, rad, gripper opening. 'shift' moves along x, and closes the gripper.
STEPS = {"go": (0.02, 0.0, 0.0, 0.0, 0.0, 0.05, 1.0), "shift": (0.0, 0.01, 0.0, 0.0, 0.0, 0.0, 0.0),
         "race": (0.3, 0.4, 0.0, 0.0, 0.0, 0.0, 1.0), "nan": (0.02, np.nan, 0.0, 0.0, 0.0, 0.0, 1.0)}
KNOWN = (*STEPS, "fail", "crash", "block", "count")


class FakePolicy:
    """Obeys at once, or after ``delay_s``, with ``chunk_steps`` steps.

    'fail' and 'crash' raise; 'block', and all after ``pause`` is set, wait for ``unblock``; 'count' gets faster by
    0.1 m/s with each step.
    """

    image_size = SIZE
    delay_s = 0.0
    chunk_steps = CHUNK_STEPS

    def __init__(self, config):
        self.config = config
        self.observations = []
        self.warm_ups = 0
        self.pause, self.unblock = threading.Event(), threading.Event()

    def warm_up(self):
        self.warm_ups += 1

    def check_itself(self):
        return "self-check: as good as new"

    def adapt(self, prune):
        self.config = replace(self.config, prune=prune)

    def check_instruction(self, text):
        if text not in KNOWN:
            raise InputError(f"the fake policy does not know '{text}'; its words are {', '.join(KNOWN)}")

    def describe(self):
        return {"family": "fake", "recipe": self.config.model.recipe, "weight_bytes": 7}

    def image_map(self, width, height):
        return resize_map(width, height, SIZE)

    def infer(self, observation):
        self.observations.append(observation)
        if observation.instruction == "fail":
            raise InferenceError("the action has 1 of 42 values that are not finite")
        if observation.instruction == "crash":
            raise ZeroDivisionError("nobody foresaw this")
        if observation.instruction == "block" or self.pause.is_set():
            self.unblock.wait(30.0)
        threading.Event().wait(self.delay_s)
        steps = np.tile(STEPS.get(observation.instruction, STEPS["go"]), (self.chunk_steps, 1))
        if observation.instruction == "count":
            steps[:, 0] = 0.01 * np.arange(1, self.chunk_steps + 1)
        kept = np.array([0, 5, 6, 9, 15])
        rules = np.array([0, 1, 1, 2, 2], dtype=np.int8)
        return Inference(ActionChunk(observation.stamp_ns, STEP_NS, steps),
                         StageTimes({"preprocess": 1.0, "vision": 2.0, "llm": 3.0, "head": 4.0}),
                         (TokenUse((4, 4), kept, rules),))


if __name__ == "__main__":
    FakePolicy.delay_s = float(os.environ.get("FAKE_DELAY_S", FakePolicy.delay_s))
    FakePolicy.chunk_steps = int(os.environ.get("FAKE_CHUNK_STEPS", CHUNK_STEPS))
    sys.exit(run_node(lambda: PolicyNode(FakePolicy), None, wants_start=lambda node: True))
