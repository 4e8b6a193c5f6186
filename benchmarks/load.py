"""A server under load and attack: python benchmarks/load.py [--requests 1000] [--concurrency 16] [--hostile 0.1].

Starts `imod serve` on a tiny random model, or asks the one at --url. Questions with text, pictures, sounds and videos
are asked alone first, then many at once with hostile requests among them. Every good answer must be the one given
alone, every hostile request must end as a 4xx that says why, no process may die, and memory must stay flat (the
proportional set sizes of the server's processes, second half against first, after a warm-up). Exits with 1 if not.
"""

import argparse
import asyncio
import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from hostile import Request, good_requests, hostile_requests

WARM_UP = 0.3
"""Share of the requests after which memory is looked at: caches and thread pools have filled by then."""
FLAT = 0.05
"""Change of the memory that still counts as flat."""


@dataclass(frozen=True)
class Reply:
    """What came back."""

    status: int
    text: str
    seconds: float


async def send(client: httpx.AsyncClient, request: Request) -> Reply:
    started = time.monotonic()
    reply = await client.post(request.path, content=request.body, headers=request.headers)
    return Reply(reply.status_code, _answer(reply), time.monotonic() - started)


def _answer(reply: httpx.Response) -> str:
    """The answer's text, or the error's message; empty where there is neither."""
    try:
        found = reply.json()
    except ValueError:
        return ""
    if reply.status_code == 200:
        return str(found["choices"][0]["message"]["content"])
    error = found.get("error", found.get("detail", ""))
    return str(error.get("message", "") if isinstance(error, dict) else error)


