CREATE TABLE patients (id INTEGER PRIMARY KEY, name TEXT, doctor_id INTEGER, ward TEXT, age INTEGER, bill INTEGER);
INSERT INTO patients VALUES
  (1, 'Jonas Mason', 7, 'Maternity', 72, 3740),
  (2, 'Daniel Dawson', 5, 'Surgical', 36, 3920),
  (3, 'Jonas Baker', 7, 'Surgical', 28, 2120),
  (4, 'Henry Dawson', 3, 'Maternity', 85, 3440),
  (5, 'Jonas Young', 6, 'Cardiac', 70, 2980),
  (6, 'Emma Walsh', 5, 'Surgical', 27, 1160),
  (7, 'Henry Carter', 6, 'Eye', 35, 1440),
  (8, 'Laura Porter', 1, 'Eye', 88, 3100),
  (9, 'Grace Dawson', 2, 'Eye', 38, 1700),
  (10, 'Alice Keller', 7, 'Eye', 86, 2880),
  (11, 'Daniel Porter', 5, 'Cardiac', 73, 4420),
  (12, 'Clara Walsh', 5, 'Surgical', 47, 2780),
  (13, 'Emma Keller', 2, 'Eye', 18, 2200),
  (14, 'Laura Carter', 3, 'Eye', 71, 1360),
  (15, 'Henry Hughes', 2, 'Eye', 19, 900),
  (16, 'Daniel Turner', 1, 'Maternity', 48, 2340),
  (17, 'Bruno Mason', 2, 'Eye', 75, 4280),
  (18, 'Bruno Porter', 7, 'Cardiac', 78, 2600),
  (19, 'Ivy Turner', 6, 'Cardiac', 24, 3460);

CREATE TABLE doctors (id INTEGER PRIMARY KEY, name TEXT, specialty TEXT, hiring_year INTEGER);
INSERT INTO doctors VALUES
  (1, 'Daniel Turner', 'Neurology', 2006),
  (2, 'Laura Porter', 'Surgery', 2001),
  (3, 'Daniel Young', 'Surgery', 2020),
  (4, 'Clara Carter', 'Neurology', 2010),
  (5, 'Martin Carter', 'Oncology', 2000),
  (6, 'Daniel Reed', 'Oncology', 2014),
  (7, 'Ivy Turner', 'Oncology', 1990),
  (8, 'Emma Fisher', 'Oncology', 2009);
