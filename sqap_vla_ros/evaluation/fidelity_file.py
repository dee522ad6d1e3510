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

"""How near an evaluation's methods are to the float model, measured once and kept for later runs in the same folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sqap_vla_ros.config import build_config
from sqap_vla_ros.evaluation.fidelity import measure_fidelity, view_scenes
from sqap_vla_ros.evaluation.methods import FLOAT, Method
from sqap_vla_ros.evaluation.plan import Setup
from sqap_vla_ros.evaluation.summary import write_json
from sqap_vla_ros.policy.policy import Policy, build_policy
from sqap_vla_ros.quantization.report import Listener

FILE = "fidelity.json"


def read_fidelity(folder: Path, settings: Mapping[str, Any], pictures: int) -> dict[str, dict[str, Any]]:
    """What an earlier run with the same settings has measured on as many pictures.

    :return: by method; empty when there is nothing of the kind
    """
    try:
        values = json.loads((folder / FILE).read_text(encoding="utf-8"))
        same = values["settings"] == json.loads(json.dumps(settings)) and values["pictures"] == pictures
        return dict(values["methods"]) if same else {}
    except (OSError, ValueError, TypeError, KeyError):
        # Cut short or of another making: it is measured again.
        return {}


def measure_methods(folder: Path, settings: Mapping[str, Any], methods: Sequence[Method], setup: Setup, pictures: int,
                    found: dict[str, dict[str, Any]], listener: Listener) -> None:
    """Measure the methods that are not in ``found``, and put each there and on disk when it is done.

    One thread, so that the numbers do not depend on how many there are. Nothing is blanked.

    :param folder: of the evaluation
    :param settings: that decide the outcomes
    :param setup: where the policies come from
    :param pictures: how many, of validation scenes
    :param found: by method, as :func:`read_fidelity` gives it; filled
    :param listener: told of each method
    :raises SqapError: when a policy cannot be built or cannot act
    """
    missing = [method for method in methods if method.name not in found]
    if not missing:
        return
    stage = f"methods compared with float on {pictures} pictures"
    listener(stage, len(methods) - len(missing), len(methods))
    observations = view_scenes(setup.checkpoint, pictures)
    reference = _build(setup, Method(FLOAT))
    for method in missing:
        fidelity = asdict(measure_fidelity(reference, _build(setup, method), observations))
        found[method.name] = {name: float(f"{value:.6g}") if isinstance(value, float) else value
                              for name, value in fidelity.items()}
        write_json(folder / FILE, {"settings": dict(settings), "pictures": pictures, "methods": found})
        listener(stage, len(methods) - len(missing) + missing.index(method) + 1, len(methods))


def _build(setup: Setup, method: Method) -> Policy:
    return build_policy(build_config(setup.knobs(method)))
