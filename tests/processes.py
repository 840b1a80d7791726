"""`stacker` in a process of its own, to be killed or interrupted."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path


def start(config: Path, command: str = "run") -> subprocess.Popen[bytes]:
    """Start `stacker run`, or another command, in a process of its own that hears Ctrl-C.

    A shell's background job has it ignored, and so would what the tests start there.
    """
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
    code += "from stacker.cli.main import main; main()"
    return subprocess.Popen(
        [sys.executable, "-c", code, command, str(config)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
