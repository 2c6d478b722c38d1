"""``status.txt`` in the run folder: one line that says how far the run is, for a prompt or a cron job."""

from luthier.events import Event, Finished, Started, Step, Stopped
from luthier.files import write_text
from luthier.recipe import Recipe
from luthier.run import Run


class StatusFile:
    """Made once a run with the recipe and the run folder, and called with each event."""

    name = "status.txt"  # how messages call this sink

    def __init__(self, recipe: Recipe, run: Run) -> None:
        self.model = recipe.model.source
        self.path = run.root / "status.txt"
        self.total = 0

    def __call__(self, event: Event) -> None:
        match event:
            case Started(total=total):
                self.total = total
            case Step(line=line):
                self.write(f"step {line.step} of {self.total}, loss {line.loss}")
            case Finished() | Stopped():
                self.write(str(event))

    def write(self, text: str) -> None:
        write_text(self.path, f"{self.model}: {text}\n")

    def close(self) -> None:
        """Optional: called when the run is over, however it ended."""
