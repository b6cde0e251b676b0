"""Where the weights lie: in main memory while they are not needed, and in fewer bits while they are."""
