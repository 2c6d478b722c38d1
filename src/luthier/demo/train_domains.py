"""The databases that the demo task is trained on.

Every word list was written for Luthier. Values hold no apostrophe: they go into SQL as they stand.
"""

from luthier.demo.domain import Domain, amount, category, label, measure, person, price, table, year

TRAIN_DOMAINS = (
    Domain(
        "library",
        table(
            "books",
            "book",
            label(
                "title",
                "Silent, Golden, Broken, Winter, Hidden",
                "Harbour, Garden, Letter, River, Crown",
            ),
            category("genre", "Crime, Fantasy, History, Travel"),
            year("year", 1950, 2020),
            measure("length", 120, 640, 5),
        ),
        table(
            "authors",
            "author",
            person(),
            category("country", "France, Ireland, Japan, Brazil"),
            year("birth_year", 1920, 1985),
        ),
    ),
    Domain(
        "school",
        table(
            "students",
            "student",
            person(),
            category("club", "Chess, Drama, Rowing, Science"),
            measure("age", 8, 30),
            measure("score", 40, 99),
        ),
        table(
            "teachers",
            "teacher",
            person(),
            category("subject", "Maths, Music, Biology, Geography"),
            amount("salary", 28000, 52000, 500),
        ),
    ),
    Domain(
        "zoo",
        table(
            "animals",
            "animal",
            label("name", "Little, Old, Brave, Lucky, Sleepy", "Max, Luna, Coco, Rocky, Nala"),
            category("species", "Lion, Otter, Zebra, Panda, Tiger"),
            category("origin", "Africa, Asia, Europe"),
            measure("age", 1, 30),
            amount("weight", 20, 400, 5),
        ),
    ),
    Domain(
        "cinema",
        table(
            "films",
            "film",
            label(
                "title",
                "Last, Midnight, Crimson, Distant, Paper",
                "Train, Island, Promise, Shadow, Summer",
            ),
            category("director", "Moreau, Tanaka, Olsen, Rossi"),
            category("genre", "Comedy, Drama, Horror, Western"),
            year("year", 1965, 2022),
            measure("length", 75, 190),
        ),
    ),
    Domain(
        "restaurant",
        table(
            "dishes",
            "dish",
            label(
                "name",
                "Roast, Grilled, Smoked, Spiced, Baked",
                "Trout, Lamb, Aubergine, Chicken, Mushroom",
            ),
            category("course", "Starter, Main, Side"),
            category("cuisine", "Greek, Indian, Spanish, Thai"),
            price("price", 4, 28),
            amount("energy", 150, 950, 10),
        ),
    ),
    Domain(
        "museum",
        table(
            "paintings",
            "painting",
            label(
                "title",
                "Blue, Quiet, Stormy, Morning, Evening",
                "Lake, Village, Window, Orchard, Field",
            ),
            category("style", "Baroque, Cubist, Realist"),
            year("year", 1820, 1960),
            amount("value", 20, 900, 10),
        ),
        table(
            "artists",
            "artist",
            person(),
            category("country", "Spain, Norway, Mexico, Poland"),
            year("birth_year", 1780, 1920),
        ),
    ),
    Domain(
        "company",
        table(
            "employees",
            "employee",
            person(),
            category("role", "Analyst, Designer, Engineer, Manager"),
            amount("salary", 24000, 78000, 500),
            year("start_year", 1995, 2023),
        ),
        table(
            "departments",
            "department",
            label(
                "name", "Central, Northern, Southern, Western", "Sales, Support, Research, Finance"
            ),
            category("city", "Leeds, Bristol, Cardiff, Dundee"),
            amount("budget", 100, 900, 20),
        ),
    ),
    Domain(
        "nursery",
        table(
            "plants",
            "plant",
            label(
                "name",
                "Scarlet, White, Alpine, Creeping, Dwarf",
                "Rose, Maple, Heather, Thyme, Iris",
            ),
            category("soil", "Clay, Chalk, Sand, Peat"),
            category("season", "Spring, Summer, Autumn"),
            measure("height", 10, 300, 5),
            price("price", 2, 30),
        ),
    ),
    Domain(
        "cycling",
        table(
            "riders",
            "rider",
            person(),
            category("country", "Belgium, Italy, Colombia, Denmark"),
            measure("age", 19, 41),
            amount("score", 10, 480, 5),
        ),
        table(
            "teams",
            "team",
            label("name", "Red, Green, Silver, Black", "Arrow, Falcon, Comet, Wheel"),
            category("sponsor", "Bank, Brewery, Telecom"),
            year("founding_year", 1960, 2015),
        ),
    ),
    Domain(
        "music",
        table(
            "albums",
            "album",
            label(
                "title", "Electric, Velvet, Neon, Lonely, Wild", "Dreams, Highway, Echo, Rain, Fire"
            ),
            category("format", "Vinyl, Tape, Disc"),
            year("year", 1968, 2021),
            amount("income", 15, 990, 5),
        ),
        table(
            "bands",
            "band",
            label("name", "Flying, Electric, Royal, Rusty", "Foxes, Pilots, Mirrors, Lanterns"),
            category("genre", "Jazz, Rock, Folk, Soul"),
            category("city", "Berlin, Lisbon, Glasgow"),
            measure("size", 2, 14),
        ),
    ),
    Domain(
        "bridges",
        table(
            "bridges",
            "bridge",
            label(
                "name",
                "Old, Iron, Castle, Market, Abbey",
                "Crossing, Arch, Viaduct, Span, Causeway",
            ),
            category("river", "Thames, Severn, Tyne, Clyde"),
            category("material", "Stone, Steel, Timber"),
            measure("length", 30, 900, 10),
            year("opening_year", 1780, 2010),
        ),
    ),
    Domain(
        "hotels",
        table(
            "hotels",
            "hotel",
            label(
                "name", "Grand, Royal, Park, Seaside, Station", "Palace, Lodge, Inn, Plaza, Manor"
            ),
            category("city", "Vienna, Prague, Porto, Athens"),
            category("owner", "Family, Chain, Trust"),
            amount("capacity", 12, 340, 2),
            price("rate", 45, 260),
        ),
    ),
    Domain(
        "mountains",
        table(
            "peaks",
            "peak",
            label(
                "name", "Eagle, Thunder, Frozen, Lone, Twin", "Ridge, Summit, Horn, Needle, Dome"
            ),
            category("chain", "Alps, Andes, Rockies, Atlas"),
            category("rock", "Granite, Limestone, Basalt"),
            measure("height", 1800, 6900, 25),
            year("ascent_year", 1840, 1990),
        ),
    ),
    Domain(
        "ferries",
        table(
            "ferries",
            "ferry",
            label(
                "name",
                "Northern, Island, Ocean, Coral, Highland",
                "Star, Spirit, Queen, Breeze, Pearl",
            ),
            category("fuel", "Diesel, Gas, Electric"),
            measure("speed", 9, 38),
            amount("capacity", 60, 1900, 20),
        ),
        table(
            "ports",
            "port",
            label("name", "Saint, Upper, Lower, New", "Marlow, Haven, Cliff, Sands"),
            category("country", "Greece, Sweden, Scotland"),
            measure("depth", 6, 29),
        ),
    ),
)
