"""The Prometheus edge: a typed catalogue and a collector that reads at scrape time."""
