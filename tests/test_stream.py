"""The stream of events: every sink gets each one, and a sink that fails stops nothing."""

from helpers import Notes

from luthier.events import Event, Note, Stream


class Failing:
    """A sink that is out of order from its ``after``-th event on."""

    name = "the planted sink"

    def __init__(self, after: int = 0, closing: bool = False) -> None:
        self.after = after
        self.closing = closing
        self.got: list[Event] = []

    def __call__(self, event: Event) -> None:
        self.got.append(event)
        if len(self.got) > self.after:
            raise OSError("the disk is on fire")

    def close(self) -> None:
        if self.closing:
            raise RuntimeError("it would not end")


def test_a_sink_that_fails_is_told_once_and_the_others_go_on() -> None:
    first, planted, last = Notes(), Failing(after=1), Notes()
    stream = Stream([first, planted, last])
    events = [Note(str(number)) for number in range(4)]
    for event in events:
        stream(event)
    told = Note(
        "the planted sink failed (OSError: the disk is on fire); the run continues", warning=True
    )
    for sink in (first, last):
        assert [event for event in sink.events if event != told] == events
        assert sink.events.count(told) == 1
    assert [event for event in planted.got if event != told] == events  # it may recover


def test_all_sinks_may_fail() -> None:
    stream = Stream([Failing(), Failing()])
    stream(Note("nobody hears this"))


def test_closing_ends_a_sink_and_tells_what_fails() -> None:
    others, planted, plain = Notes(), Failing(after=9, closing=True), Notes()
    stream = Stream([others, planted, plain])
    stream.close(planted)
    stream.close(plain)  # has no close
    stream(Note("later"))
    assert others.notes == [
        "the planted sink could not be closed (RuntimeError: it would not end); the run continues",
        "later",
    ]
    assert others.warnings == others.notes[:1]
    assert planted.got == []
    assert plain.notes == others.notes[:1]
