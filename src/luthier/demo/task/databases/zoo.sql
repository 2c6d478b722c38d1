CREATE TABLE animals (id INTEGER PRIMARY KEY, name TEXT, species TEXT, origin TEXT, age INTEGER, weight INTEGER);
INSERT INTO animals VALUES
  (1, 'Lucky Luna', 'Tiger', 'Africa', 22, 190),
  (2, 'Brave Max', 'Lion', 'Africa', 15, 110),
  (3, 'Brave Nala', 'Otter', 'Africa', 16, 20),
  (4, 'Lucky Rocky', 'Tiger', 'Asia', 3, 40),
  (5, 'Little Coco', 'Zebra', 'Asia', 28, 320),
  (6, 'Brave Rocky', 'Lion', 'Europe', 12, 315),
  (7, 'Old Rocky', 'Lion', 'Europe', 17, 385),
  (8, 'Little Max', 'Otter', 'Africa', 21, 105),
  (9, 'Old Luna', 'Tiger', 'Africa', 23, 75),
  (10, 'Little Luna', 'Lion', 'Asia', 4, 195),
  (11, 'Brave Luna', 'Panda', 'Asia', 5, 325),
  (12, 'Old Nala', 'Otter', 'Asia', 9, 340),
  (13, 'Little Nala', 'Zebra', 'Europe', 6, 115),
  (14, 'Sleepy Coco', 'Lion', 'Europe', 14, 305);
