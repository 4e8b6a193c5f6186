"""`python parse_flags.py FILE`: which lists of arguments, a JSON list of them in FILE, vLLM's `serve` parser takes."""

import argparse
import json
import sys
from pathlib import Path

from imod_serve.vllm_main import name_cpu_build


def takes(parser: argparse.ArgumentParser, words: list[str]) -> bool:
    try:
        parser.parse_args(words)
    except SystemExit:
        return False
    return True


if __name__ == "__main__":
    name_cpu_build()
    from vllm.entrypoints.cli.serve import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser())
    print(json.dumps([takes(parser, words) for words in json.loads(Path(sys.argv[1]).read_text())]))
