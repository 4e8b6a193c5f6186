"""A package, so that its servers and browsers, fixtures of that scope, end with its tests."""
