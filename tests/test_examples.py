"""The programs in `examples/` run as their own texts say."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import mempool

EXAMPLES = Path(__file__).parent.parent / "examples"
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(Path(mempool.__file__).resolve().parent.parent)}

pytestmark = pytest.mark.skipif(not EXAMPLES.exists(), reason="the examples are not here")


@pytest.fixture
def port() -> Iterator[str]:
    """Of an echo server that runs."""
    command = [sys.executable, str(EXAMPLES / "echo_server.py"), "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=ENVIRONMENT) as server:
        assert server.stdout is not None
        found = re.fullmatch(r"listening on port (\d+)\n", server.stdout.readline())
        assert found is not None
        yield found[1]
        server.terminate()


def run_client(*arguments: str) -> str:
    command = [sys.executable, str(EXAMPLES / "echo_client.py"), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=ENVIRONMENT, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_the_echo_client_gets_back_what_it_sends(port: str) -> None:
    for size in ("10", "300000"):
        said = run_client("--port", port, "--frames", "5", "--size", size)
        assert re.fullmatch(rf"hello\n5 frames of {size} bytes there and back: [\d.]+ s\n", said)
