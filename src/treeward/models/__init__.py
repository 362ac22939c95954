"""What is loaded, trained and saved: policies, reward models, anchors, samplers."""
