"""Models: policies, reward models, reference models and samplers; how they are loaded, run and saved."""
