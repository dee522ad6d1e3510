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

"""The demo policy while it learns: several instructions share one picture, and extra heads ask where things are.

The instructions of a picture stand one after the other behind its visual tokens; a block mask keeps each from seeing
the others, so one pass over the expensive visual prefix serves all of them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sqap_vla_ros.errors import CheckpointError
from sqap_vla_ros.models.demo import BOS, DemoVla
from sqap_vla_ros.models.registry import load_model
from sqap_vla_ros.training.frames import Batch
from sqap_vla_ros.training.instructions import InstructionTokens
from sqap_vla_ros.training.settings import FINE_STRIDE_PX, LossWeights

_PLACE_SCALE_M = 0.1
_PLACE_CENTER = (0.465, -0.02, 0.06)
_WIDEST_OPENING_M = 0.09


class Learner(nn.Module):
    """A :class:`DemoVla` and the heads that only training uses.

    Pointer: the state of a color word picks the visual token its block covers. Place: the same state gives the
    block's position, the ACT token's state the gripper's position and opening. Relation: the ACT token's state gives
    the way from the gripper to each block named. Turn: how far block and gripper are turned, and one against the
    other; the projected visual tokens under the blocks' centres tell it of every block.
    """

    def __init__(self, model: DemoVla) -> None:
        super().__init__()
        width = model.config.decoder.hidden_size
        self.model = model
        self.point_query = nn.Linear(width, 128)
        self.point_key = nn.Linear(width, 128)
        self.place_target = nn.Linear(width, 3)
        self.place_gripper = nn.Linear(width, 4)
        self.relation = nn.Linear(width, 6)
        self.turn_target = nn.Linear(width, 2)
        self.turn_gripper = nn.Linear(width, 4)
        self.turn_seen = nn.Linear(width, 2)
        self._tokens = InstructionTokens(model)

    def forward(self, batch: Batch, rng: np.random.Generator, weights: LossWeights) -> dict[str, Tensor]:
        """Losses by name, and their weighted sum as ``total``."""
        model, count, device = self.model, weights.instructions_per_image, batch.images.device
        frames = torch.arange(len(batch.images), device=device)[:, None]
        asked = torch.from_numpy(choose_instructions(batch.codes.numpy(), count, rng))
        words, act_at, colors_at = self._tokens.look_up(batch.codes[frames.cpu(), asked])
        words = words[..., :int(act_at.max()) + 1].to(device)
        act_at, colors_at, asked = act_at.to(device), colors_at.to(device), asked.to(device)
        visual = model.encode_images(augment(batch.images, rng))
        hidden = self._decode(visual, words)
        text = hidden[:, 1 + visual.shape[1]:].unflatten(1, (count, words.shape[-1]))
        act = _pick(text, act_at[..., None])[:, :, 0]
        named = _pick(text, colors_at)

        share = torch.full((count,), (1 - weights.own_weight) / max(1, count - 1), device=device)
        share[0] = weights.own_weight if count > 1 else 1.0
        seen, targets = hidden[:, 1:1 + visual.shape[1]], batch.targets[frames, asked]
        yaws = batch.yaws[frames, targets[..., 0]]
        losses = {**self._action_losses(act, batch.chunks[frames, asked]),
                  **self._grounding_losses(seen, named, batch, targets),
                  "gripper_place": self._gripper_loss(act, batch.gripper),
                  "relation": self._relation_loss(act, batch, targets),
                  "turn": self._turn_loss(named[:, :, 0], act, yaws, batch.gripper[:, None, 4].expand_as(yaws))}
        means = {name: (loss * share).sum(1).mean() for name, loss in losses.items()}
        means["turn_seen"] = self._turn_seen_loss(visual, batch)
        means["total"] = (means["motion"] + weights.gripper_weight * means["gripper"]
                          + weights.pointer_weight * means["pointer"]
                          + weights.place_weight * (means["place"] + means["gripper_place"])
                          + weights.relation_weight * means["relation"]
                          + weights.turn_weight * (means["turn"] + means["turn_seen"]))
        return means

    def _action_losses(self, act: Tensor, chunks: Tensor) -> dict[str, Tensor]:
        raw = self.model.action_logits(act)
        high = torch.tensor(self.model.action_spec.high[:6], device=raw.device)
        motion = F.smooth_l1_loss(raw[..., :6], chunks[..., :6] / high, beta=0.1, reduction="none").mean((-1, -2))
        gripper = F.binary_cross_entropy_with_logits(raw[..., 6], chunks[..., 6], reduction="none").mean(-1)
        return {"motion": motion, "gripper": gripper}

    def _grounding_losses(self, visual: Tensor, named: Tensor, batch: Batch, targets: Tensor) -> dict[str, Tensor]:
        # visual (B, N, C), named (B, K, 2, C), targets (B, K, 2); an instruction with one block has -1 for the second.
        frames = torch.arange(len(targets), device=targets.device)[:, None, None]
        there = (targets >= 0).float()
        which = targets.clamp(min=0)
        logits = torch.einsum("bkjd,bnd->bkjn", self.point_query(named), self.point_key(visual)).float() * 128**-0.5
        cell = token_under(batch.pixels[frames, which], self.model)
        point = F.cross_entropy(logits.flatten(0, 2), cell.flatten(), reduction="none").view(cell.shape)
        where = F.l1_loss(self.place_target(named).float(), _scaled(batch.blocks[frames, which]),
                          reduction="none").mean(-1)
        return {"pointer": (point * there).sum(-1) / there.sum(-1), "place": (where * there).sum(-1) / there.sum(-1)}

    def _gripper_loss(self, act: Tensor, gripper: Tensor) -> Tensor:
        state = gripper[:, None]
        own = torch.cat((_scaled(state[..., :3]), state[..., 3:4] / _WIDEST_OPENING_M), -1).expand(-1, act.shape[1], -1)
        return F.l1_loss(self.place_gripper(act).float(), own, reduction="none").mean(-1)

    def _relation_loss(self, act: Tensor, batch: Batch, targets: Tensor) -> Tensor:
        # Summed over the blocks named, not averaged: the way to the second is what is learned last.
        frames, there = torch.arange(len(targets), device=targets.device)[:, None, None], (targets >= 0).float()
        way = batch.blocks[frames, targets.clamp(min=0)] - batch.gripper[:, None, None, :3]
        told = self.relation(act).float().unflatten(-1, (2, 3))
        return (F.l1_loss(told, way / _PLACE_SCALE_M, reduction="none").mean(-1) * there).sum(-1)

    def _turn_loss(self, named: Tensor, act: Tensor, block: Tensor, gripper: Tensor) -> Tensor:
        # A block looks the same after a quarter turn, the gripper after half a turn.
        angles = torch.stack((4 * block, 2 * gripper, 4 * (block - gripper)), dim=-1)
        told = torch.cat((self.turn_target(named), self.turn_gripper(act)), dim=-1).float()
        return F.l1_loss(told, torch.stack((angles.cos(), angles.sin()), dim=-1).flatten(-2), reduction="none").mean(-1)

    def _turn_seen_loss(self, visual: Tensor, batch: Batch) -> Tensor:
        there = (batch.blocks != 0).any(-1).float()
        cell = token_under(batch.pixels, self.model)
        told = self.turn_seen(visual.gather(1, cell[..., None].expand(-1, -1, visual.shape[-1]))).float()
        angle = 4 * batch.yaws
        missed = F.l1_loss(told, torch.stack((angle.cos(), angle.sin()), dim=-1), reduction="none").mean(-1)
        return (missed * there).sum() / there.sum()

    def _decode(self, visual: Tensor, words: Tensor) -> Tensor:
        batch, tokens, _ = visual.shape
        count, length = words.shape[1:]
        bos = self.model.embed_tokens(torch.full((batch, 1), BOS, device=words.device))
        text = self.model.embed_tokens(words.flatten(1))
        # The residual stream stays float32 under autocast; only the matrix products are bfloat16.
        x = torch.cat((bos.float(), visual.float(), text.float()), dim=1)
        positions = segment_positions(self.model.config.vision.patch_stride, tokens, count, length).to(words.device)
        mask = segment_mask(1 + tokens, count, length).to(words.device)
        return self.model.decoder(x, positions.expand(batch, -1), mask=mask)


def choose_instructions(codes: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Which stored instructions are asked: the first, which the robot was doing, then others, none twice.

    Those that relate blocks to each other, by a side or a second color, are taken more often: they are learned last.

    :param codes: (B, M, 4), see :func:`~sqap_vla_ros.training.instructions.encode_task`
    :return: (B, count) indices
    """
    relating = (codes[:, 1:, 2:] > 0).any(-1)
    order = np.argsort(rng.random(relating.shape) - 0.4 * relating, axis=1)
    return np.concatenate((np.zeros((len(codes), 1), np.int64), 1 + order[:, :count - 1]), axis=1)


