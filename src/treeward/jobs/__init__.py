"""What a command does, one file a verb: checks, train, evaluate, receipt."""
