"""Models that answer in the chat: a few stay loaded, and one speaks at a time."""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from luthier.errors import UserError
from luthier.run import Run

if TYPE_CHECKING:
    from luthier.api import Sampling, TunedModel

_MOST = 2  # loaded at once


@dataclass(frozen=True)
class Speaker:
    """Who answers: a run at a scale of its adapter, or the base that it came from."""

    run: Run
    scale: float = 1.0
    base: bool = False


@dataclass
class Shelf:
    """Tuned models by run and scale."""

    _loaded: "OrderedDict[tuple[Path, float], TunedModel]" = field(default_factory=OrderedDict)

    def answer(
        self,
        speaker: Speaker,
        turns: Sequence[dict[str, Any]],
        sampling: "Sampling",
        on_text: Callable[[str], None],
    ) -> str:
        """The answer to ``turns``, handed over piece by piece; called by one thread.

        Raises:
            UserError: the run has not finished, or cannot be read.
            Untrusted: the run is of someone else, and asks for what needs consent.
        """
        from luthier.api import stream_answer

        model = self._model(speaker)
        if not model.learned_turns:
            raise UserError(f"{speaker.run.root} was trained on plain text, not on chats")
        with model.as_base() if speaker.base else nullcontext(model.tuned) as chosen:
            return stream_answer(chosen, model.tokenizer, tuple(turns), sampling, on_text)

    def _model(self, speaker: Speaker) -> "TunedModel":
        from luthier.api import load_tuned

        # The base is within every tuned model of it.
        if speaker.base:
            near = [key for key in self._loaded if key[0] == speaker.run.root]
            key = near[0] if near else (speaker.run.root, 1.0)
        else:
            key = (speaker.run.root, speaker.scale)
        if key not in self._loaded:
            while len(self._loaded) >= _MOST:
                self._loaded.popitem(last=False)
            self._loaded[key] = load_tuned(speaker.run, key[1])
        self._loaded.move_to_end(key)
        return self._loaded[key]
