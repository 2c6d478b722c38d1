CREATE TABLE paintings (id INTEGER PRIMARY KEY, title TEXT, artist_id INTEGER, style TEXT, year INTEGER, value INTEGER);
INSERT INTO paintings VALUES
  (1, 'Evening Village', 4, 'Baroque', 1853, 490),
  (2, 'Stormy Field', 4, 'Realist', 1861, 520),
  (3, 'Morning Orchard', 2, 'Baroque', 1910, 360),
  (4, 'Morning Village', 7, 'Baroque', 1954, 40),
  (5, 'Quiet Orchard', 3, 'Cubist', 1850, 750),
  (6, 'Blue Field', 7, 'Cubist', 1825, 660),
  (7, 'Stormy Lake', 7, 'Baroque', 1831, 850),
  (8, 'Blue Lake', 2, 'Baroque', 1868, 20),
  (9, 'Quiet Window', 1, 'Cubist', 1946, 60),
  (10, 'Morning Window', 8, 'Baroque', 1869, 740),
  (11, 'Evening Orchard', 7, 'Realist', 1880, 880),
  (12, 'Morning Lake', 6, 'Cubist', 1875, 610),
  (13, 'Quiet Lake', 8, 'Realist', 1959, 80),
  (14, 'Evening Window', 6, 'Baroque', 1844, 630);

CREATE TABLE artists (id INTEGER PRIMARY KEY, name TEXT, country TEXT, birth_year INTEGER);
INSERT INTO artists VALUES
  (1, 'Daniel Keller', 'Mexico', 1824),
  (2, 'Henry Keller', 'Norway', 1902),
  (3, 'Emma Dawson', 'Spain', 1863),
  (4, 'Alice Hughes', 'Norway', 1835),
  (5, 'Jonas Keller', 'Mexico', 1891),
  (6, 'Ivy Turner', 'Poland', 1866),
  (7, 'Emma Reed', 'Poland', 1903),
  (8, 'Henry Young', 'Spain', 1916);
