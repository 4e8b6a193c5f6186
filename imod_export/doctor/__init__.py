"""Doctor: what is wrong with a model or adapter folder before anything large is loaded, and how to mend it."""
