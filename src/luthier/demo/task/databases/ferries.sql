CREATE TABLE ferries (id INTEGER PRIMARY KEY, name TEXT, port_id INTEGER, fuel TEXT, speed INTEGER, capacity INTEGER);
INSERT INTO ferries VALUES
  (1, 'Highland Queen', 6, 'Diesel', 20, 180),
  (2, 'Ocean Spirit', 9, 'Electric', 32, 120),
  (3, 'Northern Queen', 3, 'Electric', 38, 1900),
  (4, 'Island Spirit', 5, 'Electric', 18, 1640),
  (5, 'Ocean Pearl', 3, 'Diesel', 23, 1660),
  (6, 'Highland Star', 7, 'Diesel', 16, 280),
  (7, 'Island Pearl', 2, 'Gas', 33, 960),
  (8, 'Northern Breeze', 2, 'Diesel', 30, 500),
  (9, 'Coral Queen', 9, 'Electric', 19, 660),
  (10, 'Island Breeze', 1, 'Diesel', 27, 1320),
  (11, 'Ocean Queen', 4, 'Electric', 31, 1220),
  (12, 'Coral Star', 7, 'Diesel', 12, 760),
  (13, 'Northern Star', 7, 'Gas', 14, 1400),
  (14, 'Highland Pearl', 8, 'Gas', 9, 80),
  (15, 'Island Star', 7, 'Electric', 36, 240),
  (16, 'Northern Pearl', 2, 'Gas', 11, 840),
  (17, 'Coral Spirit', 6, 'Gas', 26, 620),
  (18, 'Ocean Breeze', 5, 'Electric', 25, 380);

CREATE TABLE ports (id INTEGER PRIMARY KEY, name TEXT, country TEXT, depth INTEGER);
INSERT INTO ports VALUES
  (1, 'Upper Sands', 'Scotland', 25),
  (2, 'New Sands', 'Scotland', 23),
  (3, 'Upper Haven', 'Greece', 17),
  (4, 'Upper Cliff', 'Sweden', 14),
  (5, 'Lower Cliff', 'Scotland', 15),
  (6, 'Lower Sands', 'Scotland', 21),
  (7, 'Lower Marlow', 'Sweden', 20),
  (8, 'New Marlow', 'Scotland', 24),
  (9, 'Saint Marlow', 'Scotland', 26);
