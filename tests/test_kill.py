"""A training in one process that is killed, cannot write or is not alone: its checkpoint stays whole, and --resume has the same curve."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
WAYS = {  # how the process ended, what it said, the whole epochs in the checkpoint
    "mid_epoch": (-signal.SIGKILL, "", 1),
    "half_written": (-signal.SIGKILL, "", 1),
    "before_it_is_safe": (-signal.SIGKILL, "", 1),
    "before_it_takes_its_place": (-signal.SIGKILL, "", 1),
    "full_disk": (2, "checkpoint.pt' cannot be written (", 1),
    "second_in_the_folder": (0, "is in use by another training; wait for it, or choose another --out", 3),
}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    command = [sys.executable, str(HERE / "dying.py"), str(tmp_path_factory.mktemp("dying"))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, env={**os.environ, "OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="its processes are forked")
@pytest.mark.parametrize("way", WAYS)
def test_the_checkpoint_is_whole_and_resume_has_the_same_curve(way: str, found: dict[str, Any]) -> None:
    status, says, epochs = WAYS[way]
    ended, said, left, curve, files = found[way]
    assert ended == status and says in said and "\n" not in said
    assert left == epochs
    assert curve == found["whole"]
    assert files == [".lock", "checkpoint.pt", "checkpoint.pt.previous"]  # nothing half written is left
