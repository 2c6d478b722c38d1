CREATE TABLE hotels (id INTEGER PRIMARY KEY, name TEXT, city TEXT, owner TEXT, capacity INTEGER, rate REAL);
INSERT INTO hotels VALUES
  (1, 'Park Palace', 'Athens', 'Family', 306, 48.95),
  (2, 'Station Palace', 'Porto', 'Chain', 284, 103.95),
  (3, 'Royal Inn', 'Vienna', 'Trust', 182, 141.95),
  (4, 'Seaside Lodge', 'Vienna', 'Chain', 250, 52.95),
  (5, 'Grand Manor', 'Vienna', 'Trust', 94, 71.25),
  (6, 'Seaside Plaza', 'Prague', 'Chain', 258, 108.25),
  (7, 'Royal Lodge', 'Porto', 'Trust', 252, 49.25),
  (8, 'Park Lodge', 'Vienna', 'Family', 28, 195.95),
  (9, 'Park Plaza', 'Prague', 'Chain', 308, 46.25),
  (10, 'Park Inn', 'Vienna', 'Family', 216, 135.95),
  (11, 'Station Inn', 'Porto', 'Trust', 244, 239.25),
  (12, 'Grand Plaza', 'Vienna', 'Trust', 224, 157.25),
  (13, 'Seaside Manor', 'Prague', 'Chain', 178, 156.25),
  (14, 'Royal Manor', 'Vienna', 'Family', 26, 135.25),
  (15, 'Station Manor', 'Porto', 'Chain', 316, 121.25),
  (16, 'Grand Lodge', 'Athens', 'Family', 184, 236.25),
  (17, 'Royal Plaza', 'Athens', 'Chain', 272, 93.95);
