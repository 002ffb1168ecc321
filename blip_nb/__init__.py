"""blip_nb: the BLIP family in notebooks that are also the library. Names load when they are first used."""
__version__ = "0.1.0"
