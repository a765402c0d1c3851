"""The web page, `hvae-sr demo` and the Space: `engine` draws, `interface` shows. Importable as `hvae_sr.demo`."""
