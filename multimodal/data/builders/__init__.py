"""TFDS builders of this codebase, by name; each shows how to add a data set of one's own."""

BUILDERS = {"emoji_names": "multimodal.data.builders.emoji_names:EmojiNames"}
