"""The proof that a run learned: identities before step one, watches, movement after, verdict, receipt."""
