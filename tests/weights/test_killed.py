"""A publisher that is killed between any two steps of a publication leaves whole versions, or none."""

import subprocess

import numpy as np
import pytest
import redis
from selector_client import WeightPublisher
from selector_proto.weights.layout import Keys
from selector_proto.weights.transports import open_store
from support.processes import spawn
from support.runs import newest

from selector_server.weights.fetcher import Fetcher

# Publishes version after version, and stops for good when it comes to STEP of version VERSION.
_TRAINER = """
import sys
import numpy as np
from selector_client import WeightPublisher
from selector_client.publishing import shipping

url, run, version, step = sys.argv[1:]
shipping.HOLD_SECONDS = 0  # so that the third version sweeps the first
publisher = WeightPublisher(url, run, dtype="fp32")
store = publisher._shipper._store


def at(name):
    if publisher.published == int(version) - 1 and name == step:
        print("there", flush=True)
        sys.stdin.read()


def around(name):
    method = getattr(store, name)

    def stopping(*arguments, **options):
        at(f"before {name}")
        result = method(*arguments, **options)
        at(f"after {name}")
        return result

    setattr(store, name, stopping)


def counted(items, ttl):
    def some():
        for index, item in enumerate(items):
            at(f"chunk {index}")
            yield item

    send(some(), ttl)


send, store.put_all = store.put_all, counted
for name in ("next_version", "put_all", "move_pointer", "delete"):
    around(name)
for number in range(1, 5):
    publisher.publish(number, {"w": np.full(2_000_000, number, np.float32)})
    publisher.flush()
"""
STEPS = ["before next_version", "after next_version", "chunk 0", "chunk 1", "chunk 7", "after put_all"]
STEPS += ["before move_pointer", "after move_pointer"]
SWEEPING = ["before delete", "after delete"]


@pytest.mark.parametrize("kind", ["redis", "folder"])
@pytest.mark.parametrize(
    ("version", "step"), [(1, step) for step in STEPS] + [(3, step) for step in (*STEPS[2:4], *STEPS[5:], *SWEEPING)]
)
def test_a_publisher_that_is_killed_leaves_a_whole_version_or_none(kind, redis_url, run_name, tmp_path, version, step):
    url = redis_url if kind == "redis" else tmp_path.as_uri()
    trainer = spawn("-c", _TRAINER, url, run_name, version, step, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    assert trainer.stdout.readline() == b"there\n"
    trainer.kill()
    trainer.wait(10)
    shown = version if step in ("after move_pointer", *SWEEPING) else version - 1
    if shown:
        whole = newest(url, run_name)
        assert whole.manifest.version == whole.manifest.trainer_step == shown
        assert (np.frombuffer(whole.tensors["w"].data, np.float32) == shown).all()
    else:
        fetcher = Fetcher(url, run_name, 1 << 30)
        assert fetcher.newest() == 0
        fetcher.close()
    with WeightPublisher(url, run_name) as successor:
        assert successor.publish(99, {"w": np.float32(0)})
        assert successor.flush()
    assert newest(url, run_name).manifest.trainer_step == 99
    if kind == "redis":
        client = redis.Redis.from_url(url)
        assert all(client.ttl(key) > 0 for key in client.scan_iter(f"*{{{run_name}}}*")), "what is left dies by itself"
    else:
        left = open_store(url).left_behind(Keys(run_name))
        assert len(left) <= 2, "its successor's, and what readers may be on their way to"
