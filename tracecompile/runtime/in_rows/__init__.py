"""A prologue that keeps its rows apart but for the normalisations: backward computes a few of them at a time."""
