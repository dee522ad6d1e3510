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

import threading

from sqap_vla_ros.ros.worker import LatestWorker

DEADLINE_S = 10.0


class Bench:
    """A worker whose work begins and ends when the test says so."""

    def __init__(self):
        self.begun, self.go_on, self.notified = threading.Semaphore(0), threading.Semaphore(0), threading.Semaphore(0)
        self.worker = LatestWorker(self.work, self.notified.release, "bench")

    def work(self, item):
        self.begun.release()
        assert self.go_on.acquire(timeout=DEADLINE_S)
        if item == "bad":
            raise ValueError("this item is bad")
        return item.upper()

    def collect_one(self):
        self.go_on.release()
        assert self.notified.acquire(timeout=DEADLINE_S)
        return self.worker.collect()


def test_the_newest_item_replaces_the_one_that_waits():
    bench = Bench()
    assert bench.worker.offer("first") is False
    assert bench.begun.acquire(timeout=DEADLINE_S)
    assert [bench.worker.offer(item) for item in ("second", "third", "fourth")] == [False, True, True]
    assert [outcome.result for outcome in bench.collect_one()] == ["FIRST"]
    assert [outcome.result for outcome in bench.collect_one()] == ["FOURTH"]
    assert bench.worker.collect() == []
    assert bench.worker.stop(DEADLINE_S)


def test_it_is_busy_from_the_offer_until_the_outcome_is_collected():
    bench = Bench()
    assert not bench.worker.busy
    bench.worker.offer("item")
    assert bench.worker.busy
    assert bench.begun.acquire(timeout=DEADLINE_S)
    assert bench.worker.busy
    bench.go_on.release()
    assert bench.notified.acquire(timeout=DEADLINE_S)
    assert bench.worker.busy
    bench.worker.collect()
    assert not bench.worker.busy
    assert bench.worker.stop(DEADLINE_S)


def test_an_error_is_handed_over_and_the_thread_lives_on():
    bench = Bench()
    bench.worker.offer("bad")
    outcome, = bench.collect_one()
    assert outcome.item == "bad" and outcome.result is None and str(outcome.error) == "this item is bad"
    bench.worker.offer("good")
    assert [outcome.result for outcome in bench.collect_one()] == ["GOOD"]
    assert bench.worker.stop(DEADLINE_S)


def test_stopping_drops_what_waits_and_tells_when_the_work_hangs():
    bench = Bench()
    bench.worker.offer("hangs")
    assert bench.begun.acquire(timeout=DEADLINE_S)
    bench.worker.offer("waits")
    assert bench.worker.stop(0.01) is False
    bench.go_on.release()
    assert bench.worker.stop(DEADLINE_S) is True
    assert [outcome.item for outcome in bench.worker.collect()] == ["hangs"]
