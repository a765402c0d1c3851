"""What is shown and sent of a trained model: its card, made of evaluation reports, and its upload to the Hub.

Above `evaluation/`, which runs pipelines, which look up names in `checkpoints/`.
"""
