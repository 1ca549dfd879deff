"""Real clusters under fire: clients that record what they see, faults drawn from a seed, and a checker that judges the record.

``checker`` knows neither processes nor networks; ``clients`` load a cluster; ``faults`` break it; ``run`` puts the three together and says
what came of it. ``bin/chaos`` is the command.
"""
