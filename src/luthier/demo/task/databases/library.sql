CREATE TABLE books (id INTEGER PRIMARY KEY, title TEXT, author_id INTEGER, genre TEXT, year INTEGER, length INTEGER);
INSERT INTO books VALUES
  (1, 'Broken Crown', 2, 'Travel', 1978, 250),
  (2, 'Hidden River', 2, 'Crime', 1970, 405),
  (3, 'Silent Harbour', 1, 'Crime', 1958, 210),
  (4, 'Broken River', 2, 'Travel', 1993, 125),
  (5, 'Hidden Harbour', 4, 'Travel', 1956, 515),
  (6, 'Golden Letter', 7, 'Crime', 1965, 395),
  (7, 'Golden Garden', 5, 'Fantasy', 1991, 280),
  (8, 'Silent Letter', 7, 'Travel', 1952, 375),
  (9, 'Golden Crown', 1, 'Fantasy', 2010, 605),
  (10, 'Winter Garden', 7, 'Crime', 1988, 175),
  (11, 'Winter Harbour', 8, 'History', 1957, 630),
  (12, 'Silent Garden', 1, 'Fantasy', 2017, 485),
  (13, 'Silent Crown', 5, 'Travel', 1981, 595),
  (14, 'Winter Letter', 2, 'Travel', 1964, 520),
  (15, 'Winter Crown', 6, 'Crime', 1997, 155),
  (16, 'Winter River', 8, 'Fantasy', 1999, 640);

CREATE TABLE authors (id INTEGER PRIMARY KEY, name TEXT, country TEXT, birth_year INTEGER);
INSERT INTO authors VALUES
  (1, 'Emma Turner', 'France', 1947),
  (2, 'Ivy Walsh', 'France', 1948),
  (3, 'Ivy Mason', 'Brazil', 1922),
  (4, 'Bruno Reed', 'Ireland', 1943),
  (5, 'Grace Young', 'France', 1980),
  (6, 'Clara Mason', 'France', 1974),
  (7, 'Bruno Fisher', 'Brazil', 1938),
  (8, 'Felix Fisher', 'France', 1934),
  (9, 'Ivy Dawson', 'France', 1964);
