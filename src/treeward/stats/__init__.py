"""Statistics with numpy and scipy only: tables, comparisons, intervals, tests, calibration, diversity, frontiers."""
