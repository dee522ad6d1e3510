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

"""One lifecycle base class: failures are told, the executor never freezes, the safe action comes before anything else.

rclpy turns an exception in a transition into a state without a word; here it is logged, and the transition fails.
Configuring runs in a thread of its own, so that diagnostics and parameter services go on while a model loads.
"""

from __future__ import annotations

import signal
import sys
import threading
import traceback
from collections.abc import Callable
from typing import Any

import rclpy
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState
from rclpy.callback_groups import CallbackGroup, ReentrantCallbackGroup
from rclpy.exceptions import ParameterException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, LifecycleState, TransitionCallbackReturn
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future
from rclpy.utilities import try_shutdown

from sqap_vla_ros.errors import SqapError

SIGNAL_POLL_S = 0.1


class SafeLifecycleNode(LifecycleNode):
    """A lifecycle node whose parts subclasses fill in: ``prepare``, ``start``, ``stop``, ``release``, ``act_safely``.

    For a single-threaded executor. ``phase`` is the lifecycle state by name, ``failure`` why the last transition
    failed, empty when it did not.

    :param name: name of the node
    :param options: passed to rclpy
    """

    def __init__(self, name: str, **options: Any) -> None:
        self._shared_group = ReentrantCallbackGroup()
        self._configuring: threading.Thread | None = None
        self.failure = ""
        self.phase = "unconfigured"
        super().__init__(name, **options)
        service = next(item for item in self.services if item.srv_type is ChangeState)
        self._change_state_inline = service.callback
        service.callback = self._change_state  # type: ignore[assignment]

    @property
    def default_callback_group(self) -> CallbackGroup:
        """Reentrant, so that a transition that waits for its thread holds up nothing; one thread runs all callbacks."""
        return self._shared_group

    # --- what subclasses fill in

    def prepare(self) -> None:
        """Find everything that can be wrong and get ready to start; runs beside the executor."""

    def start(self) -> None:
        """Open the gate."""

    def stop(self) -> None:
        """Close the gate; called after the safe action."""

    def release(self) -> None:
        """Give back whatever ``prepare`` took; also after a ``prepare`` that failed half-way."""

    def act_safely(self) -> None:
        """Put the robot into a state that is safe without this node."""

    # --- transitions

    def on_configure(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Prepare; a failure leaves the node unconfigured."""
        self.phase = "configuring"
        done = self._guard("configure", self.prepare, TransitionCallbackReturn.FAILURE)
        if done != TransitionCallbackReturn.SUCCESS:
            self._guard("release", self.release, TransitionCallbackReturn.FAILURE, keep_failure=True)
        self.phase = "inactive" if done == TransitionCallbackReturn.SUCCESS else "unconfigured"
        return done

    def on_activate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Let the publishers speak, then start; a failure leaves the node inactive."""
        super().on_activate(state)
        done = self._guard("activate", self.start, TransitionCallbackReturn.FAILURE)
        if done != TransitionCallbackReturn.SUCCESS:
            self._guard("halt", self._halt, TransitionCallbackReturn.FAILURE, keep_failure=True)
            super().on_deactivate(state)
            return done
        self.phase = "active"
        return done

    def on_deactivate(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Act safely, stop, silence the publishers."""
        done = self._guard("deactivate", self._halt, TransitionCallbackReturn.ERROR)
        super().on_deactivate(state)
        self.phase = "inactive"
        return done

    def on_cleanup(self, state: LifecycleState) -> TransitionCallbackReturn:
        """Give everything back."""
        self.phase = "unconfigured"
        return self._guard("clean up", self.release, TransitionCallbackReturn.ERROR)

    def on_shutdown(self, state: LifecycleState) -> TransitionCallbackReturn:
        """As deactivate and cleanup."""
        active = state.label == "active"
        halted = self._guard("shut down", self._halt if active else self.stop, TransitionCallbackReturn.ERROR)
        if active:
            super().on_deactivate(state)
        released = self._guard("shut down", self.release, TransitionCallbackReturn.ERROR)
        self.phase = "finalized"
        return released if halted == TransitionCallbackReturn.SUCCESS else halted

    def on_error(self, state: LifecycleState) -> TransitionCallbackReturn:
        """As shutdown, but the node may be configured again."""
        self._guard("act safely", self._halt, TransitionCallbackReturn.ERROR, keep_failure=True)
        super().on_deactivate(state)
        self.phase = "unconfigured"
        return self._guard("release", self.release, TransitionCallbackReturn.ERROR, keep_failure=True)

    def _halt(self) -> None:
        try:
            self.act_safely()
        finally:
            self.stop()

    def _guard(self, what: str, work: Callable[[], None], otherwise: TransitionCallbackReturn, *,
               keep_failure: bool = False) -> TransitionCallbackReturn:
        try:
            work()
        except SqapError as error:
            sentence = f"could not {what}: {error}"
            self.get_logger().error(sentence)
        except Exception as error:  # noqa: BLE001
            sentence = f"could not {what}: {type(error).__name__}: {error}"
            self.get_logger().error(f"{sentence}\n{traceback.format_exc()}")
        else:
            if not keep_failure:
                self.failure = ""
            return TransitionCallbackReturn.SUCCESS
        if not keep_failure:
            self.failure = sentence
        return otherwise

    # --- transitions from outside, without freezing the executor

    async def _change_state(self, request: ChangeState.Request, response: ChangeState.Response
                            ) -> ChangeState.Response:
        label = request.transition.label
        configure = label == "configure" if label else request.transition.id == Transition.TRANSITION_CONFIGURE
        try:
            if configure and self._configuring is not None and self._configuring.is_alive():
                raise RuntimeError("it is being configured already")
            if configure:
                return await self._run_beside(lambda: self._change_state_inline(request, response))
            return self._change_state_inline(request, response)
        except RuntimeError as error:
            # How rcl says that the present state has no such transition.
            self.get_logger().error(f"transition {label or request.transition.id} was refused: {error}")
            response.success = False
            return response

    async def start_by_itself(self) -> None:
        """Configure and activate; as a task of the executor."""
        try:
            if await self._run_beside(self.trigger_configure) == TransitionCallbackReturn.SUCCESS:
                self.trigger_activate()
        except RuntimeError as error:
            self.get_logger().error(f"autostart was refused: {error}")

    def _run_beside(self, work: Callable[[], Any]) -> Future:
        executor = self.executor
        assert executor is not None, "the node is not spun"
        future = Future(executor=executor)

        def run() -> None:
            try:
                future.set_result(work())
            except RuntimeError as error:
                future.set_exception(error)
            executor.wake()

        self._configuring = threading.Thread(target=run, name="configure")
        self._configuring.start()
        return future

    def close(self) -> None:
        """Shut down from whatever state the node is in, and wait for a configure in progress."""
        if self._configuring is not None:
            self._configuring.join()
        if not self.context.ok():
            return
        try:
            self.trigger_shutdown()
        except RuntimeError:
            self.get_logger().debug("the node was shut down before")


def run_node(build: Callable[[], Any], args: list[str] | None, *,
             wants_start: Callable[[Any], bool] = lambda node: False) -> int:
    """Run a node until SIGINT or SIGTERM; the safe action is out before the context goes.

    :param build: makes the node, which has a ``close`` that ends its work
    :param args: command line, with ``--ros-args``
    :param wants_start: whether the node, a :class:`SafeLifecycleNode`, configures and activates itself
    :return: exit code: 0 after a signal, 1 when the node could not be made, or a callback failed in a way that nobody
        foresaw, which is logged
    """
    received: list[int] = []
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda number, _: received.append(number))
    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    try:
        node = build()
    except (SqapError, ParameterException) as error:
        print(f"the node cannot start: {error}", file=sys.stderr)
        try_shutdown()
        return 1
    executor, code = SingleThreadedExecutor(), 0
    executor.add_node(node)
    try:
        if wants_start(node):
            executor.create_task(node.start_by_itself)
        while not received:
            executor.spin_once(timeout_sec=SIGNAL_POLL_S)
    except ExternalShutdownException:
        pass
    except Exception as error:  # noqa: BLE001
        code = 1
        node.get_logger().fatal(f"{type(error).__name__}: {error}\n{traceback.format_exc()}")
    finally:
        node.close()
        executor.shutdown()
        node.destroy_node()
        try_shutdown()
    return code
