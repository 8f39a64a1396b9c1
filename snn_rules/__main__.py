"""`python -m snn_rules` is the command `snn-rules`: what torchrun starts."""

import os
import sys

from .cli import app


def main() -> None:
    try:
        app(prog_name="snn-rules")
    except SystemExit as end:
        if "RANK" not in os.environ:
            raise
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 0)  # gloo's threads may outlive the interpreter, which then aborts (pytorch#179291)


if __name__ == "__main__":
    main()
