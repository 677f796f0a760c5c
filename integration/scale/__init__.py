"""How what a job asks of its coordinator and of storage grows with its processes."""
