"""Pages and figures, from run directories. Imports runs and stats only."""
