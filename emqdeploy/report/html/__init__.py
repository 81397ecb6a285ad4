"""One self-contained HTML file: charts as SVG, the raw result inside, nothing fetched from anywhere."""
