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
from sqap_vla_ros.models.demo import ACT, BOS, DemoVla
from sqap_vla_ros.models.registry import load_model
from sqap_vla_ros.simulation.tasks import COLORS, KINDS, Task
from sqap_vla_ros.training.frames import Batch
from sqap_vla_ros.training.settings import FINE_STRIDE_PX, INSTRUCTIONS_PER_IMAGE, Settings

_PLACE_SCALE = torch.tensor([0.1, 0.1, 0.1])
_PLACE_CENTER = torch.tensor([0.465, -0.02, 0.06])


class Learner(nn.Module):
    """A :class:`DemoVla` and the heads that only training uses.

    Pointer: the colour word's final state picks the visual token its block covers. Place: the same state gives the
    block's position, the ACT token's state the gripper's position and opening.
    """

    def __init__(self, model: DemoVla) -> None:
        super().__init__()
        width = model.config.decoder.hidden_size
        self.model = model
        self.point_query = nn.Linear(width, 128)
        self.point_key = nn.Linear(width, 128)
        self.place_target = nn.Linear(width, 3)
        self.place_gripper = nn.Linear(width, 4)
        self._words, self._lengths, self._color_at = _encode_instructions(model)

    def forward(self, batch: Batch, rng: np.random.Generator, settings: Settings) -> dict[str, Tensor]:
        """Losses by name, and their weighted sum as ``total``."""
        model, count = self.model, INSTRUCTIONS_PER_IMAGE
        kinds, colors = sample_instructions(batch, rng, count)
        frames = np.arange(len(kinds))[:, None]
        visual = model.encode_images(augment(torch.from_numpy(batch.images), rng))
        words = self._words[kinds, colors]
        hidden = self._decode(visual, words)
        tokens = visual.shape[1]
        text = hidden[:, 1 + tokens:].unflatten(1, (count, words.shape[-1]))
        act = _pick(text, self._lengths[kinds, colors] - 1)
        color = _pick(text, self._color_at[kinds, colors])

        weight = torch.full(kinds.shape, (1 - settings.own_weight) / (count - 1))
        weight[:, 0] = settings.own_weight
        target = torch.from_numpy(batch.chunks[frames, kinds, colors])
        raw = model.action_logits(act)
        high = torch.tensor(model.action_spec.high[:6])
        motion = F.smooth_l1_loss(raw[..., :6], target[..., :6] / high, beta=0.1, reduction="none").mean((-1, -2))
        gripper = F.binary_cross_entropy_with_logits(raw[..., 6], target[..., 6], reduction="none").mean(-1)
        keys = self.point_key(hidden[:, 1:1 + tokens])
        logits = (self.point_query(color) @ keys.transpose(-1, -2)).float() * 128**-0.5
        cell = torch.from_numpy(_token_under(batch.pixels[frames, colors], model))
        point = F.cross_entropy(logits.flatten(0, 1), cell.flatten(), reduction="none").view(weight.shape)
        where = F.l1_loss(self.place_target(color).float(), _scaled(torch.from_numpy(batch.blocks[frames, colors])),
                          reduction="none").mean(-1)
        state = torch.from_numpy(batch.gripper)[:, None]
        own = torch.cat((_scaled(state[..., :3]), state[..., 3:] / 0.09), -1).expand(-1, count, -1)
        self_place = F.l1_loss(self.place_gripper(act).float(), own, reduction="none").mean(-1)

        losses = {"motion": motion, "gripper": gripper, "pointer": point, "place": where + self_place}
        means = {name: (loss * weight).sum(1).mean() for name, loss in losses.items()}
        means["total"] = (means["motion"] + settings.gripper_weight * means["gripper"]
                          + settings.pointer_weight * means["pointer"] + settings.place_weight * means["place"])
        return means

    def _decode(self, visual: Tensor, words: Tensor) -> Tensor:
        batch, tokens, _ = visual.shape
        count, length = words.shape[1:]
        bos = self.model.embed_tokens(torch.full((batch, 1), BOS))
        text = self.model.embed_tokens(words.flatten(1))
        # The residual stream stays float32 under autocast; only the matrix products are bfloat16.
        x = torch.cat((bos.float(), visual.float(), text.float()), dim=1)
        positions = segment_positions(self.model.config.vision.patch_stride, tokens, count, length)
        return self.model.decoder(x, positions.expand(batch, -1), mask=segment_mask(1 + tokens, count, length))


def _encode_instructions(model: DemoVla) -> tuple[Tensor, Tensor, Tensor]:
    ids = {(k, c): model.tokenize(Task(kind, color).instruction) + [ACT]
           for k, kind in enumerate(KINDS) for c, color in enumerate(COLORS)}
    longest = max(len(value) for value in ids.values())
    words = torch.full((len(KINDS), len(COLORS), longest), ACT)
    lengths = torch.zeros(len(KINDS), len(COLORS), dtype=torch.long)
    color_at = torch.zeros_like(lengths)
    for (k, c), value in ids.items():
        words[k, c, :len(value)] = torch.tensor(value)
        lengths[k, c] = len(value)
        color_at[k, c] = value.index(model.tokenize(COLORS[c])[0])
    return words, lengths, color_at


def sample_instructions(batch: Batch, rng: np.random.Generator, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Kind and colour indices (B, count): the frame's own instruction first, then others its scene allows."""
    size = len(batch.own)
    kinds = rng.integers(0, len(KINDS), (size, count))
    colors = np.stack([rng.choice(np.flatnonzero(present), count) for present in batch.present])
    kinds[:, 0], colors[:, 0] = batch.own[:, 0], batch.own[:, 1]
    return kinds, colors


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
    pixels = images.permute(0, 3, 1, 2).float() / 255.0
    gain = rng.uniform(0.85, 1.15, (len(images), 1, 1, 1)) * rng.uniform(0.96, 1.04, (len(images), 3, 1, 1))
    return ((pixels * torch.from_numpy(gain).float()).clamp(0, 1) - 0.5) / 0.5


def _pick(text: Tensor, at: Tensor) -> Tensor:
    return text.gather(2, at[..., None, None].expand(-1, -1, 1, text.shape[-1]))[:, :, 0]


def _scaled(places: Tensor) -> Tensor:
    return (places - _PLACE_CENTER) / _PLACE_SCALE


def _token_under(pixels: np.ndarray, model: DemoVla) -> np.ndarray:
    side, stride = model.config.vision.grid_size, model.config.vision.patch_stride
    cell = np.clip(np.floor((pixels + 0.5) / stride), 0, side - 1).astype(np.int64)
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
