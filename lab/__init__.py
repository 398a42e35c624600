"""Finetune Lab: set up, run, watch and compare fine-tuning runs on one machine."""

__version__ = "0.1.0"
