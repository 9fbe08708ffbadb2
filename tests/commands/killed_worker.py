"""``torchrun killed_worker.py evaluate ...``: the command line, with process 1 killed when it has done one part.

Process 0 does one part too and then waits, longer than any test, to be stopped.
"""

import os
import signal
import sys
import time
from typing import Any

import fastvae
from fastvae.__main__ import main
from fastvae.evaluation import distributed


def one_part_only(*args: Any, **options: Any) -> Any:
    result = fastvae.log_likelihood(*args, **options)
    if os.environ["RANK"] == "1":
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(600)
    return result


if __name__ == "__main__":
    distributed.log_likelihood = one_part_only
    sys.exit(main(sys.argv[1:]))
