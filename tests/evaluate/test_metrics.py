"""Scores against the reference libraries, published examples, and by hand."""

import json
import random
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
from rouge_score.rouge_scorer import RougeScorer
from sacrebleu.metrics import BLEU, CHRF

from luthier.data.conversation import Conversation, Origin
from luthier.errors import UserError
from luthier.evaluate import text
from luthier.evaluate.classification import answered_label, confusion, find_labels
from luthier.evaluate.judge import Judge
from luthier.evaluate.metrics import make_metrics
from luthier.evaluate.store import Store
from luthier.evaluate.structured import json_valid, schema_metric
from luthier.evaluate.user_metric import load_user_metric
from luthier.recipe import EvaluateGroup

DRAW = random.Random(0)
PAIRS = [
    ("the cat sat on the mat", "the cat sat on the mat"),
    ("the cat was found under the bed", "the cat was under the bed"),
    ("ls -la", "find . -name x"),
    ("", "find . -name x"),
    ("Été à 20°C: naïve_name, it's 5-10 % (2x)", "it's 20°C; NAIVE_name à 5–10% 2X été"),
    ("日本語", "日本"),
    *(
        (" ".join(DRAW.choices("abcde", k=most)), " ".join(DRAW.choices("abcdf", k=50)))
        for most in (1, 7, 70, 200)
    ),
]


def row(reference: str, **extra: Any) -> Conversation:
    messages = ({"role": "user", "content": "q"}, {"role": "assistant", "content": reference})
    return Conversation(Origin("f", 1), messages, extra=extra)


def test_exact_match_forgives_spacing_alone() -> None:
    assert text.exact_match(" ls  -la\n", "ls -la") == 1
    assert text.exact_match("LS -la", "ls -la") == 0


@pytest.mark.parametrize(("answer", "reference"), PAIRS)
def test_scores_are_those_of_the_libraries(answer: str, reference: str) -> None:
    kinds = ["rouge1", "rouge2", "rougeL"]
    rouge = RougeScorer(kinds).score(reference, answer)
    for kind in kinds:
        assert text.rouge(answer, reference, kind) == pytest.approx(rouge[kind].fmeasure)
    chrf = CHRF().sentence_score(answer, [reference]).score / 100
    assert text.chrf(answer, reference) == pytest.approx(chrf)
    bleu = BLEU(effective_order=True).sentence_score(answer, [reference]).score / 100
    assert text.bleu(answer, reference) == pytest.approx(bleu)


def test_corpus_scores_are_the_librarys_own_example() -> None:
    """The example of sacreBLEU's README: BLEU 48.53, chrF2 of its test suite's kind."""
    references = ["The dog bit the man.", "It was not unexpected.", "The man bit him first."]
    answers = ["The dog bit the man.", "It wasn't surprising.", "The man had just bitten him."]
    bleu = BLEU().corpus_score(answers, [references]).score / 100
    assert text.corpus_bleu(answers, references) == pytest.approx(bleu)
    chrf = CHRF().corpus_score(answers, [references]).score / 100
    assert text.corpus_chrf(answers, references) == pytest.approx(chrf)


def test_rouge_l_by_hand() -> None:
    # Longest common subsequence 6 words, of 7 and of 6.
    answer, reference = PAIRS[1]
    assert text.rouge(answer, reference) == pytest.approx(2 * (6 / 7) * (6 / 6) / (6 / 7 + 6 / 6))


@pytest.mark.parametrize(
    ("answer", "reference", "match", "f1"),
    [
        ("The Eiffel Tower!", "eiffel tower", 1, 1),
        ("in Paris, France", "Paris", 0, 0.5),
        ("the the the", "Paris", 0, 0),
        ("", "", 1, 1),
        ("+", "-", 0, 0),  # nothing is left of either once normalised
        ("-", "-", 1, 1),
        ("b b a1", "b", 0, 0.5),  # a word counts as often as both have it
    ],
)
def test_squad_scores(answer: str, reference: str, match: float, f1: float) -> None:
    assert text.normalised_match(answer, reference) == match
    assert text.token_f1(answer, reference) == pytest.approx(f1)


