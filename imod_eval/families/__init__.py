"""`imod families`: every family of models down the whole road, on shrunken models, as a table."""
