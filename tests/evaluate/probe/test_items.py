"""The shipped questions are sound."""

import re
from collections import Counter

from luthier.evaluate.probe.items import UNRELATED, load_items, load_passages


def test_there_are_enough_and_none_stands_twice() -> None:
    items = load_items()
    assert len(items) >= 300
    assert len({item.id for item in items}) == len(items)
    assert len({(item.question, item.answer) for item in items}) == len(items)
    areas = Counter(item.area for item in items)
    assert set(areas) == {
        *("facts", "arithmetic", "commonsense", "language", "code", "chat", "instructions"),
        UNRELATED,
    }
    assert min(areas.values()) >= 20
    assert sum(len(text.split()) for text in load_passages()) > 800


def test_each_is_of_one_kind() -> None:
    for item in load_items():
        if item.area == UNRELATED:
            assert (item.answer, item.wrong, item.pattern) == (None, (), None)
        elif item.answer is not None:
            assert len({item.answer, *item.wrong}) == 4
        else:
            assert item.pattern is not None
            re.compile(item.pattern)
            assert not item.right("")


def test_open_answers_match_as_people_would_judge() -> None:
    by_question = {item.question: item for item in load_items() if item.pattern}
    for question, right, wrong in [
        ("What is the capital of Spain?", "The capital of Spain is madrid.", "Barcelona"),
        ("What is 1 + 1?", "1 + 1 = 2", "11"),
        ("What is 1 + 1?", "It is two.", "21"),
        ("Reply with one word only: yes or no. Is fire hot?", "Yes.", "Yes, fire is hot."),
        ("Repeat exactly: The sky is blue.", "The sky is blue.", "OK: the sky is blue, indeed"),
        ("Count from one to five.", "1, 2, 3, 4, 5", "1, 2, 3"),
        ("List three colours.", "1. Red\n2. Blue\n3. Green", "Red and blue"),
        ("Write the number seven as a digit.", "7", "77"),
    ]:
        assert by_question[question].right(right), (question, right)
        assert not by_question[question].right(wrong), (question, wrong)
