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

"""One episode without ROS: the policy that the node runs, with the footprint and the speed limits that it has there."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace

import numpy as np

from sqap_vla_ros.config import build_config
from sqap_vla_ros.data import Observation, RobotFootprint
from sqap_vla_ros.errors import ConfigError
from sqap_vla_ros.evaluation.blinding import Blindfold, check_family, pick_others, see_tokens
from sqap_vla_ros.evaluation.plan import Job, Setup
from sqap_vla_ros.evaluation.results import EpisodeRecord
from sqap_vla_ros.evaluation.statistics import measure_jerk, measure_path
from sqap_vla_ros.geometry.footprint import project_footprint, token_mask
from sqap_vla_ros.knobs import FootprintKnobs, InputKnobs, SafetyKnobs
from sqap_vla_ros.models.registry import describe_checkpoint
from sqap_vla_ros.policy.ensemble import build_ensemble
from sqap_vla_ros.policy.policy import Policy, build_policy
from sqap_vla_ros.policy.safety import limit_step
from sqap_vla_ros.policy.wiring import check_arm, choose_settings
from sqap_vla_ros.simulation.episode import run_episode
from sqap_vla_ros.simulation.layout import Layout
from sqap_vla_ros.simulation.parameters import build_tabletop
from sqap_vla_ros.simulation.tabletop import Tabletop

_OPTICAL_FRAME = "camera_optical_frame"


def check_setup(setup: Setup, jobs: list[Job]) -> None:
    """Find out before anything is played, or any weights are read, what would fail in every process.

    :raises CheckpointError: when the checkpoint cannot be used
    :raises ConfigError: when a knob cannot be set so, or the model cannot be blinded
    :raises InputError: for an instruction that the model cannot read
    """
    knobs = build_config(setup.shared_knobs).model
    model = describe_checkpoint(setup.checkpoint, settings=choose_settings(knobs), chosen=True).model
    check_arm(model, InputKnobs())
    if setup.blind:
        check_family(model)
    for instruction in sorted({job.trial.task.instruction for job in jobs}):
        model.tokenize(instruction)


class Player:
    """One policy on one thread and the tables it plays on, kept from episode to episode.

    What an episode gives depends on its job alone, not on what was played before.

    :param setup: how to play
    """

    def __init__(self, setup: Setup) -> None:
        self._setup = setup
        self._tabletops: dict[Layout, Tabletop] = {}
        self._policy: Policy | None = None
        self._method = ""

    def play(self, job: Job) -> EpisodeRecord:
        """Play one episode to its end.

        :raises SqapError: when the policy cannot be built, or cannot act
        """
        policy, tabletop, trial = self._find_policy(job), self._find_tabletop(job.trial.layout), job.trial
        scene = tabletop.reset(trial.seed)
        scene.check(trial.task)
        target = scene.target(trial.task)
        with Blindfold(policy.model) if self._setup.blind else nullcontext() as blindfold:
            infer = self._look(policy, tabletop, blindfold, f"block_{target}")
            outcome = run_episode(tabletop, trial.task, infer, execute_steps=self._setup.execute_steps)
        state = tabletop.state()
        translations = outcome.actions[:, :3]
        jerk = measure_jerk(translations, tabletop.control_period_s)
        return EpisodeRecord(
            job.method.name, trial.seed, trial.group, trial.task.kind, trial.task.color, trial.task.instruction,
            outcome.success, outcome.steps, None if jerk is None else round(jerk, 4),
            round(measure_path(translations), 5),
            min(state.blocks, key=lambda name: float(np.linalg.norm(state.blocks[name] - state.tcp))), target,
            "" if job.replaced is None else scene.target(job.replaced))

    def close(self) -> None:
        """Free the renderers."""
        for tabletop in self._tabletops.values():
            tabletop.close()
        self._tabletops.clear()

    def _find_policy(self, job: Job) -> Policy:
        if self._policy is None or self._method != job.method.name:
            self._policy = build_policy(build_config(self._setup.knobs(job.method)))
            self._method = job.method.name
        return self._policy

    def _find_tabletop(self, layout: Layout) -> Tabletop:
        if layout not in self._tabletops:
            self._tabletops[layout] = build_tabletop(layout)
        return self._tabletops[layout]

    def _look(self, policy: Policy, tabletop: Tabletop, blindfold: Blindfold | None,
              target: str) -> Callable[[np.ndarray, str], np.ndarray]:
        looks = carried_out = 0
        period_ns, ensemble = round(tabletop.control_period_s * 1e9), build_ensemble(policy.config.control)

        def infer(picture: np.ndarray, instruction: str) -> np.ndarray:
            nonlocal looks, carried_out
            footprint = find_footprint(tabletop, policy.config.footprint)
            if blindfold is not None:
                rng = np.random.default_rng((tabletop.scene.seed, looks))
                blindfold.cover(choose_blind(self._setup.blind, policy, tabletop, footprint, target, rng))
            looks += 1
            # The clock of an episode is what has been carried out: the table stands still while the policy thinks.
            seen = Observation(carried_out * period_ns, (picture,), instruction, (footprint,))
            chunk = replace(policy.infer(seen).chunk, step_period_ns=period_ns)
            if ensemble is not None:
                chunk = ensemble.blend(chunk, instruction)
            carried_out += min(self._setup.execute_steps, len(chunk.steps))
            return limit_steps(chunk.steps, tabletop.control_period_s, policy.config.safety)

        return infer


def find_footprint(tabletop: Tabletop, knobs: FootprintKnobs) -> RobotFootprint:
    """Where the protected frames are in the picture, from the same frames that the simulated robot sends as TF.

    :raises ConfigError: for a frame that the robot does not have
    """
    poses = {"panda_link0": (np.zeros(3), np.eye(3))}
    for parent, child, shift, quaternion in (*tabletop.link_poses(), *tabletop.static_poses()):
        if parent in poses:
            position, rotation = poses[parent]
            poses[child] = position + rotation @ shift, rotation @ _rotation(quaternion)
    missing = [name for name in knobs.frames if name not in poses]
    if missing:
        raise ConfigError(f"footprint.frames names '{missing[0]}', which the simulated robot does not have; it has "
                          f"{', '.join(poses)}")
    eye, axes = poses[_OPTICAL_FRAME]
    positions = np.stack([(poses[name][0] - eye) @ axes for name in knobs.frames])
    return project_footprint(tabletop.camera(), knobs.frames, positions, knobs.radii_m, joined=knobs.joined)


def choose_blind(blind: str, policy: Policy, tabletop: Tabletop, footprint: RobotFootprint, target: str,
                 rng: np.random.Generator) -> np.ndarray:
    """Which tokens to blank in what ``tabletop`` shows now.

    :param blind: 'gripper': those of the footprint; 'target': those that see a pixel of the target; 'random': as many
        as the footprint's, of those that are neither
    :param target: body of the block
    :return: (N,) bool
    """
    camera = tabletop.camera()
    image_map = policy.image_map(camera.width, camera.height)
    gripper = token_mask(footprint, image_map, policy.grids[0], policy.image_size)
    if blind == "gripper":
        return gripper
    labels = tabletop.segment()
    bodies = [index for index in np.unique(labels) if index >= 0 and tabletop.body_name(int(index)) == target]
    vision = policy.model.config.vision  # type: ignore[attr-defined]
    block = see_tokens(np.isin(labels, bodies), image_map, vision)
    return block if blind == "target" else pick_others(gripper, gripper | block, rng)


def limit_steps(steps: np.ndarray, period_s: float, safety: SafetyKnobs) -> np.ndarray:
    """Steps slowed to the caps that the node commands.

    :param steps: (T, 7)
    """
    limited = steps.copy()
    for step in limited:
        step[:6] = period_s * limit_step(step[:6] / period_s, max_linear_m_s=safety.max_linear_m_s,
                                         max_angular_rad_s=safety.max_angular_rad_s)[0]
    return limited


def _rotation(quaternion: np.ndarray) -> np.ndarray:
    x, y, z, w = quaternion
    return np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                     [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                     [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]])
