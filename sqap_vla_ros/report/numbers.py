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

"""Numbers as a reader wants them; what is not known is a dash."""

from __future__ import annotations

import math

DASH = "\u2013"
_SPACE = "\u00a0"


def format_number(value: float | int | None, unit: str = "", *, digits: int = 3) -> str:
    """A number of some significant digits with its unit.

    :param value: None and what is not finite become a dash
    :param unit: behind a space that does not break; may be empty
    :param digits: significant ones; whole numbers, and the digits before a point, are always shown
    """
    if value is None or not math.isfinite(value):
        return DASH
    text = f"{value + 0.0:.{digits}g}"
    if isinstance(value, int) or "e+" in text:
        text = f"{value:,.0f}"
    return text + (_SPACE + unit if unit else "")


def format_share(value: float | None) -> str:
    """A share of 0 to 1 in per cent, with a digit behind the point where it is not whole."""
    if value is None or not math.isfinite(value):
        return DASH
    if 0.9995 <= value < 1.0:
        return f"> 99.9{_SPACE}%"
    percent = round(100 * value, 1)
    return f"{percent:.0f}{_SPACE}%" if percent == round(percent) else f"{percent:.1f}{_SPACE}%"
