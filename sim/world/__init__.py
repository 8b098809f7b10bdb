"""From a scenario to its world: texts, costs, links, arrivals, availability and what changes on
devices.
"""
