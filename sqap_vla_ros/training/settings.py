"""How the demo policy is trained: every number once."""

from __future__ import annotations

from dataclasses import dataclass, field

from sqap_vla_ros.models.demo import DemoConfig
from sqap_vla_ros.models.llama import LlamaConfig
from sqap_vla_ros.models.vit import VitConfig
from sqap_vla_ros.models.vla import ActionSpec
from sqap_vla_ros.simulation.expert import MAX_STEP_M, MAX_TURN_RAD
from sqap_vla_ros.simulation.tasks import VOCABULARY

CHUNK_STEPS = 4
INSTRUCTIONS_PER_IMAGE = 4
FIELD_PX = 28
FINE_STRIDE_PX = 14
TRAIN_SEEDS = range(1_000_000, 2_000_000)
VALIDATION_SEEDS = range(2_000_000, 2_100_000)


@dataclass(frozen=True)
class Stage:
    """One stretch of training on one token grid.

    :param name: names the stage's files
    :param patch_stride: distance between visual tokens, px: 28 gives 64 tokens, 14 gives 256
    :param expert_frames: frames collected from the perturbed expert before training
    :param dagger_frames: frames collected from the policy so far and labelled by the expert
    :param samples: images seen, with repetition
    :param batch_size: images in a step; each carries several instructions
    :param peak_rate: learning rate after warm-up
    :param final_rate: learning rate at the end of the cosine
    """

    name: str
    patch_stride: int
    expert_frames: int
    dagger_frames: int
    samples: int
    batch_size: int
    peak_rate: float
    final_rate: float


STAGES = (
    Stage("coarse", 28, 36_000, 0, 44_000, 32, 1e-3, 4e-4),
    Stage("coarse-dagger", 28, 0, 10_000, 16_000, 16, 7e-4, 1e-4),
    Stage("fine", 14, 0, 6_000, 22_000, 8, 6e-4, 3e-5),
)


@dataclass(frozen=True)
class Settings:
    """The whole recipe.

    :param stages: in order
    :param own_weight: weight of the instruction the frame was collected under; the others share the rest
    :param pointer_weight: weight of the loss that makes the colour word point at its block
    :param place_weight: weight of the losses that locate target and gripper
    :param gripper_weight: weight of the gripper's cross-entropy
    :param ema_decay: decay of the averaged weights that are evaluated and shipped
    :param save_every: optimizer steps between resumable saves
    """

    seed: int = 0
    stages: tuple[Stage, ...] = field(default=STAGES)
    own_weight: float = 0.4
    pointer_weight: float = 0.3
    place_weight: float = 0.5
    gripper_weight: float = 0.3
    weight_decay: float = 0.05
    ema_decay: float = 0.995
    gradient_clip: float = 1.0
    warmup_steps: int = 100
    save_every: int = 200
    validation_episodes: int = 60
    execute_steps: int = 2


def demo_config(patch_stride: int) -> DemoConfig:
    """Architecture of the demo policy on the grid that ``patch_stride`` gives."""
    bounds = (MAX_STEP_M,) * 3 + (MAX_TURN_RAD,) * 3
    low = tuple(-value for value in bounds) + (0.0,)
    action = ActionSpec(CHUNK_STEPS, low, bounds + (1.0,), (True,) * 6 + (False,))
    vision = VitConfig(224, FIELD_PX, patch_stride, 192, 4, 3)
    return DemoConfig(vision, LlamaConfig(256, 768, 6, 4, 4), VOCABULARY, action)