def processes(pid: int) -> list[int]:
    """The process and all below it."""
    with contextlib.suppress(OSError):
        children = [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return [pid, *(below for child in children for below in processes(child))]
    return []


def memory(pids: list[int]) -> float:
    """MB that the processes hold together, shared pages counted once."""
    total = 0
    for pid in pids:
        with contextlib.suppress(OSError):
            rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
            total += int(next(line for line in rollup.splitlines() if line.startswith("Pss:")).split()[1])
    return total / 1024


@dataclass
class Outcome:
    """What the load showed."""

    faults: list[str] = field(default_factory=list)
    statuses: Counter[tuple[str, int]] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    megabytes: list[float] = field(default_factory=list)


async def load(url: str, pid: int, arguments: argparse.Namespace) -> Outcome:
    """Ask all good questions alone, then everything at once."""
    key = os.environ.get("IMOD_API_KEY")
    headers = {"authorization": f"Bearer {key}"} if key else {}
    limits = httpx.Limits(max_connections=arguments.concurrency)
    async with httpx.AsyncClient(
        base_url=url, headers=headers, timeout=300.0, limits=limits, trust_env=False
    ) as client:
        good, hostile = good_requests(), hostile_requests()
        expected = []
        for request in good:
            reply = await send(client, request)
            assert reply.status == 200, f"{request.kind} asked alone: {reply}"
            expected.append(reply.text)
        if len(set(expected)) < len(expected) / 2:
            raise SystemExit("The questions are answered alike, so that right answers prove nothing.")
        return await _mixed(client, pid, arguments, good, expected, hostile)


async def _mixed(
    client: httpx.AsyncClient,
    pid: int,
    arguments: argparse.Namespace,
    good: list[Request],
    expected: list[str],
    hostile: list[Request],
) -> Outcome:
    outcome, before = Outcome(), set(processes(pid))
    generator, every = np.random.default_rng(0), max(1, round(1 / arguments.hostile)) if arguments.hostile else 0
    order = iter(range(arguments.requests))
    done = 0

    async def worker() -> None:
        nonlocal done
        for number in order:
            if every and number % every == 0:
                await attack(hostile[number // every % len(hostile)])
            else:
                await ask(int(generator.integers(len(good))))
            done += 1
            if done > WARM_UP * arguments.requests and done % 10 == 0:
                outcome.megabytes.append(memory(processes(pid)))

    async def attack(request: Request) -> None:
        reply = await _try(client, request, outcome)
        if reply and (not 400 <= reply.status < 500 or not reply.text):
            outcome.faults.append(f"hostile {request.kind}: HTTP {reply.status} {reply.text[:200]!r}")

    async def ask(index: int) -> None:
        reply = await _try(client, good[index], outcome)
        if reply and (reply.status != 200 or reply.text != expected[index]):
            outcome.faults.append(
                f"{good[index].kind}: HTTP {reply.status} {reply.text[:200]!r}, alone {expected[index]!r}"
            )
        if reply:
            outcome.seconds.append(reply.seconds)

    await asyncio.gather(*(worker() for _ in range(arguments.concurrency)))
    if lost := before - set(processes(pid)):
        outcome.faults.append(f"{len(lost)} of {len(before)} processes died")
    if (change := growth(outcome.megabytes)) > FLAT:
        outcome.faults.append(f"memory grew by {change:.1%} after the warm-up")
    return outcome


async def _try(client: httpx.AsyncClient, request: Request, outcome: Outcome) -> Reply | None:
    try:
        reply = await send(client, request)
    except httpx.HTTPError as error:
        outcome.faults.append(f"{request.kind}: no reply ({error!r})")
        return None
    outcome.statuses[request.kind, reply.status] += 1
    return reply


def growth(megabytes: list[float]) -> float:
    """Change from the first quarter of the samples to the last, by their medians; 0 for too few."""
    quarter = len(megabytes) // 4
    if not quarter:
        return 0.0
    return statistics.median(megabytes[-quarter:]) / statistics.median(megabytes[:quarter]) - 1


@contextlib.contextmanager
def own_server(folder: Path) -> Iterator[tuple[str, int]]:
    """`imod serve` on a tiny random model."""
    base, command = folder / "tiny", [sys.executable, "-m", "imod_core.cli"]
    subprocess.run([*command, "base", "build", "--preset", "tiny", "--out", base], check=True)
    server = subprocess.Popen(
        [*command, "serve", base, "--port", "0", "--log", folder / "log"], stdout=subprocess.PIPE, text=True
    )
    try:
        assert server.stdout
        line = server.stdout.readline()
        if "ready at" not in line:
            raise SystemExit("The server did not start.")
        yield line.split()[-1], server.pid
    finally:
        server.terminate()
        server.wait()


def report(outcome: Outcome, arguments: argparse.Namespace, seconds: float) -> None:
    print(f"{arguments.requests} requests, {arguments.concurrency} at once, in {seconds:.0f} s")
    for (kind, status), count in sorted(outcome.statuses.items()):
        print(f"  {kind:<18} {status} x {count}")
    if outcome.seconds:
        ordered = sorted(outcome.seconds)
        middle, late = ordered[len(ordered) // 2], ordered[int(0.99 * len(ordered))]
        print(f"good answers took {middle:.2f} s in the middle, {late:.2f} s at the 99th percentile")
    if outcome.megabytes:
        print(
            f"memory after the warm-up {min(outcome.megabytes):.0f} to {max(outcome.megabytes):.0f} MB, "
            f"change {growth(outcome.megabytes):+.1%}"
        )
    for fault in outcome.faults:
        print(f"FAULT {fault}")
    print("failed" if outcome.faults else "passed")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", help="a running server, with --pid of its `imod serve`")
    parser.add_argument("--pid", type=int, default=0)
    parser.add_argument("--requests", type=int, default=1000)
    parser.add_argument("--concurrency", type=int, default=16)
    parser.add_argument("--hostile", type=float, default=0.1, help="share of hostile requests")
    arguments = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if arguments.url:
            url, pid = arguments.url, arguments.pid
            if not pid:
                parser.error("--url needs --pid: memory and lives of the server's processes are part of the verdict")
        else:
            url, pid = stack.enter_context(own_server(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
        started = time.monotonic()
        outcome = asyncio.run(load(url, pid, arguments))
        report(outcome, arguments, time.monotonic() - started)
    sys.exit(1 if outcome.faults else 0)


if __name__ == "__main__":
    main()
