"""Weights: names, published ones in this package's form, those of one configuration in another, uploads to the Hub."""
