CREATE TABLE wines (id INTEGER PRIMARY KEY, name TEXT, estate_id INTEGER, grape TEXT, price REAL, vintage INTEGER);
INSERT INTO wines VALUES
  (1, 'Dark Valley', 7, 'Syrah', 47.25, 2008),
  (2, 'Amber Harvest', 8, 'Syrah', 31.25, 1988),
  (3, 'Gentle Valley', 3, 'Syrah', 51.25, 1997),
  (4, 'Ancient Valley', 2, 'Merlot', 40.95, 2003),
  (5, 'Gentle Harvest', 1, 'Syrah', 45.95, 2004),
  (6, 'Amber Barrel', 9, 'Malbec', 48.95, 2015),
  (7, 'Ancient Hillside', 2, 'Syrah', 26.25, 2016),
  (8, 'Ancient Harvest', 8, 'Syrah', 50.95, 2002),
  (9, 'Gentle Barrel', 8, 'Riesling', 14.25, 1985),
  (10, 'Ancient Barrel', 7, 'Merlot', 36.95, 2014),
  (11, 'Gentle Hillside', 1, 'Syrah', 59.25, 1987),
  (12, 'Dark Cellar', 8, 'Syrah', 42.95, 2020),
  (13, 'Gentle Cellar', 2, 'Riesling', 12.25, 2011),
  (14, 'Noble Barrel', 2, 'Riesling', 17.25, 2013),
  (15, 'Noble Cellar', 9, 'Syrah', 9.25, 1989),
  (16, 'Amber Valley', 9, 'Merlot', 36.25, 1994),
  (17, 'Noble Hillside', 1, 'Malbec', 11.25, 1993),
  (18, 'Amber Hillside', 6, 'Merlot', 54.25, 2005),
  (19, 'Amber Cellar', 9, 'Syrah', 28.25, 1990),
  (20, 'Dark Harvest', 3, 'Malbec', 52.25, 1999);

CREATE TABLE estates (id INTEGER PRIMARY KEY, name TEXT, region TEXT, area INTEGER);
INSERT INTO estates VALUES
  (1, 'Saint Verde', 'Alsace', 98),
  (2, 'Upper Claire', 'Tuscany', 37),
  (3, 'Saint Claire', 'Tuscany', 161),
  (4, 'Monte Laurent', 'Tuscany', 61),
  (5, 'Monte Claire', 'Alsace', 165),
  (6, 'Lower Claire', 'Tuscany', 16),
  (7, 'Upper Bravo', 'Tuscany', 34),
  (8, 'Upper Verde', 'Rioja', 29),
  (9, 'Upper Laurent', 'Alsace', 8);
