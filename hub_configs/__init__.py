"""One folder for each published or bundled model: its configuration, and weights where they are bundled."""
