"""The databases that the demo task is tested on: none of their tables is in training.

Every word list was written for Luthier. Values hold no apostrophe: they go into SQL as they stand.
"""

from luthier.demo.domain import Domain, amount, category, label, measure, person, price, table, year

UNSEEN_DOMAINS = (
    Domain(
        "vineyard",
        table(
            "wines",
            "wine",
            label(
                "name",
                "Dark, Amber, Noble, Gentle, Ancient",
                "Valley, Cellar, Barrel, Hillside, Harvest",
            ),
            category("grape", "Merlot, Riesling, Malbec, Syrah"),
            price("price", 7, 60),
            year("vintage", 1985, 2021),
        ),
        table(
            "estates",
            "estate",
            label("name", "Upper, Lower, Saint, Monte", "Claire, Verde, Bravo, Laurent"),
            category("region", "Rioja, Tuscany, Alsace"),
            amount("area", 8, 180),
        ),
    ),
    Domain(
        "clinic",
        table(
            "patients",
            "patient",
            person(),
            category("ward", "Cardiac, Surgical, Maternity, Eye"),
            measure("age", 18, 94),
            amount("bill", 120, 4800, 20),
        ),
        table(
            "doctors",
            "doctor",
            person(),
            category("specialty", "Surgery, Oncology, Neurology"),
            year("hiring_year", 1988, 2022),
        ),
    ),
    Domain(
        "marina",
        table(
            "yachts",
            "yacht",
            label(
                "name",
                "Salty, Misty, Swift, Lazy, Merry",
                "Dolphin, Mermaid, Pelican, Anchor, Tide",
            ),
            category("builder", "Hansen, Beaumont, Corvino"),
            category("flag", "Malta, Panama, Norway, Cyprus"),
            measure("length", 8, 62),
            amount("cost", 40, 980, 5),
        ),
    ),
    Domain(
        "arcade",
        table(
            "games",
            "game",
            label(
                "title",
                "Turbo, Pixel, Cosmic, Mystic, Super",
                "Racer, Quest, Blaster, Castle, Ninja",
            ),
            category("platform", "Console, Mobile, Desktop"),
            category("studio", "Redwood, Bluefin, Nimbus, Orbit"),
            year("release_year", 1984, 2023),
            amount("revenue", 20, 970, 10),
        ),
    ),
)
