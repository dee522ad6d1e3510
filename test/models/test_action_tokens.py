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

"""Token ids of actions against the way training writes them."""

import numpy as np
import torch
from torch import nn

from sqap_vla_ros.models.action_tokens import ActionTokens


def test_every_interval_comes_back_as_its_middle():
    rng = np.random.default_rng(0)
    actions = rng.uniform(-1, 1, 2000)
    ids = 32000 - np.digitize(actions, np.linspace(-1, 1, 256))
    decoded = ActionTokens().decode(torch.from_numpy(ids)).numpy()
    step = 2 / 255
    np.testing.assert_allclose(decoded, (np.floor((actions + 1) / step) + 0.5) * step - 1, atol=1e-6)


def test_ends_and_foreign_ids():
    ids = torch.tensor([[31999, 31745, 31744], [31743, 0, 32000], [32063, 2, 31872]])
    low, high = -254 / 255, 254 / 255
    expected = torch.tensor([[low, high, high], [high, high, low], [low, high, 0.0]])
    torch.testing.assert_close(ActionTokens().decode(ids), expected, atol=1e-6, rtol=0)
    assert ActionTokens().is_action(ids).tolist() == [[True, True, True], [False, False, False], [False, False, True]]


def test_other_vocabularies_and_edges():
    tokens = ActionTokens(words=100, edges=5)
    torch.testing.assert_close(tokens.decode(torch.tensor([99, 98, 97, 96, 95, 94])),
                               torch.tensor([-0.75, -0.25, 0.25, 0.75, 0.75, 0.75]))
    assert tokens.is_action(torch.tensor([100, 99, 95, 94])).tolist() == [False, True, True, False]


def test_only_rows_of_actions_are_read():
    tokens, head = ActionTokens(words=20, edges=5), nn.Linear(4, 24, bias=False)
    generator = torch.Generator().manual_seed(0)
    nn.init.normal_(head.weight, generator=generator)
    hidden = torch.randn(2, 30, 4, generator=generator)
    ids = tokens.read(hidden, head)
    assert ids.shape == (2, 30) and tokens.is_action(ids).all() and len(ids.unique()) > 2
    logits = head(hidden)
    expected = logits.masked_fill(~tokens.is_action(torch.arange(24)), float("-inf")).argmax(dim=-1)
    assert torch.equal(ids, expected)
    # Where the likeliest of all words is an action, that is the one; elsewhere too it is an action.
    likeliest = logits.argmax(dim=-1)
    written = tokens.is_action(likeliest)
    assert 0 < written.sum() < 60 and torch.equal(ids[written], likeliest[written])