def segment_positions(patch_stride: int, tokens: int, count: int, length: int) -> Tensor:
    """(1, S) position ids: coarse tokens take those of their places on the fine grid, segments start alike."""
    factor = patch_stride // FINE_STRIDE_PX
    side = round(tokens**0.5)
    rows = torch.arange(side) * factor
    visual = 1 + (rows[:, None] * side * factor + rows[None]).flatten()
    start = 1 + (side * factor) ** 2
    segments = torch.arange(start, start + length).repeat(count)
    return torch.cat((torch.zeros(1, dtype=torch.long), visual, segments))[None]


def segment_mask(prefix: int, count: int, length: int) -> Tensor:
    """(1, 1, S, S) bool: causal, and no segment sees another."""
    size = prefix + count * length
    segment = torch.cat((torch.full((prefix,), -1), torch.arange(count).repeat_interleave(length)))
    visible = (segment[None] == -1) | (segment[:, None] == segment[None])
    return (visible & torch.ones(size, size, dtype=torch.bool).tril())[None, None]


def augment(images: Tensor, rng: np.random.Generator) -> Tensor:
    """(B, H, W, 3) uint8 to normalised (B, 3, H, W), brightness and tint varied a little."""
    gain = rng.uniform(0.85, 1.15, (len(images), 1, 1, 1)) * rng.uniform(0.96, 1.04, (len(images), 3, 1, 1))
    pixels = images.permute(0, 3, 1, 2).float() / 255.0
    return ((pixels * torch.from_numpy(gain).float().to(images.device)).clamp(0, 1) - 0.5) / 0.5


