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

"""Every family, compressed and pruned, against itself in float: figures with ``pytest -s``, and what must be equal.

Actions alone say little: words change only where another one becomes likelier, and a head of random weights may hide
what reaches it. So what the actions are read from is compared too: of OpenVLA the logits of action words at each of its
places, behind the words that the float model wrote; of the others what the head makes of the decoder's states first.
What another picture does to the same figures tells how much they can show.
"""

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from sqap_vla_ros.config import build_config
from sqap_vla_ros.data import Observation
from sqap_vla_ros.models.action_tokens import ActionTokens
from sqap_vla_ros.models.random_checkpoint import make_random
from sqap_vla_ros.policy.compression import compress_checkpoint
from sqap_vla_ros.policy.policy import build_policy
from sqap_vla_ros.quantization import recipe as recipes

FAMILIES = {"openvla": 1, "openvla-oft": 2, "cogact-base": 1}
ORACLES = {"openvla": ("openvla/checkpoint", ("openvla/image.png",), "bridge_orig"),
           "openvla-oft": ("openvla_oft/checkpoint", ("openvla_oft/main.png", "openvla_oft/wrist.png"), ""),
           "cogact-base": ("cogact/run", ("cogact/image.png",), "bridge_orig")}
RECIPES = {"w8a8": "w8a8", "w4a4": "w4a4-rtn"}


@dataclass(frozen=True)
class Forced(ActionTokens):
    """Writes given words, whatever is likelier, and keeps the logits of all that could have been written.

    :param given: (7,) int64; None writes the likeliest
    """

    given: torch.Tensor | None = None
    logits: list = field(default_factory=list)

    def read(self, hidden, head):
        first = self.words - self.edges
        logits = F.linear(hidden, head.weight[first:self.words])
        word = super().read(hidden, head) if self.given is None else self.given[len(self.logits)].view(1, 1)
        self.logits.append(logits)
        return word


def observe(name, seed=4):
    rng = np.random.default_rng(seed)
    pictures = tuple(rng.integers(0, 256, (240, 320, 3), dtype=np.uint8) for _ in range(FAMILIES[name]))
    state = rng.normal(size=8) * 0.05 if name == "openvla-oft" else None
    return Observation(0, pictures, "put the spoon on the plate", (None,) * len(pictures), state=state)


class Look:
    """What a policy does about one observation: actions, what they are read from, and words where it writes some."""

    def __init__(self, checkpoint, recipe, observation, dataset="", words=None, **prune):
        policy = build_policy(build_config({
            "model.checkpoint": str(checkpoint), "model.recipe": recipe, "model.dataset": dataset,
            "control.execute_steps": 1, "prune.layer": 0, **{f"prune.{key}": value for key, value in prune.items()}}))
        model, read = policy.model, []
        if model.family == "openvla":
            tokens = Forced(model.config.tokens.words, model.config.tokens.edges, words)
            model.config = replace(model.config, tokens=tokens)
        elif model.family == "openvla-oft":
            model.unfold.register_forward_hook(lambda module, args, out: read.append(out))
        else:
            model.action_model.net.z_embedder.linear.register_forward_hook(lambda module, args, out: read.append(out))
        inference = policy.infer(observation)
        self.steps = inference.chunk.steps
        self.kept = [len(use.kept) for use in inference.tokens]
        if model.family == "openvla":
            logits = torch.cat(model.config.tokens.logits, dim=1)
            self.likeliest = logits[0].argmax(dim=-1) + tokens.words - tokens.edges
            read = [logits - logits.mean(dim=-1, keepdim=True)]  # what is common to all words chooses none
        self.read = read[0].detach().numpy()


def cosine(a, b):
    return float(a.ravel() @ b.ravel() / (np.linalg.norm(a) * np.linalg.norm(b)))


def compare(name, place, source, observation, other, dataset=""):
    """Cosines to the float model with all tokens, of actions and of what they are read from, by recipe and share."""
    plain = Look(source, "float", observation, dataset, rule="none")
    assert set(plain.kept) == {256} and np.isfinite(plain.steps).all()
    words = plain.likeliest if name == "openvla" else None
    rows = {}
    for recipe, checkpoint in {"float": source, **{name: place / name for name in RECIPES}}.items():
        for ratio in (0.0, 0.5):
            look = Look(checkpoint, "float" if recipe == "float" else "stored", observation, dataset, words,
                        rule="sqap", pruned_ratio=ratio)
            assert set(look.kept) == {round(256 * (1 - ratio))}
            rows[recipe, ratio] = cosine(look.steps, plain.steps), cosine(look.read, plain.read)
            if recipe == "float" and ratio == 0.0:
                np.testing.assert_array_equal(look.steps, plain.steps)
                np.testing.assert_array_equal(look.read, plain.read)
            if words is not None:
                rows[recipe, ratio] += (int((look.likeliest == words).sum()),)
    look = Look(source, "float", other, dataset, words, rule="none")
    rows["another picture", 0.0] = cosine(look.steps, plain.steps), cosine(look.read, plain.read)
    for (recipe, ratio), (actions, read, *same) in rows.items():
        told = [f"  {recipe}@{ratio}".ljust(22), f"read from {read:.4f}"]
        # Words that are forced make actions that are equal.
        told += [f"actions {actions:.4f}"] if words is None else [f"{count} of 7 words the same" for count in same]
        print("   ".join(told))
    return rows


@pytest.fixture(scope="module", params=FAMILIES)
def family(request):
    return request.param


def check(name, rows):
    assert rows["w8a8", 0.0][1] > 0.998 and abs(rows["w8a8", 0.5][1] - rows["float", 0.5][1]) < 0.005
    assert min(min(row[:2]) for (recipe, _), row in rows.items() if recipe in ("float", *RECIPES)) > 0.8
    if name == "openvla":
        assert rows["w8a8", 0.0][2] == 7 and rows["w4a4", 0.0][1] > rows["another picture", 0.0][1] + 0.05


def compress(source, place):
    for name, recipe in RECIPES.items():
        compress_checkpoint(source, place / name, recipe)


def test_what_compression_does_to_random_checkpoints(family, tmp_path):
    make_random(family, tmp_path / "float", "tiny")
    compress(tmp_path / "float", tmp_path)
    print(f"\n{family}, random:")
    check(family, compare(family, tmp_path, tmp_path / "float", observe(family), observe(family, 5)))


def test_what_compression_does_to_the_originals(family, oracles, tmp_path, monkeypatch):
    folder, images, dataset = ORACLES[family]
    for name in RECIPES.values():  # their 176 intermediate numbers have no rotation that turns them all
        recipe = recipes.RECIPES[name]
        monkeypatch.setitem(recipes.RECIPES, name, replace(recipe, rotation=replace(recipe.rotation, down_block=16)))
    compress(oracles / folder, tmp_path)
    pictures = tuple(np.asarray(Image.open(oracles / image).convert("RGB")) for image in images)
    observation = replace(observe(family), images=pictures)
    other = replace(observation, images=tuple(255 - picture for picture in pictures))
    print(f"\n{family}, original:")
    check(family, compare(family, tmp_path, oracles / folder, observation, other, dataset))
