"""`make fuzz`: many inputs for each target of ``targets.py``; failures are kept in ``corpus/``.

    python tests/fuzz/run_fuzz.py --inputs 100000 [--seed N] [--seconds S] [--record FILE]

Prints a table (inputs, failures, slowest); exits with 1 if anything failed. A failure is any error
but a UserError, an input that takes over ``SLOW`` seconds, or memory that grows past ``MEMORY``.
"""

import argparse
import faulthandler
import hashlib
import json
import resource
import sys
import time
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from fuzz.targets import TARGETS, Target, scratch  # noqa: E402
from hypothesis import HealthCheck, Phase, given, seed, settings  # noqa: E402

from luthier.data import bounded  # noqa: E402

SLOW = 60.0  # seconds: a hang; rendering is cut off at ten of processor time
MEMORY = 3 * 2**30  # bytes beyond what the process began with
CORPUS = HERE / "corpus"


@dataclass
class Outcome:
    """What became of the inputs of one target."""

    inputs: int = 0
    failures: int = 0
    slowest: float = 0.0
    examples: list[str] = field(default_factory=list)


def try_one(name: str, target: Target, data: bytes, outcome: Outcome, keep: bool = True) -> None:
    (scratch() / "current").write_bytes(data)  # what to look at after a hang or a crash
    faulthandler.dump_traceback_later(60, exit=True)
    started = time.perf_counter()
    error = ""
    try:
        target.run(data)
    except Exception:
        error = traceback.format_exc()
    finally:
        faulthandler.cancel_dump_traceback_later()
    seconds = time.perf_counter() - started
    outcome.inputs += 1
    outcome.slowest = max(outcome.slowest, seconds)
    if seconds > SLOW:
        error = error or f"took {seconds:.1f} s"
    if not error:
        return
    outcome.failures += 1
    if len(outcome.examples) < 20:
        outcome.examples.append(error[-1500:])
        if keep:
            folder = CORPUS / name.replace(" ", "-")
            folder.mkdir(parents=True, exist_ok=True)
            (folder / hashlib.sha256(data).hexdigest()[:12]).write_bytes(data)


def fuzz(name: str, target: Target, inputs: int, number: int, until: float) -> Outcome:
    outcome = Outcome()

    class Enough(Exception):
        pass

    @seed(number)
    @settings(
        max_examples=inputs, database=None, deadline=None, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(target.inputs)
    def go(data: bytes) -> None:
        if time.monotonic() > until:
            raise Enough
        try_one(name, target, data, outcome)

    with suppress(Enough):
        go()
    return outcome


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--inputs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--seconds", type=float, default=1e9, help="stop after so long")
    parser.add_argument("--only", choices=TARGETS, action="append")
    parser.add_argument("--record", type=Path, help="add the figures to this JSON lines file")
    options = parser.parse_args()
    bounded.SECONDS = 2.0  # of a template; users get ten
    pages = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (pages + MEMORY, resource.RLIM_INFINITY))
    chosen = {name: TARGETS[name] for name in options.only or TARGETS}
    shares = sum(target.share for target in chosen.values())
    started = time.monotonic()
    end = started
    print(f"{'target':16}{'inputs':>10}{'failures':>10}{'slowest':>10}", flush=True)
    failed = False
    for name, target in chosen.items():
        end += options.seconds * target.share / shares
        count = round(options.inputs * target.share / shares)
        outcome = fuzz(name, target, count, options.seed, end)
        print(
            f"{name:16}{outcome.inputs:10,}{outcome.failures:10,}{outcome.slowest:9.2f}s",
            flush=True,
        )
        failed |= outcome.failures > 0
        for example in outcome.examples[:5]:
            print(example)
        if options.record:
            with options.record.open("a") as file:
                entry = {"target": name, "seed": options.seed, **asdict(outcome)}
                file.write(json.dumps(entry) + "\n")
    sys.exit(failed)


if __name__ == "__main__":
    main()
