"""The command line in processes that are forked from one that has only imported it.

    python tests/forked.py [PACKAGE…]

reads requests from stdin, one JSON object a line, and answers each with an exit code. Most of a short
command's time are the imports of torch and Transformers; here they are paid for once. The packages named
are as if they were not installed.
"""

import contextlib
import gc
import json
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

_OF_A_TEST = ("PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER")
# What no library reads at its import: a fork is given it.
_AT_USE = ("COLUMNS", "LUTHIER_CACHE", "LUTHIER_API_KEY", "XDG_STATE_HOME")


class Forked:
    """A process that has done nothing but import, and forks one for each command.

    Args:
        missing: packages that it finds not to be installed.
        env: its environment, instead of this process's.
    """

    def __init__(self, missing: Collection[str] = (), env: Mapping[str, str] | None = None) -> None:
        self.missing = sorted(missing)
        self.env = dict(env) if env is not None else {**os.environ, "COLUMNS": "100"}
        self.limits = _limits()
        self.process: subprocess.Popen[str] | None = None

    def can_run(self, env: Mapping[str, str]) -> bool:
        """Whether a fork is as a process of ``env`` is: libraries read that when they are imported."""
        return _plain(env) == _plain(self.env) and _limits() == self.limits

    def run(
        self,
        args: Sequence[str],
        stdin: str,
        cwd: Path | None,
        env: Mapping[str, str] | None = None,
    ) -> "subprocess.CompletedProcess[str]":
        if self.process is None:
            self.process = subprocess.Popen(
                [sys.executable, __file__, *self.missing],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                env=_plain(self.env),
            )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with tempfile.TemporaryDirectory() as folder:
            files = [Path(folder) / name for name in ("stdin", "stdout", "stderr")]
            files[0].write_text(stdin, "utf-8")
            given = self.env if env is None else env
            asked = {
                "args": args,
                "cwd": str(cwd or Path.cwd()),
                "files": [str(f) for f in files],
                "env": {name: given[name] for name in _AT_USE if name in given},
            }
            self.process.stdin.write(json.dumps(asked) + "\n")
            self.process.stdin.flush()
            code = int(self.process.stdout.readline())
            said = [f.read_text("utf-8") for f in files[1:]]
        return subprocess.CompletedProcess(list(args), code, *said)

    def close(self) -> None:
        if self.process is not None:
            assert self.process.stdin is not None
            self.process.stdin.close()
            self.process.wait()


class ForkedByEnvironment:
    """A ``Forked`` for an environment, which libraries read when they are imported; the last few are kept."""

    def __init__(self, most: int = 2) -> None:
        self.most = most
        self._kept: list[Forked] = []

    def find(self, env: Mapping[str, str]) -> Forked | None:
        """The one for ``env``, started where there is none; None where processes cannot be forked."""
        if not hasattr(os, "fork"):
            return None
        found = next((forked for forked in self._kept if forked.can_run(env)), None)
        if found is None:
            found = Forked(env=env)
        else:
            self._kept.remove(found)
        self._kept.append(found)
        while len(self._kept) > self.most:
            self._kept.pop(0).close()
        return found

    def close(self) -> None:
        for forked in self._kept:
            forked.close()


def _plain(env: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in env.items() if name not in (*_OF_A_TEST, *_AT_USE)}


def _limits() -> tuple[int, int]:
    """Of the size of files: a test plays a full disk by it."""
    return resource.getrlimit(resource.RLIMIT_FSIZE)


def _serve() -> None:
    answers = os.fdopen(os.dup(1), "w")  # whatever is printed goes elsewhere
    os.dup2(2, 1)
    sys.modules.update(dict.fromkeys(sys.argv[1:]))  # type: ignore[arg-type]
    from luthier import runtime

    runtime.prepare()
    from luthier.cli.main import main

    ready_to_fork()
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            _be(json.loads(line), main)
        _, status = os.waitpid(pid, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()
    os._exit(0)  # without taking all modules apart


def ready_to_fork() -> None:
    """Import and make what most commands would, each anew; no thread is started."""
    from torch.utils import tensorboard  # noqa: F401
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping
    from transformers.models.llama import modeling_llama  # noqa: F401

    with contextlib.suppress(ImportError):
        from rouge_score import rouge_scorer  # noqa: F401  # takes longer than a short evaluation
    from luthier import runs  # noqa: F401
    from luthier.evaluate.report import page  # noqa: F401
    from luthier.generate import batch  # noqa: F401
    from luthier.plan import calibrate, planning  # noqa: F401

    get_checkpoint_conversion_mapping("llama")  # a thousand patterns
    gc.collect()
    gc.freeze()  # a collection in a fork would have it copy all that it looks at


def _be(asked: dict[str, Any], main: Any) -> None:
    import atexit
    import traceback

    code = 1
    try:
        flags = (os.O_RDONLY, os.O_WRONLY | os.O_CREAT, os.O_WRONLY | os.O_CREAT)
        for number, (name, flag) in enumerate(zip(asked["files"], flags, strict=True)):
            os.dup2(os.open(name, flag), number)
        sys.stdin = os.fdopen(0, encoding="utf-8")
        os.environ.update(asked["env"])
        os.chdir(asked["cwd"])
        sys.path[0] = asked["cwd"]  # as `python -m` has it
        sys.argv = ["luthier", *asked["args"]]
        random.seed()
        main()
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(ended.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    _serve()
