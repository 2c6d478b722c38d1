CREATE TABLE films (id INTEGER PRIMARY KEY, title TEXT, director TEXT, genre TEXT, year INTEGER, length INTEGER);
INSERT INTO films VALUES
  (1, 'Crimson Island', 'Rossi', 'Horror', 1967, 160),
  (2, 'Distant Summer', 'Rossi', 'Drama', 2019, 148),
  (3, 'Last Promise', 'Moreau', 'Horror', 2017, 92),
  (4, 'Paper Promise', 'Olsen', 'Western', 2010, 158),
  (5, 'Last Island', 'Tanaka', 'Comedy', 1975, 102),
  (6, 'Midnight Summer', 'Moreau', 'Drama', 1991, 110),
  (7, 'Paper Train', 'Rossi', 'Comedy', 1989, 116),
  (8, 'Paper Summer', 'Rossi', 'Western', 1972, 106),
  (9, 'Crimson Train', 'Tanaka', 'Horror', 1978, 186),
  (10, 'Last Shadow', 'Olsen', 'Western', 1984, 146),
  (11, 'Midnight Promise', 'Olsen', 'Drama', 2004, 142),
  (12, 'Last Summer', 'Moreau', 'Horror', 2003, 141),
  (13, 'Distant Promise', 'Tanaka', 'Drama', 1994, 131),
  (14, 'Midnight Train', 'Tanaka', 'Comedy', 1990, 82),
  (15, 'Distant Island', 'Olsen', 'Comedy', 1969, 93);