def _pick(text: Tensor, at: Tensor) -> Tensor:
    # (B, K, L, C) and (B, K, J) to (B, K, J, C).
    return text.gather(2, at[..., None].expand(-1, -1, -1, text.shape[-1]))


def _scaled(places: Tensor) -> Tensor:
    return (places - torch.tensor(_PLACE_CENTER, device=places.device)) / _PLACE_SCALE_M


def token_under(pixels: Tensor, model: DemoVla) -> Tensor:
    """Visual token whose cell a pixel (..., 2) lies in; one outside the picture counts to the nearest."""
    side, stride = model.config.vision.grid_size, model.config.vision.patch_stride
    cell = ((pixels + 0.5) / stride).floor().clamp(0, side - 1).long()
    return cell[..., 1] * side + cell[..., 0]


def refine_grid(model: DemoVla, finer: DemoVla) -> None:
    """Copy all weights of ``model`` into ``finer``, whose tokens lie closer together; positions are interpolated."""
    state = model.state_dict()
    coarse, side = state["vision.pos_embed"], model.config.vision.grid_size
    grid = coarse.view(1, side, side, -1).permute(0, 3, 1, 2)
    target = finer.config.vision.grid_size
    grid = F.interpolate(grid, size=(target, target), mode="bicubic", align_corners=False)
    state["vision.pos_embed"] = grid.permute(0, 2, 3, 1).flatten(1, 2)
    finer.load_state_dict(state)


def load_policy(checkpoint: Path) -> DemoVla:
    """A checkpoint in float32, ready to infer."""
    model = load_model(checkpoint)
    if not isinstance(model, DemoVla):
        raise CheckpointError(f"'{checkpoint}' holds a {model.family} model; only the demo family is trained here")
    return model.eval()


@torch.inference_mode()
def infer_chunk(model: DemoVla, image: np.ndarray, instruction: str) -> np.ndarray:
    """(T, 7) steps in m, rad and gripper 0..1, on whichever grid the checkpoint has."""
    pixels = (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255.0 - 0.5) / 0.5
    ids = model.tokenize(instruction)
    sequence = model.build_sequence(model.encode_images(pixels), ids)
    tokens = sequence.visual.stop - 1
    positions = segment_positions(model.config.vision.patch_stride, tokens, 1, len(ids) + 1)
    actions = model.predict_actions(model.decoder(sequence.embeddings, positions))[0].double().numpy()
    actions[:, :6] *= np.array(model.action_spec.high[:6])
    return actions
