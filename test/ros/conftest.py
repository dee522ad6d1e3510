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

"""A robot, a camera and a person for the policy node to work with, over real DDS."""

import importlib.util
import threading
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import rclpy
from control_msgs.action import GripperCommand
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.action import ActionServer
from rclpy.context import Context
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode
from rclpy.parameter import Parameter
from rclpy.signals import SignalHandlerOptions
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import CameraInfo, Image
from std_msgs.msg import String
from tf2_msgs.msg import TFMessage

from sqap_vla_ros.cli.processes import choose_domain
from sqap_vla_ros.ros import codecs, interface, policy_node
from sqap_vla_ros.ros.policy_node import PolicyNode

FAKE_NODE = Path(__file__).with_name("fake_policy_node.py")
DEADLINE_S = 60.0
CAMERA_FRAME = "camera_optical_frame"
OPEN = {"control__dry_run": False, "control__enable_actuation": True, "safety__ramp_in_s": 0.0}
WIDTH, HEIGHT, FOCAL_PX = 64, 48, 80.0


@pytest.fixture(autouse=True)
def _own_domain(monkeypatch):
    monkeypatch.setenv("ROS_DOMAIN_ID", str(choose_domain()))


@pytest.fixture
def fake():
    spec = importlib.util.spec_from_file_location("fake_policy_node", FAKE_NODE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Peer:
    """Camera, robot and person in one node; everything it hears is kept."""

    def __init__(self, *, simulated=False):
        self.context = Context()
        rclpy.init(context=self.context, signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node("peer", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self.acquainted = False
        self.now_ns = 5_000_000_000 if simulated else None
        self.heard = {"twist": [], "active": [], "latency": [], "diagnostics": [], "overlay": [], "gripper": []}
        self.image_out, self.info_out, self.instruction_out, self.tf_out, self.static_out, self.clock_out = (
            interface.advertise(self.node, getattr(interface, name)) for name in (
                "IMAGE", "CAMERA_INFO", "INSTRUCTION", "TF", "TF_STATIC", "CLOCK"))
        for key, end, name in (("twist", interface.TWIST, interface.TWIST.name),
                               ("active", interface.ACTIVE_INSTRUCTION, "policy_node/active_instruction"),
                               ("latency", interface.LATENCY, "policy_node/latency"),
                               ("diagnostics", interface.DIAGNOSTICS, interface.DIAGNOSTICS.name)):
            self.node.create_subscription(end.type, name, self.heard[key].append, end.qos.profile())
        self.gripper_server = ActionServer(self.node, GripperCommand, interface.GRIPPER.name, self._on_gripper)
        self.change = self.node.create_client(ChangeState, "policy_node/change_state")
        self.state = self.node.create_client(GetState, "policy_node/get_state")

    def close(self):
        # Goals that were accepted are answered before their server goes.
        for _ in range(10):
            self.executor.spin_once(timeout_sec=0.0)
        self.gripper_server.destroy()
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)

    def _on_gripper(self, handle):
        self.heard["gripper"].append(handle.request.command)
        handle.succeed()
        return GripperCommand.Result()

    # --- waiting

    def wait(self, condition, what, timeout_s=DEADLINE_S, meanwhile=lambda: None):
        """Spin until the condition holds."""
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, f"{what}: not within {timeout_s} s"
            meanwhile()
            self.executor.spin_once(timeout_sec=0.02)

    def wait_streaming(self, condition, what, timeout_s=DEADLINE_S, **frame):
        """As :meth:`wait`, while the camera sends 20 pictures a second."""
        last = [0.0]

        def camera():
            if time.monotonic() - last[0] > 0.05:
                last[0] = time.monotonic()
                self.send_frame(**frame)

        self.wait(condition, what, timeout_s, camera)

    def wait_twists(self, predicate, what, count=1, **frame):
        """Wait for so many new commands in a row that satisfy the predicate."""
        self.heard["twist"].clear()
        self.wait_streaming(lambda: len(self.heard["twist"]) >= count
                            and all(map(predicate, self.heard["twist"][-count:])), what, **frame)
        return self.heard["twist"][-count:]

    def diagnosis(self, condition, what, **frame):
        """Wait for a summary that satisfies the condition; returns its status and values."""
        self.heard["diagnostics"].clear()
        found = []

        def look():
            for array in self.heard["diagnostics"]:
                values = {item.key: item.value for item in array.status[0].values}
                if condition(array.status[0], values):
                    found[:] = [(array.status[0], values)]
            return bool(found)

        self.wait_streaming(look, what, **frame) if frame.pop("streaming", True) else self.wait(look, what)
        return found[0]

    # --- lifecycle

    def call(self, client, request, repeat_s=3.0):
        """Ask again after a while: an answer can be lost before server and client know each other."""
        self.wait(client.service_is_ready, f"service {client.srv_name}")
        futures, asked = [], 0.0

        def answered():
            nonlocal asked
            if not futures or time.monotonic() - asked > repeat_s:
                asked = time.monotonic()
                futures.append(client.call_async(request))
            return any(future.done() for future in futures)

        self.wait(answered, f"answer of {client.srv_name}")
        return next(future.result() for future in futures if future.done())

    def get_acquainted(self):
        """Have a transition refused that does not exist; after its answer no other answer is lost."""
        if not self.acquainted:
            self.call(self.change, ChangeState.Request(transition=Transition(label="hello")))
        self.acquainted = True

    def transition(self, name):
        wanted = getattr(Transition, f"TRANSITION_{name.upper()}")
        self.get_acquainted()
        return self.call(self.change, ChangeState.Request(transition=Transition(id=wanted)), float("inf")).success

    def state_label(self):
        return self.call(self.state, GetState.Request()).current_state.label

    # --- what a robot and a person send

    @staticmethod
    def picture():
        """What :meth:`send_frame` sends, (H, W, 3) uint8."""
        return np.frombuffer(make_image().data, dtype=np.uint8).reshape(HEIGHT, WIDTH, 3)

    def clock_ns(self):
        return self.now_ns if self.now_ns is not None else self.node.get_clock().now().nanoseconds

    def tick(self, now_ns):
        """Move simulated time."""
        self.now_ns = now_ns
        self.clock_out.publish(Clock(clock=codecs.ns_to_stamp(now_ns)))

    def say(self, text):
        self.instruction_out.publish(String(data=text))

    def instruct(self, text, echo=None, repeat_s=1.0):
        """Say it, again and again, until the node says that it is in force.

        A node that is not active yet drops what it hears, and so does one that does not know this peer yet.
        """
        echo = text if echo is None else echo
        self.wait(lambda: self.instruction_out.get_subscription_count() > 0, "subscription to the instruction")
        self.heard["active"].clear()
        said = float("-inf")

        def repeat():
            nonlocal said
            if time.monotonic() - said > repeat_s:
                said = time.monotonic()
                self.say(text)

        self.wait(lambda: self.heard["active"] and self.heard["active"][-1].data == echo, f"echo of '{text}'",
                  meanwhile=repeat)

    def send_frame(self, *, stamp_ns=None, image=(), info=(), tf=True, frame_id=CAMERA_FRAME):
        """One picture with its calibration and transforms, in the order a robot sends them.

        ``image`` and ``info`` are changed fields of the messages; no calibration is sent when ``info`` is None.
        """
        stamp_ns = self.clock_ns() if stamp_ns is None else stamp_ns
        if tf:
            self.tf_out.publish(hand_transforms(stamp_ns))
        if info is not None:
            self.info_out.publish(make_info(**dict(info)))
        message = make_image(**dict(image))
        message.header = codecs.make_header(stamp_ns, frame_id)
        self.image_out.publish(message)


def make_image(**changes):
    data = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8).tobytes()
    return Image(**{"width": WIDTH, "height": HEIGHT, "encoding": "rgb8", "step": 3 * WIDTH, "data": data} | changes)


def make_info(**changes):
    k = [FOCAL_PX, 0.0, WIDTH / 2, 0.0, FOCAL_PX, HEIGHT / 2, 0.0, 0.0, 1.0]
    return CameraInfo(**{"width": WIDTH, "height": HEIGHT, "distortion_model": "plumb_bob", "d": [0.0] * 5,
                         "k": k} | changes)


def hand_transforms(stamp_ns, z=0.8):
    """The hand straight before the camera at depth ``z``, its fingers 4 cm to the sides."""
    identity = (0.0, 0.0, 0.0, 1.0)
    poses = [(CAMERA_FRAME, "panda_hand", (0.0, 0.0, z)), ("panda_hand", "panda_leftfinger", (-0.04, 0.0, 0.0)),
             ("panda_hand", "panda_rightfinger", (0.04, 0.0, 0.0))]
    return TFMessage(transforms=[codecs.encode_transform(*pose, identity, stamp_ns) for pose in poses])


@pytest.fixture
def peer():
    with closing(Peer()) as peer:
        yield peer


@pytest.fixture
def simulated_peer():
    with closing(Peer(simulated=True)) as peer:
        yield peer


@pytest.fixture
def bare_node(peer):
    """A lifecycle node with nothing in it, inactive, which spins whenever the peer waits."""
    node = LifecycleNode("policy_node", context=peer.context)
    peer.executor.add_node(node)
    node.trigger_configure()
    yield node
    node.destroy_node()


class Running:
    """A node spun by a thread, with a context of its own."""

    def __init__(self, policy_factory, **parameters):
        self.context = Context()
        rclpy.init(context=self.context, signal_handler_options=SignalHandlerOptions.NO)
        self.policies = []

        def build(config):
            self.policies.append(policy_factory(config))
            return self.policies[-1]

        overrides = [Parameter(name.replace("__", "."), value=value) for name, value in parameters.items()]
        self.node = PolicyNode(build, context=self.context, parameter_overrides=overrides)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        if self.node.get_parameter("autostart").value:
            self.executor.create_task(self.node.start_by_itself)
        self._ending = False
        self.thread = threading.Thread(target=self._spin)
        self.thread.start()

    @property
    def policy(self):
        return self.policies[-1]

    def _spin(self):
        while not self._ending:
            self.executor.spin_once(timeout_sec=0.05)
        self.node.close()

    def close(self):
        for policy in self.policies:
            getattr(policy, "unblock", threading.Event()).set()
        self._ending = True
        self.thread.join(DEADLINE_S)
        assert not self.thread.is_alive(), "the node's executor hangs"
        self.executor.shutdown()
        self.node.destroy_node()
        rclpy.shutdown(context=self.context)


@pytest.fixture
def launch(fake, monkeypatch):
    """``launch(policy_factory=FakePolicy, **parameters)``; dots in parameter names are double underscores.

    Interlocks are open, and neither ramp nor summaries are waited for.
    """
    running = []
    monkeypatch.setattr(policy_node, "DIAGNOSTICS_PERIOD_S", 0.1)

    def start(policy_factory=fake.FakePolicy, **parameters):
        running.append(Running(policy_factory, **OPEN | parameters))
        return running[-1]

    yield start
    for item in running:
        item.close()
