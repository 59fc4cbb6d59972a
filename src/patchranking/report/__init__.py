"""The report: charts, the wall of images and one self-contained HTML page."""
