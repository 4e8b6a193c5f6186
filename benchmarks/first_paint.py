"""How soon the demo's page is there: first paint and until a question can be asked, in a fresh browser each time.

    python benchmarks/first_paint.py [--loads 7] [--json]

No model is asked. The browser is the tests' Chromium (tests/demo/chromium.py), on this machine, with an empty cache.
"""

import argparse
import json
import socket
import statistics
import sys
from pathlib import Path

from playwright.sync_api import Browser, sync_playwright

from imod_demo.desk import Desk
from imod_demo.talk import Target
from imod_serve.client import Client

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

PAINT = "performance.getEntriesByName('first-contentful-paint')[0].startTime"


def measure(browser: Browser, url: str) -> dict[str, float]:
    """Seconds from navigation to the first paint with content, and to a page that takes a question."""
    context = browser.new_context()
    page = context.new_page()
    page.goto(url)
    page.wait_for_selector("#ask")
    found = {"first paint": page.evaluate(PAINT) / 1000, "usable": page.evaluate("performance.now()") / 1000}
    context.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--loads", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    desk = Desk((Target("nobody", Client("http://127.0.0.1:9")),))
    from demo.chromium import launch_options  # under tests/

    from imod_demo.app import launch

    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    page = launch(desk, port=port)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(**launch_options())
        loads = [measure(browser, f"http://127.0.0.1:{port}/") for _ in range(options.loads)]
        browser.close()
    page.close(verbose=False)
    medians = {name: round(statistics.median(load[name] for load in loads), 3) for name in loads[0]}
    print(json.dumps(medians) if options.json else "  ".join(f"{k} {v:.2f} s" for k, v in medians.items()))


if __name__ == "__main__":
    main()
