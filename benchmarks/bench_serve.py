"""Load test of `luthier serve` on loopback: tokens/s and latency with 1, 4, 8 and 16 clients.

    python benchmarks/bench_serve.py [RUN] [--seconds 20]

Without a run, one of the real 135M model is made first, of two steps. Starts the server as a process
of its own. Each client streams one greedy answer after another, 64 tokens each, to questions of its
own. Answers of the crowd are compared with those of one client alone. Memory is the server's resident
memory after each round.
"""

import argparse
import json
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import httpx2
import psutil

TOKENS = 64
ROOT = Path(__file__).parents[1]
LUTHIER = [sys.executable, "-m", "luthier.cli.main"]


class Client(threading.Thread):
    """Asks until told to stop; keeps latencies, times to the first token, answers, errors."""

    def __init__(self, url: str, model: str, number: int, until: float) -> None:
        super().__init__()
        self.url, self.model, self.number, self.until = url, model, number, until
        self.seconds: list[float] = []
        self.first: list[float] = []
        self.tokens = 0
        self.errors = 0
        self.answers: dict[str, str] = {}

    def run(self) -> None:
        with httpx2.Client(timeout=120) as http:
            count = 0
            while time.perf_counter() < self.until:
                question = (
                    f"Write a short story about a boat with {self.number * 7 + count % 3} sails."
                )
                count += 1
                try:
                    self.ask(http, question)
                except (httpx2.HTTPError, KeyError, ValueError):
                    self.errors += 1

    def ask(self, http: httpx2.Client, question: str) -> None:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": question}],
            "temperature": 0,
            "max_tokens": TOKENS,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        started, first, text, made = time.perf_counter(), None, "", None
        with http.stream("POST", f"{self.url}/v1/chat/completions", json=body) as response:
            response.raise_for_status()
            for line in response.iter_lines():
                if not line.startswith("data: {"):
                    continue
                chunk = json.loads(line[6:])
                for choice in chunk["choices"]:
                    piece = choice["delta"].get("content") or ""
                    if piece and first is None:
                        first = time.perf_counter() - started
                    text += piece
                if chunk.get("usage"):
                    made = chunk["usage"]["completion_tokens"]
        if made is None or first is None:
            raise ValueError("an answer without an end")
        self.seconds.append(time.perf_counter() - started)
        self.first.append(first)
        self.tokens += made
        self.answers[question] = text


def percentile(values: list[float], share: float) -> float:
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def round_of(clients: int, url: str, model: str, seconds: float) -> list[Client]:
    until = time.perf_counter() + seconds
    crowd = [Client(url, model, number, until) for number in range(clients)]
    for client in crowd:
        client.start()
    for client in crowd:
        client.join()
    return crowd


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path, nargs="?")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 4, 8, 16])
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        measure(chosen.run or make_run(Path(scratch)), chosen.clients, chosen.seconds)


def make_run(folder: Path) -> Path:
    """LoRA on all layers, as a real run has it; two steps are enough for the speed."""
    command = [*LUTHIER, "train", str(ROOT / "recipes/lora.yaml"), "--json"]
    for override in (
        f"data.train={ROOT / 'src/luthier/demo/task/train.jsonl'}",
        "train.max_steps=2",
        "train.gradient_accumulation_steps=1",
        "evaluate.probe=false",
        f"run.dir={folder}",
        "run.name=bench",
    ):
        command += ["--set", override]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "bench"


def measure(run: Path, rounds: list[int], seconds: float) -> None:
    command = [*LUTHIER, "serve", str(run), "--port", "0"]
    server = psutil.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        url = re.search(r"http://\S+?(?=/v1)", server.stdout.readline())[0]  # type: ignore[index]
        model = run.resolve().name
        round_of(1, url, model, 3)  # warm-up
        single, last = 0.0, {}
        print(
            "| clients | tokens/s | × one | answer p50 | p95 | first token p50 | p95 | errors | memory |"
        )
        print("|---|---|---|---|---|---|---|---|---|")
        for clients in rounds:
            started = time.perf_counter()
            crowd = round_of(clients, url, model, seconds)
            rate = sum(c.tokens for c in crowd) / (time.perf_counter() - started)
            single = single or rate
            took = [s for c in crowd for s in c.seconds]
            first = [s for c in crowd for s in c.first]
            print(
                f"| {clients} | {rate:.1f} | {rate / single:.1f} | {percentile(took, 0.5):.2f} s "
                f"| {percentile(took, 0.95):.2f} s | {percentile(first, 0.5):.2f} s "
                f"| {percentile(first, 0.95):.2f} s | {sum(c.errors for c in crowd)} "
                f"| {server.memory_info().rss / 2**20:,.0f} MiB |",
                flush=True,
            )
            last = {q: a for c in crowd for q, a in c.answers.items()}
        # Some of the crowd's answers, each asked again alone.
        single_client = Client(url, model, 0, 0)
        with httpx2.Client(timeout=120) as http:
            for question in sorted(last)[:8]:
                single_client.ask(http, question)
        alone = single_client.answers
        same = sum(alone[q] == last[q] for q in alone)
        print(f"answers of {rounds[-1]} clients equal to those alone: {same} of {len(alone)}")
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait(60)


if __name__ == "__main__":
    main()
