"""YAML groups of the command line: values only. Hydra needs this folder to be a package."""
