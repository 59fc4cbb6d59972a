"""The report: charts, examples and one self-contained HTML page."""
