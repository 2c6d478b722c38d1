CREATE TABLE bridges (id INTEGER PRIMARY KEY, name TEXT, river TEXT, material TEXT, length INTEGER, opening_year INTEGER);
INSERT INTO bridges VALUES
  (1, 'Old Span', 'Severn', 'Stone', 850, 1983),
  (2, 'Old Crossing', 'Thames', 'Timber', 30, 2004),
  (3, 'Iron Arch', 'Severn', 'Steel', 660, 1828),
  (4, 'Castle Arch', 'Severn', 'Timber', 710, 1955),
  (5, 'Abbey Viaduct', 'Tyne', 'Timber', 370, 1956),
  (6, 'Castle Span', 'Clyde', 'Timber', 510, 1844),
  (7, 'Old Viaduct', 'Severn', 'Steel', 840, 1826),
  (8, 'Castle Causeway', 'Clyde', 'Timber', 540, 1877),
  (9, 'Iron Viaduct', 'Tyne', 'Steel', 430, 1832),
  (10, 'Old Causeway', 'Thames', 'Stone', 410, 1799),
  (11, 'Abbey Causeway', 'Tyne', 'Stone', 780, 1917),
  (12, 'Market Viaduct', 'Tyne', 'Timber', 280, 1909),
  (13, 'Iron Causeway', 'Clyde', 'Stone', 740, 1792),
  (14, 'Market Crossing', 'Clyde', 'Timber', 570, 1796),
  (15, 'Abbey Arch', 'Clyde', 'Steel', 440, 1805),
  (16, 'Iron Span', 'Tyne', 'Steel', 790, 1860),
  (17, 'Castle Crossing', 'Severn', 'Steel', 380, 1918);
