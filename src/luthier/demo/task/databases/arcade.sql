CREATE TABLE games (id INTEGER PRIMARY KEY, title TEXT, platform TEXT, studio TEXT, release_year INTEGER, revenue INTEGER);
INSERT INTO games VALUES
  (1, 'Mystic Racer', 'Console', 'Redwood', 1999, 280),
  (2, 'Mystic Quest', 'Mobile', 'Redwood', 2017, 650),
  (3, 'Turbo Castle', 'Console', 'Nimbus', 1998, 590),
  (4, 'Mystic Blaster', 'Desktop', 'Orbit', 2014, 180),
  (5, 'Pixel Castle', 'Mobile', 'Nimbus', 1985, 740),
  (6, 'Pixel Racer', 'Mobile', 'Orbit', 1992, 270),
  (7, 'Super Blaster', 'Mobile', 'Redwood', 1993, 770),
  (8, 'Turbo Ninja', 'Mobile', 'Bluefin', 2023, 340),
  (9, 'Mystic Ninja', 'Console', 'Redwood', 2002, 870),
  (10, 'Turbo Quest', 'Console', 'Nimbus', 2013, 620),
  (11, 'Pixel Blaster', 'Desktop', 'Redwood', 1995, 700),
  (12, 'Turbo Racer', 'Desktop', 'Bluefin', 2015, 600),
  (13, 'Cosmic Racer', 'Console', 'Redwood', 2003, 630),
  (14, 'Turbo Blaster', 'Desktop', 'Orbit', 2005, 310);
