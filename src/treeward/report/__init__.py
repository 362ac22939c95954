"""Pages from run directories: one self-contained HTML file, figures inside. No torch."""
