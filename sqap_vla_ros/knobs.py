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

"""Every knob once, by section: its default, what it means, which values it takes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Knob:
    """What a knob means and which values it takes.

    :param description: one sentence with the unit
    :param minimum: smallest allowed number, or None
    :param maximum: largest allowed number, or None
    :param choices: the only allowed strings, or empty
    :param read_only: cannot change after configure
    """

    description: str
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    read_only: bool = True

    @property
    def choices_text(self) -> str:
        """The choices in words, the empty one as ''."""
        return ", ".join(choice or "''" for choice in self.choices)


def knob(default: Any, description: str, **limits: Any) -> Any:
    """Declare a dataclass field that is a knob; ``limits`` are the fields of :class:`Knob`."""
    return field(default=default, metadata={"knob": Knob(description, **limits)})


@dataclass(frozen=True)
class ModelKnobs:
    """Which model runs, and how."""

    checkpoint: str = knob("demo", "Folder of a float or compressed checkpoint, or 'demo' for the policy in the "
                           "package.")
    # A test holds these to quantization's RECIPES, which import torch.
    recipe: str = knob("w4a4", "How a float checkpoint is quantized, 'float' for not at all; a compressed one takes "
                       "'stored'.", choices=("float", "stored", "w4a4", "w4a4-rtn", "w4a4-rtn-plain", "w4a4-qk4",
                                             "w4a4-qk4-plain", "w4a8", "w4a8-rtn", "w8a8", "w4a16",
                                             "smoothquant-w8a8", "smoothquant-w4a4", "qvla-4bit", "qvla-w4a4"))
    engine: str = knob("cpu", "Engine of the quantized linears.", choices=("reference", "cpu"))
    device: str = knob("cpu", "Torch device.")
    dtype: str = knob("float32", "What a float or compressed checkpoint computes in where it is not quantized; recipes "
                      "that quantize start from float32.", choices=("float32", "bfloat16"))
    min_sqnr_db: float = knob(0.0, "Least signal to noise that quantized and pruned actions must have against the "
                              "float model's, on the observation that is compared at configure, dB.", minimum=-100.0,
                              maximum=200.0)
    threads: int = knob(1, "CPU threads of one inference.", minimum=1, maximum=256)
    dataset: str = knob("", "Data set whose statistics give actions their units; empty takes the only one that the "
                        "checkpoint knows.")
    meters_per_unit: float = knob(1.0, "What 1 means in an action's first three numbers, m; other than 1 where a data "
                                  "set holds inputs of a controller, as LIBERO's does (0.05).", minimum=1e-6,
                                  maximum=1.0)
    radians_per_unit: float = knob(1.0, "The same for the next three, rad (LIBERO: 0.5).", minimum=1e-6, maximum=10.0)
    # Tests hold these to PRESETS in models.pictures and in models.oft_presets, which import torch.
    pictures: str = knob("none", "What is done to a camera's picture before the model's own transform, as the scripts "
                         "of its authors do.", choices=("none", "libero", "libero-uncropped", "bridge", "oft",
                                                        "cogact-deploy"))
    robot: str = knob("", "Robot that an OpenVLA-OFT checkpoint is for; empty finds out by its sizes.",
                      choices=("", "libero", "aloha", "bridge"))
    sampler_steps: int = knob(10, "Steps in which CogACT denoises its actions; 0 is DDPM with every step of the "
                              "training. OpenVLA-OFT takes its 50.", minimum=0, maximum=100)
    guidance: float = knob(1.5, "How much CogACT's actions heed what the model sees; 1 is plain.", minimum=1.0,
                           maximum=10.0)


@dataclass(frozen=True)
class PruneKnobs:
    """Which visual tokens leave, and where."""

    rule: str = knob("sqap", "Selection rule; 'none' keeps every token.",
                     choices=("none", "sqap", "sqap-no-attention", "sqap-no-robot", "sqap-no-coverage", "fastv",
                              "coverage", "efficientvla", "random"))
    pruned_ratio: float = knob(0.4, "Share of the visual tokens dropped, 0 to 1.", minimum=0.0, maximum=0.95,
                               read_only=False)
    layer: int = knob(1, "Decoder layer (from 0) in which tokens leave, once its attention is known.", minimum=0,
                      maximum=255)
    attention_ratio: float = knob(0.1, "Share of the kept tokens chosen by attention in the sqap rules, 0 to 1.",
                                  minimum=0.0, maximum=1.0)
    robot_ratio: float = knob(0.25, "Largest share of the kept tokens chosen for showing the robot in the sqap rules, "
                              "0 to 1; the other parts may choose more of them.", minimum=0.0, maximum=1.0)
    coverage_space: str = knob("feature", "What coverage calls far: 'patch' is the distance in the picture, 'feature' "
                               "that of the hidden states.", choices=("patch", "feature"))
    area_attention: bool = knob(True, "Whether a kept token gets the attention of all tokens that it stands for, in "
                                "the sqap rules.")
    seed: int = knob(0, "Seed of the rule 'random', of ties where a rule must not see attention, and of the noise that "
                     "CogACT's actions and those of OpenVLA-OFT's diffusion head are made from.", minimum=0,
                     maximum=999_999)


@dataclass(frozen=True)
class InputKnobs:
    """What the node listens to."""

    cameras: tuple[str, ...] = knob(("camera",), "Namespaces of the cameras, 1 to 3 in the model's order: pictures "
                                    "come on NAME/image_raw, calibration on NAME/camera_info.")
    transport: str = knob("raw", "Whether pictures come as they are or as JPEG or PNG, on NAME/image_raw/compressed.",
                          choices=("raw", "compressed"))
    max_skew_s: float = knob(0.05, "How far the stamps of several cameras' pictures may lie apart, s.", minimum=0.0,
                             maximum=1.0, read_only=False)
    state: str = knob("none", "The robot's state for a model that reads it: positions of input.joints, or before them "
                      "the tool's pose in the base frame, x, y, z and its rotation as axis times angle or as roll, "
                      "pitch, yaw.", choices=("none", "joints", "pose_axis_angle", "pose_rpy"))
    joints: tuple[str, ...] = knob(("",), "Joints whose positions are part of the state, in the model's order; one "
                                   "empty name is none.")
    instructions: tuple[str, ...] = knob(("",), "The only instructions that are taken; one empty text allows all.")


@dataclass(frozen=True)
class FootprintKnobs:
    """Which parts of the robot are protected in the picture."""

    camera_frames: tuple[str, ...] = knob(("",), "Optical frame of each camera; an empty one takes the image's "
                                          "frame_id.")
    frames: tuple[str, ...] = knob(("panda_hand", "panda_leftfinger", "panda_rightfinger"),
                                   "TF frames whose surroundings are protected.")
    radii_m: tuple[float, ...] = knob((0.05, 0.025, 0.025), "Radius around each frame in m.", minimum=0.0, maximum=1.0,
                                       read_only=False)
    joined: bool = knob(True, "Protect what lies between consecutive frames too, as for the links of an arm.",
                        read_only=False)
    rectified: bool = knob(False, "Whether the picture is a rectified one (image_rect), for which P of camera_info "
                           "holds instead of K and D.")
    required: bool = knob(True, "Hold the robot while TF or camera_info cannot tell where the frames are; false goes "
                                "on with the other rules.", read_only=False)
    max_tf_age_s: float = knob(0.2, "Oldest transform used when none exists at the image's stamp, s.",
                               minimum=0.0, maximum=10.0, read_only=False)
    extrinsics_frame: str = knob("", "Frame in which footprint.extrinsics gives the cameras' poses; empty takes them "
                                 "from TF.")
    extrinsics: tuple[float, ...] = knob((0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 1.0), "Pose of each camera's optical frame in "
                                         "footprint.extrinsics_frame, seven numbers a camera: x, y, z in m, then the "
                                         "quaternion x, y, z, w.")
    tf_wait_s: float = knob(0.03, "How long a picture waits for the transform at its stamp, s of wall time.",
                            minimum=0.0, maximum=1.0, read_only=False)


@dataclass(frozen=True)
class ControlKnobs:
    """How actions become commands."""

    control_hz: float = knob(20.0, "How often the newest image is considered, Hz.", minimum=1.0, maximum=200.0,
                             read_only=False)
    command_hz: float = knob(50.0, "How often a command is published, Hz.", minimum=1.0, maximum=500.0)
    step_period_s: float = knob(0.1, "Time one step of a chunk lasts, s.", minimum=0.005, maximum=10.0)
    execute_steps: int = knob(2, "Steps of a chunk that run before a newer image is taken.", minimum=1, maximum=64,
                              read_only=False)
    ensemble_horizon: int = knob(1, "Chunks that are blended, the newest included, 1 for none (adaptive ensemble, "
                                 "CogACT); needs execute_steps 1.", minimum=1, maximum=64)
    ensemble_alpha: float = knob(0.1, "How much more those chunks count in the blend that are like the newest; 0 is "
                                 "the plain mean.", minimum=0.0, maximum=10.0)
    base_frame: str = knob("panda_link0", "Frame in which the model's actions are.")
    tool_frame: str = knob("panda_hand", "Frame that the actions move.")
    dry_run: bool = knob(True, "Compute everything and send the robot nothing: what it would get goes to "
                         "~/dry_run/... instead.")
    enable_actuation: bool = knob(False, "Second interlock: while false, all commands to the robot are zero. "
                                  "~/enable_actuation sets it too.", read_only=False)
    command: str = knob("twist", "What moves the arm: velocities, or poses of the tool in the base frame.",
                        choices=("twist", "pose"))
    command_frame: str = knob("base", "Frame in which velocities are expressed.", choices=("base", "tool"))
    servo: str = knob("none", "MoveIt Servo that is switched to the command's type on activation, by the services of "
                      "which distribution; Kilted has Jazzy's.", choices=("none", "humble", "jazzy"))
    gripper: str = knob("gripper_command", "How the gripper is moved: an action, a trajectory, or not at all.",
                        choices=("gripper_command", "parallel_gripper_command", "joint_trajectory", "none"))
    gripper_joints: tuple[str, ...] = knob(("panda_finger_joint1",), "Joints that parallel_gripper_command and "
                                           "joint_trajectory name; they share the opening evenly.")
    gripper_open_m: float = knob(0.08, "Distance between the fingers of the open gripper, m.", minimum=0.0, maximum=1.0,
                                 read_only=False)
    gripper_change_ratio: float = knob(0.1, "Smallest change of the opening, 0 to 1, that sends a gripper goal.",
                                       minimum=0.0, maximum=1.0, read_only=False)
    gripper_effort_n: float = knob(40.0, "Largest gripper force, N.", minimum=0.0, maximum=1000.0, read_only=False)


@dataclass(frozen=True)
class SafetyKnobs:
    """What is refused and what is limited."""

    max_image_age_s: float = knob(0.5, "Oldest image that may start an inference, s.", minimum=0.01, maximum=60.0,
                                  read_only=False)
    max_answer_age_s: float = knob(2.0, "Oldest image whose actions are still carried out when they come, s.",
                                   minimum=0.05, maximum=60.0, read_only=False)
    max_future_s: float = knob(0.1, "How far an image's stamp may lie ahead of the node's clock, s.",
                               minimum=0.0, maximum=10.0, read_only=False)
    max_state_age_s: float = knob(0.5, "Oldest joint states of which the robot's state is made, s.", minimum=0.01,
                                  maximum=60.0, read_only=False)
    command_timeout_s: float = knob(1.0, "Longest time that one answer of the model is carried out while no newer one "
                                    "comes, s.", minimum=0.05, maximum=60.0, read_only=False)
    max_inference_s: float = knob(10.0, "An inference that takes longer is a fault, s.", minimum=0.1, maximum=600.0,
                                  read_only=False)
    max_failures: int = knob(5, "So many failed inferences in a row are a fault, which lasts until ~/reset_fault.",
                             minimum=1, maximum=1000, read_only=False)
    ramp_in_s: float = knob(0.5, "Time in which speed rises to what the model asks for, after activation and whenever "
                            "an interlock opens, s.", minimum=0.0, maximum=60.0, read_only=False)
    max_linear_m_s: float = knob(0.6, "Cap on the commanded linear speed, m/s.", minimum=0.0, maximum=5.0,
                                 read_only=False)
    max_angular_rad_s: float = knob(1.5, "Cap on the commanded angular speed, rad/s.", minimum=0.0, maximum=20.0,
                                    read_only=False)
    max_linear_m_s2: float = knob(10.0, "Cap on the change of the commanded linear velocity, m/s^2; a halt is not "
                                  "slowed.", minimum=0.01, maximum=1000.0, read_only=False)
    max_angular_rad_s2: float = knob(50.0, "Cap on the change of the commanded angular velocity, rad/s^2; a halt is "
                                     "not slowed.", minimum=0.01, maximum=1000.0, read_only=False)
    max_tool_age_s: float = knob(0.2, "Oldest transform by which the tool is kept in its box, or velocities are turned "
                                 "into its frame, s.", minimum=0.01, maximum=1.0, read_only=False)
    workspace: bool = knob(False, "Whether the tool is kept in a box; it then needs TF from the base to the tool.",
                           read_only=False)
    workspace_min_m: tuple[float, ...] = knob((0.1, -0.6, 0.0), "Lower corner of that box in the base frame, m.",
                                              read_only=False)
    workspace_max_m: tuple[float, ...] = knob((0.8, 0.6, 1.0), "Upper corner of that box in the base frame, m.",
                                              read_only=False)
    max_instruction_chars: int = knob(256, "Longest instruction accepted, characters.", minimum=1, maximum=10000)
