"""Every knob once. ROS parameters, command-line flags and the README table derive from these fields."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from sqap_vla_ros.errors import ConfigError


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
    threads: int = knob(1, "CPU threads of one inference.", minimum=1, maximum=256)
    dataset: str = knob("", "Data set whose statistics give actions their units; empty takes the only one that the "
                        "checkpoint knows.")
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
    pruned_ratio: float = knob(0.4, "Share of the visual tokens dropped, 0 to 1.", minimum=0.0, maximum=0.95)
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
class FootprintKnobs:
    """Which parts of the robot are protected in the picture."""

    camera_frame: str = knob("", "Optical frame of the camera; empty takes the image's frame_id.")
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
    tf_wait_s: float = knob(0.03, "How long a picture waits for the transform at its stamp, s of wall time.",
                            minimum=0.0, maximum=1.0, read_only=False)


@dataclass(frozen=True)
class ControlKnobs:
    """How actions become commands."""

    control_hz: float = knob(20.0, "How often the newest image is considered, Hz.", minimum=1.0, maximum=200.0)
    command_hz: float = knob(50.0, "How often a command is published, Hz.", minimum=1.0, maximum=500.0)
    step_period_s: float = knob(0.1, "Time one step of a chunk lasts, s.", minimum=0.005, maximum=10.0)
    execute_steps: int = knob(2, "Steps of a chunk that run before a newer image is taken.", minimum=1, maximum=64,
                              read_only=False)
    ensemble_horizon: int = knob(1, "Chunks that are blended, the newest included, 1 for none (adaptive ensemble, "
                                 "CogACT); needs execute_steps 1.", minimum=1, maximum=64)
    ensemble_alpha: float = knob(0.1, "How much more those chunks count in the blend that are like the newest; 0 is "
                                 "the plain mean.", minimum=0.0, maximum=10.0)
    base_frame: str = knob("panda_link0", "Frame in which commands are expressed.")
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
    max_linear_m_s: float = knob(0.6, "Cap on the commanded linear speed, m/s.", minimum=0.0, maximum=5.0,
                                 read_only=False)
    max_angular_rad_s: float = knob(1.5, "Cap on the commanded angular speed, rad/s.", minimum=0.0, maximum=20.0,
                                    read_only=False)
    max_instruction_chars: int = knob(256, "Longest instruction accepted, characters.", minimum=1, maximum=10000)


@dataclass(frozen=True)
class Config:
    """All knobs, by section."""

    model: ModelKnobs = field(default_factory=ModelKnobs)
    prune: PruneKnobs = field(default_factory=PruneKnobs)
    footprint: FootprintKnobs = field(default_factory=FootprintKnobs)
    control: ControlKnobs = field(default_factory=ControlKnobs)
    safety: SafetyKnobs = field(default_factory=SafetyKnobs)

    def __post_init__(self) -> None:
        if len(self.footprint.frames) != len(self.footprint.radii_m):
            raise ConfigError(
                f"footprint.radii_m has {len(self.footprint.radii_m)} values for {len(self.footprint.frames)} "
                "footprint.frames; give one radius per frame")
        control = self.control
        if control.ensemble_horizon > 1 and control.execute_steps > 1:
            raise ConfigError(
                f"control.ensemble_horizon is {control.ensemble_horizon} and control.execute_steps is "
                f"{control.execute_steps}, and an ensemble looks again after each step; set control.execute_steps to "
                "1, or control.ensemble_horizon to 1 to blend nothing")


def iterate_knobs(config: Config) -> Iterator[tuple[str, Knob, Any]]:
    """Yield ``(section.name, knob, value)`` for every knob of ``config``."""
    for section in fields(config):
        values = getattr(config, section.name)
        for entry in fields(values):
            yield f"{section.name}.{entry.name}", entry.metadata["knob"], getattr(values, entry.name)


def build_config(values: Mapping[str, Any], base: Config | None = None) -> Config:
    """Replace knobs of ``base`` by dotted name.

    :param values: ``section.name`` to value; lists become tuples
    :param base: what the other knobs are; the defaults when None
    :raises ConfigError: for an unknown name, a wrong type or a value out of range
    """
    config = base or Config()
    known = {name: (entry, value) for name, entry, value in iterate_knobs(Config())}
    sections: dict[str, dict[str, Any]] = {}
    for name, value in values.items():
        if name not in known:
            raise ConfigError(f"unknown knob '{name}'; known are {', '.join(known)}")
        section, _, leaf = name.partition(".")
        sections.setdefault(section, {})[leaf] = _checked(name, *known[name], value)
    replaced = {section: dataclasses.replace(getattr(config, section), **leaves)
                for section, leaves in sections.items()}
    return dataclasses.replace(config, **replaced)


def _checked(name: str, entry: Knob, default: Any, value: Any) -> Any:
    if isinstance(default, tuple):
        if isinstance(value, (str, bytes)) or not hasattr(value, "__iter__"):
            raise ConfigError(f"{name} must be a list, got {value!r}")
        kind = type(default[0])
        return tuple(_checked_scalar(name, entry, kind, item) for item in value)
    return _checked_scalar(name, entry, type(default), value)


def _checked_scalar(name: str, entry: Knob, kind: type, value: Any) -> Any:
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, kind) or (kind is not bool and isinstance(value, bool)):
        raise ConfigError(f"{name} must be {kind.__name__}, got {type(value).__name__} {value!r}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name} must be finite, got {value!r}")
    if entry.choices and value not in entry.choices:
        raise ConfigError(f"{name} is '{value}'; allowed are {entry.choices_text}")
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        if entry.minimum is not None and value < entry.minimum:
            raise ConfigError(f"{name} is {value}; the smallest allowed is {entry.minimum}")
        if entry.maximum is not None and value > entry.maximum:
            raise ConfigError(f"{name} is {value}; the largest allowed is {entry.maximum}")
    return value