def test_labels_are_found_and_told_from_texts() -> None:
    assert find_labels(["ham", "spam", "Spam", "spam", "ham", "spam"]) == ("spam", "ham")
    assert find_labels(["a", "b", "c", "a"]) == ()  # too few rows for three labels
    assert find_labels(["yes"] * 9) == ()
    assert find_labels(["+", "-"] * 5) == ("+", "-")
    assert find_labels([f"find . -name {n}" for n in range(90)]) == ()
    assert find_labels(["a\nb", "c"] * 9) == ()


@pytest.mark.parametrize(
    ("answer", "label"),
    [
        ("Spam.", "spam"),
        ("not spam", "not spam"),
        ("This is not spam, I think", "not spam"),
        ("spam\nbecause it sells", "spam"),
        ("It is spam", "spam"),
        ("spam or unsure", "spam"),  # it begins with one
        ("either unsure or spam", None),
        ("spammer", None),
        ("", None),
    ],
)
def test_the_label_of_an_answer(answer: str, label: str | None) -> None:
    assert answered_label(answer, ("spam", "not spam", "unsure")) == label


def test_confusion_by_hand() -> None:
    references = ["a", "a", "a", "b", "b", "c"] * 2
    answers = ["a", "a", "b", "b", "?", "a"] * 2
    found = confusion(answers, references)
    assert found is not None
    assert found.labels == ("a", "b", "c")
    assert found.counts == ((4, 2, 0, 0), (0, 2, 0, 2), (2, 0, 0, 0))
    assert found.precision == pytest.approx((4 / 6, 2 / 4, 0))
    assert found.recall == pytest.approx((4 / 6, 2 / 4, 0))
    assert found.macro_f1 == pytest.approx((4 / 6 + 2 / 4 + 0) / 3)
    assert confusion(["x"], ["one of a kind"]) is None


def test_accuracy_joins_where_references_are_labels() -> None:
    rows = [row("yes"), row("no")] * 5
    names = [m.name for m in make_metrics(["chrf"], EvaluateGroup(), rows)]
    assert names == ["chrf", "accuracy"]
    (accuracy,) = make_metrics(["accuracy"], EvaluateGroup(), rows)
    assert accuracy.scores(["Yes.", "maybe"], rows[:2]) == [1, 0]
    with pytest.raises(UserError, match="label set"):
        make_metrics(["accuracy"], EvaluateGroup(), [row("a text of its own")])


@pytest.mark.parametrize(
    ("answer", "valid"),
    [
        ('{"a": [1, null]}', 1),
        ('```json\n{"a": 1}\n```', 1),
        ("3", 1),
        ('Here: {"a": 1}', 0),
        ('{"a": NaN}', 0),
        ("{'a': 1}", 0),
        ("", 0),
        ("[" * 100_000, 0),
    ],
)
def test_json_validity(answer: str, valid: float) -> None:
    assert json_valid(answer, row("x")) == valid


def test_json_schema(tmp_path: Path) -> None:
    path = tmp_path / "schema.json"
    path.write_text(
        '{"type": "object", "required": ["n"], "properties": {"n": {"type": "integer"}}}'
    )
    score = schema_metric(path)
    assert [score(a, row("x")) for a in ('{"n": 1}', '{"n": "1"}', "{}", "no")] == [1, 0, 0, 0]
    path.write_text('{"type": "objekt"}')
    with pytest.raises(UserError, match="not a JSON schema"):
        schema_metric(path)
    path.write_text("{")
    with pytest.raises(UserError, match="is not JSON"):
        schema_metric(path)
    with pytest.raises(UserError, match="cannot read"):
        schema_metric(tmp_path / "none.json")


