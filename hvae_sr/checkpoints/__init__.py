"""Folders of trained models: their cards."""

from .card import IMAGES_FOLDER, NOTES_FILE, model_card, write_model_card

__all__ = ["IMAGES_FOLDER", "NOTES_FILE", "model_card", "write_model_card"]
