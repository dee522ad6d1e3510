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

"""What can go wrong, by when it can go wrong and what the robot does about it."""


class SqapError(Exception):
    """Base of every error this package raises on purpose.

    A message names the thing, what came, what is allowed and the way out.
    """


class ConfigError(SqapError):
    """A knob has a value that is not allowed. Can only happen before activation."""


class CheckpointError(SqapError):
    """A checkpoint is missing, damaged or of another kind. Can only happen before activation."""


class InputError(SqapError):
    """One message cannot be used. It is dropped and counted; the robot holds if nothing fresh remains."""


class InferenceError(SqapError):
    """The policy could not produce a usable action. The robot holds."""
