CREATE TABLE employees (id INTEGER PRIMARY KEY, name TEXT, department_id INTEGER, role TEXT, salary INTEGER, start_year INTEGER);
INSERT INTO employees VALUES
  (1, 'Felix Carter', 10, 'Designer', 49000, 2001),
  (2, 'Grace Baker', 1, 'Manager', 66000, 2004),
  (3, 'Bruno Mason', 10, 'Designer', 35500, 2016),
  (4, 'Laura Porter', 3, 'Designer', 46000, 1999),
  (5, 'Henry Turner', 8, 'Engineer', 75500, 2012),
  (6, 'Martin Hughes', 1, 'Engineer', 34500, 2000),
  (7, 'Jonas Fisher', 7, 'Designer', 76500, 1995),
  (8, 'Felix Mason', 7, 'Manager', 54000, 2018),
  (9, 'Emma Porter', 10, 'Designer', 68000, 2019),
  (10, 'Clara Young', 3, 'Engineer', 33000, 2020),
  (11, 'Laura Keller', 4, 'Analyst', 65000, 2015),
  (12, 'Clara Carter', 1, 'Designer', 54500, 2014),
  (13, 'Felix Walsh', 9, 'Analyst', 31500, 2006),
  (14, 'Laura Young', 8, 'Analyst', 63500, 2010),
  (15, 'Emma Turner', 2, 'Engineer', 59000, 2021),
  (16, 'Ivy Dawson', 4, 'Manager', 32000, 2005),
  (17, 'Martin Carter', 2, 'Designer', 57000, 2017);

CREATE TABLE departments (id INTEGER PRIMARY KEY, name TEXT, city TEXT, budget INTEGER);
INSERT INTO departments VALUES
  (1, 'Southern Research', 'Bristol', 280),
  (2, 'Western Research', 'Dundee', 400),
  (3, 'Southern Support', 'Leeds', 700),
  (4, 'Western Finance', 'Cardiff', 120),
  (5, 'Southern Sales', 'Bristol', 640),
  (6, 'Northern Research', 'Leeds', 460),
  (7, 'Northern Support', 'Leeds', 800),
  (8, 'Western Support', 'Dundee', 560),
  (9, 'Western Sales', 'Dundee', 840),
  (10, 'Central Finance', 'Cardiff', 220);
