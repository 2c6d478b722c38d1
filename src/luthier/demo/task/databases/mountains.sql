CREATE TABLE peaks (id INTEGER PRIMARY KEY, name TEXT, chain TEXT, rock TEXT, height INTEGER, ascent_year INTEGER);
INSERT INTO peaks VALUES
  (1, 'Lone Horn', 'Rockies', 'Basalt', 3525, 1912),
  (2, 'Lone Needle', 'Rockies', 'Granite', 2725, 1985),
  (3, 'Eagle Needle', 'Andes', 'Limestone', 5700, 1942),
  (4, 'Thunder Summit', 'Alps', 'Granite', 6750, 1883),
  (5, 'Eagle Dome', 'Atlas', 'Basalt', 5450, 1854),
  (6, 'Twin Ridge', 'Atlas', 'Basalt', 5975, 1910),
  (7, 'Lone Summit', 'Atlas', 'Granite', 3100, 1905),
  (8, 'Frozen Horn', 'Rockies', 'Granite', 6200, 1970),
  (9, 'Lone Dome', 'Andes', 'Limestone', 6800, 1920),
  (10, 'Twin Needle', 'Alps', 'Basalt', 5775, 1895),
  (11, 'Thunder Dome', 'Atlas', 'Limestone', 4900, 1872),
  (12, 'Frozen Summit', 'Rockies', 'Granite', 3475, 1843),
  (13, 'Thunder Ridge', 'Atlas', 'Basalt', 6725, 1966),
  (14, 'Lone Ridge', 'Andes', 'Basalt', 3775, 1956);
