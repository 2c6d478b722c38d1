CREATE TABLE albums (id INTEGER PRIMARY KEY, title TEXT, band_id INTEGER, format TEXT, year INTEGER, income INTEGER);
INSERT INTO albums VALUES
  (1, 'Neon Rain', 5, 'Vinyl', 2016, 45),
  (2, 'Neon Dreams', 6, 'Disc', 1975, 80),
  (3, 'Electric Fire', 5, 'Tape', 2012, 825),
  (4, 'Wild Rain', 8, 'Disc', 1970, 620),
  (5, 'Velvet Highway', 8, 'Vinyl', 2003, 225),
  (6, 'Electric Echo', 7, 'Disc', 2018, 880),
  (7, 'Wild Echo', 1, 'Disc', 2009, 760),
  (8, 'Neon Fire', 2, 'Tape', 2001, 885),
  (9, 'Velvet Dreams', 8, 'Disc', 1999, 265),
  (10, 'Wild Dreams', 3, 'Disc', 1980, 820),
  (11, 'Lonely Highway', 4, 'Vinyl', 1977, 560),
  (12, 'Neon Echo', 5, 'Tape', 2008, 205),
  (13, 'Velvet Fire', 1, 'Vinyl', 2007, 75),
  (14, 'Electric Rain', 4, 'Disc', 1983, 540),
  (15, 'Lonely Rain', 1, 'Tape', 1978, 955),
  (16, 'Lonely Fire', 5, 'Disc', 2000, 475),
  (17, 'Electric Highway', 1, 'Vinyl', 1979, 815);

CREATE TABLE bands (id INTEGER PRIMARY KEY, name TEXT, genre TEXT, city TEXT, size INTEGER);
INSERT INTO bands VALUES
  (1, 'Electric Pilots', 'Folk', 'Lisbon', 8),
  (2, 'Royal Lanterns', 'Soul', 'Glasgow', 5),
  (3, 'Electric Mirrors', 'Soul', 'Glasgow', 2),
  (4, 'Rusty Lanterns', 'Jazz', 'Berlin', 3),
  (5, 'Rusty Pilots', 'Folk', 'Lisbon', 10),
  (6, 'Royal Foxes', 'Rock', 'Berlin', 13),
  (7, 'Flying Mirrors', 'Folk', 'Berlin', 4),
  (8, 'Flying Foxes', 'Soul', 'Lisbon', 7);
