"""Weights: their names, published ones in this package's form, and those of one configuration in another."""
