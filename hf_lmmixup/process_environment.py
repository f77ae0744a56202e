"""The environment under which the commands of this package run, and the trainings that they start.

The libraries read it when they are loaded, so it is set before. What a user has set stays::

    command_environment = ENVIRONMENT | os.environ
"""

ENVIRONMENT = {
    # Threads that spin for long while they wait make a tiny model 7 times slower beside one other busy process.
    "GOMP_SPINCOUNT": "10000",
}
