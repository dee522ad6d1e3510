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

"""What is refused and what is limited, as pure functions of values and times.

Limits scale and tell that they did; a value that is not finite is never limited, it is refused.
"""

from __future__ import annotations

import numpy as np

from sqap_vla_ros.errors import InferenceError, InputError


def age_s(stamp_ns: int, now_ns: int) -> float:
    """Age of a stamp on the same clock, s; negative when it lies ahead."""
    return (now_ns - stamp_ns) * 1e-9


def check_fresh(name: str, stamp_ns: int, now_ns: int, *, max_age_s: float, max_future_s: float) -> None:
    """Refuse what is too old, or stamped so far ahead that the clocks cannot agree.

    :param name: what the stamp belongs to, for the sentence
    :param stamp_ns: stamp of the message, ns
    :param now_ns: the node's clock, ns
    :param max_age_s: oldest age allowed, s
    :param max_future_s: how far ahead a stamp may lie, s
    :raises InputError: when the age is outside these limits
    """
    age = age_s(stamp_ns, now_ns)
    if age > max_age_s:
        raise InputError(f"{name} is {age:.3f} s old; the oldest allowed is {max_age_s:g} s")
    if age < -max_future_s:
        raise InputError(f"{name} is stamped {-age:.3f} s ahead of the node's clock; allowed are {max_future_s:g} s; "
                         "check use_sim_time and the clocks' synchronisation")


def check_allowed(text: str, allowed: tuple[str, ...]) -> None:
    """Refuse an instruction that is not on the list.

    :param allowed: all that may be asked for; one empty text allows everything
    :raises InputError: when it is another one
    """
    if allowed != ("",) and text not in allowed:
        raise InputError(f"the instruction '{text}' is not allowed; input.instructions allows "
                         f"{', '.join(repr(item) for item in allowed)}")


def check_finite(name: str, values: np.ndarray) -> None:
    """Refuse NaN and infinity.

    :param name: what the values are, for the sentence
    :param values: any shape
    :raises InferenceError: when one value is not finite; nothing of the array may be used then
    """
    finite = np.isfinite(values)
    if not finite.all():
        raise InferenceError(f"{name} has {int(np.count_nonzero(~finite))} of {finite.size} values that are not "
                             "finite; all of it is dropped")


def limit_step(velocity: np.ndarray, *, max_linear_m_s: float, max_angular_rad_s: float) -> tuple[np.ndarray, bool]:
    """Keep both speeds within their caps by one common factor, so that the motion stays on its path.

    :param velocity: (6,), linear in m/s then angular in rad/s
    :param max_linear_m_s: cap on the norm of the linear part
    :param max_angular_rad_s: cap on the norm of the angular part
    :return: (6,) velocity, and true when it had to be scaled
    :raises InferenceError: when a value is not finite
    """
    check_finite("the commanded velocity", velocity)
    linear, angular = float(np.linalg.norm(velocity[:3])), float(np.linalg.norm(velocity[3:]))
    factor = 1.0
    for speed, cap in ((linear, max_linear_m_s), (angular, max_angular_rad_s)):
        if speed > cap:
            factor = min(factor, cap / speed)
    return velocity * factor, factor < 1.0


def limit_gripper(opening: float) -> tuple[float, bool]:
    """Keep the gripper's opening within 0 (closed) to 1 (open).

    :param opening: what the policy asks for
    :return: the opening, and true when it had to be moved into the range
    :raises InferenceError: when it is not finite
    """
    check_finite("the gripper's opening", np.asarray(opening))
    limited = min(max(float(opening), 0.0), 1.0)
    return limited, limited != opening
