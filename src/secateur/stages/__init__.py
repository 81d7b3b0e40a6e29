"""The stages of a recipe, each over all blocks of a model."""
