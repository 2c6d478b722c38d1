CREATE TABLE riders (id INTEGER PRIMARY KEY, name TEXT, team_id INTEGER, country TEXT, age INTEGER, score INTEGER);
INSERT INTO riders VALUES
  (1, 'Ivy Fisher', 8, 'Belgium', 41, 235),
  (2, 'Henry Reed', 8, 'Italy', 38, 135),
  (3, 'Alice Keller', 4, 'Italy', 31, 315),
  (4, 'Jonas Carter', 7, 'Colombia', 36, 185),
  (5, 'Emma Baker', 6, 'Italy', 20, 120),
  (6, 'Felix Turner', 1, 'Denmark', 32, 230),
  (7, 'Henry Dawson', 2, 'Denmark', 23, 170),
  (8, 'Bruno Keller', 5, 'Italy', 34, 425),
  (9, 'Ivy Reed', 8, 'Belgium', 30, 265),
  (10, 'Henry Young', 8, 'Belgium', 35, 405),
  (11, 'Grace Reed', 1, 'Colombia', 22, 440),
  (12, 'Jonas Baker', 8, 'Colombia', 27, 40),
  (13, 'Clara Reed', 2, 'Belgium', 26, 55),
  (14, 'Laura Baker', 1, 'Denmark', 28, 65),
  (15, 'Emma Carter', 2, 'Italy', 33, 175),
  (16, 'Grace Turner', 9, 'Belgium', 37, 285),
  (17, 'Laura Keller', 3, 'Italy', 24, 15),
  (18, 'Bruno Hughes', 1, 'Colombia', 39, 390),
  (19, 'Martin Dawson', 7, 'Belgium', 40, 75),
  (20, 'Alice Carter', 1, 'Denmark', 29, 470);

CREATE TABLE teams (id INTEGER PRIMARY KEY, name TEXT, sponsor TEXT, founding_year INTEGER);
INSERT INTO teams VALUES
  (1, 'Red Wheel', 'Bank', 1970),
  (2, 'Black Comet', 'Brewery', 1981),
  (3, 'Green Comet', 'Bank', 1980),
  (4, 'Black Wheel', 'Brewery', 2007),
  (5, 'Silver Comet', 'Bank', 1962),
  (6, 'Black Falcon', 'Telecom', 1998),
  (7, 'Red Arrow', 'Telecom', 1987),
  (8, 'Green Wheel', 'Bank', 1986),
  (9, 'Silver Wheel', 'Brewery', 1996),
  (10, 'Black Arrow', 'Brewery', 1982);
