"""Ways to write a program to a file that other software runs."""
