"""What is loaded, trained and saved: policies, reward models, references, samplers."""
