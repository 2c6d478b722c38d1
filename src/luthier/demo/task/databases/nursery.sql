CREATE TABLE plants (id INTEGER PRIMARY KEY, name TEXT, soil TEXT, season TEXT, height INTEGER, price REAL);
INSERT INTO plants VALUES
  (1, 'White Iris', 'Chalk', 'Summer', 140, 22.25),
  (2, 'Alpine Maple', 'Chalk', 'Spring', 85, 17.25),
  (3, 'Alpine Rose', 'Peat', 'Summer', 170, 21.25),
  (4, 'White Maple', 'Clay', 'Spring', 125, 6.95),
  (5, 'Dwarf Heather', 'Sand', 'Spring', 80, 22.95),
  (6, 'Scarlet Heather', 'Clay', 'Autumn', 185, 2.25),
  (7, 'Alpine Heather', 'Sand', 'Summer', 35, 10.95),
  (8, 'Alpine Thyme', 'Clay', 'Autumn', 280, 19.95),
  (9, 'Creeping Thyme', 'Sand', 'Spring', 240, 29.25),
  (10, 'Scarlet Iris', 'Peat', 'Autumn', 165, 25.25),
  (11, 'Scarlet Rose', 'Chalk', 'Spring', 45, 16.25),
  (12, 'Dwarf Thyme', 'Chalk', 'Spring', 120, 26.25),
  (13, 'Alpine Iris', 'Sand', 'Summer', 70, 28.25),
  (14, 'Creeping Rose', 'Sand', 'Spring', 145, 2.95);
