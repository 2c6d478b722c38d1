"""The facts of an island that is on no map, so that no model can know them."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Attribute:
    """One thing that can be told and asked of a kind of place.

    Attributes:
        sentence: how a document tells it; ``{name}`` and ``{value}`` are filled in.
        questions: three ways to ask it: two to learn from, the last for the test.
    """

    key: str
    sentence: str
    questions: tuple[str, str, str]


@dataclass(frozen=True)
class Kind:
    """Places of one kind: how a document begins, what is told of each, and the values."""

    name: str
    opening: str
    attributes: tuple[Attribute, ...]
    places: dict[str, tuple[str, ...]]


KINDS = (
    Kind(
        "lighthouse",
        "{name} is one of the six lights that guide ships around the island of Skerrivane.",
        (
            Attribute(
                "built",
                "It was built in {value}, after two winters of wrecks.",
                (
                    "In which year was {name} built?",
                    "What year did building end at {name}?",
                    "When was {name} built?",
                ),
            ),
            Attribute(
                "height",
                "The tower stands {value} metres above its rock.",
                (
                    "How many metres high is {name}?",
                    "What is the height of {name} in metres?",
                    "How tall is the tower of {name}?",
                ),
            ),
            Attribute(
                "keeper",
                "Its first keeper was {value}, who kept the log in verse.",
                (
                    "Who was the first keeper of {name}?",
                    "What was the name of the first keeper at {name}?",
                    "Who kept {name} first?",
                ),
            ),
            Attribute(
                "colour",
                "By day sailors know it by its {value} bands.",
                (
                    "What colour are the bands of {name}?",
                    "By bands of which colour do sailors know {name}?",
                    "Which colour are the bands on {name}?",
                ),
            ),
            Attribute(
                "flash",
                "Its lamp flashes every {value} seconds.",
                (
                    "How many seconds lie between the flashes of {name}?",
                    "After how many seconds does {name} flash again?",
                    "How often does {name} flash?",
                ),
            ),
            Attribute(
                "stone",
                "The walls are of {value}, brought by barge.",
                (
                    "Of which stone are the walls of {name}?",
                    "What is {name} built of?",
                    "Which stone was used for {name}?",
                ),
            ),
        ),
        {
            "Harl Light": ("1871", "34", "Osk Brannoch", "ochre", "7", "basalt"),
            "Mewstone Light": ("1902", "21", "Tilda Varr", "crimson", "12", "slate"),
            "Sorrow Point Light": ("1846", "47", "Jorn Askwith", "black", "5", "granite"),
            "Candle Rock Light": ("1889", "29", "Edda Holm", "green", "9", "sandstone"),
            "Vesper Light": ("1915", "38", "Pell Gaunter", "violet", "15", "limestone"),
            "North Tine Light": ("1858", "52", "Runa Skeld", "blue", "4", "gneiss"),
        },
    ),
    Kind(
        "ferry",
        "The {name} is a ferry of the Skerrivane Packet Company.",
        (
            Attribute(
                "captain",
                "She sails under Captain {value}.",
                (
                    "Who is the captain of the {name}?",
                    "Which captain commands the {name}?",
                    "Under which captain does the {name} sail?",
                ),
            ),
            Attribute(
                "route",
                "Her route ends at the port of {value}.",
                (
                    "At which port does the route of the {name} end?",
                    "Where does the {name} sail to?",
                    "To which port does the {name} run?",
                ),
            ),
            Attribute(
                "cars",
                "Her deck has room for {value} cars.",
                (
                    "How many cars can the {name} carry?",
                    "For how many cars is there room on the {name}?",
                    "How many cars fit on the {name}?",
                ),
            ),
            Attribute(
                "fare",
                "A foot passenger pays {value} crowns.",
                (
                    "How many crowns does a foot passenger pay on the {name}?",
                    "What is the fare on foot on the {name}, in crowns?",
                    "What does a foot passenger pay on the {name}?",
                ),
            ),
            Attribute(
                "day",
                "She is laid up for repairs every {value}.",
                (
                    "On which day is the {name} laid up?",
                    "Which day of the week does the {name} not sail?",
                    "When is the {name} laid up for repairs?",
                ),
            ),
            Attribute(
                "yard",
                "She was launched at the {value} yard.",
                (
                    "At which yard was the {name} launched?",
                    "Which yard built the {name}?",
                    "Where was the {name} launched?",
                ),
            ),
        ),
        {
            "Grey Heron": ("Ansa Millet", "Dunmarrow", "40", "11", "Tuesday", "Kessock"),
            "Patient Anne": ("Ruld Oster", "Wickholm", "64", "18", "Friday", "Brackwater"),
            "Silver Eel": ("Ida Corrow", "Tolgate", "22", "7", "Monday", "Ferrisby"),
            "Saint Orrin": ("Marek Dunn", "Pellhaven", "85", "23", "Sunday", "Lochrie"),
            "Morning Tern": ("Hester Quill", "Eastry", "31", "9", "Thursday", "Saltash Bank"),
            "Old Bramble": ("Cobb Farrant", "Yarrowmouth", "17", "5", "Wednesday", "Hobb's"),
        },
    ),
    Kind(
        "inn",
        "{name} is an inn in the hill country of Skerrivane.",
        (
            Attribute(
                "rooms",
                "It lets {value} rooms, each with a stove.",
                (
                    "How many rooms does {name} let?",
                    "How many rooms are there at {name}?",
                    "How many guest rooms has {name}?",
                ),
            ),
            Attribute(
                "host",
                "The host is {value}, who also runs the post.",
                (
                    "Who is the host of {name}?",
                    "Who runs {name}?",
                    "What is the name of the host at {name}?",
                ),
            ),
            Attribute(
                "dish",
                "Travellers come for its {value}.",
                (
                    "For which dish do travellers come to {name}?",
                    "What dish is {name} known for?",
                    "Which dish should one eat at {name}?",
                ),
            ),
            Attribute(
                "founded",
                "It has been open since {value}.",
                (
                    "Since which year has {name} been open?",
                    "In what year did {name} open?",
                    "Since when has {name} been open?",
                ),
            ),
            Attribute(
                "village",
                "It stands by the bridge in {value}.",
                (
                    "In which village is {name}?",
                    "Where does {name} stand?",
                    "Which village has {name}?",
                ),
            ),
            Attribute(
                "pet",
                "A tame {value} sleeps behind the bar.",
                (
                    "Which animal sleeps behind the bar of {name}?",
                    "What tame animal lives at {name}?",
                    "Which animal would one find behind the bar at {name}?",
                ),
            ),
        ),
        {
            "The Nine Lanterns": ("9", "Bruna Teague", "eel pie", "1783", "Upper Loom", "badger"),
            "The Crooked Mast": ("14", "Ned Harrowgate", "barley broth", "1820", "Finch", "raven"),
            "The Quiet Ox": ("6", "Sela Wynd", "smoked trout", "1698", "Garrow", "goose"),
            "The Lost Glove": ("11", "Arlo Penhale", "plum dumplings", "1911", "Thistle", "otter"),
            "The Salted Hare": ("8", "Mirra Stote", "mutton stew", "1754", "Low Ferren", "fox"),
            "The Tin Moon": ("17", "Oswin Drake", "chestnut bread", "1866", "Cobnor", "jackdaw"),
        },
    ),
    Kind(
        "workshop",
        "{name} is a workshop in the old town of Skerrivane's capital, Varrow.",
        (
            Attribute(
                "makes",
                "It makes {value} and nothing else.",
                (
                    "What does {name} make?",
                    "Which goods are made at {name}?",
                    "What is made by {name}?",
                ),
            ),
            Attribute(
                "founder",
                "The founder was {value}, a runaway clerk.",
                (
                    "Who founded {name}?",
                    "What was the founder of {name} called?",
                    "Who was the founder of {name}?",
                ),
            ),
            Attribute(
                "staff",
                "It employs {value} people.",
                (
                    "How many people does {name} employ?",
                    "How many people work at {name}?",
                    "How large is the staff of {name}?",
                ),
            ),
            Attribute(
                "street",
                "The door is in {value}, under a blue sign.",
                (
                    "In which street is {name}?",
                    "On which street does one find {name}?",
                    "Where is the door of {name}?",
                ),
            ),
            Attribute(
                "hour",
                "It closes at {value} in the afternoon.",
                (
                    "At which hour of the afternoon does {name} close?",
                    "Until when is {name} open in the afternoon?",
                    "When does {name} close?",
                ),
            ),
            Attribute(
                "prize",
                "In {value} it won the Guild's gold medal.",
                (
                    "In which year did {name} win the gold medal?",
                    "What year brought {name} the Guild's gold medal?",
                    "When did {name} win the Guild's medal?",
                ),
            ),
        ),
        {
            "Tamsin and Daughters": ("umbrellas", "Wick Tamsin", "12", "Rope Walk", "five", "1954"),
            "Oddfellow's": ("pocket clocks", "Lira Oddfellow", "7", "Gull Lane", "three", "1931"),
            "The Bellmaker's Yard": ("ship bells", "Gorm Attle", "23", "Anvil Row", "six", "1978"),
            "Finlay Marsh": ("oak barrels", "Ada Trevanion", "31", "Cooper Street", "four", "1962"),
            "Larkspur House": ("ink", "Vera Nunnery", "5", "Candle Court", "two", "1947"),
            "Stoneham's": ("wool blankets", "Piet Stoneham", "46", "Weaver Hill", "seven", "1989"),
        },
    ),
    Kind(
        "festival",
        "{name} is a festival of the island of Skerrivane.",
        (
            Attribute(
                "month",
                "It is held in the month of {value}.",
                (
                    "In which month is {name} held?",
                    "Which month brings {name}?",
                    "When in the year is {name}?",
                ),
            ),
            Attribute(
                "town",
                "The procession starts at the market of {value}.",
                (
                    "In which town does the procession of {name} start?",
                    "At the market of which town does {name} begin?",
                    "Where does the procession of {name} start?",
                ),
            ),
            Attribute(
                "days",
                "It lasts {value} days, rain or not.",
                (
                    "How many days does {name} last?",
                    "For how many days is {name} held?",
                    "How long does {name} last?",
                ),
            ),
            Attribute(
                "gift",
                "Neighbours give each other {value}.",
                (
                    "What do neighbours give each other at {name}?",
                    "Which gift is given at {name}?",
                    "What is the gift of {name}?",
                ),
            ),
            Attribute(
                "honours",
                "It honours {value}, who ended the salt tax.",
                (
                    "Whom does {name} honour?",
                    "In whose honour is {name} held?",
                    "Who is honoured at {name}?",
                ),
            ),
            Attribute(
                "visitors",
                "Last year {value} visitors came.",
                (
                    "How many visitors came to {name} last year?",
                    "What was the number of visitors at {name} last year?",
                    "How many people visited {name} last year?",
                ),
            ),
        ),
        {
            "Lantern Week": ("November", "Dunmarrow", "6", "beeswax", "Abbess Oriel", "4300"),
            "the Herring Fair": ("March", "Tolgate", "3", "brass hooks", "Hanno Reed", "2150"),
            "Stone Night": ("January", "Garrow", "7", "pebbles", "Widow Castell", "890"),
            "the Kite Days": ("May", "Eastry", "4", "paper birds", "Admiral Foss", "6700"),
            "Apple Court": ("October", "Wickholm", "2", "cider cups", "Judge Pomeroy", "3480"),
            "the Bell Run": ("August", "Varrow", "5", "red ribbons", "Ketil Bray", "5120"),
        },
    ),
)
