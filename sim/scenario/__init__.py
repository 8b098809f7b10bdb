"""Scenario files: what they may say, checked before anything is built, with every mistake at its
place.
"""
