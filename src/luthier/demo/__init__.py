"""The task that ships with Luthier: questions in English, answers in SQL."""
