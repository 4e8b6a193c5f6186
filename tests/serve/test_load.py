"""`benchmarks/load.py` in short, on the server of all tests: good and hostile requests together."""

import argparse
import asyncio

import httpx
import load
import pytest
from hostile import good_requests, hostile_requests

from .conftest import API_KEY

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]


@pytest.fixture(autouse=True)
def key(monkeypatch):
    monkeypatch.setenv("IMOD_API_KEY", API_KEY)


def words(requests, hostile):
    return argparse.Namespace(requests=requests, concurrency=16, hostile=hostile)


def test_good_requests_are_answered_as_alone_and_hostile_ones_refused(server):
    outcome = asyncio.run(load.load(server.url, server.process.pid, words(200, 0.2)))
    assert outcome.faults == []
    assert {kind for kind, _ in outcome.statuses} >= {request.kind for request in hostile_requests()}
    assert len(outcome.megabytes) > 10


def test_wrong_answers_and_taken_attacks_would_be_seen(server):
    """The control: answers expected of other questions, and an attack that is none."""
    good = good_requests()[:20]

    async def mixed(expected, attacks):
        headers = {"authorization": f"Bearer {API_KEY}"}
        async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=120.0, trust_env=False) as client:
            return await load._mixed(client, server.process.pid, words(20, 0.2), good, expected, attacks)

    faults = asyncio.run(mixed(["no such answer"] * 20, good[:1])).faults
    assert sum("alone 'no such answer'" in fault for fault in faults) == 16
    assert sum(fault.startswith("hostile text: HTTP 200") for fault in faults) == 4


def test_growing_memory_would_be_seen():
    assert load.growth([100, 100, 100, 100, 100, 106, 106, 106]) > load.FLAT
    assert load.growth([100, 104, 101, 99, 100, 103, 100, 102]) < load.FLAT