def test_a_users_metric(tmp_path: Path) -> None:
    path = tmp_path / "brevity.py"
    path.write_text(
        "higher_is_better = False\n"
        "def score(answer, row):\n"
        "    assert row['messages'][0]['content'] == 'q'\n"
        "    return len(answer) / row['allowed'] + (row['reference'] == answer)\n"
    )
    (metric,) = make_metrics([str(path)], EvaluateGroup(), [])
    assert (metric.name, metric.higher_is_better) == ("brevity", False)
    assert metric.score("ab", row("ab", allowed=4)) == 1.5
    with pytest.raises(UserError, match=r"score failed on f:1: KeyError: 'allowed' \(line 4\)"):
        metric.score("ab", row("ab"))
    for code, said in [
        ("def score(a, r): return 'high'", "returned 'high' for f:1"),
        ("def score(a, r): return float('nan')", "not a finite number"),
        ("x = 1", "has no function score"),
        ("import nonsense_that_is_not", "cannot be run: ModuleNotFoundError"),
        ("def score(a", "cannot be run: SyntaxError"),
    ]:
        path.write_text(code)
        with pytest.raises(UserError, match=said):
            load_user_metric(path).score("a", row("b"))
    path.rename(tmp_path / "chrf.py")
    (tmp_path / "chrf.py").write_text("def score(a, r): return 1")
    with pytest.raises(UserError, match="two metrics are named chrf"):
        make_metrics(["chrf", str(tmp_path / "chrf.py")], EvaluateGroup(), [])
    with pytest.raises(UserError, match="no metric file"):
        load_user_metric(tmp_path / "none.py")


class StandIn(BaseHTTPRequestHandler):
    """Speaks OpenAI's protocol and grades by the length of what is between the marks."""

    asked: ClassVar[list[dict[str, Any]]] = []
    keys: ClassVar[list[str | None]] = []
    says: ClassVar[str | None] = None

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.asked.append(body)
        self.keys.append(self.headers["Authorization"])
        asked = body["messages"][0]["content"]
        good = "42" in asked.partition("[The assistant's answer]")[2]
        said = self.says or f"Format is [[1]] to [[10]]. Rating: [[{10 if good else 1}]]"
        reply = {
            "id": "1",
            "object": "chat.completion",
            "created": 0,
            "model": body["model"],
            "choices": [
                {
                    "index": 0,
                    "finish_reason": "stop",
                    "message": {"role": "assistant", "content": said},
                }
            ],
        }
        data = json.dumps(reply).encode()
        self.send_response(200 if self.path == "/v1/chat/completions" else 404)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: Any) -> None: ...


@pytest.fixture
def stand_in() -> Iterator[str]:
    StandIn.asked, StandIn.keys, StandIn.says = [], [], None
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}/v1"
    server.shutdown()
    server.server_close()


def test_the_judge(stand_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", "secret-key")
    settings = EvaluateGroup(judge_model="big", judge_url=stand_in, judge_key_env="MY_KEY")
    kept = tmp_path / "judge.jsonl"
    (metric,) = make_metrics(["judge"], settings, [], kept)
    rows = [row("42"), row("42 {}")]
    assert metric.scores(["it is 42", "{no} idea"], rows) == [1.0, 0.0]
    assert set(StandIn.keys) == {"Bearer secret-key"}
    assert {(a["model"], a["temperature"]) for a in StandIn.asked} == {("big", 0)}
    assert "secret" not in kept.read_text()
    again = Judge(settings, kept)
    assert again("it is 42", rows[0]) == 1.0
    assert len(StandIn.asked) == 2  # kept grades are not asked for again
    StandIn.says = "Very good! [[11]]"
    with pytest.raises(UserError, match="gave no grade"):
        again("something else", rows[0])
    dead = EvaluateGroup(judge_model="big", judge_url="http://127.0.0.1:9/v1")
    with pytest.raises(UserError, match="did not answer"):
        Judge(dead, None)("x", rows[0])


def test_a_store_forgets_the_line_a_kill_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "kept" / "answers.jsonl"
    Store(path).add({"a": "één", "b": 2})
    with path.open("ab") as file:
        file.write(b'{"key": "c", "value": "hal')
    store = Store(path)
    assert store["a"] == "één"
    assert "c" not in store
    store.add({"c": 3})
    assert [Store(path)[key] for key in "abc"] == ["één", 2, 3]
    assert len(path.read_text().splitlines()) == 3
