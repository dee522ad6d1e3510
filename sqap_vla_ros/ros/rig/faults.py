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

"""What is done to the node on the rig, and what it owes the robot meanwhile: one row per fault. Knows no ROS."""

from __future__ import annotations

from dataclasses import dataclass

from sqap_vla_ros.errors import ConfigError


@dataclass(frozen=True)
class Fault:
    """One kind of trouble.

    :param name: as on the command line
    :param meaning: what happens, in words
    :param lasts_s: how long
    :param rests_within_s: time after which the robot must rest; None where it may go on
    :param latches: whether it takes ~/reset_fault, and then the instruction once more, to go on
    :param simulated: whether it needs simulated time
    """

    name: str
    meaning: str
    lasts_s: float
    rests_within_s: float | None = None
    latches: bool = False
    simulated: bool = False


CAMERA_STOPS = Fault("camera-stops", "no more pictures", 2.5, 1.5)
CAMERA_FREEZES = Fault("camera-freezes", "SIGSTOP of the process that has camera and TF, then SIGCONT", 2.5, 1.5)
WRONG_STAMPS = Fault("wrong-stamps", "pictures stamped 0, negative, an hour off, or past the second", 2.5, 1.5)
BROKEN_IMAGES = Fault("broken-images", "pictures that are none, in twelve ways", 3.0, 2.0)
TF_STOPS = Fault("tf-stops", "no more transforms", 3.0, 2.0)
TF_JUMPS = Fault("tf-jumps", "the hand is somewhere else in every picture", 2.0)
CLOCK_JUMPS = Fault("clock-jumps", "simulated time jumps back", 1.0, simulated=True)
INFERENCE_RAISES = Fault("inference-raises", "the policy raises what is foreseen and what is not", 2.5, 2.0, True)
INFERENCE_HANGS = Fault("inference-hangs", "the policy takes twice safety.max_inference_s", 4.0, 2.0, True)
INFERENCE_NAN = Fault("inference-nan", "actions are not a number", 2.5, 2.0, True)
INFERENCE_RACES = Fault("inference-races", "actions are a hundred times too large", 2.0)
INSTRUCTION_FLOOD = Fault("instruction-flood", "hundreds of instructions: allowed, unknown, empty, endless", 2.0)
PARAMETER_CHANGES = Fault("parameter-changes", "speed caps and ages change, and refused values are tried", 2.0)
EMERGENCY_STOP = Fault("emergency-stop", "the button is pressed", 1.0, 0.3, True)
ACTUATION_OFF = Fault("actuation-off", "~/enable_actuation is called with false, then with true", 1.0, 0.3)

FAULTS: dict[str, Fault] = {fault.name: fault for fault in (
    CAMERA_STOPS, CAMERA_FREEZES, WRONG_STAMPS, BROKEN_IMAGES, TF_STOPS, TF_JUMPS, CLOCK_JUMPS, INFERENCE_RAISES,
    INFERENCE_HANGS, INFERENCE_NAN, INFERENCE_RACES, INSTRUCTION_FLOOD, PARAMETER_CHANGES, EMERGENCY_STOP,
    ACTUATION_OFF)}


def choose_faults(names: tuple[str, ...], *, simulated: bool) -> list[Fault]:
    """The faults of these names that one kind of time can have.

    :raises ConfigError: when none is left
    """
    chosen = [FAULTS[name] for name in names if simulated or not FAULTS[name].simulated]
    if not chosen:
        raise ConfigError(f"{', '.join(names)} need simulated time; add --clock simulated, or name other faults")
    return chosen
