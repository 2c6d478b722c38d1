CREATE TABLE students (id INTEGER PRIMARY KEY, name TEXT, teacher_id INTEGER, club TEXT, age INTEGER, score INTEGER);
INSERT INTO students VALUES
  (1, 'Alice Mason', 2, 'Chess', 13, 73),
  (2, 'Grace Young', 4, 'Rowing', 11, 68),
  (3, 'Felix Keller', 3, 'Chess', 25, 48),
  (4, 'Bruno Walsh', 5, 'Science', 8, 99),
  (5, 'Alice Dawson', 4, 'Chess', 20, 45),
  (6, 'Daniel Turner', 3, 'Chess', 22, 84),
  (7, 'Clara Dawson', 4, 'Science', 9, 91),
  (8, 'Bruno Young', 8, 'Science', 21, 87),
  (9, 'Bruno Reed', 1, 'Drama', 23, 92),
  (10, 'Jonas Baker', 7, 'Science', 10, 79),
  (11, 'Laura Hughes', 3, 'Chess', 15, 70),
  (12, 'Ivy Young', 8, 'Drama', 27, 97),
  (13, 'Daniel Reed', 5, 'Science', 19, 77),
  (14, 'Henry Turner', 2, 'Rowing', 26, 66),
  (15, 'Emma Mason', 7, 'Chess', 16, 62),
  (16, 'Laura Reed', 1, 'Drama', 18, 81),
  (17, 'Henry Carter', 8, 'Drama', 17, 54),
  (18, 'Jonas Hughes', 4, 'Chess', 14, 80),
  (19, 'Felix Walsh', 8, 'Science', 12, 65);

CREATE TABLE teachers (id INTEGER PRIMARY KEY, name TEXT, subject TEXT, salary INTEGER);
INSERT INTO teachers VALUES
  (1, 'Laura Carter', 'Music', 37000),
  (2, 'Laura Walsh', 'Biology', 39500),
  (3, 'Emma Walsh', 'Biology', 43500),
  (4, 'Henry Reed', 'Music', 34000),
  (5, 'Laura Keller', 'Geography', 38500),
  (6, 'Daniel Hughes', 'Maths', 44000),
  (7, 'Clara Carter', 'Geography', 43000),
  (8, 'Laura Turner', 'Music', 36500);
