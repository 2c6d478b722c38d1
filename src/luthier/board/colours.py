"""The colours of what is drawn."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Palette:
    """Colours of what is drawn, those of style.css and of the report."""

    ink: str
    soft: str
    line: str
    panel: str
    base: str
    tuned: str
    probe: str
    runs: tuple[str, ...]


LIGHT = Palette(
    *("#1d232b", "#5b6673", "#dfe3e8", "#ffffff", "#8a94a0", "#2f6db3", "#a66300"),
    ("#2f6db3", "#a66300", "#1f7a3f", "#8e44ad", "#b3261e", "#00838f", "#6d4c41", "#5b6673"),
)
DARK = Palette(
    *("#e6e9ed", "#9aa5b1", "#333b45", "#1c2229", "#8d98a5", "#7aa7d9", "#ffb74d"),
    ("#7aa7d9", "#ffb74d", "#7bd197", "#ce93d8", "#ff8a80", "#4dd0e1", "#bcaaa4", "#9aa5b1"),
)
