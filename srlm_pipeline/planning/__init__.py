"""What a run will cost, before it is started: work counted from the data, speed measured or stated."""
