"""The Trip domain: random journeys, three read models of them, and an independent oracle."""
