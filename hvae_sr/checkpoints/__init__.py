"""Weights: their names, published ones brought into this package's form, and uploads to the Hub."""
